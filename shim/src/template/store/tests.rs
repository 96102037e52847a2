//! The store of templates on a disk of its own, without any VM.

use super::super::key::tests::key;
use super::*;

const SIZE: u64 = 2 << 20;

async fn add(store: &Store, key: &Key, byte: u8) {
    let lock = store.lock().unwrap().unwrap();
    let fill = async |devices: &Path, ram: &Path| {
        fs::write(devices.join("state"), [byte]).unwrap();
        fs::write(ram, [byte; 4096]).unwrap();
        File::options().write(true).open(ram).unwrap().set_len(SIZE).unwrap();
        Ok(())
    };
    store.add(&lock, key.clone(), fill).await.unwrap();
}

#[tokio::test]
async fn a_template_is_found_by_its_key_and_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own) = (Store::new(&dir.path().join("templates")), key(dir.path(), |_| {}));
    assert!(matches!(store.find(&own).unwrap(), Found::Missing));
    add(&store, &own, 7).await;
    let other = key(dir.path(), |machine| machine.vcpus = 2);
    assert!(matches!(store.find(&other).unwrap(), Found::Missing));
    let Found::Ready(template) = store.find(&own).unwrap() else { panic!("not found") };
    let (ram, devices) = (dir.path().join("ram"), dir.path().join("devices"));
    File::create(&ram).unwrap().set_len(SIZE).unwrap();
    fs::create_dir(&devices).unwrap();
    template.copy(&ram, &devices).unwrap();
    assert_eq!(fs::read(devices.join("state")).unwrap(), [7]);
    let copy = fs::read(&ram).unwrap();
    assert!(
        copy.len() as u64 == SIZE && copy[..4096] == [7; 4096] && copy[4096..].iter().all(|byte| *byte == 0)
    );

    store.remove(&own.name().unwrap()).unwrap();
    let error = template.copy(&ram, &devices).unwrap_err();
    assert!(error.chain().contains("Could not copy the template"), "{}", error.chain());
    assert_eq!(store.remove("nonsense").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.remove("../x").unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn what_failed_is_not_tried_again_and_what_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own) = (Store::new(dir.path()), key(dir.path(), |_| {}));
    let lock = store.lock().unwrap().unwrap();
    assert!(store.lock().unwrap().is_none(), "one process at a time");
    let fail = async |_: &Path, _: &Path| Err(Error::new(Kind::Internal, "no QEMU"));
    assert_eq!(store.add(&lock, own.clone(), fail).await.unwrap_err().chain(), "no QEMU");
    assert!(!dir.path().join(WORK).exists());
    assert!(matches!(store.find(&own).unwrap(), Found::Missing));

    store.refuse(own.clone(), "no QEMU").unwrap();
    assert!(matches!(store.find(&own).unwrap(), Found::Failed));
    let listed = store.list().unwrap();
    let state = listed.iter().find(|one| one.key.as_ref() == Some(&own)).map(|one| one.state.clone());
    assert_eq!(state, Some(State::Failed("no QEMU".into())));
}

#[tokio::test]
async fn few_are_kept_and_no_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&dir.path().join("templates"));
    let keys = [1, 2, 3].map(|vcpus| key(dir.path(), |machine| machine.vcpus = vcpus));
    for (number, key) in keys.iter().enumerate() {
        add(&store, key, 1).await;
        // The clock that dates files is coarser than what follows.
        let used = UNIX_EPOCH + Duration::from_secs(1000 + number as u64);
        File::open(store.root.join(key.name().unwrap())).unwrap().set_modified(used).unwrap();
    }
    let Found::Ready(template) = store.find(&keys[0]).unwrap() else { panic!("not found") };
    template.touch().unwrap();
    let lock = store.lock().unwrap().unwrap();
    store.prune(&lock, 2).unwrap();
    let left: Vec<_> = store.list().unwrap().into_iter().map(|one| one.key.unwrap().vcpus).collect();
    assert_eq!(left, [1, 3]);

    fs::create_dir(store.root.join("damaged")).unwrap();
    fs::write(dir.path().join("kernel"), "another").unwrap();
    assert!(store.list().unwrap().iter().all(|one| one.stale || one.key.is_none()));
    store.prune(&lock, 2).unwrap();
    assert!(store.list().unwrap().is_empty());
}
