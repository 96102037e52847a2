//! The guest's assets on a node: kernel, initramfs, and the manifest that says what they must be. Read by the shim at
//! each start of a sandbox ([`Assets::load`]) and by `microvmctl doctor` ([`Assets::verify`]); written by the builder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::arch::Architecture;
use crate::fsx;

/// File name of the manifest, in the folder of the assets that it describes.
pub const MANIFEST: &str = "assets.json";
/// Link beside the versioned folders of a node, to the one that new sandboxes use.
pub const CURRENT: &str = "current";
/// The format that this code writes and reads.
const FORMAT: u32 = 1;
/// A manifest is a few hundred bytes.
const MANIFEST_LIMIT: u64 = 64 << 10;

/// Assets that are there, readable and of the right size. The paths lead into the versioned folder itself, so they
/// stay right when an upgrade moves the link `current`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// Folder of this version.
    pub directory: PathBuf,
    /// What the guest runs on.
    pub architecture: Architecture,
    /// Version of kernel and initramfs together; other bytes have another version.
    pub version: String,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// SHA-256 of both, in hex.
    pub checksums: Checksums,
}

/// SHA-256 of each asset in hex, as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    /// Of the kernel.
    pub kernel: String,
    /// Of the initramfs.
    pub initramfs: String,
}

/// Why a node has no usable assets, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// The manifest or a file that it names can't be read.
    #[error(
        "Could not read the guest asset {path}; `cargo xtask install` lays the assets down, and the key `guest_dir` \
             of the config says where they are"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("The manifest of guest assets {path} is wrong ({problem}); `cargo xtask install` writes it anew")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is not what the manifest says.
    #[error(
        "The guest asset {path} has the {property} {is} instead of {wanted}: it is damaged or was replaced; \
             `cargo xtask install` lays it down anew"
    )]
    Wrong {
        /// The file.
        path: PathBuf,
        /// `size`, `version` or `SHA-256`.
        property: &'static str,
        /// As it is.
        is: String,
        /// As the manifest has it.
        wanted: String,
    },
}

impl Assets {
    /// Finds the assets below `directory`, which holds either a manifest or the link `current` to a folder that does,
    /// and checks that each is readable and as large as it should be. Costs a few system calls.
    ///
    /// # Errors
    /// The first asset that is missing, unreadable or of another size.
    pub fn load(directory: &Path) -> Result<Self, AssetsError> {
        let directory = locate(directory)?;
        let path = directory.join(MANIFEST);
        let manifest = Manifest::read(&path)?;
        manifest.check().map_err(|problem| AssetsError::Manifest { path, problem })?;
        for file in [&manifest.kernel, &manifest.initramfs] {
            file.check_size(&directory)?;
        }
        Ok(Self {
            kernel: directory.join(&manifest.kernel.name),
            initramfs: directory.join(&manifest.initramfs.name),
            directory,
            architecture: manifest.architecture,
            version: manifest.version,
            checksums: Checksums { kernel: manifest.kernel.sha256, initramfs: manifest.initramfs.sha256 },
        })
    }

    /// Finds the assets of one version, as a snapshot names it, below the config's `guest_dir`. The installer keeps them
    /// there as long as a snapshot in the node's store needs them.
    ///
    /// # Errors
    /// When there is no such version, or as [`Assets::load`] does.
    pub fn of_version(directory: &Path, version: &str) -> Result<Self, AssetsError> {
        let folder = directory.join(if is_plain(version) { version } else { "?" });
        let assets = Self::load(&folder)?;
        if assets.version == version {
            return Ok(assets);
        }
        let (is, wanted) = (assets.version, version.into());
        Err(AssetsError::Wrong { path: folder.join(MANIFEST), property: "version", is, wanted })
    }

