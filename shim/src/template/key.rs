//! For which machines a template is good: everything that makes the guest's RAM or device state differ. Called by
//! `sandbox` and `make`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::vm::{FileIdentity, Machine, VmmIdentity};

/// A change of what a template holds makes this grow.
const FORMAT: u32 = 1;
/// Hexadecimal digits of a name: enough for the few templates that a node has.
const NAME: usize = 16;

/// What a template and the machine of a pod must have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    format: u32,
    /// Name, version, accelerator, CPU model and machine type of the VMM.
    vmm: Vec<String>,
    /// Kernel, initramfs, VMM and shim, as they are on the disk.
    files: Vec<FileIdentity>,
    kernel_params: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Number of network devices.
    pub nics: usize,
    shares: Vec<String>,
}

impl Key {
    /// The key of `machine`, run by the VMM `vmm` from the binary `vmm_path`; `program` is the shim's binary.
    ///
    /// # Errors
    /// When one of the files is gone.
    pub fn of(machine: &Machine, vmm: &VmmIdentity, vmm_path: &Path, program: &Path) -> Result<Self> {
        let program = program.canonicalize().context(|| format!("Could not find {}", program.display()))?;
        let files = [&machine.kernel, &machine.initramfs, &vmm_path.to_path_buf(), &program];
        let VmmIdentity { name, version, accelerator, cpu, machine: kind } = vmm.clone();
        Ok(Key {
            format: FORMAT,
            vmm: vec![name, version, accelerator, cpu, kind],
            files: files.into_iter().map(|path| identity(path)).collect::<Result<_>>()?,
            kernel_params: machine.kernel_params.clone(),
            vcpus: machine.vcpus,
            memory: machine.memory,
            nics: machine.nics.len(),
            shares: machine.shares.iter().map(|share| share.tag.clone()).collect(),
        })
    }

    /// What its template is called: a piece of a checksum of it.
    ///
    /// # Errors
    /// None that happens: a key can be written as JSON.
    pub fn name(&self) -> Result<String> {
        let text =
            serde_json::to_vec(self).context(|| "Could not express a template's key as JSON".into())?;
        let hex: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(hex.chars().take(NAME).collect())
    }

    /// Whether kernel, initramfs, VMM and shim are still the files that they were.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.format == FORMAT && self.files.iter().all(FileIdentity::is_current)
    }
}

fn identity(path: &Path) -> Result<FileIdentity> {
    FileIdentity::of(path)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("Could not find {}", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::vm::{FsDevice, NetDevice, Placement};

    /// The key of a machine whose kernel, initramfs, VMM and shim are files in `dir`.
    pub(in crate::template) fn key(dir: &Path, change: impl FnOnce(&mut Machine)) -> Key {
        for name in ["kernel", "initramfs", "vmm", "shim"] {
            if !dir.join(name).exists() {
                std::fs::write(dir.join(name), name).unwrap();
            }
        }
        let mut machine = Machine {
            dir: "/run/microvm/a/b".into(),
            kernel: dir.join("kernel"),
            initramfs: dir.join("initramfs"),
            kernel_params: String::new(),
            vcpus: 1,
            memory: 256 << 20,
            ram: "/run/microvm/a/b/ram/mem".into(),
            shares: vec![FsDevice {
                tag: "kataShared".into(),
                socket: "/run/microvm/a/b/images.sock".into(),
            }],
            nics: vec![NetDevice { tap: "microvm-tap0".into(), mac: super::super::MAC.into() }],
            placement: Placement::default(),
        };
        change(&mut machine);
        let vmm = VmmIdentity {
            name: "qemu".into(),
            version: "11.1.2".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
            machine: "pc-q35-11.1".into(),
        };
        Key::of(&machine, &vmm, &dir.join("vmm"), &dir.join("shim")).unwrap()
    }

    #[test]
    fn pods_of_one_kind_share_a_key_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let same = key(dir.path(), |_| {});
        let elsewhere = key(dir.path(), |machine| {
            machine.dir = "/run/microvm/a/c".into();
            machine.ram = "/run/microvm/a/c/ram/mem".into();
            machine.nics[0].mac = "02:42:00:00:00:07".into();
        });
        assert_eq!(same, elsewhere);
        let changes: [fn(&mut Machine); 4] = [
            |machine| machine.memory *= 2,
            |machine| machine.vcpus += 1,
            |machine| machine.nics.clear(),
            |machine| machine.kernel_params = "x".into(),
        ];
        for change in changes {
            let other = key(dir.path(), change);
            assert_ne!(same, other);
            assert_ne!(same.name().unwrap(), other.name().unwrap());
        }
    }

    #[test]
    fn a_new_kernel_makes_a_template_stale() {
        let dir = tempfile::tempdir().unwrap();
        let key = key(dir.path(), |_| {});
        assert!(key.is_current());
        std::fs::write(dir.path().join("kernel"), "another").unwrap();
        assert!(!key.is_current());
        std::fs::remove_file(dir.path().join("kernel")).unwrap();
        assert!(!key.is_current());
    }
}
