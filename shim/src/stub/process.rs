//! The stub itself: `main` runs in the re-executed process, alone and single-threaded, and knows no runtime.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, chdir, chroot, pivot_root, setgroups, setresgid, setresuid, setsid};

use super::{Net, Place, READY};

/// Name of the process in `ps` and `/proc/<pid>/comm`.
pub(super) const COMM: &str = "microvm-task";
/// The kernel's overflow user: it owns nothing.
const NOBODY: u32 = 65534;

const CGROUP: &str = "cgroup=";
const NETNS: &str = "netns=";
const NEW_NETNS: &str = "new-netns";

pub(super) fn arguments(place: &Place) -> Vec<OsString> {
    let with = |key: &str, path: &Path| {
        let mut argument = OsString::from(key);
        argument.push(path);
        argument
    };
    let mut arguments: Vec<_> = place.cgroup_procs.iter().map(|path| with(CGROUP, path)).collect();
    match &place.net {
        Net::Host => {}
        Net::Join(path) => arguments.push(with(NETNS, path)),
        Net::New => arguments.push(NEW_NETNS.into()),
    }
    arguments
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Place, String> {
    let mut place = Place::default();
    for argument in arguments {
        let path = |key: &str| {
            let rest = argument.as_bytes().strip_prefix(key.as_bytes())?;
            Some(PathBuf::from(OsString::from_vec(rest.to_vec())))
        };
        if let Some(path) = path(CGROUP) {
            place.cgroup_procs.push(path);
        } else if let Some(path) = path(NETNS) {
            place.net = Net::Join(path);
        } else if argument == NEW_NETNS {
            place.net = Net::New;
        } else {
            return Err(format!("unknown argument {argument:?}"));
        }
    }
    Ok(place)
}

/// Goes where `arguments` (those after `argv[1]`) say, tells the shim on fd 0, and sleeps until the shim closes it.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut shim = io::stdin().lock();
    match parse(arguments).and_then(|place| settle(&place)) {
        Ok(()) => {
            // A shim that is gone shows in the read below.
            let _ = tell(READY);
            let _ = shim.read(&mut [0]);
            ExitCode::SUCCESS
        }
        Err(text) => {
            let _ = tell(&text);
            ExitCode::FAILURE
        }
    }
}

/// Fd 0 is a socket, good for both ways.
fn tell(text: &str) -> io::Result<()> {
    // SAFETY: fd 0 is open as long as the process runs; nothing here closes it.
    let shim = unsafe { BorrowedFd::borrow_raw(0) };
    File::from(shim.try_clone_to_owned()?).write_all(text.as_bytes())
}

/// All that makes a stub, in the order in which the rights for the next step are still there.
fn settle(place: &Place) -> Result<(), String> {
    // Fails only for a leader of a process group, which then is out of the shim's session already.
    let _ = setsid();
    prctl::set_name(&std::ffi::CString::new(COMM).unwrap_or_default())
        .map_err(|e| format!("set name: {e}"))?;
    for procs in &place.cgroup_procs {
        fs::write(procs, "0").map_err(|e| format!("join {}: {e}", procs.display()))?;
    }
    match &place.net {
        Net::Host => {}
        Net::Join(path) => File::open(path)
            .and_then(|netns| Ok(setns(netns, CloneFlags::CLONE_NEWNET)?))
            .map_err(|e| format!("join network namespace {}: {e}", path.display()))?,
        Net::New => {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("make a network namespace: {e}"))?;
        }
    }
    empty_root().map_err(|e| format!("make an empty root: {e}"))?;
    close_all_but_stdin().map_err(|e| format!("close files: {e}"))?;
    // Leaving user 0 also gives up all capabilities.
    setgroups(&[]).map_err(|e| format!("drop groups: {e}"))?;
    let (group, user) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    setresgid(group, group, group).map_err(|e| format!("drop group: {e}"))?;
    setresuid(user, user, user).map_err(|e| format!("drop user: {e}"))?;
    prctl::set_no_new_privs().map_err(|e| format!("forbid new privileges: {e}"))
}

/// A mount namespace whose only mount is an empty, read-only tmpfs.
fn empty_root() -> nix::Result<()> {
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Nothing of ours reaches the host. Slave rather than private, for the case that the old root has to stay.
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
    // Any directory that is sure to exist will do; /proc is not needed any more.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(COMM), "/proc", Some("tmpfs"), flags, Some("size=4k,mode=0555"))?;
    chdir("/proc")?;
    if pivot_root(".", ".").is_ok() {
        // The old root lies on top of the new one now.
        umount2(".", MntFlags::MNT_DETACH)?;
    } else {
        // The root of an initramfs, or a chroot that is no mount point, cannot be pivoted away from.
        mount(Some("."), "/", nothing, MsFlags::MS_MOVE, nothing)?;
        chroot(".")?;
    }
    chdir("/")
}

fn close_all_but_stdin() -> io::Result<()> {
    // SAFETY: takes integers only. Nothing in this process uses a descriptor but 0 from here on; output that the
    // standard library might write fails, which nobody sees.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_the_whole_place() {
        for net in [Net::Host, Net::Join("/run/netns/a b=c".into()), Net::New] {
            let place = Place { cgroup_procs: vec!["/x/cgroup.procs".into()], net, ..Place::default() };
            let parsed = parse(arguments(&place).into_iter()).unwrap();
            assert_eq!((parsed.cgroup_procs, parsed.net), (place.cgroup_procs, place.net));
        }
        assert!(parse(["else".into()].into_iter()).unwrap_err().contains("else"));
    }
}