    /// Reads every byte of the assets and compares their checksums: a tenth of a second.
    ///
    /// # Errors
    /// The first asset that can't be read or has another checksum.
    pub fn verify(&self) -> Result<(), AssetsError> {
        for (path, wanted) in
            [(&self.kernel, &self.checksums.kernel), (&self.initramfs, &self.checksums.initramfs)]
        {
            let is =
                fsx::sha256_of(path).map_err(|source| AssetsError::Missing { path: path.clone(), source })?;
            if is != *wanted {
                let (path, wanted) = (path.clone(), wanted.clone());
                return Err(AssetsError::Wrong { path, property: "SHA-256", is, wanted });
            }
        }
        Ok(())
    }
}

/// `assets.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) architecture: Architecture,
    pub(crate) version: String,
    pub(crate) kernel: Entry,
    pub(crate) initramfs: Entry,
    /// Where they come from, for people: package versions, modules.
    #[serde(default)]
    pub(crate) made_of: BTreeMap<String, String>,
}

/// One file of the manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

impl Manifest {
    /// A manifest of these files. The version is the kernel's and a part of the checksum of everything, so that two
    /// sets of assets that differ in one byte never share a folder.
    #[cfg(any(test, feature = "build"))]
    pub(crate) fn new(architecture: Architecture, release: &str, kernel: Entry, initramfs: Entry) -> Self {
        let all = fsx::sha256(format!("{}{}", kernel.sha256, initramfs.sha256).as_bytes());
        let version = format!("{release}-{}", &all[..12]);
        Self { format: FORMAT, architecture, version, kernel, initramfs, made_of: BTreeMap::new() }
    }

    fn read(path: &Path) -> Result<Self, AssetsError> {
        let missing = |source| AssetsError::Missing { path: path.to_owned(), source };
        let problem = |problem| AssetsError::Manifest { path: path.to_owned(), problem };
        let size = fs::metadata(path).map_err(missing)?.len();
        if size > MANIFEST_LIMIT {
            return Err(problem(format!("{size} bytes are too many for one")));
        }
        serde_json::from_slice(&fs::read(path).map_err(missing)?).map_err(|error| problem(error.to_string()))
    }

    /// Plain file names, and a version that can name a folder.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} instead of {FORMAT}", self.format));
        }
        for name in [&self.version, &self.kernel.name, &self.initramfs.name] {
            if !is_plain(name) {
                return Err(format!("{name:?} is no plain name"));
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Describes bytes.
    #[cfg(any(test, feature = "build"))]
    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.into(), size: bytes.len() as u64, sha256: fsx::sha256(bytes) }
    }

    fn check_size(&self, directory: &Path) -> Result<(), AssetsError> {
        let path = directory.join(&self.name);
        let missing = |source| AssetsError::Missing { path: path.clone(), source };
        let size = File::open(&path).and_then(|file| file.metadata()).map_err(missing)?.len();
        if size != self.size {
            let (is, wanted) = (size.to_string(), self.size.to_string());
            return Err(AssetsError::Wrong { path, property: "size", is, wanted });
        }
        Ok(())
    }
}

