//! Mounts at a directory of the agent's own: virtio-fs tags and bind mounts, and taking any mount off again.

use std::os::fd::OwnedFd;
use std::path::Path;

use agent_proto::agent::Storage;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::options::Options;
use super::path::{self, make_directories};
use super::{Step, Undo};
use crate::error::{Context as _, Error, Kind, Result};

/// Mode of the directories the agent makes for mounts.
pub(super) const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);

/// Makes the directory `at` for a mount; `undo` removes it again if it was not there before.
pub(super) fn prepare(at: &Path, undo: &mut Undo) -> Result<OwnedFd> {
    let is_new = std::fs::symlink_metadata(at).is_err();
    let directory = make_directories(at, DIRECTORY)?;
    if is_new {
        undo.push(Step::RemoveDirectory(at.to_owned()));
    }
    Ok(directory)
}

/// mount(2) on a prepared directory; `undo` unmounts it.
pub(super) fn attach(
    (kind, source): (&str, &str),
    (at, directory): (&Path, &OwnedFd),
    options: &Options,
    undo: &mut Undo,
) -> Result<()> {
    mount(Some(source), &path::of(directory), Some(kind), options.flags, Some(options.data.as_str()))
        .context(|| format!("Could not mount {kind} {source:?} with options {:?}", options.data))?;
    undo.push(Step::Unmount(at.to_owned()));
    Ok(())
}

/// A whole virtio-fs device; `source` is its tag.
pub(super) fn virtio_fs(request: &Storage, at: &Path, undo: &mut Undo) -> Result<()> {
    let options = Options::parse(&request.options)?;
    let directory = prepare(at, undo)?;
    attach(("virtiofs", &request.source), (at, &directory), &options, undo)
}

/// A directory or file of the agent's tree, at another place of it.
pub(super) fn bind(request: &Storage, at: &Path, undo: &mut Undo) -> Result<()> {
    let options = Options::parse(&request.options)?;
    if !options.data.is_empty() {
        let text = format!("A bind mount takes no option {:?}", options.data);
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let source = path::own(&request.source)?;
    bind_mount(&source, at, options.flags, undo)
}

/// Binds `source` to `at`, which is made; of the flags, those a bind can have hold for the new mount alone.
pub(super) fn bind_mount(source: &Path, at: &Path, flags: MsFlags, undo: &mut Undo) -> Result<()> {
    let from = open_source(source)?;
    let is_directory = kind_of(&from, source)? == SFlag::S_IFDIR;
    let target = if is_directory { prepare(at, undo)? } else { prepare_file(at, undo)? };
    let none = None::<&str>;
    let how = MsFlags::MS_BIND | (flags & MsFlags::MS_REC);
    mount(Some(&path::of(&from)), &path::of(&target), none, how, none)
        .context(|| format!("Could not bind {} to {}", source.display(), at.display()))?;
    undo.push(Step::Unmount(at.to_owned()));
    let limits = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if limits.is_empty() {
        return Ok(());
    }
    // Opened anew: `target` is the directory below the mount.
    let mounted = path::open(at, OFlag::O_PATH)?;
    mount(none, &path::of(&mounted), none, limits | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, none)
        .context(|| format!("Could not limit the mount {} to {limits:?}", at.display()))
}

/// Opened as a directory where it is one: only that enters the automount of a virtio-fs submount.
fn open_source(source: &Path) -> Result<OwnedFd> {
    match path::open(source, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(error) if error.kind() == Kind::Internal => path::open(source, OFlag::O_PATH),
        other => other,
    }
}

fn kind_of(file: &OwnedFd, name: &Path) -> Result<SFlag> {
    let stat: FileStat = fstat(file).context(|| format!("Could not look at {}", name.display()))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

fn prepare_file(at: &Path, undo: &mut Undo) -> Result<OwnedFd> {
    let parent = at.parent().unwrap_or(Path::new("/"));
    drop(make_directories(parent, DIRECTORY)?);
    let file = path::open(at, OFlag::O_PATH | OFlag::O_NOFOLLOW);
    if file.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
        let text = || format!("Could not make {}", at.display());
        std::fs::File::create_new(at).context(text)?;
        undo.push(Step::RemoveFile(at.to_owned()));
        return path::open(at, OFlag::O_PATH | OFlag::O_NOFOLLOW);
    }
    file
}

/// Takes off whatever is mounted at a path, at once even if it is in use. Nothing mounted there is no failure.
///
/// # Errors
/// The kernel's, naming the path.
pub fn unmount(at: &Path) -> Result<()> {
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).context(|| format!("Could not unmount {}", at.display())),
    }
}
