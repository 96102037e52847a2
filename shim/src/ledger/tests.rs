//! Tests of `ledger` that need no VM.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn owner() -> Owner {
    Owner {
        namespace: "k8s.io".into(),
        sandbox: "pod".into(),
        bundle: "/run/bundle".into(),
        containerd_address: "/run/containerd/containerd.sock".into(),
        ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
        shim: Shim::current().unwrap(),
    }
}

/// Runs `test` in a mount namespace of its own, so that no failure leaves a mount on the host.
fn in_mount_namespace(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn a_record_survives_its_process() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ns/pod");
    let ledger = Ledger::create(&dir, owner()).unwrap();
    let resource = Resource::File(temp.path().join("socket"));
    ledger.claim(resource.clone()).unwrap();
    ledger.claim(resource.clone()).unwrap();
    drop(ledger);

    assert_eq!(Ledger::create(&dir, owner()).unwrap_err().kind(), Kind::AlreadyExists);
    let ledger = Ledger::open(&dir).unwrap();
    assert_eq!(ledger.owner(), owner());
    assert_eq!(ledger.resources(), [resource]);
    assert!(ledger.owner().shim.is_alive());
}

#[test]
fn the_bundle_leads_to_the_record() {
    let temp = tempfile::tempdir().unwrap();
    let bundle = temp.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    assert_eq!(Ledger::of_bundle(&bundle), None);
    for name in ["one", "two"] {
        let dir = temp.path().join(name);
        Ledger::create(&dir, Owner { bundle: bundle.clone(), ..owner() }).unwrap();
        assert_eq!(Ledger::of_bundle(&bundle), Some(dir));
    }
}

#[test]
fn nothing_is_claimed_after_the_end() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::create(&temp.path().join("pod"), owner()).unwrap();
    assert!(ledger.release_all().is_empty());
    let late = ledger.claim(Resource::File("/nonexistent".into())).unwrap_err();
    assert_eq!(late.kind(), Kind::FailedPrecondition);
    assert!(ledger.release_all().is_empty());
    assert_eq!(Ledger::open(ledger.dir()).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn malformed_and_newer_records_are_refused_with_their_name() {
    let temp = tempfile::tempdir().unwrap();
    for (text, want) in [("{", "Could not understand"), ("{\"format\": 99}", "has format 99")] {
        fs::write(temp.path().join("sandbox.json"), text).unwrap();
        let error = Ledger::open(temp.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains(want), "{error}");
        assert!(error.to_string().contains("sandbox.json"), "{error}");
    }
}

#[test]
fn one_failure_stops_neither_the_others_nor_a_later_try() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::create(&temp.path().join("pod"), owner()).unwrap();
    let (old, stuck) = (temp.path().join("old"), temp.path().join("stuck"));
    fs::write(&old, "").unwrap();
    fs::create_dir(&stuck).unwrap();
    for path in [&old, &stuck] {
        ledger.claim(Resource::File(path.clone())).unwrap();
    }
    let failures = ledger.release_all();
    assert_eq!(failures.len(), 1);
    assert!(failures[0].to_string().contains("stuck"), "{}", failures[0]);
    assert!(!old.exists());
    assert_eq!(Ledger::open(ledger.dir()).unwrap().resources(), [Resource::File(stuck.clone())]);
    fs::remove_dir(&stuck).unwrap();
    assert!(ledger.release_all().is_empty());
    assert!(!ledger.dir().exists());
}

#[test]
fn a_tree_is_removed_but_nothing_that_it_points_to() {
    let temp = tempfile::tempdir().unwrap();
    let (tree, outside) = (temp.path().join("tree"), temp.path().join("outside"));
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    undo::undo(&Resource::Directory(tree.clone())).unwrap();
    assert!(!tree.exists());
    undo::undo(&Resource::Directory(tree.clone())).unwrap();
    symlink(&outside, &tree).unwrap();
    undo::undo(&Resource::Directory(tree.clone())).unwrap();
    assert!(!tree.is_symlink());
    assert!(outside.join("precious").exists());
}

#[test]
fn a_tree_with_a_mount_keeps_what_the_mount_shows() {
    in_mount_namespace(|| {
        let temp = tempfile::tempdir().unwrap();
        let (tree, volume) = (temp.path().join("tree"), temp.path().join("volume"));
        fs::create_dir_all(tree.join("mounted")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("precious"), "").unwrap();
        // A bind mount within one filesystem: the device number does not give it away.
        bind(&volume, &tree.join("mounted"));
        assert!(undo::undo(&Resource::Directory(tree.clone())).is_err());
        assert!(undo::undo(&Resource::Directory(tree.join("mounted"))).is_err());
        assert!(volume.join("precious").exists());

        bind(&volume, &tree.join("mounted"));
        undo::undo(&Resource::Mount(tree.join("mounted"))).unwrap();
        undo::undo(&Resource::Mount(tree.join("mounted"))).unwrap();
        undo::undo(&Resource::Directory(tree.clone())).unwrap();
        assert!(!tree.exists() && volume.join("precious").exists());
        undo::undo(&Resource::Mount(tree)).unwrap();
    });
}

