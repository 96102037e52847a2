//! What this host can run: which QEMU, and whether KVM works, found out by booting a kernel under it. `/dev/kvm` may
//! well be there and hang the first guest. The answers are kept until the host boots again. Called by
//! [`super::choose`] and by `microvmctl doctor`.

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

use super::console;
use super::{Placement, process::place};
use crate::config::Config;
use crate::error::{Context, Error, Kind, Result};

/// Longest wait for `qemu --version`; loading its libraries from a cold disk takes seconds.
const VERSION: Duration = Duration::from_secs(10);
/// Longest boot of the probe's kernel. KVM takes 0.3 s, KVM emulated by another emulator 9 s.
const BOOT: Duration = Duration::from_secs(10);
/// The kernel was decompressed, has found its devices, and wants a root filesystem that it is not given.
const PROOF: &str = "Kernel panic - not syncing";
/// Name of the answers' file in the run directory. containerd's namespaces never start with a dot.
const CACHE: &str = ".vmm.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What was found out about this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// QEMU's version, like `11.1.2`.
    pub version: String,
    /// Why KVM does not work; `Some` of an empty text if it does, none if nobody asked yet.
    kvm_failure: Option<String>,
    /// What the answers are true for.
    subject: Subject,
}

/// Answers are for one boot of the host, one QEMU and one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    boot_id: String,
    qemu: FileIdentity,
    kernel: Option<FileIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(path: &Path) -> Result<Self> {
        let what = || format!("Could not find {}", path.display());
        let data = std::fs::metadata(path).kind(Kind::NotFound, what)?;
        Ok(Self { path: path.to_owned(), size: data.len(), changed: (data.ctime(), data.ctime_nsec()) })
    }
}

impl Host {
    /// Finds out what has not been found out since the host booted: QEMU's version, and with `kvm` whether KVM works.
    ///
    /// # Errors
    /// `NotFound` when QEMU is not there, else when it does not run. KVM that does not work is no error.
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
            None => Host { version: version(config.qemu_path()).await?, kvm_failure: None, subject },
        };
        if kvm && host.kvm_failure.is_none() {
            let failure = boot(config.qemu_path(), &kernel(config)?, BOOT).await.err();
            host.kvm_failure = Some(failure.map(|error| error.chain()).unwrap_or_default());
        }
        // Without the file the next pod asks again, which is slow and no more.
        if let Err(error) = write(&cache, &host) {
            log::warn!("Could not keep what was found out about this host in {}: {error}", cache.display());
        }
        Ok(host)
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

impl Subject {
    fn now(config: &Config) -> Result<Self> {
        let boot_id = std::fs::read_to_string(BOOT_ID).context(|| format!("Could not read {BOOT_ID}"))?;
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
            qemu: FileIdentity::of(config.qemu_path())
                .context(|| "QEMU is not installed; install it or set qemu_path in the config".into())?,
            kernel: kernel(config).and_then(|path| FileIdentity::of(&path)).ok(),
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
    serde_json::from_slice(&text).ok().filter(|host: &Host| host.subject == *subject)
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

/// Asks QEMU for its version.
async fn version(qemu: &Path) -> Result<String> {
    let what = || format!("Could not ask {} for its version", qemu.display());
    let mut command = Command::new(qemu);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let late = |_| Error::new(Kind::DeadlineExceeded, format!("it did not answer within {VERSION:?}"));
    let output = timeout(VERSION, command.output()).await.map_err(late).context(what)?.context(what)?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| {
        let errors = console::last_lines(&output.stderr);
        Error::new(Kind::Internal, format!("{}: {}: {text}{errors}", what(), output.status))
    })
}

/// `QEMU emulator version 11.1.2 (Debian …)`
fn parse_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("version ")?;
    let version = rest.split_ascii_whitespace().next()?;
    let numbers =
        version.split('.').count() >= 2 && version.split('.').all(|number| number.parse::<u32>().is_ok());
    numbers.then(|| version.to_owned())
}

