//! From a snapshotter's mounts to the image alone: the layers below the container's own, read-only. Called by
//! `share`.

use std::fs;
use std::io;
use std::path::Path;

use super::tree::{Propagation, Tree};
use crate::error::{Context, Error, Kind, Result};
use crate::task::Mount;

/// Where a container's image is.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// In a snapshotter's mounts.
    Mounts(&'a [Mount]),
    /// In a directory that the caller has made ready.
    Directory(&'a Path),
}

/// Options of an overlay that change how its lower layers are read; the others are about writing.
const READ_OPTIONS: &[&str] = &["userxattr", "redirect_dir=follow", "redirect_dir=nofollow", "metacopy=on"];

/// The image as a detached, read-only tree.
pub(super) fn tree(image: Image<'_>) -> Result<Tree> {
    let tree = match image {
        Image::Directory(path) => Tree::bind_recursive(path).context(|| cannot(path))?,
        Image::Mounts([mount]) => match mount.kind.as_str() {
            "overlay" => overlay(mount)?,
            "bind" | "rbind" => {
                let source = Path::new(&mount.source);
                Tree::bind(source).context(|| cannot(source))?
            }
            _ => return Err(refuse(&[&mount.kind])),
        },
        Image::Mounts(mounts) => {
            return Err(refuse(&mounts.iter().map(|mount| mount.kind.as_str()).collect::<Vec<_>>()));
        }
    };
    let prepare = || -> io::Result<()> {
        tree.restrict(true)?;
        tree.propagate(Propagation::Private)
    };
    prepare().context(|| "Could not make the container's image read-only".into())?;
    Ok(tree)
}

fn cannot(path: &Path) -> String {
    format!("Could not take the container's image from {}", path.display())
}

fn refuse(kinds: &[&str]) -> Error {
    let text = format!(
        "The snapshotter gave mounts of the types [{}], and a micro-VM takes one overlay or bind mount; \
         use the snapshotter overlayfs or native",
        kinds.join(", ")
    );
    Error::new(Kind::InvalidArgument, text)
}

/// The lower layers of an overlay mount.
///
/// The container's writes go to the guest, so the layer above them must be as fresh as the snapshotter made it: what
/// stands in it would be missing here, and again on the node that restores the container.
fn overlay(mount: &Mount) -> Result<Tree> {
    let value = |key: &str| {
        let mut found = mount.options.iter().filter_map(|option| option.strip_prefix(key)?.strip_prefix('='));
        found.next_back()
    };
    let Some(lowers) = value("lowerdir") else {
        return Err(Error::new(
            Kind::InvalidArgument,
            "The snapshotter gave an overlay mount without lowerdir",
        ));
    };
    let lowers: Vec<&Path> = lowers.split(':').map(Path::new).collect();
    if let Some(path) = lowers.iter().find(|path| !path.is_absolute()) {
        let text =
            format!("The snapshotter gave an overlay mount with the layer {path:?}; want absolute paths");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    if mount.options.iter().any(|option| option.starts_with("uidmap=") || option.starts_with("gidmap=")) {
        return Err(Error::new(
            Kind::Unimplemented,
            "The snapshotter maps user ids, which a micro-VM can't do",
        ));
    }
    if let Some(upper) = value("upperdir").map(Path::new) {
        let mut entries =
            fs::read_dir(upper).context(|| format!("Could not look into {}", upper.display()))?;
        if entries.next().is_some() {
            let text = format!(
                "The container's writable layer {} has files already, which its micro-VM would not see; \
                 make a new container, or commit the layer to an image",
                upper.display()
            );
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
    }
    match lowers.as_slice() {
        [one] => Tree::bind(one).context(|| cannot(one)),
        several => {
            let read =
                mount.options.iter().map(String::as_str).filter(|option| READ_OPTIONS.contains(option));
            Tree::overlay(several, &read.collect::<Vec<_>>())
                .context(|| format!("Could not mount the {} layers of the container's image", several.len()))
        }
    }
}
