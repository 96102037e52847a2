//! The node's store: names, imports of every kind, and what a crash leaves.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use shim::error::Kind;
use shim::images::checkpoint::CHECKPOINT_TYPE;
use shim::snapshot::{Form, Store};
use tar::{Builder, EntryType, Header};

use crate::support::{names, saved};

fn store() -> (tempfile::TempDir, PathBuf, Store) {
    let (temp, dir) = saved(Form::Packed);
    let store = Store::new(&temp.path().join("store"));
    (temp, dir, store)
}

fn add(archive: &mut Builder<File>, path: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    if kind == EntryType::Symlink {
        header.set_link_name("/etc/passwd").unwrap();
    }
    // Not through `set_path`, which refuses what an attacker would write.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    archive.append(&header, bytes).unwrap();
}

/// A tar file of the snapshot's files below `prefix`, between what `before` and `after` add.
fn archive(dir: &Path, prefix: &str, extra: &[(&str, EntryType)]) -> File {
    let mut archive = Builder::new(tempfile::tempfile().unwrap());
    for (path, kind) in extra {
        add(&mut archive, path, *kind, b"");
    }
    for name in names(dir) {
        add(&mut archive, &format!("{prefix}{name}"), EntryType::Regular, &fs::read(dir.join(name)).unwrap());
    }
    archive.into_inner().unwrap()
}

/// An OCI archive as `ctr images export` writes one: the layout's index, the image's index, the checkpoint.
fn oci(checkpoint: &mut File, media_type: &str) -> File {
    let mut bytes = Vec::new();
    checkpoint.rewind().unwrap();
    std::io::Read::read_to_end(checkpoint, &mut bytes).unwrap();
    let digest =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let index = |kind: &str, bytes: &[u8]| {
        let part = serde_json::json!({
            "mediaType": kind, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()
        });
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [part]})).unwrap()
    };
    let image = index(media_type, &bytes);
    let layout = index("application/vnd.oci.image.index.v1+json", &image);
    let mut archive = Builder::new(tempfile::tempfile().unwrap());
    for blob in [&bytes, &image] {
        add(&mut archive, &format!("blobs/sha256/{}", digest(blob)), EntryType::Regular, blob);
    }
    add(&mut archive, "index.json", EntryType::Regular, &layout);
    archive.into_inner().unwrap()
}

#[test]
fn snapshots_are_imported_listed_verified_and_removed() {
    let (_temp, dir, store) = store();
    assert!(store.list().unwrap().is_empty(), "a missing store is empty");
    store.import_dir(&dir, "a.1", Form::Plain).unwrap();
    store.import_dir(&dir, "b", Form::Packed).unwrap();
    let listed = store.list().unwrap();
    let shown: Vec<_> =
        listed.iter().map(|one| (one.name.as_str(), one.manifest.as_ref().unwrap().ram.form)).collect();
    assert_eq!(shown, [("a.1", Form::Plain), ("b", Form::Packed)]);
    assert!(listed.iter().all(|one| one.bytes > 0));
    let open = store.open("a.1").unwrap();
    store.remove("a.1").unwrap();
    open.verify().expect("whoever has opened it goes on");
    assert_eq!(store.open("a.1").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.remove("a.1").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.import_dir(&dir, "b", Form::Plain).unwrap_err().kind(), Kind::AlreadyExists);
    store.open("b").unwrap().verify().unwrap();
}

#[test]
fn names_are_never_paths() {
    let (temp, dir, store) = store();
    fs::create_dir(temp.path().join("store")).unwrap();
    for name in [
        "",
        ".",
        "..",
        "../snap",
        "/etc",
        "a/b",
        ".lock",
        ".unfinished",
        "-rf",
        "a\nb",
        "ä",
        "a b",
        &"x".repeat(129),
    ] {
        assert_eq!(store.resolve(name).unwrap_err().kind(), Kind::InvalidArgument, "{name:?}");
        assert_eq!(store.remove(name).unwrap_err().kind(), Kind::InvalidArgument, "{name:?}");
        assert_eq!(store.import_dir(&dir, name, Form::Plain).unwrap_err().kind(), Kind::InvalidArgument);
    }
    std::os::unix::fs::symlink(&dir, temp.path().join("store/link")).unwrap();
    assert_eq!(store.open("link").unwrap_err().kind(), Kind::InvalidArgument, "a link is no snapshot");
}

