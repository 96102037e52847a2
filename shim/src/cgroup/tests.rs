//! Tests of `cgroup` that need no VM.

use super::*;

use std::fs;
use std::process::Command;

use crate::testing::ledger;

fn memory(limit: i64) -> LinuxResources {
    serde_json::from_str(&format!("{{\"memory\":{{\"limit\":{limit}}}}}")).unwrap()
}

/// A tree of plain directories: a file is a control file if somebody put it there.
fn fake(root: &Path) -> Hierarchy {
    fs::write(root.join("cgroup.controllers"), "cpu hugetlb memory\n").unwrap();
    fs::write(root.join("cgroup.subtree_control"), "").unwrap();
    Hierarchy::Unified { root: root.into() }
}

#[test]
fn a_pod_has_a_place_for_the_vmm_and_for_each_container() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cgroup");
    fs::create_dir(&root).unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let pod = PodCgroup::create_in(vec![fake(&root)], "/kubepods/pod1/abc", "abc", &ledger).unwrap();
    assert_eq!(pod.vmm_procs(), [root.join("kubepods/pod1/abc/vmm/cgroup.procs")]);
    let delegated = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
    assert!(delegated == "+memory", "the last of the delegated controllers, not {delegated}");

    let container = pod.container("vmm", Some(&memory(1 << 20))).unwrap();
    assert_eq!(container.procs(), [root.join("kubepods/pod1/abc/container-vmm/cgroup.procs")]);
    assert_eq!(pod.container("a/b", None).unwrap_err().kind(), Kind::InvalidArgument);
    container.remove().unwrap();
    assert_eq!(ledger.resources(), [Resource::Cgroup(root.join("kubepods/pod1/abc"))]);
    pod.remove().unwrap();
    assert!(!root.join("kubepods/pod1/abc").exists() && root.join("kubepods/pod1").exists());
}

#[test]
fn a_cgroup_with_foreign_processes_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("cgroup");
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/cgroup.procs"), "1234\n").unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let error = PodCgroup::create_in(vec![fake(&root)], "/a/b", "pod", &ledger).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    assert!(ledger.resources().is_empty());
    assert!(root.join("a/b/c/cgroup.procs").exists());
}

/// On the hierarchies of this host, whatever they are.
#[test]
fn limits_are_seen_on_the_host_and_nothing_stays() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let id = format!("test-{}", std::process::id());
    let pod = PodCgroup::create("", &id, &ledger).unwrap();
    let container = pod.container("c1", Some(&memory(64 << 20))).unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    for procs in container.procs() {
        fs::write(procs, child.id().to_string()).unwrap();
    }
    let own = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let place = format!("/microvm-ns-{id}/container-c1");
    assert!(own.lines().filter(|line| line.ends_with(&place)).count() >= container.directories.len());

    let limit = || {
        let files = ["memory.max", "memory.limit_in_bytes"];
        let mut paths = container.directories.iter().flat_map(|dir| files.map(|file| dir.path.join(file)));
        fs::read_to_string(paths.find(|path| path.exists()).unwrap()).unwrap().trim().to_owned()
    };
    assert_eq!(limit(), (64 << 20).to_string());
    container.update(&memory(32 << 20)).unwrap();
    assert_eq!(limit(), (32 << 20).to_string());
    let negative = serde_json::from_str("{\"cpu\":{\"period\":1}}").unwrap();
    assert_eq!(container.update(&negative).unwrap_err().kind(), Kind::InvalidArgument);

    pod.remove().unwrap();
    assert!(child.wait().unwrap().code().is_none());
    assert!(pod.directories.iter().all(|directory| !directory.path.exists()));
    assert!(ledger.release_all().is_empty());
}
