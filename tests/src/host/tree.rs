//! The test host's Debian tree: made with mmdebstrap the first time, found again under its key afterwards. Called by
//! `host::run`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use install::mirror;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// Debian's next release: the first with containerd 2.1.
const SUITE: &str = "forky";

/// What a node has, and no more: containerd with runc, the VMM, CNI plugins, and tools that the tests call.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "nftables",
    "procps",
    "qemu-system-x86",
    "runc",
];

/// Left out of the tree: nobody reads documentation in a test host.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// The tree below `home`, made first if it is not there yet. Two callers at a time: the second one waits.
pub(super) fn ensure(home: &Path) -> Result<PathBuf> {
    let tree = home.join(format!("debian-{SUITE}-{}", key()));
    if tree.exists() {
        return Ok(tree);
    }
    let lock_path = home.join("tree.lock");
    let file = File::create(&lock_path).with_context(|| format!("Could not make {}", lock_path.display()))?;
    let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusive) else {
        bail!("Could not lock {}", lock_path.display());
    };
    if !tree.exists() {
        build(&tree)?;
    }
    Ok(tree)
}

/// Changes whenever the tree's content would.
fn key() -> String {
    let mut hash = Sha256::new();
    for word in [&[SUITE], PACKAGES, EXCLUDED].concat() {
        hash.update(word);
        hash.update([0]);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn build(tree: &Path) -> Result<()> {
    let started = Instant::now();
    need_mmdebstrap()?;
    println!("test host: making a Debian {SUITE} with {} (once, about half a minute)", PACKAGES.join(", "));
    let mirror = mirror::of_this_machine()?;
    let unfinished = tree.with_extension("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished)
            .with_context(|| format!("Could not remove {}", unfinished.display()))?;
    }
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=minbase", "--format=directory"])
        // The archive of a release to come may be a snapshot whose Release file has run out.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(&unfinished)
        .arg(format!("deb [signed-by={}] {} {SUITE} main", mirror.keyring.display(), mirror.uri));
    succeed(mmdebstrap.stdin(Stdio::null()))?;
    std::fs::rename(&unfinished, tree)
        .with_context(|| format!("Could not name the finished tree {}", tree.display()))?;
    println!("test host: Debian {SUITE} is ready ({:.1} s)", started.elapsed().as_secs_f32());
    Ok(())
}

fn need_mmdebstrap() -> Result<()> {
    let there =
        Command::new("mmdebstrap").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("test host: installing mmdebstrap with apt");
    succeed(Command::new("apt-get").args(["-q", "-o", "DPkg::Lock::Timeout=300", "update"]))?;
    succeed(
        Command::new("apt-get")
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends"])
            .arg("mmdebstrap")
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("Could not run {command:?}"))?;
    if !status.success() {
        bail!("{:?} ended with {status}; its output is above", command.get_program());
    }
    Ok(())
}
