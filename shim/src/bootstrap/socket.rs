//! The shim's socket: its name, and who is behind it. Called by `start` and `delete`.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};

/// Where shims' sockets are unless containerd says otherwise.
const DIRECTORY: &str = "/run/containerd/s";
/// Longest path that fits into a socket address, without its final zero.
const MAX_PATH: usize = 107;

/// What became of the wish to listen.
#[derive(Debug)]
pub(super) enum Bound {
    /// We listen.
    Ours(UnixListener),
    /// Another shim does, and it is alive.
    Theirs,
}

/// Path of the socket for the sandbox `group`: the same for all its containers, so `start` finds a shim that runs.
pub(super) fn path(
    directory: Option<&str>,
    containerd: &Path,
    namespace: &str,
    group: &str,
) -> Result<PathBuf> {
    let name = Sha256::digest(containerd.join(namespace).join(group).as_os_str().as_encoded_bytes());
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = Path::new(directory.unwrap_or(DIRECTORY)).join(name);
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let text = format!(
            "Socket path {} has {length} bytes, at most {MAX_PATH} are possible: shorten containerd's socket_dir",
            path.display()
        );
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(path)
}

/// Listens on `path`, where nobody but root may connect. A socket that nobody answers on is replaced.
pub(super) fn bind(path: &Path) -> Result<Bound> {
    let failed = || format!("Could not listen on {}", path.display());
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).context(failed)?;
    }
    match bind_private(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        bound => return bound.map(Bound::Ours).context(failed),
    }
    if UnixStream::connect(path).is_ok() {
        return Ok(Bound::Theirs);
    }
    unlink(path)?;
    bind_private(path).map(Bound::Ours).context(failed)
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // `start` has one thread, so nobody else makes files under this mask.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes the socket. Success if it is gone.
pub(super) fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("Could not remove socket {}", path.display())),
    }
}
