//! Builds the guest from the real Debian package, which the cache in `target/` keeps, and looks at what came out.
#![cfg(feature = "build")]
#![expect(clippy::unwrap_used, reason = "it is a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use install::Architecture;
use install::assets::Assets;
use install::guest::{Build, Policy, build};

/// A static program for the host's architecture, in place of the agent.
fn agent(directory: &Path) -> PathBuf {
    let source = directory.join("agent.rs");
    fs::write(&source, "fn main() {}").unwrap();
    let agent = directory.join("agent");
    let status = Command::new("rustc")
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .args([&agent, &source])
        .status();
    assert!(status.unwrap().success());
    agent
}

#[test]
fn two_builds_give_the_same_bytes_and_another_agent_another_version() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-cache");
    let directory = tempfile::tempdir().unwrap();
    let at = |out: &str, agent: PathBuf| Build {
        architecture: Architecture::host().unwrap(),
        agent,
        cache: cache.clone(),
        out: directory.path().join(out),
        policy: Policy::Newest,
    };
    let first = agent(directory.path());
    let one = build(&at("one", first.clone())).unwrap();
    let two = build(&at("two", first.clone())).unwrap();
    assert_eq!((&one.assets.version, &one.assets.checksums), (&two.assets.version, &two.assets.checksums));
    let manifest = |assets: &Assets| fs::read(assets.directory.join("assets.json")).unwrap();
    assert_eq!(manifest(&one.assets), manifest(&two.assets));
    one.assets.verify().unwrap();

    let other = directory.path().join("other");
    let mut bytes = fs::read(&first).unwrap();
    bytes.push(0);
    fs::write(&other, bytes).unwrap();
    let other = build(&at("two", other)).unwrap();
    assert_ne!(other.assets.version, two.assets.version);
    assert_eq!(other.assets.checksums.kernel, two.assets.checksums.kernel);
    two.assets.verify().unwrap();

    let third = directory.path().join("third");
    fs::write(&third, [fs::read(&first).unwrap(), vec![1]].concat()).unwrap();
    let third = build(&at("two", third)).unwrap();
    let left: BTreeSet<_> =
        fs::read_dir(at("two", first).out).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [other.assets.directory, third.assets.directory].into(), "the one before stays");
}

#[test]
fn a_dynamic_agent_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let error = build(&Build {
        architecture: Architecture::host().unwrap(),
        agent: "/bin/sh".into(),
        cache: Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-cache"),
        out: directory.path().to_owned(),
        policy: Policy::Newest,
    })
    .unwrap_err();
    assert!(format!("{error:#}").contains("/bin/sh can't be the guest's agent"), "{error:#}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
