//! What was changed, cut, or made by somebody with bad intent is refused by name, and never more.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use shim::error::Kind;
use shim::snapshot::{Checksum, Form, Snapshot};

use crate::support::{MIB, empty, saved};

/// Opens it, takes everything out of it; the error that stopped that.
fn use_all(temp: &Path, dir: &Path) -> Result<(), shim::Error> {
    let snapshot = Snapshot::open(dir)?;
    let state = temp.join("state");
    fs::create_dir_all(&state).unwrap();
    snapshot.state_into(&state)?;
    snapshot.restore_ram(&empty(temp, snapshot.manifest().contents.machine.memory))
}

fn refused(form: Form, change: impl Fn(&Path), why: &str) {
    let (temp, dir) = saved(form);
    change(&dir);
    let error = use_all(temp.path(), &dir).expect_err(why);
    assert!(error.chain().contains(why), "want {why:?} in {:?}", error.chain());
    assert_ne!(error.kind(), Kind::Internal, "{}", error.chain());
}

/// Writes a manifest that is whole, with what `change` made of it.
fn forge(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("manifest.json");
    let mut whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut whole["snapshot"]);
    let body = serde_json::to_string(&whole["snapshot"]).unwrap();
    let (format, version) = (&whole["format"], &whole["version"]);
    let checksum = Checksum::of(body.as_bytes());
    let text = format!(
        "{{\"format\":{format},\"version\":{version},\"checksum\":\"{checksum}\",\"snapshot\":{body}}}\n"
    );
    fs::write(path, text).unwrap();
}

#[test]
fn forged_manifests_are_read_at_all() {
    let (temp, dir) = saved(Form::Packed);
    forge(&dir, |manifest| manifest["contents"]["sandbox"]["pod_name"] = json!("other"));
    use_all(temp.path(), &dir).unwrap();
}

