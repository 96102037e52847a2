//! The Debian package of the guest's kernel: which one, from where, and unpacked in the cache. Called by the builder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{self, Apt, Candidate};
use crate::arch::Architecture;
use crate::fsx;

/// The kernel that this code was tested with. To move it, take the figures that the builder's warning prints.
struct Pin {
    version: &'static str,
    release: &'static str,
    sha256: &'static str,
}

/// What to do when Debian's pool has moved on from the pinned kernel, as it does at each point release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Take the newest of the same Debian release and say so. Its bytes are vouched for by Debian's signature, as
    /// the pinned ones were; only the build is no longer the same as before.
    #[default]
    Newest,
    /// Fail: for builds that must be reproducible.
    Pinned,
}

/// A kernel package, unpacked.
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) warnings: Vec<String>,
    directory: PathBuf,
}

/// Gets the package from the cache or from Debian. Builders that share a cache wait for each other.
pub(super) fn fetch(architecture: Architecture, policy: Policy, cache: &Path) -> Result<Package> {
    let cache = fsx::make_directory(&cache.join(architecture.debian()))?;
    let lock = cache.join("lock");
    let lock = File::create(&lock).with_context(|| format!("Could not make {}", lock.display()))?;
    lock.lock().context("Could not lock the cache of kernel packages")?;

    let pin = pin(architecture);
    let pinned = Candidate {
        name: package_name(pin.release, architecture),
        version: pin.version.into(),
        sha256: pin.sha256.into(),
    };
    if let Some(directory) = unpacked(&cache, &pinned) {
        return Ok(pinned.at(directory, Vec::new()));
    }
    let apt = Apt::open(&cache.join("apt"), architecture)?;
    apt.update()?;
    let available = apt.candidates(&meta_package(architecture), &pinned.name)?;
    let (candidate, warnings) = choose(pinned, policy, available)?;
    let directory = match unpacked(&cache, &candidate) {
        Some(directory) => directory,
        None => unpack(&cache, &candidate, &apt.download(&candidate)?)?,
    };
    Ok(candidate.at(directory, warnings))
}

impl Candidate {
    fn at(self, directory: PathBuf, warnings: Vec<String>) -> Package {
        Package { name: self.name, version: self.version, warnings, directory }
    }
}

impl Package {
    /// The kernel as Debian ships it.
    pub(super) fn kernel(&self) -> Result<Vec<u8>> {
        fsx::read(&only_entry(&self.directory.join("boot"), "vmlinuz-")?)
    }

    /// `/usr/lib/modules/<release>`.
    pub(super) fn modules(&self) -> Result<PathBuf> {
        only_entry(&self.directory.join("usr/lib/modules"), "")
    }
}

fn pin(architecture: Architecture) -> Pin {
    match architecture {
        Architecture::X86_64 => Pin {
            version: "6.12.117-1",
            release: "6.12.117+deb13",
            sha256: "e9893e5295d0549b8852611f12a4b8b5f6cc4b8128dcc2086b9847793b904ab7",
        },
        Architecture::Aarch64 => Pin {
            version: "6.12.117-1",
            release: "6.12.117+deb13",
            sha256: "cc33e288505c3271539beab498aeb4f25e27b8f7c0c49ddb6c506b6d3c50c22f",
        },
    }
}

/// The package that always depends on Debian's newest kernel for virtual machines.
fn meta_package(architecture: Architecture) -> String {
    format!("linux-image-cloud-{}", architecture.debian())
}

fn package_name(release: &str, architecture: Architecture) -> String {
    format!("linux-image-{release}-cloud-{}", architecture.debian())
}

/// The pinned package if Debian still has it, else what `policy` says.
fn choose(pinned: Candidate, policy: Policy, available: Vec<Candidate>) -> Result<(Candidate, Vec<String>)> {
    if let Some(same) =
        available.iter().find(|one| (&one.name, &one.version) == (&pinned.name, &pinned.version))
    {
        ensure!(
            same.sha256 == pinned.sha256,
            "Debian's {} {} has the SHA-256 {} instead of the pinned {}: the same version must be the same file, so \
             neither can be trusted",
            same.name,
            same.version,
            same.sha256,
            pinned.sha256
        );
        return Ok((pinned, Vec::new()));
    }
    // apt lists the newest first.
    let Some(newest) = available.into_iter().next() else {
        bail!("Debian {} offers no guest kernel ({} was wanted)", apt::SUITE, pinned.name);
    };
    let moved = format!(
        "Debian has moved on from the pinned guest kernel {} {}; it offers {} {} with SHA-256 {}",
        pinned.name, pinned.version, newest.name, newest.version, newest.sha256
    );
    match policy {
        Policy::Newest => Ok((newest, vec![format!("{moved}, which is used instead")])),
        Policy::Pinned => bail!("{moved}; put that into install/src/guest/package.rs, and run the tests"),
    }
}

