//! What a VM boots: the installed guest, or the kernel and initramfs that the config names. Called by the pod's
//! preparation, so that a missing file is named at Create, and by checkpoint, which records what ran.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::pod::blocking;
use crate::config::Config;
use crate::error::{Context, Error, Kind, Result};
use crate::snapshot::manifest::{Digest, GuestAssets};

/// Version that a snapshot records of files that the config names.
const OWN: &str = "config";

/// The guest's kernel and initramfs.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    /// Kernel.
    pub(crate) kernel: PathBuf,
    /// Initramfs.
    pub(crate) initramfs: PathBuf,
    version: String,
}

impl Assets {
    /// Finds the files and looks whether they can be read.
    ///
    /// # Errors
    /// `FailedPrecondition` naming the file and the config key.
    pub(crate) fn find(config: &Config) -> Result<Self> {
        let found = match (config.kernel(), config.initramfs()) {
            (Some(kernel), Some(initramfs)) => {
                Assets { kernel: kernel.into(), initramfs: initramfs.into(), version: OWN.into() }
            }
            (kernel, initramfs) => {
                let installed = install::assets::Assets::load(config.guest_dir())
                    .kind(Kind::FailedPrecondition, || {
                        "The guest's files are not installed as they should be".into()
                    })?;
                let own = kernel.is_some() || initramfs.is_some();
                Assets {
                    kernel: kernel.map_or(installed.kernel, Path::to_path_buf),
                    initramfs: initramfs.map_or(installed.initramfs, Path::to_path_buf),
                    version: if own { OWN.into() } else { installed.version },
                }
            }
        };
        readable(&found.kernel, "kernel")?;
        readable(&found.initramfs, "initramfs")?;
        Ok(found)
    }

    /// What a snapshot records. Reads both files whole, in about 0.2 s.
    pub(super) async fn record(&self) -> Result<GuestAssets> {
        let assets = self.clone();
        blocking(move || {
            Ok(GuestAssets {
                architecture: std::env::consts::ARCH.into(),
                version: assets.version,
                kernel: digest(&assets.kernel)?,
                initramfs: digest(&assets.initramfs)?,
            })
        })
        .await
    }
}

fn readable(path: &Path, key: &str) -> Result<()> {
    let file = std::fs::File::open(path).and_then(|file| file.metadata());
    let meta = file.kind(Kind::FailedPrecondition, || {
        format!("Could not read the guest's {key} {} (config key \"{key}\" or \"guest_dir\")", path.display())
    })?;
    if meta.is_file() {
        return Ok(());
    }
    let text =
        format!("The guest's {key} {} is not a file (config key \"{key}\" or \"guest_dir\")", path.display());
    Err(Error::new(Kind::FailedPrecondition, text))
}

fn digest(path: &Path) -> Result<Digest> {
    let what = || format!("Could not read {}", path.display());
    let mut file = std::fs::File::open(path).context(what)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut piece).context(what)?;
        if length == 0 {
            break;
        }
        hash.update(&piece[..length]);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
        .parse()
        .map_err(|()| Error::new(Kind::Internal, format!("No digest of {}", path.display())))
}
