//! A directory of the guest that containers of the pod share: emptyDir.

use std::path::Path;

use agent_proto::agent::Storage;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{Gid, chown};

use super::options::Options;
use super::path::{self, make_directories};
use super::{Step, Undo};
use crate::error::{Context as _, Error, Kind, Result};

pub(super) fn make(request: &Storage, at: &Path, undo: &mut Undo) -> Result<()> {
    let options = Options::parse(&request.options)?;
    let mode = options.value("mode").map_or(Ok(Mode::from_bits_truncate(0o755)), parse_mode)?;
    if std::fs::symlink_metadata(at).is_err() {
        undo.push(Step::RemoveTree(at.to_owned()));
    }
    let directory = make_directories(at, Mode::from_bits_truncate(0o755))?;
    // mkdir's mode is cut by the umask; this one is not.
    fchmodat(AT_FDCWD, &path::of(&directory), mode, FchmodatFlags::FollowSymlink)
        .context(|| format!("Could not set the mode of {}", at.display()))?;
    let group = options.group.or(request.fs_group.as_ref().map(|group| group.group_id));
    group.map_or(Ok(()), |group| own_by_group(at, group))
}

fn parse_mode(text: &str) -> Result<Mode> {
    let wrong = || Error::new(Kind::InvalidArgument, format!("mode={text} is no octal file mode"));
    let bits = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
    Mode::from_bits(bits).ok_or_else(wrong)
}

/// What kubelet's fsGroup means: the directory and what is made in it belong to the group, which may write.
pub(super) fn own_by_group(at: &Path, group: u32) -> Result<()> {
    let text = || format!("Could not give {} to group {group}", at.display());
    let directory = path::open(at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let named = path::of(&directory);
    chown(&named, None, Some(Gid::from_raw(group))).context(text)?;
    let mode = Mode::from_bits_truncate(fstat(&directory).context(text)?.st_mode);
    let mode = mode | Mode::S_ISGID | Mode::S_IRWXG;
    fchmodat(AT_FDCWD, &named, mode, FchmodatFlags::FollowSymlink).context(text)
}
