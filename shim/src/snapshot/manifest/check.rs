//! Makes checked records of raw ones and reports every problem at once. Called by `envelope`.

use std::collections::BTreeSet;
use std::fmt;

use super::rules::{self, Want};
use super::{
    ContainerRecord, ContainerState, Contents, ExecRecord, FileRecord, GuestAssets, ImageRecord,
    MachineShape, Made, Manifest, RamRecord, SandboxFacts, VolumeRecord, raw,
};
use crate::snapshot::ram::{MAX_MEMORY, index};
use crate::snapshot::{Checksum, Form, MANIFEST, RAM, RAM_INDEX};
use crate::vm::VmmIdentity;

const MIB: u64 = 1 << 20;
/// Longest file of device state in bytes. QEMU writes half a MiB, Cloud Hypervisor less.
const MAX_STATE: u64 = 64 * MIB;

/// What is wrong with one value of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, as `containers[1].image.digest`.
    pub key: String,
    /// What would have been right.
    pub want: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: want {}", self.key, self.want)
    }
}

/// Problems so far, and where we are.
#[derive(Default)]
struct Checker {
    problems: Vec<Problem>,
    place: Vec<String>,
}

impl Checker {
    fn at<T>(&mut self, place: impl Into<String>, check: impl FnOnce(&mut Self) -> T) -> T {
        self.place.push(place.into());
        let value = check(self);
        self.place.pop();
        value
    }

    fn each<R, T>(
        &mut self,
        key: &str,
        max: usize,
        list: Vec<R>,
        mut check: impl FnMut(&mut Self, R) -> Option<T>,
    ) -> Option<Vec<T>> {
        if list.len() > max {
            return self.value(key, Err(format!("at most {max} entries")));
        }
        let count = list.len();
        let checked: Vec<T> = (0..)
            .zip(list)
            .filter_map(|(n, raw): (usize, R)| self.at(format!("{key}[{n}]"), |c| check(c, raw)))
            .collect();
        // What is missing was reported where it was met.
        (checked.len() == count).then_some(checked)
    }

    fn value<T>(&mut self, key: &str, value: Result<T, Want>) -> Option<T> {
        value.map_err(|want| self.problem(key, want)).ok()
    }

    fn problem(&mut self, key: &str, want: impl Into<String>) {
        let place = self.place.iter().map(String::as_str).chain((!key.is_empty()).then_some(key));
        self.problems.push(Problem { key: place.collect::<Vec<_>>().join("."), want: want.into() });
    }

    /// Reports everything that `keys` has twice.
    fn unique<T: Ord>(&mut self, what: &str, keys: impl Iterator<Item = T>) {
        let mut seen = BTreeSet::new();
        let mut twice = false;
        for key in keys {
            twice |= !seen.insert(key);
        }
        if twice {
            self.problem(what, "each only once");
        }
    }
}

/// Checks everything in a manifest.
pub(super) fn check(raw: raw::Manifest) -> Result<Manifest, Vec<Problem>> {
    let mut checker = Checker::default();
    let c = &mut checker;
    let contents = c.at("contents", |c| contents(c, raw.contents));
    let memory = contents.as_ref().map_or(MAX_MEMORY, |contents| contents.machine.memory);
    let ram = c.at("ram", |c| ram(c, &raw.ram, memory));
    let files = files(c, raw.files);
    match (contents, ram, files) {
        (Some(contents), Some(ram), Some(files)) if checker.problems.is_empty() => {
            Ok(Manifest { contents, ram, files })
        }
        _ => Err(checker.problems),
    }
}

