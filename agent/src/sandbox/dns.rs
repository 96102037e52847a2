//! The pod's resolv.conf: kept at the path of kata, for containers to bind, and seen by the agent's own tree.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error, Kind, Result};
use crate::storage::blocking;

/// Where kata's agent has it.
pub const FILE: &str = "/run/kata-containers/sandbox/resolv.conf";

/// Writes the file anew, in place: containers that have it bound see it at once. Each entry is a line of the file, or
/// the address of a name server.
///
/// # Errors
/// `InvalidArgument` for an entry of more than one line, else if it cannot be written.
pub async fn write(entries: Vec<String>) -> Result<()> {
    let text = text(&entries)?;
    blocking(move || {
        let parent = Path::new(FILE).parent().map(Path::to_owned).unwrap_or_default();
        crate::storage::path::make_directories(&parent, nix::sys::stat::Mode::from_bits_truncate(0o755))?;
        std::fs::write(FILE, &text).context(|| format!("Could not write {FILE}"))
    })
    .await
}

/// Makes `/etc/resolv.conf` of the guest itself a link to the file.
///
/// # Errors
/// If it cannot be made.
pub fn link() -> Result<()> {
    let link = PathBuf::from("/etc/resolv.conf");
    std::fs::create_dir_all("/etc").context(|| "Could not make /etc")?;
    match std::os::unix::fs::symlink(FILE, &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).context(|| format!("Could not make the link {}", link.display()))
        }
        _ => Ok(()),
    }
}

fn text(entries: &[String]) -> Result<String> {
    let mut text = String::new();
    for entry in entries {
        if entry.contains(['\n', '\r', '\0']) {
            let text = format!("DNS entry {entry:?} must be one line of resolv.conf");
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        if entry.parse::<IpAddr>().is_ok() {
            text.push_str("nameserver ");
        }
        text.push_str(entry);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_lines_make_a_file() {
        let entries = ["10.0.0.10", "search a.svc b", "fd00::1"].map(String::from);
        assert_eq!(text(&entries).unwrap(), "nameserver 10.0.0.10\nsearch a.svc b\nnameserver fd00::1\n");
        assert_eq!(text(&[]).unwrap(), "");
        let error = text(&["a\nb".into()]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