/// Boots `kernel` under KVM, without anything else, until it panics over that.
async fn boot(qemu: &Path, kernel: &Path, deadline: Duration) -> Result<()> {
    let uart = if cfg!(target_arch = "aarch64") { "ttyAMA0" } else { "ttyS0" };
    let machine = if cfg!(target_arch = "aarch64") { "virt,gic-version=max" } else { "q35" };
    let mut command = Command::new(qemu);
    command
        .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-machine", machine, "-accel", "kvm", "-cpu", "host", "-m", "128M"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", &format!("console={uart} quiet panic=-1 reboot=k")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    place(&mut command, &Placement::default(), None)?;
    let what = || format!("KVM does not boot {}", kernel.display());
    let mut child = command.spawn().context(|| format!("Could not start {}", qemu.display()))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::new(Kind::Internal, what()));
    };
    let watched =
        async { tokio::join!(console::keep_last(stdout), console::keep_last(stderr), child.wait()) };
    let Ok((output, errors, status)) = timeout(deadline, watched).await else {
        let _ = child.kill().await;
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("{}: nothing happened for {deadline:?}", what()),
        ));
    };
    if String::from_utf8_lossy(&output).contains(PROOF) {
        return Ok(());
    }
    let status = status.context(what)?;
    let words = console::last_lines(if errors.is_empty() { &output } else { &errors });
    Err(Error::new(Kind::FailedPrecondition, format!("{}: QEMU has ended with {status}: {words}", what())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::config::{Accelerator, Source};

    /// A config whose QEMU is the shell script `body`, which also counts its runs in the file `runs`.
    fn config(dir: &Path, body: &str) -> Config {
        let qemu = dir.join("qemu");
        let script = format!("#!/bin/sh\necho run >> {}\n{body}\n", dir.join("runs").display());
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o755);
        options.open(&qemu).unwrap().write_all(script.as_bytes()).unwrap();
        let kernel = dir.join("vmlinux");
        std::fs::write(&kernel, "kernel").unwrap();
        let text = format!("qemu_path = {qemu:?}\nkernel = {kernel:?}\nrun_dir = {:?}\n", dir.join("run"));
        let file = dir.join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&Source::Path(file), []).unwrap()
    }

    fn runs(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("runs")).unwrap_or_default().lines().count()
    }

    const VERSION_OR: &str =
        "case \"$1\" in --version) echo 'QEMU emulator version 11.1.2 (Debian 1:11.1.2+ds-3)'; exit;; esac";

    #[tokio::test]
    async fn kvm_works_if_a_kernel_gets_to_its_own_end_and_is_asked_once_per_boot() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &format!("{VERSION_OR}; echo 'Kernel panic - not syncing: VFS'"));
        let host = Host::examine(&config, true).await.unwrap();
        assert_eq!(host.version, "11.1.2");
        host.kvm().unwrap();
        assert_eq!(runs(dir.path()), 2);
        assert_eq!(Host::examine(&config, true).await.unwrap(), host);
        assert_eq!(runs(dir.path()), 2, "the second answer comes from the file");
    }

    #[tokio::test]
    async fn kvm_that_refuses_is_told_with_qemus_words() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("{VERSION_OR}; echo 'Could not access KVM kernel module' >&2; exit 1");
        let config = config(dir.path(), &script);
        let error = Host::examine(&config, true).await.unwrap().kvm().unwrap_err();
        assert!(error.chain().contains("exit status: 1: Could not access KVM"), "{}", error.chain());
    }

    #[tokio::test]
    async fn kvm_that_hangs_is_killed_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let config = config(dir.path(), &format!("echo $$ > {}; exec sleep 1000", pid.display()));
        let deadline = Duration::from_millis(500);
        let error = boot(config.qemu_path(), &kernel(&config).unwrap(), deadline).await.unwrap_err();
        assert!(error.chain().ends_with("nothing happened for 500ms"), "{}", error.chain());
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[tokio::test]
    async fn another_qemu_is_asked_anew_and_emulation_never_tries_kvm() {
        let dir = tempfile::tempdir().unwrap();
        let old = config(dir.path(), VERSION_OR);
        assert_eq!(Host::examine(&old, false).await.unwrap().version, "11.1.2");
        let new = config(dir.path(), &VERSION_OR.replace("11.1.2", "12.0.0"));
        assert_eq!(Host::examine(&new, false).await.unwrap().version, "12.0.0");
        assert_eq!(runs(dir.path()), 2);
        assert_eq!(new.accelerator(), Accelerator::Auto);
    }

    #[test]
    fn versions_are_numbers_and_nothing_else() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2\nCopyright").as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("QEMU emulator version 11.1 (x)").as_deref(), Some("11.1"));
        assert_eq!(parse_version("QEMU emulator version 11,accel=x"), None);
        assert_eq!(parse_version("command not found"), None);
    }
}
