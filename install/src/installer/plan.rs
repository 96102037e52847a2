//! What lies where on a node. Called by the installer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Parts;
use super::containerd::{self, Registration};
use super::record::{Entry, Kind};
use crate::assets::{CURRENT, MANIFEST};
use crate::fsx;

/// Where containerd finds the shim of `io.containerd.microvm.v1`: by this name, in its PATH.
pub(super) const SHIM: &str = "/usr/local/bin/containerd-shim-microvm-v1";
const CTL: &str = "/usr/local/bin/microvmctl";
/// Default of the config's key `guest_dir`.
pub(super) const GUEST: &str = "/usr/share/microvm/guest";
/// Where the shim looks for its config.
pub(super) const CONFIG: &str = "/etc/containerd/microvm.toml";
const RUNTIME_CLASS: &str = "/usr/share/microvm/runtimeclass.yaml";

/// One thing to lay down.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) content: Content,
    pub(super) sha256: String,
}

/// Where its bytes come from.
#[derive(Debug)]
pub(super) enum Content {
    /// This file.
    Copy(PathBuf),
    /// This text.
    Text(String),
    /// A symbolic link to this.
    Link(PathBuf),
}

impl Item {
    fn copy(path: impl Into<PathBuf>, mode: u32, source: &Path) -> Result<Self> {
        let sha256 = fsx::sha256_of(source)
            .with_context(|| format!("Could not read {}, to install it", source.display()))?;
        Ok(Self { path: path.into(), kind: Kind::File, mode, content: Content::Copy(source.into()), sha256 })
    }

    fn text(path: &str, kind: Kind, text: &str) -> Self {
        let sha256 = fsx::sha256(text.as_bytes());
        Self { path: path.into(), kind, mode: 0o644, content: Content::Text(text.into()), sha256 }
    }

    fn link(path: PathBuf, to: &str) -> Self {
        let sha256 = fsx::sha256(to.as_bytes());
        Self { path, kind: Kind::Link, mode: 0o777, content: Content::Link(to.into()), sha256 }
    }

    /// The same bytes beside their place, for a place that holds a person's own.
    pub(super) fn beside(self) -> Self {
        let mut path = self.path.into_os_string();
        path.push(".new");
        Self { path: path.into(), kind: Kind::File, ..self }
    }

    pub(super) fn entry(&self) -> Entry {
        Entry { path: self.path.clone(), kind: self.kind, sha256: self.sha256.clone() }
    }
}

/// Everything for one node, in the order in which it becomes visible: containerd learns of the runtime last.
pub(super) fn items(parts: &Parts, registration: &Registration) -> Result<Vec<Item>> {
    let guest = Path::new(GUEST);
    let folder = guest.join(&parts.assets.version);
    let mut items = Vec::new();
    for source in [&parts.assets.kernel, &parts.assets.initramfs, &parts.assets.directory.join(MANIFEST)] {
        let name = source.file_name().with_context(|| format!("{} names no file", source.display()))?;
        items.push(Item::copy(folder.join(name), 0o644, source)?);
    }
    items.push(Item::link(guest.join(CURRENT), &parts.assets.version));
    items.push(Item::copy(SHIM, 0o755, &parts.shim)?);
    items.push(Item::copy(CTL, 0o755, &parts.ctl)?);
    items.push(Item::text(CONFIG, Kind::Config, &parts.config));
    items.push(Item::text(RUNTIME_CLASS, Kind::File, include_str!("../../files/runtimeclass.yaml")));
    let (path, text) = registration.part;
    items.push(Item::text(path, Kind::Config, text));
    if let Some(text) = &registration.config {
        items.push(Item::text(containerd::CONFIG, Kind::Config, text));
    }
    Ok(items)
}
