//! The last steps of a process before its program, the same for a container's first process and for an exec. The order is what makes
//! them work: the filter comes after the change of user, which it may forbid, and before the loss of CAP_SYS_ADMIN, which it needs.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::unistd::{chdir, execve, getcwd};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, fstat, makedev};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{NOT_SET_UP, capabilities, program};
use crate::container::plan::{Filter, Limit, Process};
use crate::error::{Context as _, Error, Kind, Result};

/// No passwd file is longer.
const LONGEST_PASSWD: u64 = 1 << 20;

/// Why there is no program, and the exit code that tells it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) code: i32,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, code: NOT_SET_UP }
    }
}

/// Returns only on failure.
pub(super) fn run(process: &Process) -> Result<(), Failure> {
    process.limits.iter().try_for_each(set_limit)?;
    give_streams(process.uid)?;
    let env = environment(process);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    change_user(process)?;
    enter(&process.cwd)?;
    let path = program::find(process.args.first().map_or("", String::as_str), &process.env)?;
    let (program, args, env) = (c_string(&path)?, c_strings(&process.args)?, c_strings(&env)?);
    super::close_on_exec()?;
    if process.no_new_privileges {
        set_no_new_privs(true).context(|| "Could not set no_new_privs")?;
    }
    if let Some(filter) = &process.filter {
        load(filter).context(|| "Could not load the seccomp filter")?;
    }
    capabilities::settle(&process.capabilities)?;
    let Err(error) = execve(&program, &args, &env);
    Err(program::refused(&path, error))
}

fn set_limit(limit: &Limit) -> Result<()> {
    let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the kernel reads an rlimit that outlives the call and writes nothing.
    let result = unsafe { libc::setrlimit(limit.resource, &raw const value) };
    Errno::result(result).map(drop).context(|| {
        format!(
            "Could not set resource limit {} to {} (soft) and {} (hard)",
            limit.resource, limit.soft, limit.hard
        )
    })
}

/// A program that is not root opens /dev/stdout by its path, which needs the pipe or terminal to be its own.
fn give_streams(uid: u32) -> Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let about = fstat(stream).context(|| "Could not look at a standard stream")?;
        if about.st_uid != uid && about.st_rdev != makedev(1, 3) {
            fchown(stream, Some(Uid::from_raw(uid)), None)
                .context(|| "Could not give a standard stream to the user")?;
        }
    }
    Ok(())
}

/// The spec's variables, and HOME if it names none.
fn environment(process: &Process) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|pair| pair.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|pair| !pair.starts_with("HOME="));
        env.push(format!("HOME={}", home(process.uid).unwrap_or_else(|| "/".to_owned())));
    }
    env
}

/// Of the container's passwd file, read here: the C library would load the container's own modules to look it up.
fn home(uid: u32) -> Option<String> {
    // Not blocking, in case the image has a pipe of that name.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_PASSWD).read_to_end(&mut bytes).ok()?;
    home_in(&String::from_utf8_lossy(&bytes), uid)
}

/// "name:password:uid:gid:comment:home:shell"
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.get(2).and_then(|field| field.parse().ok()) == Some(uid))?;
    entry.get(5).filter(|home| home.starts_with('/') && !home.contains('\0')).map(|&home| home.to_owned())
}

/// Keeps all capabilities for the steps that follow.
fn change_user(process: &Process) -> Result<()> {
    capabilities::bound(process.capabilities.bounding)?;
    set_keep_capabilities(true).context(|| "Could not keep capabilities over the change of user")?;
    let groups: Vec<_> = process.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    set_thread_groups(&groups).context(|| format!("Could not set additional groups {:?}", process.groups))?;
    let gid = Gid::from_raw(process.gid);
    set_thread_res_gid(gid, gid, gid).context(|| format!("Could not become group {}", process.gid))?;
    let uid = Uid::from_raw(process.uid);
    set_thread_res_uid(uid, uid, uid).context(|| format!("Could not become user {}", process.uid))?;
    capabilities::raise()
}

/// A path through /proc could lead to a directory of the guest that is still open here: that has no name in the container.
fn enter(cwd: &str) -> Result<()> {
    chdir(cwd).context(|| format!("Could not enter the working directory {cwd}"))?;
    let inside = getcwd().is_ok_and(|path| path.is_absolute());
    if inside {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, format!("Working directory {cwd} is outside the container")))
}

fn load(filter: &Filter) -> nix::Result<()> {
    let length = u16::try_from(filter.instructions.len()).map_err(|_| Errno::E2BIG)?;
    // The kernel only reads them.
    let program = libc::sock_fprog { len: length, filter: filter.instructions.as_ptr().cast_mut().cast() };
    // SAFETY: `program` points to `length` instructions of 8 bytes each, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(result).map(drop)
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text)).collect()
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).context(|| format!("{text:?} has a zero byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_found_by_number_and_nonsense_is_skipped() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\n::::::\nme:x:1000:1000::/home/me:\nrel:x:7:7::home:\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/me"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 5), None);
    }
}