/// Where the package is unpacked, if it is. A folder gets this name only when it is complete.
fn unpacked(cache: &Path, candidate: &Candidate) -> Option<PathBuf> {
    let directory = folder(cache, candidate);
    directory.is_dir().then_some(directory)
}

fn folder(cache: &Path, candidate: &Candidate) -> PathBuf {
    cache.join(format!("{}_{}_{}", candidate.name, candidate.version, &candidate.sha256[..12]))
}

fn unpack(cache: &Path, candidate: &Candidate, file: &Path) -> Result<PathBuf> {
    let is = fsx::sha256_of(file).with_context(|| format!("Could not read {}", file.display()))?;
    ensure!(
        is == candidate.sha256,
        "{} has the SHA-256 {is} instead of {}; remove it and try again",
        file.display(),
        candidate.sha256
    );
    let fresh = tempfile::tempdir_in(cache).context("Could not make a directory to unpack the kernel in")?;
    apt::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(fresh.path()))?;
    let directory = folder(cache, candidate);
    fs::rename(fresh.keep(), &directory)
        .with_context(|| format!("Could not rename the unpacked kernel to {}", directory.display()))?;
    fs::remove_file(file).with_context(|| format!("Could not remove {}", file.display()))?;
    Ok(directory)
}

/// The one entry of a directory whose name starts so.
fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let what = || format!("Could not list {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(what)? {
        let entry = entry.with_context(what)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!(
            "{} has {} entries that start with {prefix:?} instead of one",
            directory.display(),
            found.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(version: &str, sha256: &str) -> Candidate {
        let name = package_name(&format!("{version}+deb13"), Architecture::X86_64);
        Candidate { name, version: format!("{version}-1"), sha256: sha256.repeat(64) }
    }

    #[test]
    fn names_follow_the_architecture() {
        assert_eq!(meta_package(Architecture::Aarch64), "linux-image-cloud-arm64");
        assert_eq!(
            package_name("6.12.1+deb13", Architecture::X86_64),
            "linux-image-6.12.1+deb13-cloud-amd64"
        );
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let pin = pin(architecture);
            assert_eq!(pin.sha256.len(), 64);
            assert!(pin.version.starts_with(pin.release.split('+').next().unwrap()));
        }
    }

    #[test]
    fn the_pinned_package_wins_over_a_newer_one() {
        let (chosen, warnings) = choose(
            candidate("6.12.1", "a"),
            Policy::Newest,
            vec![candidate("6.12.2", "b"), candidate("6.12.1", "a")],
        )
        .unwrap();
        assert_eq!((chosen.version.as_str(), warnings.len()), ("6.12.1-1", 0));
    }

    #[test]
    fn a_pool_that_moved_on_is_said_or_refused() {
        let available = || vec![candidate("6.12.3", "c"), candidate("6.12.2", "b")];
        let (chosen, warnings) = choose(candidate("6.12.1", "a"), Policy::Newest, available()).unwrap();
        assert_eq!(chosen.version, "6.12.3-1");
        assert!(warnings[0].contains("6.12.1-1") && warnings[0].contains(&"c".repeat(64)), "{warnings:?}");

        let error = choose(candidate("6.12.1", "a"), Policy::Pinned, available()).err().unwrap().to_string();
        assert!(error.contains("6.12.3-1") && error.contains("package.rs"), "{error}");
    }

    #[test]
    fn the_same_version_with_other_bytes_is_refused() {
        let error =
            choose(candidate("6.12.1", "a"), Policy::Newest, vec![candidate("6.12.1", "b")]).err().unwrap();
        assert!(error.to_string().contains("can be trusted"), "{error}");
    }

    #[test]
    fn a_download_with_other_bytes_is_not_unpacked() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("kernel.deb");
        fs::write(&file, b"other").unwrap();
        let error = unpack(cache.path(), &candidate("6.12.1", "a"), &file).unwrap_err().to_string();
        assert!(error.contains("kernel.deb"), "{error}");
        assert_eq!(unpacked(cache.path(), &candidate("6.12.1", "a")), None);
    }
}
