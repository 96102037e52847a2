//! Real mounts and real daemons of the share, in a mount namespace of this process. Needs root. Not run by the usual
//! harness: the namespace must be made before there is a second thread, and the binary is re-executed as the daemon.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of a test fail it by panicking")]

mod daemons;
mod frontend;
mod mounts;
mod place;

use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// All tests, by name.
const TESTS: &[(&str, fn())] = &[
    ("image is the lower layers, read-only, and nothing is written", mounts::image_is_the_lower_layers),
    ("image of one layer is that layer", mounts::image_of_one_layer_is_that_layer),
    ("image may have a hundred layers with long paths", mounts::image_may_have_many_layers),
    ("image is not copied", mounts::image_is_not_copied),
    ("layers that can not be an image are refused", mounts::bad_images_are_refused),
    ("volumes are files and directories of the host", mounts::volumes_are_of_the_host),
    ("read-only volume is so below too", mounts::read_only_volume_is_so_below_too),
    ("sockets, devices and missing paths are refused", mounts::bad_volumes_are_refused),
    ("links among the mount points are not followed", mounts::planted_links_are_not_followed),
    ("daemon sees what is added later, without write access", daemons::daemon_sees_what_is_added_later),
    ("a hostile guest can not write what is read-only", daemons::hostile_guest_can_not_write),
    ("death of a daemon is told once, with its cause", daemons::death_is_told),
    ("a daemon that can not start says why", daemons::failed_start_says_why),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().unwrap_or_default();
    if first == shim::share::virtiofsd::MODE {
        return shim::share::virtiofsd::main(arguments);
    }
    let filter =
        if first.to_string_lossy().starts_with('-') { String::new() } else { first.to_string_lossy().into() };
    unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let before = place::mounts();
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        assert_eq!(place::mounts(), before, "{name} left mounts behind");
        assert_eq!(place::children(std::process::id()), Vec::<u32>::new(), "{name} left processes behind");
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}
