//! The files of a device state, between Cloud Hypervisor and a snapshot. RAM is a shared file that the VMM leaves
//! where it is. Called by this VMM's machines only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{config, rewrite};
use crate::error::{Context, Error, Kind, Result};

/// Description of the machine.
const CONFIG: &str = "config.json";
/// State of its devices and CPUs.
const STATE: &str = "state.json";
/// RAM that is in no file of ours.
const RAM: &str = "memory-ranges";

/// Makes the directory `dir`, or empties the one that is there. It stays the same one, as Landlock has allowed that
/// one and not its name.
pub(super) fn make(dir: &Path) -> Result<()> {
    let what = || format!("Could not make the directory {} empty", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).context(what),
    }
    for entry in fs::read_dir(dir).context(what)? {
        fs::remove_file(entry.context(what)?.path()).context(what)?;
    }
    Ok(())
}

/// The directory as the API names it.
pub(super) fn url(dir: &Path) -> Result<String> {
    config::utf8(dir).map(|path| format!("file://{path}"))
}

/// Moves what the VMM has left in `own` into the directory `into`, and answers the names of the files there.
pub(super) fn take(own: &Path, into: &Path) -> Result<Vec<String>> {
    if own.join(RAM).exists() {
        let text = format!(
            "Cloud Hypervisor has written RAM into {RAM}: the guest's RAM is not the file that it should be"
        );
        return Err(Error::new(Kind::Internal, text));
    }
    let mut names = Vec::new();
    for name in [CONFIG, STATE] {
        let mut from = File::open(own.join(name))
            .context(|| format!("Cloud Hypervisor has left no {name} of the device state"))?;
        copy(&mut from, &into.join(name))?;
        names.push(name.to_owned());
    }
    make(own)?;
    Ok(names)
}

/// Lays the device state in `from` into the new directory `into`, its description as `rewrite` makes it.
pub(super) fn load(from: &Path, into: &Path, rewrite: impl Fn(&[u8]) -> Result<Vec<u8>>) -> Result<()> {
    make(into)?;
    let mut description = Vec::new();
    let most = u64::try_from(rewrite::MOST).unwrap_or(u64::MAX);
    open(from, CONFIG)?
        .take(most + 1)
        .read_to_end(&mut description)
        .context(|| format!("Could not read {CONFIG} of the snapshot"))?;
    copy(&mut &rewrite(&description)?[..], &into.join(CONFIG))?;
    copy(&mut open(from, STATE)?, &into.join(STATE))
}

fn open(from: &Path, name: &str) -> Result<File> {
    File::open(from.join(name))
        .kind(Kind::InvalidArgument, || format!("The snapshot has no {name}, which Cloud Hypervisor needs"))
}

fn copy(from: &mut impl Read, to: &Path) -> Result<()> {
    let what = || format!("Could not write {}", to.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).context(what)?;
    let copied = std::io::copy(from, &mut file).and_then(|_| file.flush());
    copied.map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::caused(Kind::ResourceExhausted, what(), error)
        }
        _ => Error::caused(Kind::Internal, what(), error),
    })
}