fn contents(c: &mut Checker, raw: raw::Contents) -> Option<Contents> {
    let made = Made { at: raw.made.at, by: c.value("made.by", rules::text(raw.made.by, 64))? };
    let vmm = c.at("vmm", |c| vmm(c, raw.vmm));
    let guest = c.at("guest", |c| guest(c, raw.guest));
    let machine = c.at("machine", |c| machine(c, raw.machine));
    let sandbox = c.at("sandbox", |c| sandbox(c, raw.sandbox));
    let memory = machine.as_ref().map_or(MAX_MEMORY, |machine| machine.memory);
    let containers = c.each("containers", 256, raw.containers, |c, raw| container(c, raw, memory))?;
    c.unique("containers guest_name", containers.iter().map(|one| &one.guest_name));
    c.unique("containers cri_name", containers.iter().filter_map(|one| one.cri_name.as_ref()));
    Some(Contents { made, vmm: vmm?, guest: guest?, machine: machine?, sandbox: sandbox?, containers })
}

fn vmm(c: &mut Checker, raw: VmmIdentity) -> Option<VmmIdentity> {
    let name = c.value("name", rules::filled(raw.name, 64));
    let version = c.value("version", rules::filled(raw.version, 64));
    let accelerator = c.value("accelerator", rules::filled(raw.accelerator, 64));
    let cpu = c.value("cpu", rules::filled(raw.cpu, 256));
    let machine = c.value("machine", rules::filled(raw.machine, 64));
    Some(VmmIdentity {
        name: name?,
        version: version?,
        accelerator: accelerator?,
        cpu: cpu?,
        machine: machine?,
    })
}

fn guest(c: &mut Checker, raw: raw::Guest) -> Option<GuestAssets> {
    let architecture = c.value("architecture", rules::filled(raw.architecture, 32));
    let version = c.value("version", rules::text(raw.version, 128));
    let kernel = c.value("kernel", rules::digest(&raw.kernel));
    let initramfs = c.value("initramfs", rules::digest(&raw.initramfs));
    Some(GuestAssets {
        architecture: architecture?,
        version: version?,
        kernel: kernel?,
        initramfs: initramfs?,
    })
}

fn machine(c: &mut Checker, raw: raw::Machine) -> Option<MachineShape> {
    let vcpus = c.value("vcpus", rules::within(raw.vcpus, 1, 512));
    let even = raw.memory > 0 && raw.memory <= MAX_MEMORY && raw.memory.is_multiple_of(2 * MIB);
    let memory = c.value(
        "memory",
        if even { Ok(raw.memory) } else { Err(format!("a multiple of 2 MiB up to {MAX_MEMORY}")) },
    );
    let nics = c.each("nics", 32, raw.nics, |c, mac| c.value("", rules::mac(mac)));
    let shares = c.each("shares", 8, raw.shares, |c, tag| c.value("", rules::name(tag)));
    c.unique("shares", shares.iter().flatten());
    let kernel_params = c.value("kernel_params", rules::text(raw.kernel_params, 2048));
    Some(MachineShape {
        vcpus: vcpus?,
        memory: memory?,
        nics: nics?,
        shares: shares?,
        kernel_params: kernel_params?,
    })
}

fn sandbox(c: &mut Checker, raw: raw::Sandbox) -> Option<SandboxFacts> {
    let id = c.value("id", rules::text(raw.id, 256));
    let namespace = c.value("namespace", rules::text(raw.namespace, 256));
    let pod_name = c.value("pod_name", rules::text(raw.pod_name, 256));
    let pod_namespace = c.value("pod_namespace", rules::text(raw.pod_namespace, 256));
    let hostname = c.value("hostname", rules::text(raw.hostname, 256));
    Some(SandboxFacts {
        id: id?,
        namespace: namespace?,
        pod_name: pod_name?,
        pod_namespace: pod_namespace?,
        hostname: hostname?,
    })
}

