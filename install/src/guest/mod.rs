//! Builds the guest: kernel and modules of a Debian package, our agent as `/init`, and the manifest that describes
//! them. The same inputs give the same bytes. Called by `xtask`; docs/decisions/0002-guest-kernel.md says why so.

mod apt;
mod initramfs;
mod kernel;
mod modules;
mod package;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Architecture;
use crate::assets::{Assets, Entry, MANIFEST, Manifest};
use crate::fsx;

pub use modules::Module;
pub use package::Policy;

/// Modules that every guest loads at boot; what they need comes along. What the kernel has built in (virtio-pci,
/// virtio-console, virtio-fs, fuse, af_packet) is not named. The agent needs tcp_diag to end connections that a
/// restored guest still has with its old peers. bridge is for containers that may manage networks: nobody in the guest
/// loads a module later.
const MODULES: &[&str] = &[
    "overlay",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_rng",
    "tcp_diag",
    "bridge",
];

/// File name of the initramfs.
const INITRAMFS: &str = "initramfs.cpio";

/// What to build from, and where.
#[derive(Debug, Clone)]
pub struct Build {
    /// The guest's architecture.
    pub architecture: Architecture,
    /// The agent's binary: static, of that architecture.
    pub agent: PathBuf,
    /// Directory that keeps the kernel's package between builds.
    pub cache: PathBuf,
    /// Directory that gets a folder named by the version of the assets. The one before stays, older ones go.
    pub out: PathBuf,
    /// Which kernel package is good enough.
    pub policy: Policy,
}

/// What a build has made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The assets, in a folder of `out`.
    pub assets: Assets,
    /// What a person should know, such as a kernel other than the pinned one. Usually nothing.
    pub warnings: Vec<String>,
}

/// These modules of the guest's kernel and all that they need, each after what it needs. For a machine that runs that
/// kernel and is no guest of ours: the nested test host.
///
/// # Errors
/// When the package can't be had, or has no such module.
pub fn modules(architecture: Architecture, cache: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let package = package::fetch(architecture, Policy::default(), cache)?;
    modules::Tree::open(&package.modules()?)?.with_dependencies(wanted)
}

/// Makes kernel, initramfs and manifest. Downloads the kernel's package if the cache does not hold it (35 MB); a build
/// without that takes about a second.
///
/// # Errors
/// When the package can't be had or is not what the pin says, or when it does not hold what we need.
pub fn build(build: &Build) -> Result<Built> {
    let package = package::fetch(build.architecture, build.policy, &build.cache)?;
    let kernel = kernel::bootable(build.architecture, &package.kernel()?)
        .with_context(|| format!("Could not use the kernel of {}", package.name))?;
    let modules = modules::Tree::open(&package.modules()?)?.with_dependencies(MODULES)?;
    let agent = fsx::read(&build.agent)?;
    kernel::check_static(build.architecture, &agent)
        .with_context(|| format!("{} can't be the guest's agent", build.agent.display()))?;
    let initramfs = initramfs::pack(&agent, &modules)?;

    let mut manifest = Manifest::new(
        build.architecture,
        &package.version,
        Entry::of(build.architecture.kernel_file(), &kernel),
        Entry::of(INITRAMFS, &initramfs),
    );
    let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
    manifest.made_of.insert("kernel package".into(), format!("{} {}", package.name, package.version));
    manifest.made_of.insert("modules".into(), names.join(" "));
    let directory = write(&build.out, &manifest, &kernel, &initramfs)?;
    prune(&build.out, &directory)?;
    Ok(Built { assets: Assets::load(&directory)?, warnings: package.warnings })
}

/// Writes the folder of these assets, the manifest last.
fn write(out: &Path, manifest: &Manifest, kernel: &[u8], initramfs: &[u8]) -> Result<PathBuf> {
    let directory = out.join(&manifest.version);
    if let Ok(assets) = Assets::load(&directory)
        && assets.verify().is_ok()
    {
        return Ok(directory);
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("Could not make the directory {}", directory.display()))?;
    fsx::replace(&directory.join(&manifest.kernel.name), kernel, 0o644)?;
    fsx::replace(&directory.join(&manifest.initramfs.name), initramfs, 0o644)?;
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    fsx::replace(&directory.join(MANIFEST), &json, 0o644)?;
    Ok(directory)
}

/// Removes the folders of assets in `out` but `newest` and the one built before it: each new agent makes another 64 MB.
fn prune(out: &Path, newest: &Path) -> Result<()> {
    let what = || format!("Could not list {}", out.display());
    let mut older = Vec::new();
    for entry in fs::read_dir(out).with_context(what)? {
        let path = entry.with_context(what)?.path();
        if path != newest
            && let Ok(manifest) = fs::metadata(path.join(MANIFEST))
        {
            older.push((manifest.modified().with_context(what)?, path));
        }
    }
    older.sort_unstable();
    older.pop();
    for (_, path) in older {
        fs::remove_dir_all(&path).with_context(|| format!("Could not remove {}", path.display()))?;
    }
    Ok(())
}
