//! What the figures were taken on: without it they mean nothing. Called by `main.rs`, inside the test host.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::Serialize;
use tests::programs;

/// Machine and versions.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) commit: String,
    pub(crate) rounds: usize,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// Processes that wanted to run during the last minute, this bench included.
    pub(crate) load: String,
    pub(crate) containerd: String,
    pub(crate) runc: String,
    pub(crate) qemu: String,
    /// What the shim found out about KVM.
    pub(crate) accelerator: String,
}

impl Facts {
    pub(crate) fn gather(commit: &str, rounds: usize) -> Result<Facts> {
        let first_line = |words: &[&str]| -> Result<String> {
            let text = programs::output(Command::new(words[0]).args(&words[1..]))?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
        Ok(Facts {
            commit: commit.to_owned(),
            rounds,
            cpu: value(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: value(&memory, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse().ok())
                .unwrap_or(0)
                / 1024,
            kernel: first_line(&["uname", "-r"])?,
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            containerd: first_line(&["containerd", "--version"])?,
            runc: first_line(&["runc", "--version"])?,
            qemu: first_line(&[&qemu, "--version"])?,
            accelerator: accelerator(),
        })
    }
}

fn value<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    let fields = table.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.trim(), value.trim()))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// As a running QEMU would be told; the shim writes its probe's answer down.
fn accelerator() -> String {
    let answer = fs::read_to_string("/run/microvm/.vmm.json").unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    answer.to_string()
}
