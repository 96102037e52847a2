//! Whatever fails while a snapshot is made leaves the directory as it was.

use std::fs;
use std::path::Path;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use shim::error::Kind;
use shim::ledger::Resource;
use shim::snapshot::{Form, Save};

use crate::support::{MIB, contents, names, ram, save, saved, soon};

#[test]
fn directory_with_something_in_it_is_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("mine"), "x").unwrap();
    let error = Save::begin(temp.path(), Form::Packed).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.chain().contains("\"mine\""));
    assert_eq!(names(temp.path()), ["mine"]);
}

#[test]
fn what_a_dead_shim_began_is_taken_away_and_what_it_finished_stays() {
    let (temp, whole) = saved(Form::Packed);
    let before = names(&whole);
    Resource::Snapshot(whole.clone()).undo().unwrap();
    assert_eq!(names(&whole), before);

    let begun = temp.path().join("begun");
    let mut save = Save::begin(&begun, Form::Plain).unwrap();
    fs::write(begun.join("state"), "s").unwrap();
    save.capture_ram(&temp.path().join("mem"), soon()).unwrap();
    assert_eq!(names(&begun), ["ram", "state"]);
    // Its owner is gone without a word.
    drop(save);
    for _ in 0..2 {
        Resource::Snapshot(begun.clone()).undo().unwrap();
        assert!(names(&begun).is_empty());
    }
    fs::remove_dir(&begun).unwrap();
    Resource::Snapshot(begun).undo().unwrap();
}

#[test]
fn late_copy_wrong_pod_and_strange_files_leave_nothing() {
    for form in [Form::Plain, Form::Packed] {
        let (temp, _) = saved(form);
        let (mem, dir) = (temp.path().join("mem"), temp.path().join("empty"));
        fs::create_dir(&dir).unwrap();
        let begin = || {
            let save = Save::begin(&dir, form).unwrap();
            fs::write(dir.join("state"), "s").unwrap();
            save
        };
        let mut late = begin();
        assert_eq!(late.capture_ram(&mem, Instant::now()).unwrap_err().kind(), Kind::DeadlineExceeded);
        late.abort().unwrap();
        assert!(names(&dir).is_empty());

        let uncaptured = begin().finish(contents(4 * MIB), &["state".into()]);
        assert_eq!(uncaptured.unwrap_err().kind(), Kind::FailedPrecondition);
        assert!(names(&dir).is_empty());

        type Case = (&'static str, u64, &'static [&'static str], &'static str);
        let cases: [Case; 4] = [
            ("other size", 6, &["state"], "4194304 bytes"),
            ("missing state", 4, &["state", "other"], "lacks the file \"other\""),
            ("unknown file", 4, &[], "which nobody knows"),
            ("bad name", 4, &["../state"], "can't be the name"),
        ];
        for (case, mib, state, why) in cases {
            let mut save = begin();
            save.capture_ram(&mem, soon()).unwrap();
            let mut pod = contents(mib * MIB);
            if case == "unknown file" {
                fs::write(dir.join("other"), "x").unwrap();
            }
            pod.containers.truncate(1);
            let state: Vec<_> = state.iter().map(ToString::to_string).collect();
            let state = if case == "unknown file" { vec!["state".to_owned()] } else { state };
            let error = save.finish(pod, &state).unwrap_err();
            assert!(error.chain().contains(why), "{case}: {}", error.chain());
            assert!(names(&dir).is_empty(), "{case}: {:?}", names(&dir));
        }

        let mut save = begin();
        save.capture_ram(&mem, soon()).unwrap();
        let mut pod = contents(4 * MIB);
        pod.containers[0].guest_name = "a/b".into();
        let error = save.finish(pod, &["state".into()]).unwrap_err();
        assert!(error.chain().contains("guest_name"), "{}", error.chain());
        assert!(names(&dir).is_empty());
    }
}

#[test]
fn directory_made_for_a_failed_save_is_gone_again() {
    let (temp, _) = saved(Form::Plain);
    let dir = temp.path().join("new");
    Save::begin(&dir, Form::Plain).unwrap().abort().unwrap();
    assert!(!dir.exists());
}

/// Needs root: a tmpfs of its own in a mount namespace of one thread, which ends with it.
#[test]
fn full_disk_is_named_and_leaves_the_directory_empty() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to mount a small tmpfs");
        return;
    }
    let test = || {
        let temp = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let mem = temp.path().join("mem");
        let pages: Vec<_> = (0..1024u64).map(|page| (page, u8::try_from(page % 250 + 1).unwrap())).collect();
        ram(&mem, 4 * MIB, &pages);
        let small = temp.path().join("small");
        fs::create_dir(&small).unwrap();
        // Plain needs 4 MiB; packed, whose copy is in memory, little: each amount fails at another place.
        for (form, sizes) in [(Form::Plain, [64, 1024, 4096, 4104]), (Form::Packed, [8, 12, 16, 20])] {
            for kib in sizes {
                mount(
                    Some("none"),
                    &small,
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some(format!("size={kib}k").as_str()),
                )
                .unwrap();
                fails_empty(&small, &mem, form, kib);
                nix::mount::umount(&small).unwrap();
            }
        }
    };
    std::thread::Builder::new().spawn(test).unwrap().join().unwrap();
}

fn fails_empty(small: &Path, mem: &Path, form: Form, kib: u64) {
    let error = save(small, mem, form).expect_err("no space");
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{form:?} {kib}: {}", error.chain());
    assert!(names(small).is_empty(), "{form:?} {kib}");
}
