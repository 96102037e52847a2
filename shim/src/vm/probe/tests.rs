//! Tests of the examination, with shell scripts for VMMs.

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
    let text = format!(
        "vmm = \"qemu\"\nqemu_path = {qemu:?}\nkernel = {kernel:?}\nrun_dir = {:?}\n",
        dir.join("run")
    );
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
    assert_eq!(host.qemu().unwrap(), "11.1.2");
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
    let error =
        kvm::boot(kvm::Vmm::Qemu, config.qemu_path(), &kernel(&config).unwrap(), deadline).await.unwrap_err();
    assert!(error.chain().ends_with("nothing happened for 500ms"), "{}", error.chain());
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[tokio::test]
async fn another_qemu_is_asked_anew_and_emulation_never_tries_kvm() {
    let dir = tempfile::tempdir().unwrap();
    let old = config(dir.path(), VERSION_OR);
    assert_eq!(Host::examine(&old, false).await.unwrap().qemu().unwrap(), "11.1.2");
    let new = config(dir.path(), &VERSION_OR.replace("11.1.2", "12.0.0"));
    assert_eq!(Host::examine(&new, false).await.unwrap().qemu().unwrap(), "12.0.0");
    assert_eq!(runs(dir.path()), 2);
    assert_eq!(new.accelerator(), Accelerator::Auto);
}

#[tokio::test]
async fn kvm_is_tried_by_cloud_hypervisor_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = "case \"$*\" in --version) echo 'cloud-hypervisor v53.0'; exit;; *'--kernel'*'panic=0') ;; *) exit 9;; esac";
    let run = format!("{run}; echo 'Kernel panic - not syncing: VFS'; exec sleep 1000");
    let qemu = config(dir.path(), &run);
    let file = dir.path().join("ch.toml");
    let text = format!(
        "cloud_hypervisor_path = {:?}\nqemu_path = \"/nonexistent\"\nkernel = {:?}\nrun_dir = {:?}\n",
        qemu.qemu_path(),
        qemu.kernel().unwrap(),
        dir.path().join("run-ch"),
    );
    std::fs::write(&file, text).unwrap();
    let config = Config::load(&Source::Path(file), []).unwrap();
    let host = Host::examine(&config, true).await.unwrap();
    assert_eq!(host.cloud_hypervisor().unwrap(), "53.0");
    host.kvm().unwrap();
    let error = host.qemu().unwrap_err().chain();
    assert!(error.contains("there is no /nonexistent; install it or set qemu_path"), "{error}");
    assert_eq!(Host::examine(&config, true).await.unwrap(), host);
    assert_eq!(runs(dir.path()), 2, "one for the version, one for KVM");
}

#[tokio::test]
async fn a_vmm_that_did_not_answer_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "echo 'cannot load library' >&2; exit 1");
    let error = Host::examine(&config, false).await.unwrap().qemu().unwrap_err().chain();
    assert!(error.contains("cannot load library"), "{error}");
    Host::examine(&config, false).await.unwrap();
    assert_eq!(runs(dir.path()), 2);
}

#[test]
fn versions_are_numbers_and_nothing_else() {
    assert_eq!(ch_version("cloud-hypervisor v53.0-dirty\nMigration: 0").as_deref(), Some("53.0"));
    assert_eq!(ch_version("command not found"), None);
    assert_eq!(parse_version("QEMU emulator version 10.0.2\nCopyright").as_deref(), Some("10.0.2"));
    assert_eq!(parse_version("QEMU emulator version 11.1 (x)").as_deref(), Some("11.1"));
    assert_eq!(parse_version("QEMU emulator version 11,accel=x"), None);
    assert_eq!(parse_version("command not found"), None);
}
