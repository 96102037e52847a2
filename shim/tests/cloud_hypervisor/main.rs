//! The whole shim on Cloud Hypervisor, with a scripted one: real processes, sockets, ledger, share and network
//! namespace, no VM. Needs root. Not run by the usual harness: the binary is re-executed as the VMM.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

mod faults;
#[path = "../sandbox/host.rs"]
#[expect(dead_code, reason = "the sandbox's own tests use more of it")]
mod host;
mod life;
mod vmm;

use std::process::ExitCode;

/// All tests, by name.
const TESTS: &[(&str, fn())] = &[
    ("a pod boots, is captured, goes on and is restored, twice", life::a_pod_goes_on),
    ("two pods go on from one snapshot at a time", life::two_pods_go_on_from_one_snapshot),
    ("a VMM that is missing or too old is told", life::unusable_vmms_are_told),
    ("a machine of another place or shape is refused by name", life::other_machines_are_refused),
    ("each fault of a boot is told and leaves nothing", faults::boot),
    (
        "each fault of a checkpoint leaves the guest running or gone and the directory empty",
        faults::checkpoint,
    ),
    ("each fault of a restore is told and leaves nothing", faults::restore),
    ("a VMM that hangs is left at the verb's deadline", faults::hang),
    ("a VMM that dies or a guest that resets ends the pod at once", faults::death),
];

fn main() -> ExitCode {
    let arguments = || std::env::args_os().skip(1);
    if arguments().any(|argument| argument == "--script") {
        return shim::testing::cloud_hypervisor::main(arguments());
    }
    let filter =
        arguments().find_map(|argument| argument.into_string().ok().filter(|text| !text.starts_with('-')));
    let filter = filter.unwrap_or_default();
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// Runs one test to its end.
fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}
