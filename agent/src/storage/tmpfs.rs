//! Memory that containers of the pod share as files: /dev/shm, emptyDir of medium Memory, huge pages.

use std::path::Path;

use agent_proto::agent::Storage;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};

use super::Undo;
use super::local::own_by_group;
use super::mountpoint::{attach, prepare};
use super::options::Options;
use super::path;
use crate::error::{Context as _, Error, Kind, Result};

pub(super) const DRIVER: &str = "ephemeral";

pub(super) fn make(request: &Storage, at: &Path, undo: &mut Undo) -> Result<()> {
    let kind = kind(request)?;
    let options = Options::parse(&request.options)?;
    let directory = prepare(at, undo)?;
    attach((kind, &request.source), (at, &directory), &options, undo)?;
    let group = options.group.or(request.fs_group.as_ref().map(|group| group.group_id));
    group.map_or(Ok(()), |group| own_by_group(at, group))
}

/// Gives a mounted one other options, its size above all.
pub(super) fn remount(request: &Storage, at: &Path) -> Result<()> {
    let kind = kind(request)?;
    let options = Options::parse(&request.options)?;
    let mounted = path::open(at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let flags = options.flags | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &path::of(&mounted), Some(kind), flags, Some(options.data.as_str()))
        .context(|| format!("Could not give {} the options {:?}", at.display(), options.data))
}

/// Huge pages are taken as the guest was given them: how many there are is for the kernel's command line.
fn kind(request: &Storage) -> Result<&'static str> {
    match request.fstype.as_str() {
        "tmpfs" | "" => Ok("tmpfs"),
        "hugetlbfs" => Ok("hugetlbfs"),
        other => {
            let text = format!("An ephemeral storage is a tmpfs or hugetlbfs, not {other:?}");
            Err(Error::new(Kind::InvalidArgument, text))
        }
    }
}
