//! Which mounts there are, from the kernel's mountinfo.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Result};

/// Mount points at and below a path, deepest and newest first: in the order in which they can be taken off.
pub(super) fn below(path: &Path) -> Result<Vec<PathBuf>> {
    // Of the thread: the agent's threads all have one mount namespace, but a test's do not.
    let file = "/proc/thread-self/mountinfo";
    let table = std::fs::read(file).context(|| format!("Could not read {file}"))?;
    let mut found: Vec<PathBuf> = parse(&table).filter(|at| at.starts_with(path)).collect();
    // A mount's parent is older or shallower than it; the kernel lists parents first.
    found.reverse();
    found.sort_by_key(|at| std::cmp::Reverse(at.components().count()));
    Ok(found)
}

fn parse(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [byte, tail @ ..] = rest {
        let digits = (*byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_odd_characters() {
        let table = b"1 0 0:1 / / rw - tmpfs x rw\n2 1 0:2 / /a\\040b\\134c rw - tmpfs x rw\nshort\n3 1 0:3 / /odd\\09 rw\n";
        let expected = ["/", "/a b\\c", "/odd\\09"].map(PathBuf::from);
        assert_eq!(parse(table).collect::<Vec<_>>(), expected);
    }
}
