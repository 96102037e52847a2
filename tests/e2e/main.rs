//! End-to-end tests: a real containerd with our shim, in a test host of its own. Called by `cargo xtask test`.
//!
//! All tests share one test host, run one after another, and must each leave it as they found it.

mod checkpoint;
mod costs;
mod cri;
mod crictl;
mod ctr;
mod deaths;
mod faults;
mod floods;
mod harness;
mod images;
mod share;
mod support;
mod templates;
mod tree;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use tests::host::{self, Payload};

use harness::Test;

#[derive(Debug, Parser)]
struct Arguments {
    /// The workspace's target folder
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Folder made by `cargo xtask install --root`, laid over the test host's tree
    #[arg(long)]
    installed: Option<PathBuf>,
    /// Runtime handler: microvm or runc
    #[arg(long, default_value = "microvm")]
    handler: String,
    /// Print the names of the tests
    #[arg(long)]
    list: bool,
    /// Run in a test host that is a virtual machine, in which KVM works
    #[arg(long)]
    nested: bool,
    /// Run only the tests that every VMM and accelerator must pass
    #[arg(long)]
    core: bool,
    /// Set in the test host
    #[arg(long, hide = true)]
    inside: bool,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Every test, in the order in which they run.
fn all() -> Vec<Test> {
    [
        ctr::TESTS,
        cri::TESTS,
        crictl::TESTS,
        images::TESTS,
        share::TESTS,
        floods::TESTS,
        costs::TESTS,
        checkpoint::TESTS,
        templates::TESTS,
        faults::TESTS,
        deaths::TESTS,
    ]
    .concat()
}

/// One test of each flow that differs between VMMs: what `cargo xtask nested` runs, where every guest's boot takes ten
/// seconds.
const CORE: &[&str] = &[
    "ctr::run_gives_the_exit_code",
    "ctr::run_with_stdin",
    "ctr::run_with_cni",
    "ctr::task_exec",
    "ctr::task_kill",
    "ctr::task_checkpoint_and_restore",
    "cri::two_containers_share_a_pod",
    "checkpoint::a_pod_goes_on_as_a_new_pod",
    "checkpoint::three_checkpoints_in_a_row_are_complete",
    "checkpoint::a_restored_pod_has_the_new_pods_identity",
    "checkpoint::a_full_disk_leaves_the_guest_running",
    "faults::the_vmm_dies",
];

fn main() -> ExitCode {
    host::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<i32> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let wanted = |test: &Test| test.name.contains(filter) && (!arguments.core || CORE.contains(&test.name));
    let tests: Vec<Test> = all().into_iter().filter(wanted).collect();
    if arguments.core && filter.is_empty() {
        ensure!(tests.len() == CORE.len(), "Not all of the core tests are there: {CORE:?}");
    }
    if arguments.list {
        for test in tests {
            println!("{}: test", test.name);
        }
        return Ok(0);
    }
    if arguments.inside {
        return harness::run(&tests, &arguments.handler, arguments.nested);
    }
    let mut inside: Vec<OsString> = vec!["--inside".into(), "--handler".into(), arguments.handler.into()];
    inside.extend(arguments.nested.then(|| "--nested".into()));
    inside.extend(arguments.core.then(|| "--core".into()));
    inside.extend(arguments.filter.map(OsString::from));
    let payload = Payload {
        name: if arguments.nested { "nested" } else { "e2e" }.into(),
        arguments: inside,
        installed: arguments.installed,
        // Built beside this program: see `xtask/src/test.rs`.
        files: vec![(std::env::current_exe()?.with_file_name("intruder"), share::INTRUDER.into())],
        nested: arguments.nested,
        ..Payload::default()
    };
    host::run(&std::path::absolute(&arguments.target)?, &payload)
}
