//! `cargo xtask nested`: end-to-end tests where KVM works, which it does in a virtual machine that is emulated as a whole.
//! Slow, and the only way to run KVM on a machine without it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use install::Architecture;
use install::guest;

use crate::workspace::Workspace;
use crate::{packages, shell, test};

#[derive(Debug, clap::Args)]
pub(crate) struct Nested {
    /// A Cloud Hypervisor that runs the pods; without one QEMU does
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// Run only tests whose name contains this, instead of the core tests
    filter: Option<String>,
}

/// Modules of the machine's kernel: KVM, and what containerd, CNI and the shim use on a node. The kernel could not load
/// them by itself, as the tree has no modprobe.
const MODULES: &[&str] = &[
    "kvm_amd",
    "tun",
    "overlay",
    "veth",
    "bridge",
    "vhost_net",
    "cls_u32",
    "act_mirred",
    "sch_ingress",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_compat",
    "nft_fib",
    "nft_reject_inet",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_addrtype",
    "virtio_rng",
];

/// Where the test host looks for them; `tests` says the same.
const MODULES_FOLDER: &str = "opt/testhost/modules";

pub(crate) fn run(workspace: &Workspace, nested: &Nested) -> Result<ExitCode> {
    packages::need(packages::BUILD)?;
    packages::need(packages::TESTHOST)?;
    let installed = shell::installed(workspace)?;
    lay_modules(workspace, &installed)?;
    lay_vmm(&installed, nested.vmm.as_deref())?;
    let program = test::build(workspace)?;
    let mut e2e = Command::new(program);
    e2e.arg("--target").arg(&workspace.target).arg("--installed").arg(&installed).arg("--nested");
    match &nested.filter {
        Some(filter) => e2e.arg(filter),
        None => e2e.arg("--core"),
    };
    let status = e2e.status().context("Could not run the end-to-end tests")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

fn lay_modules(workspace: &Workspace, installed: &Path) -> Result<()> {
    let cache = workspace.target.join("guest/cache");
    let folder = installed.join(MODULES_FOLDER);
    fs::create_dir_all(&folder)?;
    for (number, module) in guest::modules(Architecture::host()?, &cache, MODULES)?.iter().enumerate() {
        fs::write(folder.join(format!("{number:03}-{}.ko", module.name)), &module.bytes)?;
    }
    Ok(())
}

/// Has the pods run by this Cloud Hypervisor or by QEMU, with KVM, whose probe would take its whole time here.
fn lay_vmm(installed: &Path, vmm: Option<&Path>) -> Result<()> {
    let name = match vmm {
        None => "qemu",
        Some(vmm) => {
            let place = installed.join("usr/bin/cloud-hypervisor");
            fs::create_dir_all(installed.join("usr/bin"))?;
            fs::copy(vmm, &place).with_context(|| format!("Could not copy {}", vmm.display()))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
            "cloud-hypervisor"
        }
    };
    let config = installed.join("etc/containerd/microvm.toml");
    let mut file = fs::OpenOptions::new().append(true).open(&config)?;
    write!(file, "vmm = \"{name}\"\naccelerator = \"kvm\"\n")
        .with_context(|| format!("Could not write {}", config.display()))
}
