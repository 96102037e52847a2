//! Which versions of the guest's assets something still needs: a running VMM, the record of a sandbox, a snapshot.
//! Called by the installer before it removes an old version.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::plan::CONFIG;
use super::record::within;

/// Config key and default of the directory of the running sandboxes: `<namespace>/<sandbox>/sandbox.json`.
const SANDBOXES: (&str, &str) = ("run_dir", "/run/microvm");
/// Config key and default of the directory of the snapshots: `<snapshot>/manifest.json`.
const SNAPSHOTS: (&str, &str) = ("snapshot_store", "/var/lib/microvm/snapshots");
/// A larger file is no record of ours.
const LIMIT: u64 = 16 << 20;

/// Says what needs the assets in the folder `version`, if anything does.
pub(super) fn by(root: &Path, version: &str) -> Option<String> {
    let config = fs::read_to_string(within(root, Path::new(CONFIG))).unwrap_or_default();
    let config: Table = toml::from_str(&config).unwrap_or_default();
    let record = |(key, default): (&str, &str), depth| {
        let directory = config.get(key).and_then(Value::as_str).unwrap_or(default);
        let directory = within(root, Path::new(directory));
        files(&directory, depth).into_iter().find(|path| mentions(path, version))
    };
    if let Some(path) = record(SANDBOXES, 2).or_else(|| record(SNAPSHOTS, 1)) {
        return Some(path.display().to_string());
    }
    let process = processes().find(|process| mentions(&process.join("cmdline"), &format!("/{version}/")))?;
    Some(format!("process {}", process.file_name()?.to_string_lossy()))
}

/// Files that are `depth` directories below.
fn files(directory: &Path, depth: u32) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    match depth {
        0 => entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect(),
        _ => entries.flat_map(|path| files(&path, depth - 1)).collect(),
    }
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    })
}

/// A file that ends or vanishes meanwhile mentions nothing.
fn mentions(path: &Path, text: &str) -> bool {
    let small = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LIMIT);
    small && fs::read(path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}
