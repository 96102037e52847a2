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
    /// SHA-256 of both, as the installed manifest has it; files that the config names have none.
    checksums: Option<(Digest, Digest)>,
}

impl Assets {
    /// Finds the files and looks whether they can be read.
    ///
    /// # Errors
    /// `FailedPrecondition` naming the file and the config key.
    pub(crate) fn find(config: &Config) -> Result<Self> {
        let found = match (config.kernel(), config.initramfs()) {
            (Some(kernel), Some(initramfs)) => Self::own(kernel.into(), initramfs.into()),
            (kernel, initramfs) => {
                let installed = install::assets::Assets::load(config.guest_dir())
                    .kind(Kind::FailedPrecondition, || {
                        "The guest's files are not installed as they should be".into()
                    })?;
                match (kernel, initramfs) {
                    (None, None) => Self::installed(installed)?,
                    _ => Self::own(
                        kernel.map_or(installed.kernel, Path::to_path_buf),
                        initramfs.map_or(installed.initramfs, Path::to_path_buf),
                    ),
                }
            }
        };
        readable(&found.kernel, "kernel")?;
        readable(&found.initramfs, "initramfs")?;
        Ok(found)
    }

    /// Finds the very files that the guest of a snapshot booted: the VMM puts parts of them into a machine's memory.
    /// Reads those that the config names whole, in about 0.2 s.
    ///
    /// # Errors
    /// `FailedPrecondition` when this node has them no more, or others.
    pub(crate) fn find_again(config: &Config, recorded: &GuestAssets) -> Result<Self> {
        let found = if recorded.version == OWN {
            Self::find(config)?
        } else {
            let installed = install::assets::Assets::of_version(config.guest_dir(), &recorded.version);
            Self::installed(installed.kind(Kind::FailedPrecondition, || {
                format!("The snapshot needs the guest of version {}", recorded.version)
            })?)?
        };
        let (kernel, initramfs) = found.checksums()?;
        if kernel == recorded.kernel && initramfs == recorded.initramfs {
            return Ok(found);
        }
        let text = format!(
            "The snapshot was made with other guest files than {} and {} of version {:?}",
            found.kernel.display(),
            found.initramfs.display(),
            found.version
        );
        Err(Error::new(Kind::FailedPrecondition, text))
    }

    fn own(kernel: PathBuf, initramfs: PathBuf) -> Self {
        Assets { kernel, initramfs, version: OWN.into(), checksums: None }
    }

    fn installed(assets: install::assets::Assets) -> Result<Self> {
        let checksums = (of_hex(&assets.checksums.kernel)?, of_hex(&assets.checksums.initramfs)?);
        Ok(Assets {
            kernel: assets.kernel,
            initramfs: assets.initramfs,
            version: assets.version,
            checksums: Some(checksums),
        })
    }

    /// What a snapshot records.
    pub(super) async fn record(&self) -> Result<GuestAssets> {
        let assets = self.clone();
        blocking(move || {
            let (kernel, initramfs) = assets.checksums()?;
            let architecture = std::env::consts::ARCH.into();
            Ok(GuestAssets { architecture, version: assets.version, kernel, initramfs })
        })
        .await
    }

    fn checksums(&self) -> Result<(Digest, Digest)> {
        match &self.checksums {
            Some(known) => Ok(known.clone()),
            None => Ok((digest(&self.kernel)?, digest(&self.initramfs)?)),
        }
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
    of_hex(&hex)
}

fn of_hex(hex: &str) -> Result<Digest> {
    let wrong = |()| Error::new(Kind::FailedPrecondition, format!("{hex:?} is no SHA-256 of a guest file"));
    format!("sha256:{hex}").parse().map_err(wrong)
}