/// The folder that holds the manifest, without links in its path.
fn locate(directory: &Path) -> Result<PathBuf, AssetsError> {
    let current = directory.join(CURRENT);
    let folder = if directory.join(MANIFEST).exists() { directory } else { &current };
    fs::canonicalize(folder).map_err(|source| AssetsError::Missing { path: folder.join(MANIFEST), source })
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+~-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with two small assets and their manifest.
    fn lay_down(directory: &Path) -> Manifest {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("vmlinux"), b"kernel").unwrap();
        fs::write(directory.join("initramfs.cpio"), b"initramfs").unwrap();
        let kernel = Entry::of("vmlinux", b"kernel");
        let initramfs = Entry::of("initramfs.cpio", b"initramfs");
        let manifest = Manifest::new(Architecture::X86_64, "6.12", kernel, initramfs);
        write(directory, &manifest);
        manifest
    }

    fn write(directory: &Path, manifest: &Manifest) {
        fs::write(directory.join(MANIFEST), serde_json::to_vec(manifest).unwrap()).unwrap();
    }

    #[test]
    fn a_folder_and_a_link_to_it_give_the_same_paths() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("6.12-1");
        let manifest = lay_down(&folder);
        std::os::unix::fs::symlink("6.12-1", root.path().join(CURRENT)).unwrap();
        let assets = Assets::load(root.path()).unwrap();
        assert_eq!(assets, Assets::load(&folder).unwrap());
        assert_eq!(assets.kernel, folder.canonicalize().unwrap().join("vmlinux"));
        assert_eq!(assets.version, manifest.version);
        assets.verify().unwrap();
    }

    #[test]
    fn a_version_is_found_by_its_name_and_by_no_other_path() {
        let root = tempfile::tempdir().unwrap();
        let manifest = lay_down(&root.path().join("first"));
        let folder = root.path().join(&manifest.version);
        fs::rename(root.path().join("first"), &folder).unwrap();
        let found = Assets::of_version(root.path(), &manifest.version).unwrap();
        assert_eq!(found, Assets::load(&folder).unwrap());
        let roundabout = format!("../{}/{}", root.path().file_name().unwrap().display(), manifest.version);
        for bad in ["6.12-0", "", "..", &roundabout] {
            assert!(
                matches!(Assets::of_version(root.path(), bad), Err(AssetsError::Missing { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_absent_folder_is_named_with_what_to_do() {
        let error = Assets::load(Path::new("/nowhere/guest")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/guest/current/assets.json"), "{error}");
        assert!(error.contains("cargo xtask install"), "{error}");
    }

    #[test]
    fn a_missing_a_short_and_a_changed_file_are_named() {
        let root = tempfile::tempdir().unwrap();
        lay_down(root.path());
        let initramfs = root.path().join("initramfs.cpio");

        fs::write(&initramfs, b"inItramfs").unwrap();
        let error = Assets::load(root.path()).unwrap().verify().unwrap_err();
        assert!(matches!(&error, AssetsError::Wrong { property: "SHA-256", .. }), "{error}");
        assert!(error.to_string().contains("initramfs.cpio"), "{error}");

        fs::write(&initramfs, b"init").unwrap();
        let error = Assets::load(root.path()).unwrap_err().to_string();
        assert!(error.contains("initramfs.cpio has the size 4 instead of 9"), "{error}");

        fs::remove_file(&initramfs).unwrap();
        let error = Assets::load(root.path()).unwrap_err();
        assert!(
            matches!(&error, AssetsError::Missing { path, .. } if path.ends_with("initramfs.cpio")),
            "{error}"
        );
    }

    #[test]
    fn a_manifest_that_leads_elsewhere_or_is_of_another_format_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let good = lay_down(root.path());
        let problems = [
            Manifest { format: 2, ..good.clone() },
            Manifest { kernel: Entry { name: "../vmlinux".into(), ..good.kernel.clone() }, ..good.clone() },
            Manifest { version: String::new(), ..good.clone() },
        ];
        for manifest in problems {
            write(root.path(), &manifest);
            let error = Assets::load(root.path()).unwrap_err();
            assert!(matches!(error, AssetsError::Manifest { .. }), "{error}");
        }
        fs::write(root.path().join(MANIFEST), b"{").unwrap();
        assert!(matches!(Assets::load(root.path()), Err(AssetsError::Manifest { .. })));
    }

    #[test]
    fn other_bytes_are_another_version() {
        let version = |bytes: &[u8]| {
            let kernel = Entry::of("vmlinux", b"kernel");
            Manifest::new(Architecture::X86_64, "6.12", kernel, Entry::of("initramfs.cpio", bytes)).version
        };
        assert_ne!(version(b"one"), version(b"two"));
        assert_eq!(version(b"one"), version(b"one"));
    }
}
