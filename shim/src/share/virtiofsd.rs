//! The virtio-fs daemon in our own binary: the crate `virtiofsd`, in a process of its own for each tree. `main`
//! calls it when the binary is re-executed with [`MODE`]; the arguments are those of the external `virtiofsd` that
//! the config may name instead.

use std::ffi::OsString;
use std::fmt::Display;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::Error::Disconnected;
use vhost::vhost_user::Listener;
use vhost_user_backend::Error::HandleRequest;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{
    CachePolicy, Config, InodeFileHandlesMode, MigrationMode, MigrationOnError, PassthroughFs,
};
use virtiofsd::sandbox::{Sandbox, SandboxMode};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::queue::{self, GoesOn};

/// First argument of our binary that makes it this daemon.
pub const MODE: &str = "virtiofsd";

/// What the daemon logs when a VMM may connect; the external one does too.
pub(super) const READY: &str = "Waiting for vhost-user socket connection";

/// Descriptors that the guest's files must leave to the daemon: one for each of the 509 memory regions that
/// vhost-user-backend allows, one for its only thread, and 100 for everything else.
const RESERVED_FDS: u64 = 509 + 1 + 100;
/// How long a guest may believe what it knows: of images for ever, as they never change.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(86_400);
/// And of volumes, which the host may change.
const VOLUME_TIMEOUT: Duration = Duration::from_secs(1);

/// One tree to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// Mount tag in the guest.
    pub tag: String,
    /// Root of the tree, which the daemon pivots into.
    pub directory: PathBuf,
    /// Whether the daemon refuses every write. Such a tree is cached for ever.
    pub read_only: bool,
}

impl Serve {
    /// The daemon's arguments; it accepts one connection on the descriptor `listener`.
    pub(super) fn arguments(&self, listener: RawFd) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            format!("--fd={listener}").into(),
            "--shared-dir".into(),
            self.directory.clone().into(),
            format!("--cache={}", if self.read_only { "always" } else { "auto" }).into(),
        ];
        let fixed = [
            "--sandbox=namespace",
            "--seccomp=kill",
            "--announce-submounts",
            "--inode-file-handles=prefer",
            "--migration-mode=find-paths",
            "--migration-on-error=guest-error",
        ];
        arguments.extend(fixed.map(Into::into));
        // File capabilities of programs in images are extended attributes.
        arguments.extend(
            self.read_only.then_some(["--readonly", "--xattr"]).into_iter().flatten().map(Into::into),
        );
        arguments
    }

    /// Reads them again: those that vary. The fixed ones have no other value here.
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<(Self, RawFd), String> {
        let mut serve = Serve { tag: String::new(), directory: PathBuf::new(), read_only: false };
        let (mut listener, mut arguments) = (None, arguments);
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--shared-dir") => serve.directory = arguments.next().unwrap_or_default().into(),
                Some("--readonly") => serve.read_only = true,
                Some(text) => {
                    let fd = text.strip_prefix("--fd=").and_then(|fd| fd.parse().ok());
                    listener = fd.filter(|fd| *fd > 2).or(listener);
                }
                None => return Err(format!("does not know the argument {argument:?}")),
            }
        }
        if !serve.directory.is_absolute() {
            return Err("needs --shared-dir with an absolute path".into());
        }
        Ok((serve, listener.ok_or("needs --fd with a listening socket")?))
    }
}

/// Serves one connection and ends with it. Must run before the process has a second thread.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    log::set_max_level(log::LevelFilter::Warn);
    // Only this function sets a logger in this process.
    let _ = log::set_logger(&Stderr);
    match Serve::parse(arguments).and_then(|(serve, listener)| run(&serve, listener)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            log::error!("virtiofsd {text}");
            ExitCode::FAILURE
        }
    }
}

