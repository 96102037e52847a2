//! What is saved comes back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use shim::snapshot::manifest::ContainerState;
use shim::snapshot::{Form, Save, Snapshot};

use crate::support::{MIB, PAGE, contents, empty, names, ram, save, saved, soon, temp};

const FORMS: [Form; 2] = [Form::Plain, Form::Packed];

#[test]
fn snapshot_is_flat_complete_and_readable() {
    for form in FORMS {
        let (temp, dir) = saved(form);
        assert_eq!(names(&dir), ["manifest.json", "ram", "ram.index", "state"]);
        let snapshot = Snapshot::open(&dir).unwrap();
        let mut want = contents(4 * MIB);
        want.made = snapshot.manifest().contents.made.clone();
        assert_eq!(snapshot.manifest().contents, want);
        snapshot.verify().unwrap();
        let new = empty(temp.path(), 4 * MIB);
        snapshot.restore_ram(&new).unwrap();
        assert_eq!(fs::read(&new).unwrap(), fs::read(temp.path().join("mem")).unwrap());
        assert!(fs::metadata(&new).unwrap().blocks() * 512 <= 6 * PAGE, "holes stay holes");
        let state = temp.path().join("state");
        fs::create_dir(&state).unwrap();
        assert_eq!(snapshot.state_into(&state).unwrap(), ["state"]);
        assert_eq!(fs::read(state.join("state")).unwrap(), b"device state");
    }
}

#[test]
fn zero_pages_and_holes_take_no_space() {
    for form in FORMS {
        let temp = tempfile::tempdir().unwrap();
        let memory = temp.path().join("mem");
        let zeros: Vec<_> = (0..1024).map(|page| (page, u8::from(page == 512))).collect();
        ram(&memory, 64 * MIB, &zeros);
        let dir = temp.path().join("snap");
        save(&dir, &memory, form).unwrap();
        let blocks = fs::metadata(dir.join("ram")).unwrap().blocks() * 512;
        assert!(blocks <= 2 * PAGE, "{form:?} takes {blocks} bytes for one page");
    }
}

#[test]
fn restore_clears_what_was_in_the_ram_file() {
    let (temp, dir) = saved(Form::Packed);
    let new = temp.path().join("new");
    fs::write(&new, vec![7; 4 << 20]).unwrap();
    Snapshot::open(&dir).unwrap().restore_ram(&new).unwrap();
    assert_eq!(fs::read(&new).unwrap(), fs::read(temp.path().join("mem")).unwrap());
    fs::write(&new, vec![7; 2 << 20]).unwrap();
    let error = Snapshot::open(&dir).unwrap().restore_ram(&new).unwrap_err();
    assert!(error.chain().contains("2097152 bytes"), "{}", error.chain());
}

#[test]
fn plain_survives_a_copy_that_fills_its_holes() {
    let (temp, dir) = saved(Form::Plain);
    let bytes = fs::read(dir.join("ram")).unwrap();
    fs::write(dir.join("ram"), bytes).unwrap();
    let new = empty(temp.path(), 4 * MIB);
    Snapshot::open(&dir).unwrap().restore_ram(&new).unwrap();
    assert!(fs::metadata(&new).unwrap().blocks() * 512 <= 6 * PAGE);
}

#[test]
fn copies_change_the_form_and_nothing_else() {
    for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (temp, dir) = saved(FORMS[from]);
        let snapshot = Snapshot::open(&dir).unwrap();
        let copy = temp.path().join("copy");
        let done = snapshot.copy_to(&copy, FORMS[to]).unwrap();
        assert_eq!(done.manifest.contents, snapshot.manifest().contents);
        assert_eq!(done.manifest.ram.form, FORMS[to]);
        assert_eq!(done.manifest.files, snapshot.manifest().files);
        fs::remove_dir_all(&dir).unwrap();
        let new = empty(temp.path(), 4 * MIB);
        Snapshot::open(&copy).unwrap().restore_ram(&new).unwrap();
        assert_eq!(fs::read(&new).unwrap(), fs::read(temp.path().join("mem")).unwrap());
    }
}

/// Few pages, often neighbours, so that runs, chunk edges and zero pages with data all occur.
fn pattern() -> impl Strategy<Value = BTreeMap<u64, u8>> {
    let page = prop_oneof![0u64..1536, 250u64..260, 1530u64..1536];
    proptest::collection::btree_map(page, prop_oneof![Just(0u8), any::<u8>()], 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_ram_comes_back(pages in pattern(), packed in any::<bool>()) {
        let form = if packed { Form::Packed } else { Form::Plain };
        let temp = temp();
        let memory = temp.path().join("mem");
        ram(&memory, 6 * MIB, &pages.into_iter().collect::<Vec<_>>());
        let dir = temp.path().join("snap");
        save(&dir, &memory, form).unwrap();
        let new = empty(temp.path(), 6 * MIB);
        let snapshot = Snapshot::open(&dir).unwrap();
        snapshot.verify().unwrap();
        snapshot.restore_ram(&new).unwrap();
        prop_assert!(fs::read(&new).unwrap() == fs::read(&memory).unwrap());
    }

    #[test]
    fn any_manifest_comes_back(
        names in proptest::collection::btree_set("[a-z]([a-z0-9-]{0,20}[a-z0-9])?", 0..5),
        text in "\\PC{0,40}",
        generation in 1u32..,
        status in any::<u32>(),
        vcpus in 1u32..=512,
    ) {
        let (temp, _) = saved(Form::Plain);
        let mut pod = contents(4 * MIB);
        let one = pod.containers.remove(0);
        pod.containers = names.iter().map(|name| {
            let mut container = one.clone();
            container.guest_name = name.clone();
            container.cri_name = None;
            container.generation = generation;
            container.state = ContainerState::Stopped(status);
            container
        }).collect();
        pod.machine.vcpus = vcpus;
        pod.sandbox.pod_name = text;
        let dir = temp.path().join("other");
        let mut save = Save::begin(&dir, Form::Plain).unwrap();
        fs::write(dir.join("state"), "s").unwrap();
        save.capture_ram(&temp.path().join("mem"), soon()).unwrap();
        let done = save.finish(pod.clone(), &["state".into()]).unwrap();
        prop_assert_eq!(&done.manifest.contents, &pod);
        let opened = Snapshot::open(&dir).unwrap();
        prop_assert_eq!(opened.manifest(), &done.manifest);
    }
}
