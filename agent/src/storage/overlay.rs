//! A container's root file system: an image below, a tmpfs of bounded size for what the container writes above.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agent_proto::agent::Storage;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fchmodat, fstat};
use nix::unistd::{Gid, Uid, chown};

use super::Undo;
use super::mountpoint::{DIRECTORY, attach, prepare};
use super::options::Options;
use super::path::{self, make_directories, open};
use crate::error::{Context as _, Error, Kind, Result};

pub(super) const DRIVER: &str = "overlayfs";
/// Ours: bytes that the container may write; without it half of the guest's memory, the kernel's default.
const UPPER_SIZE: &str = "microvm.upper-size=";
/// kata's: directories to make first.
const MAKE: [&str; 2] = ["io.katacontainers.volume.overlayfs.create_directory=", "create-dir="];

/// Mounts the overlay. Where the driver options bound the upper layer, its tmpfs is mounted on the directory that holds
/// `upperdir` and `workdir`, and both are made there.
pub(super) fn make(request: &Storage, at: &Path, undo: &mut Undo) -> Result<()> {
    let options = Options::parse(&request.options)?;
    let lower = lower(&options)?;
    if let Some(size) = upper_size(request)? {
        make_upper(&options, size, &lower, undo)?;
    }
    for directory in request.driver_options.iter().filter_map(|option| value(option, &MAKE)) {
        drop(make_directories(&path::own(directory)?, DIRECTORY)?);
    }
    let directory = prepare(at, undo)?;
    attach(("overlay", &request.source), (at, &directory), &options, undo)
}

/// The first lower directory, checked: each option's path is the agent's own.
fn lower(options: &Options) -> Result<PathBuf> {
    let lowers = options.value("lowerdir").unwrap_or_default();
    let checked: Vec<PathBuf> = lowers.split(':').map(path::own).collect::<Result<_>>()?;
    for key in ["upperdir", "workdir"] {
        options.value(key).map(path::own).transpose()?;
    }
    let none = || Error::new(Kind::InvalidArgument, "An overlay needs the option lowerdir=<directory>");
    checked.into_iter().next().ok_or_else(none)
}

fn upper_size(request: &Storage) -> Result<Option<u64>> {
    let Some(option) = request.driver_options.iter().find(|option| option.starts_with(UPPER_SIZE)) else {
        return Ok(None);
    };
    match option[UPPER_SIZE.len()..].parse() {
        Ok(size) if size > 0 => Ok(Some(size)),
        _ => Err(Error::new(Kind::InvalidArgument, format!("{option:?} holds no number of bytes"))),
    }
}

fn value<'a>(option: &'a str, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| option.strip_prefix(key))
}

fn make_upper(options: &Options, size: u64, lower: &Path, undo: &mut Undo) -> Result<()> {
    let (Some(upper), Some(work)) = (options.value("upperdir"), options.value("workdir")) else {
        let text = format!("{UPPER_SIZE} needs the options upperdir and workdir");
        return Err(Error::new(Kind::InvalidArgument, text));
    };
    let (upper, work) = (path::own(upper)?, path::own(work)?);
    let (Some(holder), true) = (upper.parent(), upper.parent() == work.parent()) else {
        let text = format!("{} and {} must lie in one directory", upper.display(), work.display());
        return Err(Error::new(Kind::InvalidArgument, text));
    };
    let directory = prepare(holder, undo)?;
    let tmpfs = Options {
        flags: MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        data: format!("size={size},mode=0755"),
        group: None,
    };
    attach(("tmpfs", "upper"), (holder, &directory), &tmpfs, undo)?;
    drop(make_directories(&work, DIRECTORY)?);
    let made = make_directories(&upper, DIRECTORY)?;
    copy_owner(lower, &made)
}

/// The merged root directory has the upper one's owner and mode: make them the image's.
fn copy_owner(lower: &Path, upper: &OwnedFd) -> Result<()> {
    let image = open(lower, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let stat = fstat(&image).context(|| format!("Could not look at {}", lower.display()))?;
    let upper = path::of(upper);
    let text = || "Could not give the upper layer the image's owner and mode";
    chown(&upper, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).context(text)?;
    let mode = Mode::from_bits_truncate(stat.st_mode);
    fchmodat(nix::fcntl::AT_FDCWD, &upper, mode, nix::sys::stat::FchmodatFlags::FollowSymlink).context(text)
}

/// Bytes used of, and available to, the upper layer of a container: its tmpfs's.
///
/// # Errors
/// If the file system cannot be asked.
pub fn upper_usage(upper: &Path) -> Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(upper).context(|| format!("Could not ask {}", upper.display()))?;
    let size = stat.fragment_size();
    Ok(((stat.blocks() - stat.blocks_free()) * size, stat.blocks() * size))
}

/// The directory on which `make` mounts a bounded upper layer, if the storage has one.
#[must_use]
pub fn bounded_upper(request: &Storage) -> Option<PathBuf> {
    let is_bounded = request.driver == DRIVER && matches!(upper_size(request), Ok(Some(_)));
    let options = Options::parse(&request.options).ok().filter(|_| is_bounded)?;
    path::own(options.value("upperdir")?).ok()?.parent().map(Path::to_owned)
}