/// The order matters: limits while `/proc` is there; the sandbox, which forks, before any thread; the filter before
/// the thread pool; the root directory's descriptors last.
fn run(serve: &Serve, listener: RawFd) -> Result<(), String> {
    end_on_signals().map_err(failed("could not handle signals"))?;
    let most_fds =
        virtiofsd::limits::setup_rlimit_nofile(None).map_err(failed("could not raise RLIMIT_NOFILE"))?;
    // SAFETY: our parent has passed this descriptor for us to own, and nothing else here knows it.
    let listener = unsafe { <Listener as std::os::fd::FromRawFd>::from_raw_fd(listener) };
    let directory = serve.directory.to_string_lossy().into_owned();
    let mut sandbox = Sandbox::new(directory, SandboxMode::Namespace, Vec::new(), Vec::new());
    let mountinfo_prefix = sandbox.get_mountinfo_prefix().map_err(failed("could not read its mounts"))?;
    let listener = sandbox.enter(listener).map_err(failed("could not enter its sandbox"))?;
    let config = Config {
        entry_timeout: if serve.read_only { IMAGE_TIMEOUT } else { VOLUME_TIMEOUT },
        attr_timeout: if serve.read_only { IMAGE_TIMEOUT } else { VOLUME_TIMEOUT },
        cache_policy: if serve.read_only { CachePolicy::Always } else { CachePolicy::Auto },
        root_dir: sandbox.get_root_dir(),
        mountinfo_prefix,
        xattr: serve.read_only,
        proc_sfd_rawfd: sandbox.get_proc_self_fd(),
        proc_mountinfo_rawfd: sandbox.get_mountinfo_fd(),
        announce_submounts: true,
        inode_file_handles: InodeFileHandlesMode::Prefer,
        migration_mode: MigrationMode::FindPaths,
        migration_on_error: MigrationOnError::GuestError,
        uid_map: Some(Vec::new()),
        gid_map: Some(Vec::new()),
        guest_fd_limit: most_fds.saturating_sub(RESERVED_FDS),
        ..Config::default()
    };
    enable_seccomp(SeccompAction::Kill, false).map_err(failed("could not set its seccomp filter"))?;
    drop_capabilities(serve.read_only)?;
    if serve.read_only {
        serve_one(PassthroughFsRo::new(config).map_err(failed("could not open its root"))?, listener)
    } else {
        serve_one(PassthroughFs::new(config).map_err(failed("could not open its root"))?, listener)
    }
}

fn serve_one<F>(fs: F, mut listener: Listener) -> Result<(), String>
where
    F: FileSystem + SerializableFileSystem + Send + Sync + 'static,
{
    let backend =
        VhostUserFsBackendBuilder::default().build(fs).map_err(failed("could not make its device"))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("virtiofsd".into(), Arc::new(GoesOn(backend)), memory)
        .map_err(|error| format!("could not make its daemon: {error:?}"))?;
    if let Some(events) = daemon.get_epoll_handlers().first() {
        queue::watch(events.as_raw_fd());
    }
    log::warn!("{READY}");
    daemon.start(&mut listener).map_err(|error| format!("could not accept its VMM: {error:?}"))?;
    match daemon.wait() {
        Ok(()) | Err(HandleRequest(Disconnected)) => Ok(()),
        Err(error) => Err(format!("lost its VMM: {error:?}")),
    }
}

fn failed<E: Display>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Leaves what reading any file takes, and for a tree that is written also what acting for any user takes.
fn drop_capabilities(read_only: bool) -> Result<(), String> {
    let writing = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP"];
    let mut kept = vec!["DAC_READ_SEARCH"];
    if !read_only {
        kept.extend(writing);
    }
    capng::clear(capng::Set::BOTH);
    capng::updatev(capng::Action::ADD, capng::Type::PERMITTED | capng::Type::EFFECTIVE, kept)
        .and_then(|()| capng::apply(capng::Set::BOTH))
        .map_err(failed("could not drop its capabilities"))
}

/// Ends the process at once on SIGTERM and SIGHUP: as the first process of its pid namespace it would ignore them.
fn end_on_signals() -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    extern "C" fn end(_: libc::c_int) {
        // SAFETY: _exit may be called from a signal handler.
        unsafe { libc::_exit(1) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler calls nothing but _exit.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Lines on stderr, which our parent reads.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        use std::io::Write;
        // Nobody is left to hear that the parent is gone.
        let _ = writeln!(std::io::stderr(), "{}", record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_they_are_written() {
        for read_only in [false, true] {
            let serve = Serve { tag: String::new(), directory: "/run/a b".into(), read_only };
            assert_eq!(Serve::parse(serve.arguments(7).into_iter()), Ok((serve, 7)));
        }
        let parse = |arguments: &[&str]| Serve::parse(arguments.iter().map(Into::into)).unwrap_err();
        assert!(parse(&["--fd=7"]).contains("--shared-dir"));
        assert!(parse(&["--shared-dir", "/a", "--fd=x"]).contains("--fd"));
        assert!(parse(&["--shared-dir", "/a", "--fd=1"]).contains("--fd"));
    }
}