#[test]
fn a_poststop_hook_gets_its_state_and_its_failure_is_forgiven() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let script = format!("read state; echo \"$0 $state $NAME\" >{}; exit 3", out.display());
    let hook = Poststop {
        path: "/bin/sh".into(),
        args: vec!["sh".into(), "-c".into(), script, "hook".into()],
        env: vec!["NAME=value".into()],
        timeout: 10,
        state: "{\"status\":\"stopped\"}".into(),
    };
    undo::undo(&Resource::Poststop(hook.clone())).unwrap();
    assert_eq!(fs::read_to_string(out).unwrap(), "hook {\"status\":\"stopped\"} value\n");
    let started = std::time::Instant::now();
    let endless =
        Poststop { args: vec!["sh".into(), "-c".into(), "exec sleep 600".into()], timeout: 1, ..hook };
    undo::undo(&Resource::Poststop(endless)).unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn a_cgroup_goes_with_its_processes_and_children() {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"] {
        let root = Path::new(root);
        if !root.join("cgroup.procs").exists() {
            continue;
        }
        let path = root.join(format!("microvm-ledger-{}", std::process::id()));
        fs::create_dir_all(path.join("inner")).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(path.join("inner/cgroup.procs"), child.id().to_string()).unwrap();
        undo::undo(&Resource::Cgroup(path.clone())).unwrap();
        assert!(!path.exists());
        assert!(child.wait().unwrap().code().is_none());
        undo::undo(&Resource::Cgroup(path)).unwrap();
    }
}

/// What a shim does with one resource, and where it may be killed.
#[derive(Debug, Clone)]
enum Step {
    /// Claims number n, and makes it unless killed in between.
    Make(usize, bool),
    Release(usize),
    /// The thing goes by itself, and the shim may be killed before it notices.
    Vanish(usize, bool),
    /// The shim is killed while it writes the record.
    TornWrite,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8_usize, any::<bool>()).prop_map(|(n, made)| Step::Make(n, made)),
        2 => (0..8_usize).prop_map(Step::Release),
        1 => (0..8_usize, any::<bool>()).prop_map(|(n, noticed)| Step::Vanish(n, noticed)),
        1 => Just(Step::TornWrite),
    ]
}

/// Even numbers are directories with content (some within each other), odd ones files (some in those directories).
fn thing(base: &Path, number: usize) -> Resource {
    let parent = if number >= 4 { base.join("0") } else { base.to_owned() };
    let path = parent.join(number.to_string());
    if number.is_multiple_of(2) { Resource::Directory(path) } else { Resource::File(path) }
}

fn make(resource: &Resource) {
    match resource {
        Resource::Directory(path) => fs::create_dir_all(path.join("content")).unwrap(),
        Resource::File(path) if path.parent().unwrap().exists() => fs::write(path, "").unwrap(),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_release_all_leaves_nothing(steps in prop::collection::vec(step(), 0..24), end in any::<bool>()) {
        let temp = tempfile::tempdir().unwrap();
        let (dir, base) = (temp.path().join("ns/pod"), temp.path().join("things"));
        fs::create_dir(&base).unwrap();
        let mut ledger = Ledger::create(&dir, owner()).unwrap();
        for step in steps {
            match step {
                Step::Make(number, made) => {
                    // Numbers from 4 on live in directory 0, so it has to be claimed before them.
                    if number >= 4 && !ledger.resources().contains(&thing(&base, 0)) { continue; }
                    ledger.claim(thing(&base, number)).unwrap();
                    if made { make(&thing(&base, number)); }
                }
                Step::Release(number) => ledger.release(&thing(&base, number)).unwrap(),
                Step::Vanish(number, noticed) => {
                    undo::undo(&thing(&base, number)).unwrap();
                    if noticed { ledger.forget(&thing(&base, number)).unwrap(); }
                }
                Step::TornWrite => {
                    fs::write(dir.join("sandbox.json.next"), "{\"form").unwrap();
                    ledger = Ledger::open(&dir).unwrap();
                }
            }
        }
        if end { ledger = Ledger::open(&dir).unwrap(); }
        fs::write(dir.join("console.log"), "").unwrap();
        prop_assert!(ledger.release_all().is_empty());
        prop_assert!(!dir.exists());
        prop_assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
        prop_assert!(ledger.release_all().is_empty());
    }
}
