//! Snapshots and the archives that they come in. Each thread has one snapshot of its own in memory, in which one file is
//! replaced by the input.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shim::error::Kind;
use shim::snapshot::manifest::{FORMAT, GuestAssets, MachineShape, Made, SandboxFacts, VERSION};
use shim::snapshot::{Checksum, Contents, Form, MANIFEST, RAM_INDEX, Save, Snapshot, Store};
use shim::vm::VmmIdentity;

/// RAM of the snapshot in bytes.
const MEMORY: u64 = 2 << 20;

/// A snapshot and where it may be restored to.
struct Place {
    /// Removes all of it in the end.
    temp: tempfile::TempDir,
    snapshot: PathBuf,
    manifest: Vec<u8>,
    index: Vec<u8>,
}

thread_local! {
    static PLACE: Place = Place::new().unwrap_or_else(|error| panic!("no snapshot to begin with: {error}"));
}

impl Place {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let snapshot = temp.path().join("snapshot");
        let ram = temp.path().join("ram");
        let mut file = File::create(&ram)?;
        file.write_all(&[7; 3 * 4096])?;
        file.set_len(MEMORY)?;
        let mut save = Save::begin(&snapshot, Form::Packed)?;
        fs::write(snapshot.join("state"), "state")?;
        save.capture_ram(&ram, Instant::now() + Duration::from_secs(60))?;
        save.finish(contents()?, &["state".into()])?;
        let read = |name: &str| fs::read(snapshot.join(name));
        let (manifest, index) = (read(MANIFEST)?, read(RAM_INDEX)?);
        Ok(Self { temp, manifest, index, snapshot })
    }

    /// The manifest's body with its checksum and header.
    fn enveloped(body: &[u8]) -> Vec<u8> {
        let checksum = Checksum::of(body);
        let mut text = format!(
            "{{\"format\":{FORMAT:?},\"version\":{VERSION},\"checksum\":\"{checksum}\",\"snapshot\":"
        )
        .into_bytes();
        text.extend_from_slice(body);
        text.extend_from_slice(b"}\n");
        text
    }

    fn body(&self) -> Value {
        let whole: Value = serde_json::from_slice(&self.manifest).unwrap_or_default();
        whole["snapshot"].clone()
    }

    /// Uses the snapshot with `manifest` and `index`: it is taken, or refused for what it is.
    fn try_with(&self, manifest: &[u8], index: &[u8]) -> bool {
        write(&self.snapshot.join(MANIFEST), manifest);
        write(&self.snapshot.join(RAM_INDEX), index);
        let into = self.temp.path().join("ram");
        let used = Snapshot::open(&self.snapshot).and_then(|snapshot| match snapshot.restore_ram(&into) {
            Ok(()) => snapshot.verify(),
            restored => restored,
        });
        if let Err(error) = &used {
            let refused = [Kind::InvalidArgument, Kind::FailedPrecondition].contains(&error.kind());
            assert!(refused, "{:?}: {}", error.kind(), error.chain());
        }
        let length = into.metadata().map_or(0, |metadata| metadata.len());
        assert_eq!(length, MEMORY, "RAM keeps its size");
        used.is_ok()
    }
}

/// `manifest.json` as it stands.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn manifest(bytes: &[u8]) -> bool {
    PLACE.with(|place| place.try_with(bytes, &place.index))
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    PLACE.with(|place| vec![place.manifest.clone()])
}

/// What the manifest's checksum guards, with the right checksum.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn manifest_body(bytes: &[u8]) -> bool {
    PLACE.with(|place| place.try_with(&Place::enveloped(bytes), &place.index))
}

pub(crate) fn manifest_body_seeds() -> Vec<Vec<u8>> {
    PLACE.with(|place| vec![place.body().to_string().into_bytes()])
}

/// `ram.index`, with the right checksum in the manifest.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn ram_index(bytes: &[u8]) -> bool {
    PLACE.with(|place| {
        let mut body = place.body();
        body["ram"]["index"] = json!(Checksum::of(bytes).to_string());
        body["ram"]["index_length"] = json!(bytes.len());
        place.try_with(&Place::enveloped(body.to_string().as_bytes()), bytes)
    })
}

pub(crate) fn ram_index_seeds() -> Vec<Vec<u8>> {
    PLACE.with(|place| vec![place.index.clone()])
}

/// An archive on its way into the store: nothing is left of one that is refused.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn archive(bytes: &[u8]) -> bool {
    PLACE.with(|place| {
        let root = place.temp.path().join("store");
        let store = Store::new(&root);
        let path = place.temp.path().join("archive");
        write(&path, bytes);
        let Ok(file) = File::open(&path) else { panic!("{} is gone", path.display()) };
        let imported = store.import_archive(&file, "x", Form::Packed);
        assert_eq!(store.resolve("x").is_ok(), imported.is_ok(), "there if it was taken, else not");
        if imported.is_ok() {
            assert!(store.remove("x").is_ok());
        }
        let left = fs::read_dir(&root).map_or(0, Iterator::count);
        assert_eq!(left, 1, "nothing but the lock is left in the store");
        imported.is_ok()
    })
}

pub(crate) fn archive_seeds() -> Vec<Vec<u8>> {
    PLACE.with(|place| {
        write(&place.snapshot.join(MANIFEST), &place.manifest);
        write(&place.snapshot.join(RAM_INDEX), &place.index);
        ["", "checkpoint/"].map(|folder| tar(&place.snapshot, folder)).to_vec()
    })
}

/// A tar file of the directory, by hand: name, length and checksum are all that matters in a header.
fn tar(dir: &Path, folder: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    for name in [MANIFEST, "ram", RAM_INDEX, "state"] {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        let mut header = [0u8; 512];
        let path = format!("{folder}{name}");
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000600");
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(&bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn write(path: &Path, bytes: &[u8]) {
    assert!(fs::write(path, bytes).is_ok(), "Could not write {}", path.display());
}

fn contents() -> Result<Contents, Box<dyn std::error::Error>> {
    let digest = || format!("sha256:{}", "a".repeat(64)).parse().map_err(|()| "no digest");
    let text = |text: &str| text.to_owned();
    Ok(Contents {
        made: Made::now(),
        vmm: VmmIdentity {
            name: text("qemu"),
            version: text("11"),
            accelerator: text("tcg"),
            cpu: text("max"),
            machine: text("q35"),
        },
        guest: GuestAssets {
            architecture: text("x86_64"),
            version: text("1"),
            kernel: digest()?,
            initramfs: digest()?,
        },
        machine: MachineShape {
            vcpus: 1,
            memory: MEMORY,
            nics: vec![text("02:00:00:00:00:01")],
            shares: vec![text("kataShared")],
            kernel_params: String::new(),
        },
        sandbox: SandboxFacts::default(),
        containers: vec![],
    })
}
