//! A pod to save, and RAM with a pattern.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shim::snapshot::manifest::{
    ContainerRecord, ContainerState, ExecRecord, GuestAssets, ImageRecord, MachineShape, Made, SandboxFacts,
    VolumeRecord,
};
use shim::snapshot::{Contents, FinishedSave, Form, Save};
use shim::vm::VmmIdentity;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A pod with two containers, one of them with everything.
pub(crate) fn contents(memory: u64) -> Contents {
    let digest = |c: &str| format!("sha256:{}", c.repeat(64)).parse().unwrap();
    let web = ContainerRecord {
        guest_name: "web".into(),
        generation: 2,
        cri_name: Some("web".into()),
        image: Some(ImageRecord {
            name: "registry.example/web:1".into(),
            digest: digest("a"),
            snapshotter: "overlayfs".into(),
            layers: vec![digest("b"), digest("c")],
        }),
        state: ContainerState::Running,
        upper_size: memory / 2,
        terminal: true,
        volumes: vec![VolumeRecord { index: 0, destination: "/etc/config".into(), read_only: true }],
        execs: vec![ExecRecord { id: "sh".into(), terminal: true }],
    };
    let job = ContainerRecord {
        guest_name: "job".into(),
        generation: 1,
        cri_name: None,
        image: None,
        state: ContainerState::Stopped(3),
        upper_size: 0,
        terminal: false,
        volumes: vec![],
        execs: vec![],
    };
    Contents {
        made: Made::now(),
        vmm: VmmIdentity {
            name: "qemu".into(),
            version: "11.1.0".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
            machine: "pc-q35-11.1".into(),
        },
        guest: GuestAssets {
            architecture: "x86_64".into(),
            version: "1".into(),
            kernel: digest("d"),
            initramfs: digest("e"),
        },
        machine: MachineShape {
            vcpus: 1,
            memory,
            nics: vec!["02:00:00:00:00:01".into()],
            shares: vec!["kataShared".into(), "volumes".into()],
            kernel_params: String::new(),
        },
        sandbox: SandboxFacts { id: "s1".into(), ..SandboxFacts::default() },
        containers: vec![web, job],
    }
}

/// A RAM file of `memory` bytes in which the given pages hold the given byte.
pub(crate) fn ram(path: &Path, memory: u64, pages: &[(u64, u8)]) {
    let file = File::create(path).unwrap();
    file.set_len(memory).unwrap();
    for (page, byte) in pages {
        // Not all the same bytes, so that swapped pages are seen.
        let mut data = [*byte; 4096];
        data[..8].copy_from_slice(&(page * u64::from(*byte)).to_le_bytes());
        file.write_all_at(&data, page * PAGE).unwrap();
    }
}

/// Saves that RAM with one file of device state.
pub(crate) fn save(dir: &Path, ram: &Path, form: Form) -> shim::Result<FinishedSave> {
    let memory = fs::metadata(ram).unwrap().len();
    let mut save = Save::begin(dir, form)?;
    fs::write(save.dir().join("state"), "device state").unwrap();
    match save.capture_ram(ram, soon()) {
        Ok(()) => save.finish(contents(memory), &["state".into()]),
        Err(error) => Err(error.with_cleanup(save.abort().err().into_iter().collect())),
    }
}

/// A temporary directory in memory: the many cases of the property tests would wait for a disk's fsync otherwise.
pub(crate) fn temp() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A temporary directory with a snapshot `snap` of 4 MiB of RAM in it.
pub(crate) fn saved(form: Form) -> (tempfile::TempDir, PathBuf) {
    let temp = temp();
    let memory = temp.path().join("mem");
    ram(&memory, 4 * MIB, &[(0, 1), (1, 2), (255, 3), (256, 4), (700, 5), (1023, 6)]);
    let dir = temp.path().join("snap");
    save(&dir, &memory, form).unwrap();
    (temp, dir)
}

/// An empty RAM file beside the snapshot.
pub(crate) fn empty(temp: &Path, memory: u64) -> PathBuf {
    let path = temp.join("new");
    File::create(&path).unwrap().set_len(memory).unwrap();
    path
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