fn container(c: &mut Checker, raw: raw::Container, memory: u64) -> Option<ContainerRecord> {
    let guest_name = c.value("guest_name", rules::guest_name(raw.guest_name));
    let generation = c.value("generation", rules::within(raw.generation, 1, u32::MAX));
    let cri_name = match raw.cri_name {
        Some(name) => c.value("cri_name", rules::filled(name, 256)).map(Some),
        None => Some(None),
    };
    let image = match raw.image {
        Some(raw) => c.at("image", |c| image(c, raw)).map(Some),
        None => Some(None),
    };
    let state = match raw.state {
        raw::State::Created => ContainerState::Created,
        raw::State::Running => ContainerState::Running,
        raw::State::Paused => ContainerState::Paused,
        raw::State::Waiting => ContainerState::Waiting,
        raw::State::Stopped(status) => ContainerState::Stopped(status),
    };
    let upper_size = c.value("upper_size", rules::within(raw.upper_size, 0, memory));
    let volumes = c.each("volumes", 1024, raw.volumes, volume);
    c.unique("volumes index", volumes.iter().flatten().map(|volume| volume.index));
    c.unique("volumes destination", volumes.iter().flatten().map(|volume| &volume.destination));
    let execs = c.each("execs", 1024, raw.execs, exec);
    c.unique("execs id", execs.iter().flatten().map(|exec| &exec.id));
    Some(ContainerRecord {
        guest_name: guest_name?,
        generation: generation?,
        cri_name: cri_name?,
        image: image?,
        state,
        upper_size: upper_size?,
        terminal: raw.terminal,
        volumes: volumes?,
        execs: execs?,
    })
}

fn image(c: &mut Checker, raw: raw::Image) -> Option<ImageRecord> {
    let name = c.value("name", rules::filled(raw.name, 1024));
    let digest = c.value("digest", rules::digest(&raw.digest));
    let snapshotter = c.value("snapshotter", rules::name(raw.snapshotter));
    if raw.layers.is_empty() {
        c.problem("layers", "at least one");
    }
    let layers = c.each("layers", 512, raw.layers, |c, id| c.value("", rules::digest(&id)));
    Some(ImageRecord { name: name?, digest: digest?, snapshotter: snapshotter?, layers: layers? })
}

fn volume(c: &mut Checker, raw: raw::Volume) -> Option<VolumeRecord> {
    let destination = c.value("destination", rules::guest_path(raw.destination));
    Some(VolumeRecord { index: raw.index, destination: destination?, read_only: raw.read_only })
}

fn exec(c: &mut Checker, raw: raw::Exec) -> Option<ExecRecord> {
    let id = c.value("id", rules::filled(raw.id, 256))?;
    Some(ExecRecord { id, terminal: raw.terminal })
}

fn ram(c: &mut Checker, raw: &raw::Ram, memory: u64) -> Option<RamRecord> {
    let form = match raw.form {
        raw::Form::Plain => Form::Plain,
        raw::Form::Packed => Form::Packed,
    };
    let length = match form {
        Form::Plain => c.value("length", rules::within(raw.length, memory, memory)),
        Form::Packed => c.value("length", rules::within(raw.length, 0, index::max_packed(memory))),
    };
    let most = index::max_length(memory);
    let index_length = c.value("index_length", rules::within(raw.index_length, index::HEADER, most));
    let index = c.value("index", rules::checksum(&raw.index));
    Some(RamRecord { form, length: length?, index_length: index_length?, index: index? })
}

fn files(c: &mut Checker, raw: Vec<raw::File>) -> Option<Vec<FileRecord>> {
    let files = c.each("files", crate::snapshot::dir::MAX_FILES, raw, file)?;
    if !files.is_sorted_by(|a, b| a.name < b.name) {
        c.problem("files", "each only once, sorted by name");
    }
    if files.is_empty() {
        c.problem("files", "device state");
    }
    Some(files)
}

fn file(c: &mut Checker, raw: raw::File) -> Option<FileRecord> {
    let name = c.value("name", rules::name(raw.name));
    if name.as_deref().is_some_and(|name| [MANIFEST, RAM, RAM_INDEX].contains(&name)) {
        c.problem("name", "another name than those of the format's own files");
    }
    let length = c.value("length", rules::within(raw.length, 0, MAX_STATE));
    let checksum: Option<Checksum> = c.value("checksum", rules::checksum(&raw.checksum));
    Some(FileRecord { name: name?, length: length?, checksum: checksum? })
}
