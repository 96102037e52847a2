//! What `start`, the server and `delete` leave for each other in a container's bundle, and what they read there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Shim};

/// containerd 1.7 finds a running shim by this file, newer ones take it over.
const ADDRESS: &str = "address";
/// The server's process, `<pid> <start time>`.
const SHIM_PID: &str = "shim.pid";
/// Annotations that name the sandbox of a container, the first that is there counts.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// Larger specs are refused when the container is created.
const MAX_SPEC: u64 = 8 << 20;

/// A bundle directory.
#[derive(Debug, Clone)]
pub(super) struct Bundle(PathBuf);

/// The part of an OCI spec that matters before there is a sandbox.
#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

impl Bundle {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Bundle(path.into())
    }

    /// The working directory: where containerd runs us.
    pub(super) fn current() -> Result<Self> {
        std::env::current_dir()
            .map(Bundle)
            .context(|| "Could not find the bundle: no working directory".into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The bundle of another container of the same namespace.
    pub(super) fn sibling(&self, id: &str) -> Option<Self> {
        Some(Bundle(self.0.parent()?.join(id)))
    }

    /// Annotations of the container's spec; none without a spec.
    ///
    /// # Errors
    /// `InvalidArgument` if the spec is malformed or too large.
    pub(super) fn annotations(&self) -> Result<HashMap<String, String>> {
        let path = self.0.join("config.json");
        let what = || format!("Could not read the container's spec {}", path.display());
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Ok(metadata) if metadata.len() > MAX_SPEC => {
                return Err(Error::new(Kind::InvalidArgument, format!("{}: too large", what())));
            }
            metadata => metadata.and_then(|_| fs::read(&path)).context(what)?,
        };
        let spec: Spec = serde_json::from_slice(&text).kind(Kind::InvalidArgument, what)?;
        Ok(spec.annotations.unwrap_or_default())
    }

    pub(super) fn write_address(&self, address: &str) -> Result<()> {
        self.write(ADDRESS, address)
    }

    /// Path of the shim's socket, if one was started for this bundle.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        let address = fs::read_to_string(self.0.join(ADDRESS)).ok()?;
        Some(address.trim().strip_prefix("unix://")?.into())
    }

    pub(super) fn write_shim(&self, shim: &Shim) -> Result<()> {
        self.write(SHIM_PID, &format!("{} {}", shim.pid, shim.start_time))
    }

    /// The server that was started for this bundle, dead or alive.
    pub(super) fn shim(&self) -> Option<Shim> {
        let text = fs::read_to_string(self.0.join(SHIM_PID)).ok()?;
        let (pid, start_time) = text.trim().split_once(' ')?;
        Some(Shim { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
    }

    /// The ledger of the sandbox whose first container has this bundle.
    ///
    /// # Errors
    /// If there is one that can't be read.
    pub(super) fn ledger(&self) -> Result<Option<Ledger>> {
        let Some(dir) = Ledger::of_bundle(&self.0) else { return Ok(None) };
        match Ledger::open(&dir) {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            ledger => ledger.map(Some),
        }
    }

    /// containerd may read while we write: it gets the whole or nothing.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        let next = self.0.join(format!(".{name}"));
        let written = fs::write(&next, text).and_then(|()| fs::rename(&next, &path));
        written.context(|| format!("Could not write {}", path.display()))
    }
}

/// The sandbox that a container with these annotations belongs to: another one's id, or its own.
pub(super) fn group<'a>(annotations: &'a HashMap<String, String>, id: &'a str) -> &'a str {
    let mut named = GROUPS.iter().filter_map(|key| annotations.get(*key));
    named.find(|group| !group.is_empty()).map_or(id, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_an_annotation_or_the_container_itself() {
        let temp = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(temp.path());
        let of = |spec: &str| {
            fs::write(temp.path().join("config.json"), spec).unwrap();
            bundle.annotations().map(|annotations| group(&annotations, "own").to_owned())
        };
        assert_eq!(group(&bundle.annotations().unwrap(), "own"), "own");
        assert_eq!(of(r#"{"ociVersion":"1.0"}"#).unwrap(), "own");
        assert_eq!(of(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#).unwrap(), "pod");
        let both =
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#;
        assert_eq!(of(both).unwrap(), "g");
        assert_eq!(of("{").unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn what_is_written_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(temp.path());
        assert!(bundle.shim().is_none() && bundle.socket().is_none() && bundle.ledger().unwrap().is_none());
        let shim = Shim { pid: 7, start_time: 4711 };
        bundle.write_shim(&shim).unwrap();
        bundle.write_address("unix:///run/s/x").unwrap();
        assert_eq!((bundle.shim(), bundle.socket()), (Some(shim), Some("/run/s/x".into())));
    }
}
