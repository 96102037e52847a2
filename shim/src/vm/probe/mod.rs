//! What this host can run: which VMMs, and whether KVM works, found out by booting a kernel under it. `/dev/kvm` may
//! well be there and hang the first guest. The answers are kept until the host boots again. Called by
//! [`super::choose`] and by `microvmctl doctor`.

mod kvm;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use install::assets::Assets;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::cloud_hypervisor::Version;
use super::console;
use crate::config::{Config, VmmChoice};
use crate::error::{Context, Error, Kind, Result};

/// Longest wait for a VMM's `--version`; loading its libraries from a cold disk takes seconds.
const VERSION: Duration = Duration::from_secs(10);
/// Longest boot of the probe's kernel. KVM takes 0.3 s, KVM emulated by another emulator 9 s.
const BOOT: Duration = Duration::from_secs(10);
/// Name of the answers' file in the run directory. containerd's namespaces never start with a dot.
const CACHE: &str = ".vmm.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What was found out about this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    qemu: Program,
    cloud_hypervisor: Program,
    /// Why KVM does not work; `Some` of an empty text if it does, none if nobody asked yet.
    kvm_failure: Option<String>,
    /// What the answers are true for.
    subject: Subject,
}

/// What a VMM's binary says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Program {
    /// Its version.
    Version(String),
    /// Why it can't be used.
    Unusable(String),
}

/// Answers are for one boot of the host, its VMMs and one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    boot_id: String,
    /// None: not there, or not asked for.
    qemu: Option<FileIdentity>,
    cloud_hypervisor: Option<FileIdentity>,
    kernel: Option<FileIdentity>,
}

/// A file as it is on the disk now: another file at its place, or another content, has another identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    path: PathBuf,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileIdentity {
    /// The file at `path`; none if there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self { path: path.to_owned(), size: data.len(), changed: (data.ctime(), data.ctime_nsec()) })
    }

    /// Whether it is still there, as it was.
    #[must_use]
    pub fn is_current(&self) -> bool {
        Self::of(&self.path).is_some_and(|now| now == *self)
    }
}

impl Host {
    /// Finds out what has not been found out since the host booted: which VMMs there are of those that the config
    /// wants, and with `kvm` whether KVM works.
    ///
    /// # Errors
    /// When nothing can be found out. A VMM that is missing or KVM that does not work is no error.
    pub(super) async fn examine(config: &Config, kvm: bool) -> Result<Self> {
        let subject = Subject::now(config)?;
        let cache = config.run_dir().join(CACHE);
        if let Some(host) = read(&cache, &subject).filter(|host| !kvm || host.kvm_failure.is_some()) {
            return Ok(host);
        }
        std::fs::create_dir_all(config.run_dir())
            .context(|| format!("Could not create {}", config.run_dir().display()))?;
        // Pods that start together wait for one probe instead of disturbing each other's.
        let _lock = lock(cache.with_extension("lock")).await;
        let mut host = match read(&cache, &subject) {
            Some(host) => host,
            None => Host::ask(config, subject).await,
        };
        if kvm && host.kvm_failure.is_none() {
            let failure = host.boot(config).await.err();
            host.kvm_failure = Some(failure.map(|error| error.chain()).unwrap_or_default());
        }
        // Without the file the next pod asks again, which is slow and no more.
        if let Err(error) = write(&cache, &host) {
            log::warn!("Could not keep what was found out about this host in {}: {error}", cache.display());
        }
        Ok(host)
    }

    async fn ask(config: &Config, subject: Subject) -> Self {
        let unusable = |error: Error| Program::Unusable(error.chain());
        let qemu = match &subject.qemu {
            Some(file) => version(&file.path, parse_version).await,
            None => Err(absent("QEMU", config.qemu_path(), "qemu_path")),
        };
        let cloud_hypervisor = match &subject.cloud_hypervisor {
            Some(file) => version(&file.path, ch_version).await,
            None => Err(absent("Cloud Hypervisor", config.cloud_hypervisor_path(), "cloud_hypervisor_path")),
        };
        Self {
            qemu: qemu.map_or_else(unusable, Program::Version),
            cloud_hypervisor: cloud_hypervisor.map_or_else(unusable, Program::Version),
            kvm_failure: None,
            subject,
        }
    }

    /// Boots a kernel under KVM by a VMM that there is.
    async fn boot(&self, config: &Config) -> Result<()> {
        let (vmm, program) = match self.cloud_hypervisor() {
            Ok(_) => (kvm::Vmm::CloudHypervisor, config.cloud_hypervisor_path()),
            Err(_) => self.qemu().map(|_| (kvm::Vmm::Qemu, config.qemu_path()))?,
        };
        kvm::boot(vmm, program, &kernel(config)?, BOOT).await
    }

    /// QEMU's version, like `11.1.2`.
    ///
    /// # Errors
    /// `NotFound` with the reason when it can't be used.
    pub fn qemu(&self) -> Result<&str> {
        self.qemu.version()
    }

