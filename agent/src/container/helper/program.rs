//! Finds a program as a shell would, inside the container, and says what is wrong in the words that users of OCI runtimes know.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;

use super::launch::Failure;
use crate::error::{Error, Kind};

/// Where to look if the environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit codes of a shell: nothing there, and there but not to be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// The path to execute for `name`; one with a slash is not searched for.
pub(super) fn find(name: &str, env: &[String]) -> Result<String, Failure> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(failure(NOT_EXECUTABLE, format!("exec: {name:?}: permission denied")))
            }
            Err(error) => Err(failure(NOT_FOUND, format!("exec: {name:?}: stat {name}: {}", words(&error)))),
        };
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut forbidden = false;
    for directory in path.split(':').filter(|directory| directory.starts_with('/')) {
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => forbidden |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    if forbidden {
        return Err(failure(NOT_EXECUTABLE, format!("exec: {name:?}: permission denied")));
    }
    Err(failure(NOT_FOUND, format!("exec: {name:?}: executable file not found in $PATH")))
}

/// Why the kernel did not run it.
pub(super) fn refused(path: &str, error: Errno) -> Failure {
    let code = if error == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
    failure(code, format!("exec {path}: {}", words(&io::Error::from(error))))
}

fn executable(path: &str) -> io::Result<()> {
    let about = fs::metadata(path)?;
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn failure(code: i32, text: String) -> Failure {
    Failure { error: Error::new(Kind::Internal, text), code }
}

fn words(error: &io::Error) -> String {
    let text = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => "exec format error",
        Some(errno) => errno.desc(),
        None => return error.kind().to_string(),
    };
    text.to_lowercase()
}
