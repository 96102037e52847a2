//! The architectures that a guest can have, and the names that others give them. Called by everything in this crate.

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// A guest's architecture, written as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Architecture {
    /// The architecture of this machine.
    ///
    /// # Errors
    /// On any machine that we have no guest for.
    pub fn host() -> Result<Self> {
        Self::named(std::env::consts::ARCH)
    }

    /// The architecture with one of its names: the kernel's (`x86_64`) or Debian's (`amd64`).
    ///
    /// # Errors
    /// When no architecture has this name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            _ => bail!("There is no guest for the architecture {name:?}; known are x86_64 and aarch64"),
        }
    }

    /// As the kernel names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian names it.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// File name of the kernel that we boot: an ELF image on x86, where QEMU and Cloud Hypervisor enter it by PVH;
    /// the kernel's own format on Arm.
    #[must_use]
    pub fn kernel_file(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Aarch64 => "Image",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_an_architecture_leads_to_it() {
        for (architecture, kernel, debian, file) in [
            (Architecture::X86_64, "x86_64", "amd64", "vmlinux"),
            (Architecture::Aarch64, "aarch64", "arm64", "Image"),
        ] {
            assert_eq!(Architecture::named(kernel).unwrap(), architecture);
            assert_eq!(Architecture::named(debian).unwrap(), architecture);
            assert_eq!((architecture.name(), architecture.debian()), (kernel, debian));
            assert_eq!(architecture.kernel_file(), file);
            assert_eq!(serde_json::to_string(&architecture).unwrap(), format!("{kernel:?}"));
        }
    }

    #[test]
    fn an_unknown_architecture_is_named() {
        let error = Architecture::named("riscv64").unwrap_err().to_string();
        assert!(error.contains("riscv64"), "{error}");
    }
}