#[test]
fn what_a_crashed_import_left_is_gone_after_the_next() {
    let (temp, dir, store) = store();
    let left = temp.path().join("store/.unfinished/snapshot");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("ram"), "half").unwrap();
    assert!(store.list().unwrap().is_empty());
    store.import_dir(&dir, "a", Form::Plain).unwrap();
    assert_eq!(names(&temp.path().join("store")), [".lock", "a"]);
}

#[test]
fn failed_imports_leave_nothing_and_concurrent_ones_are_refused() {
    let (temp, dir, store) = store();
    fs::write(dir.join("state"), "other state!").unwrap();
    assert_eq!(store.import_dir(&dir, "a", Form::Plain).unwrap_err().kind(), Kind::InvalidArgument);
    assert_eq!(names(&temp.path().join("store")), [".lock"]);
    let lock = File::open(temp.path().join("store/.lock")).unwrap();
    lock.lock().unwrap();
    let error = store.import_dir(&dir, "a", Form::Plain).unwrap_err();
    assert!(error.chain().contains("is being changed"), "{}", error.chain());
}

#[test]
fn archives_of_all_kinds_are_imported() {
    let (_temp, dir, store) = store();
    let import = |name: &str, archive: &File| store.import_archive(archive, name, Form::Plain).unwrap();
    import("tar", &archive(&dir, "", &[("./", EntryType::Directory)]));
    import("dotted", &archive(&dir, "./", &[]));
    let others = [("config.dump", EntryType::Regular), ("checkpoint/", EntryType::Directory)];
    import("cri", &archive(&dir, "checkpoint/", &others));
    import("oci", &oci(&mut archive(&dir, "", &[]), CHECKPOINT_TYPE));
    for one in store.list().unwrap() {
        store.open(&one.name).unwrap().verify().unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 4);
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let (temp, dir, store) = store();
    let refused = |archive: &File, why: &str| {
        let error = store.import_archive(archive, "x", Form::Plain).expect_err(why);
        assert!(error.chain().contains(why), "want {why:?} in {}", error.chain());
        assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
        assert_eq!(names(&temp.path().join("store")), [".lock"]);
        assert!(!temp.path().join("evil").exists());
    };
    refused(&archive(&dir, "", &[("../evil", EntryType::Regular)]), "can't be the name");
    refused(&archive(&dir, "", &[("/evil", EntryType::Regular)]), "can't be the name");
    refused(&archive(&dir, "", &[("sub/file", EntryType::Regular)]), "can't be the name");
    refused(&archive(&dir, "", &[("link", EntryType::Symlink)]), "no regular file");
    refused(&archive(&dir, "", &[("hole", EntryType::GNUSparse)]), "not a tar file");
    refused(&archive(&dir, "", &[("twin", EntryType::Link)]), "no regular file");
    refused(&archive(&dir, "checkpoint/", &[("checkpoint/dev", EntryType::Char)]), "no regular file");
    refused(&archive(&dir, "", &[("more", EntryType::Regular)]), "does not name");
    refused(&archive(&dir, "sub/", &[]), "holds no snapshot");
    refused(
        &oci(&mut archive(&dir, "", &[]), "application/vnd.oci.image.layer.v1.tar"),
        "holds no checkpoint",
    );
    let crowd: Vec<_> = (0..80).map(|n| format!("f{n}")).collect();
    let crowd: Vec<_> = crowd.iter().map(|name| (name.as_str(), EntryType::Regular)).collect();
    refused(&archive(&dir, "", &crowd), "more than the 64 files");
    let mut garbage = tempfile::tempfile().unwrap();
    garbage.write_all(&[7; 4096]).unwrap();
    refused(&garbage, "not a tar file");
    refused(&tempfile::tempfile().unwrap(), "holds no snapshot");
    let cut = archive(&dir, "", &[]);
    cut.set_len(cut.metadata().unwrap().len() / 2).unwrap();
    assert!(store.import_archive(&cut, "x", Form::Plain).is_err());
    assert_eq!(names(&temp.path().join("store")), [".lock"]);
}
