//! Starts the server process and puts it where it belongs, before containerd hears of it. Called by `start`.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use nix::libc;

use super::SERVE;
use super::flags::Flags;
use crate::cgroup;
use crate::error::{Context, Error, Kind, Result};

/// The server finds its listener here.
pub(super) const LISTENER_FD: i32 = 3;
/// The kernel's highest.
const MAX_OOM_SCORE: i32 = 1000;

/// Starts the server with `listener` as fd 3, in a session of its own, in the bundle, without a word on stdout or stderr:
/// those are containerd's pipes, and it waits for their end.
pub(super) fn launch(flags: &Flags, bundle: &Path, listener: OwnedFd) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("containerd-shim-microvm-v1").arg(SERVE).args(flags.to_arguments()).current_dir(bundle);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let prepare = move || {
        // SAFETY: both calls take integers only, and are allowed between fork and exec.
        let done = unsafe {
            if listener.as_raw_fd() == LISTENER_FD {
                // dup2 onto itself would keep close-on-exec.
                libc::fcntl(LISTENER_FD, libc::F_SETFD, 0)
            } else {
                libc::dup2(listener.as_raw_fd(), LISTENER_FD)
            }
        };
        // SAFETY: as above. The child leads no process group yet, so setsid can't fail.
        if done < 0 || unsafe { libc::setsid() } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    command.spawn().context(|| "Could not start the shim's server".into())
}

/// The kernel takes a shim before containerd and after everything that containers run: one more than our own score,
/// which is containerd's.
pub(super) fn adjust_oom_score(pid: u32) -> Result<()> {
    let own = fs::read_to_string("/proc/self/oom_score_adj");
    let own: i32 = own.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let score = (own + 1).min(MAX_OOM_SCORE).to_string();
    fs::write(format!("/proc/{pid}/oom_score_adj"), score)
        .context(|| format!("Could not set the OOM score of the shim's server {pid}"))
}

/// Puts the server into the cgroup that runc's options name, if they name one.
pub(super) fn join_cgroup(pid: u32, options: Option<&Any>) -> Result<()> {
    let Some(path) = shim_cgroup(options)? else { return Ok(()) };
    let procs = cgroup::existing(&path)?;
    if procs.is_empty() {
        let text =
            format!("There is no cgroup {} for the shim: make it, or leave ShimCgroup empty", path.display());
        return Err(Error::new(Kind::NotFound, text));
    }
    for file in procs {
        fs::write(&file, pid.to_string())
            .context(|| format!("Could not put the shim into {}", file.display()))?;
    }
    Ok(())
}

fn shim_cgroup(options: Option<&Any>) -> Result<Option<PathBuf>> {
    const RUNC: &str = "containerd.runc.v1.Options";
    let Some(any) = options.filter(|any| any.type_url.rsplit('/').next() == Some(RUNC)) else {
        return Ok(None);
    };
    let options = Options::parse_from_bytes(&any.value)
        .kind(Kind::InvalidArgument, || format!("Could not read the options of type {RUNC}"))?;
    Ok(Some(options.shim_cgroup).filter(|path| !path.is_empty()).map(PathBuf::from))
}