    /// Cloud Hypervisor's version, like `53.0`.
    ///
    /// # Errors
    /// `NotFound` with the reason when it can't be used, and `FailedPrecondition` when it is too old.
    pub fn cloud_hypervisor(&self) -> Result<&str> {
        let version = self.cloud_hypervisor.version()?;
        version.parse::<Version>()?.check().map(|()| version)
    }

    /// Whether KVM works; an error says why not.
    ///
    /// # Errors
    /// `FailedPrecondition` when it does not, or was not tried.
    pub fn kvm(&self) -> Result<()> {
        match self.kvm_failure.as_deref() {
            Some("") => Ok(()),
            Some(failure) => Err(Error::new(Kind::FailedPrecondition, failure)),
            None => Err(Error::new(Kind::FailedPrecondition, "KVM was not tried")),
        }
    }
}

impl Program {
    fn version(&self) -> Result<&str> {
        match self {
            Program::Version(version) => Ok(version),
            Program::Unusable(reason) => Err(Error::new(Kind::NotFound, reason.clone())),
        }
    }
}

fn absent(name: &str, path: &Path, key: &str) -> Error {
    let text = format!(
        "{name} is not installed: there is no {}; install it or set {key} in the config",
        path.display()
    );
    Error::new(Kind::NotFound, text)
}

impl Subject {
    fn now(config: &Config) -> Result<Self> {
        let boot_id = std::fs::read_to_string(BOOT_ID).context(|| format!("Could not read {BOOT_ID}"))?;
        let unless = |other: VmmChoice, path| {
            if config.vmm() == other { None } else { FileIdentity::of(path) }
        };
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
            qemu: unless(VmmChoice::CloudHypervisor, config.qemu_path()),
            cloud_hypervisor: unless(VmmChoice::Qemu, config.cloud_hypervisor_path()),
            kernel: kernel(config).ok().and_then(|path| FileIdentity::of(&path)),
        })
    }
}

/// The kernel that pods boot.
fn kernel(config: &Config) -> Result<PathBuf> {
    match config.kernel() {
        Some(path) => Ok(path.to_owned()),
        None => Ok(Assets::load(config.guest_dir())
            .kind(Kind::NotFound, || "The guest is not installed".into())?
            .kernel),
    }
}

/// The answers in the file at `path`, if there are any for `subject`.
fn read(path: &Path, subject: &Subject) -> Option<Host> {
    let text = std::fs::read(path).ok()?;
    let host: Host = serde_json::from_slice(&text).ok()?;
    // One that is there and did not answer may do so the next time.
    let failed = |program: &Program, file: &Option<FileIdentity>| {
        file.is_some() && matches!(program, Program::Unusable(_))
    };
    let again = failed(&host.qemu, &host.subject.qemu)
        || failed(&host.cloud_hypervisor, &host.subject.cloud_hypervisor);
    (host.subject == *subject && !again).then_some(host)
}

fn write(path: &Path, host: &Host) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(host)?)?;
    std::fs::rename(new, path)
}

/// Waits until nobody else examines the host, but no longer than that can take.
async fn lock(path: PathBuf) -> Option<Flock<File>> {
    let take = || Flock::lock(File::create(path).ok()?, FlockArg::LockExclusive).ok();
    timeout(VERSION + BOOT, tokio::task::spawn_blocking(take)).await.ok()?.ok()?
}

/// Asks a VMM for its version, which `parse` finds in what it prints.
async fn version(program: &Path, parse: impl Fn(&str) -> Option<String>) -> Result<String> {
    let what = || format!("Could not ask {} for its version", program.display());
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let late = |_| Error::new(Kind::DeadlineExceeded, format!("it did not answer within {VERSION:?}"));
    let output = timeout(VERSION, command.output()).await.map_err(late).context(what)?.context(what)?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| {
        let errors = console::last_lines(&output.stderr);
        Error::new(Kind::Internal, format!("{}: {}: {text}{errors}", what(), output.status))
    })
}

/// `cloud-hypervisor v53.0`
fn ch_version(text: &str) -> Option<String> {
    let version = text.lines().next()?.split_ascii_whitespace().nth(1)?.parse::<Version>();
    version.ok().map(|version| version.to_string())
}

/// `QEMU emulator version 11.1.2 (Debian …)`
fn parse_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("version ")?;
    let version = rest.split_ascii_whitespace().next()?;
    let numbers =
        version.split('.').count() >= 2 && version.split('.').all(|number| number.parse::<u32>().is_ok());
    numbers.then(|| version.to_owned())
}

#[cfg(test)]
impl Host {
    /// A host with QEMU, and the rest as told.
    pub(super) fn with(cloud_hypervisor: Option<&str>, kvm: Result<(), &str>) -> Self {
        let unusable = || Program::Unusable("there is none".into());
        Self {
            qemu: Program::Version("11.1.2".into()),
            cloud_hypervisor: cloud_hypervisor
                .map_or_else(unusable, |version| Program::Version(version.into())),
            kvm_failure: Some(kvm.err().unwrap_or_default().into()),
            subject: Subject { boot_id: String::new(), qemu: None, cloud_hypervisor: None, kernel: None },
        }
    }
}

#[cfg(test)]
mod tests;
