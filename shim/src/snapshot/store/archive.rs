//! Takes a snapshot's files out of a tar archive that may come from anywhere. Called by `store`'s import.
//!
//! Only regular files with plain names are taken, no more than a snapshot has, and no byte is trusted: what comes out
//! is opened like any other snapshot afterwards.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use tar::{Archive, Entry, EntryType};

use crate::error::{Context, Error, Kind, Result};
use crate::images::checkpoint::Index;
use crate::snapshot::MANIFEST;
use crate::snapshot::dir::{Dir, MAX_FILES, write_error};

/// The folder of a snapshot in the archive that containerd's CRI makes of a checkpoint.
const CRI_FOLDER: &str = "checkpoint";
/// The first file to read of an OCI image layout.
const OCI_INDEX: &str = "index.json";
/// Longest index that is read, in bytes.
const MAX_INDEX: u64 = 1 << 20;
/// Most entries of an archive that are looked at; an OCI archive of an image has a few for each layer.
const MAX_ENTRIES: usize = 4096;

/// A part of a file.
#[derive(Clone, Copy)]
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

/// Unpacks the snapshot in `archive` into the empty directory `into`.
///
/// # Errors
/// `InvalidArgument` when there is none, or when it has anything but regular files.
pub(super) fn unpack(archive: &File, into: &Dir) -> Result<()> {
    let end = archive.metadata().context(|| "Could not look at the archive".into())?.len();
    let mut whole = Part { file: archive, at: 0, end };
    if let Some(index) = find(whole, OCI_INDEX)? {
        whole = checkpoint_of(whole, index)?;
    }
    let in_folder = format!("{CRI_FOLDER}/{MANIFEST}");
    if find(whole, MANIFEST)?.is_some() {
        return take(whole, None, into);
    }
    if find(whole, &in_folder)?.is_some() {
        return take(whole, Some(CRI_FOLDER), into);
    }
    Err(invalid(format!(
        "The archive holds no snapshot: neither {MANIFEST} nor {in_folder} nor a checkpoint image"
    )))
}

/// The archive of the checkpoint in an OCI archive.
fn checkpoint_of<'a>(archive: Part<'a>, index: Part<'a>) -> Result<Part<'a>> {
    // The layout's index names the image, whose index names the checkpoint.
    let layout = Index::parse(&read(index)?)?;
    let none = || {
        invalid("The OCI archive holds no checkpoint; `ctr tasks checkpoint` makes an image with one".into())
    };
    let image = layout.manifests.first().ok_or_else(none)?;
    let image = Index::parse(&read(blob(archive, &image.digest)?)?)?;
    blob(archive, &image.checkpoint().ok_or_else(none)?.digest)
}

fn blob<'a>(archive: Part<'a>, digest: &str) -> Result<Part<'a>> {
    let path = format!("blobs/{}", digest.replacen(':', "/", 1));
    find(archive, &path)?.ok_or_else(|| invalid(format!("The OCI archive lacks {digest}")))
}

/// Where the content of the regular file `path` is in the archive.
fn find<'a>(archive: Part<'a>, path: &str) -> Result<Option<Part<'a>>> {
    let mut found = None;
    each(archive, |name, entry| {
        if found.is_none() && name == path && entry.header().entry_type() == EntryType::Regular {
            let at = archive.at + entry.raw_file_position();
            found =
                Some(Part { file: archive.file, at, end: at.saturating_add(entry.size()).min(archive.end) });
        }
        Ok(())
    })?;
    Ok(found)
}

/// Writes the files of a snapshot's directory into `into`.
fn take(archive: Part, folder: Option<&str>, into: &Dir) -> Result<()> {
    let mut count = 0;
    each(archive, |path, entry| {
        let name = match (folder, path.split_once('/')) {
            (Some(folder), Some((first, name))) if first == folder => name,
            // The other files of CRI's archive are not the snapshot's.
            (Some(_), _) => return Ok(()),
            (None, _) => path,
        };
        let kind = entry.header().entry_type();
        if name.is_empty() || (kind == EntryType::Directory && folder.is_none() && name == ".") {
            return Ok(());
        }
        if kind != EntryType::Regular {
            return Err(invalid(format!("The archive has {path:?}, which is no regular file")));
        }
        count += 1;
        if count > MAX_FILES {
            return Err(invalid(format!("The archive has more than the {MAX_FILES} files of a snapshot")));
        }
        let mut file = into.create_file(name)?;
        let copied = io::copy(entry, &mut file).map(drop);
        copied.map_err(|error| write_error(format!("Could not unpack {name}"), error))
    })
}

/// Shows every entry to `then`, with its path without a leading `./` and a trailing `/`.
fn each(archive: Part, mut then: impl FnMut(&str, &mut Entry<'_, Part>) -> Result<()>) -> Result<()> {
    let damaged = || "The archive is damaged or not a tar file".to_owned();
    let mut archive = Archive::new(archive);
    for (number, entry) in archive.entries().kind(Kind::InvalidArgument, damaged)?.enumerate() {
        let mut entry = entry.kind(Kind::InvalidArgument, damaged)?;
        if number == MAX_ENTRIES {
            return Err(invalid(format!("The archive has more than {MAX_ENTRIES} entries")));
        }
        let path = entry.path_bytes().into_owned();
        let path = String::from_utf8(path)
            .kind(Kind::InvalidArgument, || "A name in the archive is no text".into())?;
        let path = path.strip_prefix("./").unwrap_or(&path);
        then(path.strip_suffix('/').unwrap_or(path), &mut entry)?;
    }
    Ok(())
}

fn read(mut part: Part) -> Result<Vec<u8>> {
    if part.end - part.at > MAX_INDEX {
        return Err(invalid(format!("The image's index is longer than {MAX_INDEX} bytes")));
    }
    let mut bytes = Vec::new();
    part.read_to_end(&mut bytes).context(|| "Could not read the archive".into())?;
    Ok(bytes)
}

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
