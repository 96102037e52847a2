//! What the host's kernel must be able to do, tried out. Called by `doctor`.

use std::io;
use std::path::Path;

use shim::ledger::{Ledger, Owner, Shim};

use super::Finding;

pub(super) fn check() -> Vec<Finding> {
    vec![mounts(), network()]
}

/// System calls that the share cannot do without; asked with arguments that none of them accepts.
fn mounts() -> Finding {
    const CHECK: &str = "mounts";
    let calls = [
        ("open_tree", libc::SYS_open_tree, "5.2"),
        ("move_mount", libc::SYS_move_mount, "5.2"),
        ("openat2", libc::SYS_openat2, "5.6"),
        ("mount_setattr", libc::SYS_mount_setattr, "5.12"),
    ];
    for (name, number, since) in calls {
        // SAFETY: every argument is a bad descriptor, a null pointer or a bad size, so the kernel refuses the call
        // before it does anything.
        let answer =
            unsafe { libc::syscall(number, -1, std::ptr::null::<u8>(), -1, std::ptr::null::<u8>(), 0) };
        let error = io::Error::last_os_error();
        if answer == -1 && error.raw_os_error() == Some(libc::ENOSYS) {
            let text = format!("the kernel lacks {name}");
            return Finding::broken(CHECK, text, format!("boot Linux {since} or newer"));
        }
    }
    Finding::ok(CHECK, "open_tree, move_mount, openat2, mount_setattr")
}

/// Makes a network namespace with two taps and redirects between them, exactly as for a pod, and takes it all away.
fn network() -> Finding {
    const CHECK: &str = "network";
    let failed = |error: &shim::Error| {
        let hint = "pods need network namespaces, tun, and tc's u32 and mirred: load the modules tun, sch_ingress, \
                    cls_u32 and act_mirred";
        Finding::broken(CHECK, error.chain(), hint)
    };
    let dir = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => return Finding::broken(CHECK, format!("Could not make a directory: {error}"), ""),
    };
    let ledger = match ledger(&dir.path().join("probe")) {
        Ok(ledger) => ledger,
        Err(error) => return failed(&error),
    };
    let tried = try_network(&ledger);
    let left = ledger.release_all();
    match (tried, left.first()) {
        (Ok(()), None) => Finding::ok(CHECK, "namespace, taps and redirects can be made"),
        (Err(error), _) => failed(&error),
        (_, Some(error)) => failed(error),
    }
}

fn ledger(dir: &Path) -> shim::Result<Ledger> {
    let owner = Owner {
        namespace: "microvmctl".into(),
        sandbox: "doctor".into(),
        bundle: dir.into(),
        containerd_address: "".into(),
        ttrpc_address: String::new(),
        shim: Shim::current()?,
    };
    Ledger::create(dir, owner)
}

fn try_network(ledger: &Ledger) -> shim::Result<()> {
    let netns = ledger.dir().join("netns");
    shim::network::create_netns(&netns, ledger)?;
    let taps = shim::network::taps(&netns, 2, ledger)?;
    match taps.as_slice() {
        [one, other] => shim::network::redirect(&netns, one, other, ledger),
        _ => Ok(()),
    }
}
