//! How long the parts of a checkpoint and a restore take: `cargo bench -p containerd-shim-microvm-v1 --bench ram`.
//! The guest has 512 MiB of RAM, of which 128 MiB hold the bytes of this machine's libraries, or what
//! `MICROVM_BENCH_MIB` says; its RAM file is in /dev/shm, as on a node, the snapshot in the working directory.
#![allow(clippy::unwrap_used, reason = "a measurement ends at the first failure")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use shim::snapshot::manifest::{GuestAssets, MachineShape, Made, SandboxFacts};
use shim::snapshot::{Contents, Form, Save, Snapshot};
use shim::vm::VmmIdentity;

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 7;

fn main() {
    let touched = std::env::var("MICROVM_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(128);
    let memory = (touched * 4 * MIB).next_multiple_of(2 * MIB);
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = tempfile::tempdir_in(".").unwrap();
    let ram = shm.path().join("mem");
    fill(&ram, memory, touched);
    println!("{touched} MiB touched of {} MiB; medians of {ROUNDS}", memory / MIB);
    println!(
        "{:8} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "form", "paused", "finish", "verify", "restore", "on disk"
    );
    for form in [Form::Plain, Form::Packed] {
        let mut times: [Vec<Duration>; 4] = Default::default();
        let mut bytes = 0;
        for round in 0..ROUNDS {
            let dir = disk.path().join(format!("{form:?}{round}"));
            let new = shm.path().join("new");
            File::create(&new).unwrap().set_len(memory).unwrap();
            let mut save = Save::begin(&dir, form).unwrap();
            fs::write(dir.join("state"), "state").unwrap();
            let deadline = Instant::now() + Duration::from_secs(600);
            times[0].push(timed(|| save.capture_ram(&ram, deadline).unwrap()));
            let mut save = Some(save);
            times[1].push(timed(|| {
                bytes = save.take().unwrap().finish(contents(memory), &["state".into()]).unwrap().bytes;
            }));
            let snapshot = Snapshot::open(&dir).unwrap();
            times[2].push(timed(|| snapshot.verify().unwrap()));
            times[3].push(timed(|| snapshot.restore_ram(&new).unwrap()));
            // Zero pages of the guest are holes afterwards.
            assert!(fs::metadata(&new).unwrap().blocks() <= fs::metadata(&ram).unwrap().blocks());
            fs::remove_file(&new).unwrap();
            fs::remove_dir_all(&dir).unwrap();
        }
        let median = times.map(|mut times| {
            times.sort();
            format!("{:.1} ms", times[ROUNDS / 2].as_secs_f64() * 1e3)
        });
        let [paused, finish, verify, restore] = median;
        let disk = format!("{} MiB", bytes / MIB);
        println!("{:8} {paused:>10} {finish:>10} {verify:>10} {restore:>10} {disk:>10}", format!("{form:?}"));
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Writes the bytes of libraries in runs of 1 MiB with holes of 3 between them.
fn fill(ram: &Path, memory: u64, touched: u64) {
    let file = File::create(ram).unwrap();
    file.set_len(memory).unwrap();
    let mut sources: Vec<_> = fs::read_dir("/usr/lib/x86_64-linux-gnu")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    sources.sort();
    let mut sources = sources.iter().cycle();
    let mut pending = Vec::new();
    for run in 0..touched {
        while pending.len() < 1 << 20 {
            File::open(sources.next().unwrap()).unwrap().read_to_end(&mut pending).unwrap();
        }
        let rest = pending.split_off(1 << 20);
        file.write_all_at(&pending, run * 4 * MIB).unwrap();
        pending = rest;
    }
}

fn contents(memory: u64) -> Contents {
    let digest = format!("sha256:{}", "a".repeat(64));
    Contents {
        made: Made::now(),
        vmm: VmmIdentity {
            name: "qemu".into(),
            version: "1".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
            machine: "q35".into(),
        },
        guest: GuestAssets {
            architecture: "x86_64".into(),
            version: "1".into(),
            kernel: digest.parse().unwrap(),
            initramfs: digest.parse().unwrap(),
        },
        machine: MachineShape {
            vcpus: 1,
            memory,
            nics: vec![],
            shares: vec![],
            kernel_params: String::new(),
        },
        sandbox: SandboxFacts::default(),
        containers: vec![],
    }
}