#[test]
fn other_formats_and_versions_are_refused_before_anything_else_is_read() {
    let header = |text: &'static str| move |dir: &Path| fs::write(dir.join("manifest.json"), text).unwrap();
    refused(
        Form::Plain,
        header(r#"{"format":"io.containerd.microvm.v1 snapshot","version":2,"x":[]}"#),
        "version 2",
    );
    refused(Form::Plain, header(r#"{"format":"other","version":1}"#), r#"format "other""#);
    refused(Form::Plain, header(""), "damaged or not one of ours");
    refused(Form::Plain, header("[]"), "damaged or not one of ours");
}

#[test]
fn files_that_are_not_regular_or_not_named_are_refused() {
    for name in ["manifest.json", "ram", "ram.index", "state"] {
        let replace = |with: fn(&Path)| {
            move |dir: &Path| {
                fs::rename(dir.join(name), dir.parent().unwrap().join("moved")).unwrap();
                with(&dir.join(name));
            }
        };
        refused(Form::Packed, replace(|_| ()), "lacks the file");
        refused(Form::Packed, replace(|path| symlink("../moved", path).unwrap()), "a symbolic link");
        refused(Form::Packed, replace(|path| symlink("/etc/passwd", path).unwrap()), "a symbolic link");
        refused(Form::Packed, replace(|path| fs::create_dir(path).unwrap()), "a directory");
        refused(
            Form::Packed,
            replace(|path| {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            "a fifo",
        );
        refused(
            Form::Packed,
            replace(|path| {
                fs::hard_link(path.parent().unwrap().parent().unwrap().join("moved"), path).unwrap();
            }),
            "2 hard links",
        );
        refused(
            Form::Packed,
            replace(|path| {
                std::os::unix::net::UnixListener::bind(path).unwrap();
            }),
            "a socket",
        );
    }
    refused(
        Form::Plain,
        |dir| fs::write(dir.join("more"), "").unwrap(),
        r#""more", which its manifest does not name"#,
    );
    refused(Form::Plain, |dir| fs::create_dir(dir.join("sub")).unwrap(), r#""sub""#);
}

#[test]
fn cut_and_grown_files_are_refused() {
    for name in ["ram", "ram.index", "state"] {
        for change in [-1i64, 1, -5, 100_000] {
            refused(
                Form::Packed,
                |dir| {
                    let file = fs::OpenOptions::new().write(true).open(dir.join(name)).unwrap();
                    let length = i64::try_from(file.metadata().unwrap().len()).unwrap() + change;
                    file.set_len(u64::try_from(length).unwrap()).unwrap();
                },
                "its manifest says",
            );
        }
    }
}

#[test]
fn failed_copies_leave_nothing() {
    let (temp, dir) = saved(Form::Packed);
    let mut ram = fs::read(dir.join("ram")).unwrap();
    *ram.last_mut().unwrap() ^= 1;
    fs::write(dir.join("ram"), ram).unwrap();
    let copy = temp.path().join("copy");
    assert!(Snapshot::open(&dir).unwrap().copy_to(&copy, Form::Plain).is_err());
    assert!(!copy.exists());
}

#[test]
fn every_problem_of_a_forged_manifest_is_named_at_once() {
    let change = |manifest: &mut Value| {
        manifest["contents"]["machine"]["memory"] = json!(4097);
        manifest["contents"]["machine"]["nics"] = json!(["zz"]);
        manifest["contents"]["containers"][0]["guest_name"] = json!("../../etc");
        manifest["contents"]["containers"][1]["generation"] = json!(0);
        manifest["files"][0]["name"] = json!("a/b");
    };
    let (temp, dir) = saved(Form::Plain);
    forge(&dir, change);
    let error = use_all(temp.path(), &dir).unwrap_err().chain();
    for key in [
        "contents.machine.memory",
        "contents.machine.nics[0]",
        "contents.containers[0].guest_name",
        "contents.containers[1].generation",
        "files[0].name",
    ] {
        assert!(error.contains(key), "{key} is not in {error}");
    }
}

#[test]
fn forged_manifests_reach_no_other_file_and_no_more_memory() {
    let forged = |pointer: &'static str, value: Value| {
        move |dir: &Path| forge(dir, |manifest| *manifest.pointer_mut(pointer).unwrap() = value.clone())
    };
    let huge = json!(1u64 << 50);
    for (pointer, value, why) in [
        ("/files/0/name", json!("../mem"), "files[0].name"),
        ("/files/0/name", json!("/etc/passwd"), "files[0].name"),
        ("/files/0/name", json!("ram"), "another name"),
        ("/files/0/name", json!(".hidden"), "files[0].name"),
        ("/files/0/length", huge.clone(), "files[0].length"),
        ("/files", json!([]), "device state"),
        ("/ram/index_length", huge.clone(), "ram.index_length"),
        ("/ram/length", huge.clone(), "ram.length"),
        ("/contents/machine/memory", huge, "machine.memory"),
        ("/contents/machine/memory", json!(8 * MIB), "not the one for this machine"),
        ("/contents/machine/vcpus", json!(-1), "damaged"),
        ("/contents/containers/0/image/layers/0", json!("sha256:../.."), "layers[0]"),
        ("/contents/containers/0/image/layers", json!([]), "at least one"),
        ("/contents/containers/0/volumes/0/destination", json!("/a/../../b"), "destination"),
        ("/contents/containers/1/guest_name", json!("web"), "each only once"),
        ("/contents/machine/kernel_params", json!("a\nb"), "kernel_params"),
        ("/contents/vmm", json!({"name": "qemu"}), "missing field"),
    ] {
        refused(Form::Packed, forged(pointer, value), why);
    }
    refused(Form::Packed, |dir| forge(dir, |manifest| manifest["path"] = json!("/etc")), "unknown field");
}

#[test]
fn bombs_and_swapped_chunks_are_refused_though_every_checksum_is_right() {
    let forged_index = |change: fn(&mut Vec<u8>, &Path)| {
        move |dir: &Path| {
            let mut index = fs::read(dir.join("ram.index")).unwrap();
            change(&mut index, dir);
            fs::write(dir.join("ram.index"), &index).unwrap();
            let length = fs::metadata(dir.join("ram")).unwrap().len();
            forge(dir, |manifest| {
                manifest["ram"]["index"] = json!(Checksum::of(&index).to_string());
                manifest["ram"]["index_length"] = json!(index.len());
                manifest["ram"]["length"] = json!(length);
            });
        }
    };
    // The first chunk unpacks to 1 GiB of zeros, and says that it is three pages.
    refused(
        Form::Packed,
        forged_index(|index, dir| {
            let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 30), 19).unwrap();
            let ram = fs::read(dir.join("ram")).unwrap();
            let old = u32::from_le_bytes(index[36..40].try_into().unwrap()) as usize;
            fs::write(dir.join("ram"), [&bomb, &ram[old..]].concat()).unwrap();
            index[36..40].copy_from_slice(&u32::try_from(bomb.len()).unwrap().to_le_bytes());
            let sum = raw_checksum(&bomb);
            index[72..104].copy_from_slice(&sum);
        }),
        "does not unpack to its pages",
    );
    refused(Form::Packed, forged_index(|index, _| index[24] += 1), "entries");
    refused(Form::Packed, forged_index(|index, _| index[32..36].fill(0xff)), "out of order or beyond");
    refused(Form::Packed, forged_index(|index, _| index[40..72].fill(0)), "can't be");
    refused(Form::Packed, forged_index(|index, _| index[40..72].fill(0xff)), "does not unpack");
    refused(Form::Plain, forged_index(|index, _| index[36..40].fill(1)), "can't be");
}

fn raw_checksum(bytes: &[u8]) -> [u8; 32] {
    let text = Checksum::of(bytes).to_string();
    let hex = text.strip_prefix("blake3:").unwrap();
    std::array::from_fn(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever single bit flips, anywhere in any file: never taken, never a panic.
    #[test]
    fn one_flipped_bit_is_always_refused(file in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8, packed in any::<bool>()) {
        let (temp, dir) = saved(if packed { Form::Packed } else { Form::Plain });
        let name = ["manifest.json", "ram", "ram.index", "state"][file];
        let mut bytes = fs::read(dir.join(name)).unwrap();
        let plain_ram = !packed && name == "ram";
        // Between the pages of plain RAM nothing is read, so nothing there matters: aim at a page.
        let at = if plain_ram { at.index(4096) } else { at.index(bytes.len()) };
        bytes[at] ^= 1 << bit;
        fs::write(dir.join(name), bytes).unwrap();
        prop_assert!(use_all(temp.path(), &dir).is_err());
    }

    /// Bytes behind the checksums, as an attacker writes them: refused or taken, never a panic or more than RAM.
    #[test]
    fn any_index_is_read_or_refused(change in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), packed in any::<bool>()) {
        let (temp, dir) = saved(if packed { Form::Packed } else { Form::Plain });
        let mut index = fs::read(dir.join("ram.index")).unwrap();
        for (at, byte) in &change {
            let at = at.index(index.len());
            index[at] = *byte;
        }
        fs::write(dir.join("ram.index"), &index).unwrap();
        forge(&dir, |manifest| manifest["ram"]["index"] = json!(Checksum::of(&index).to_string()));
        if let Err(error) = use_all(temp.path(), &dir) {
            prop_assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
        }
    }
}
