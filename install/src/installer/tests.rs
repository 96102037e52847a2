//! Installs into a directory: fresh, twice, upgraded, edited, failing half way, and away again.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::Architecture;
use crate::assets::{Entry as Asset, MANIFEST, Manifest};

/// Another system's root, and parts to install in it.
struct Node {
    directory: tempfile::TempDir,
}

/// What a file tree holds: for each path the mode and the bytes or the link's target.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("root")).unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        within(&self.root(), Path::new(path))
    }

    /// Parts that differ from those of any other `version` in every file.
    fn parts(&self, version: &str) -> Parts {
        let directory = self.directory.path().join(version);
        fs::create_dir_all(&directory).unwrap();
        let file = |name: &str| {
            let path = directory.join(name);
            fs::write(&path, format!("{name} {version}")).unwrap();
            path
        };
        let entry = |name: &str| Asset::of(name, &fs::read(file(name)).unwrap());
        let manifest =
            Manifest::new(Architecture::X86_64, version, entry("vmlinux"), entry("initramfs.cpio"));
        fs::write(directory.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        Parts {
            shim: file("shim"),
            ctl: file("ctl"),
            assets: Assets::load(&directory).unwrap(),
            config: format!("# config {version}\n"),
            containerd: Containerd::V2,
            version: version.into(),
        }
    }

    fn install(&self, version: &str) -> Report {
        let report = install(&self.root(), &self.parts(version)).unwrap();
        assert!(!self.tree().keys().any(|path| path.to_string_lossy().contains(".microvm-install-")));
        report
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(&self.root(), &mut tree);
        tree
    }
}

fn walk(directory: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if metadata.is_dir() {
            walk(&path, tree);
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        tree.insert(path, (metadata.permissions().mode(), bytes));
    }
}

#[test]
fn a_fresh_node_gets_everything_where_the_defaults_look() {
    let node = Node::new();
    let report = node.install("1");
    assert_eq!(report.notes, [""; 0]);
    assert_eq!(report.done.len(), 10, "{report:?}");

    let parts = node.parts("1");
    let installed = Assets::load(&node.at("/usr/share/microvm/guest")).unwrap();
    assert_eq!(installed.version, parts.assets.version);
    installed.verify().unwrap();
    let shim = node.at(plan::SHIM);
    assert_eq!(fs::read(&shim).unwrap(), b"shim 1");
    assert!(has_mode(&shim, 0o755));
    assert_eq!(fs::read_to_string(node.at(plan::CONFIG)).unwrap(), parts.config);
    let imports = fs::read_to_string(node.at(containerd::CONFIG)).unwrap();
    assert!(imports.contains("conf.d"), "{imports}");
    assert!(node.at(containerd::DROP_IN).exists());
}

#[test]
fn a_second_run_changes_nothing() {
    let node = Node::new();
    node.install("1");
    let before = node.tree();
    assert_eq!(node.install("1"), Report::default());
    assert_eq!(node.tree(), before);
}

#[test]
fn uninstall_leaves_the_root_as_it_was() {
    let node = Node::new();
    fs::create_dir_all(node.at("/etc")).unwrap();
    fs::create_dir_all(node.at("/usr/local/bin")).unwrap();
    fs::write(node.at("/usr/local/bin/other"), "other").unwrap();
    let before = node.tree();
    node.install("1");
    node.install("2");
    assert_eq!(uninstall(&node.root()).unwrap().notes, [""; 0]);
    assert_eq!(node.tree(), before);
    let again = uninstall(&node.root()).unwrap();
    assert!(again.notes[0].starts_with("Nothing is installed"), "{again:?}");
}

#[test]
fn an_upgrade_leaves_what_a_fresh_install_would() {
    let upgraded = Node::new();
    upgraded.install("1");
    upgraded.install("2");
    let fresh = Node::new();
    fresh.install("2");
    let relative = |node: &Node| -> Vec<_> {
        let root = node.root();
        node.tree()
            .into_iter()
            .map(|(path, file)| (path.strip_prefix(&root).unwrap().to_owned(), file))
            .collect()
    };
    let (upgraded, fresh) = (relative(&upgraded), relative(&fresh));
    let paths = |tree: &[(PathBuf, _)]| tree.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&upgraded), paths(&fresh));
    // The two records list the same in another order.
    for ((path, one), (_, other)) in
        upgraded.iter().zip(&fresh).filter(|((path, _), _)| !path.ends_with("install.json"))
    {
        assert_eq!(one, other, "{}", path.display());
    }
}

#[test]
fn an_edited_config_stays_and_the_new_one_lies_beside_it() {
    let node = Node::new();
    node.install("1");
    let config = node.at(plan::CONFIG);
    let beside = node.at("/etc/containerd/microvm.toml.new");
    fs::write(&config, "default_vcpus = 2\n").unwrap();
    assert_eq!(node.install("1").notes, [""; 0]);
    assert!(!beside.exists(), "the same template needs no comparing");

    for _ in 0..2 {
        let report = node.install("2");
        assert!(report.notes[0].contains("microvm.toml was edited"), "{report:?}");
        assert_eq!(fs::read_to_string(&config).unwrap(), "default_vcpus = 2\n");
        assert_eq!(fs::read_to_string(&beside).unwrap(), "# config 2\n");
    }

    let report = uninstall(&node.root()).unwrap();
    assert_eq!(report.notes, ["/etc/containerd/microvm.toml was edited and stays"]);
    let left: Vec<_> = node.tree().into_keys().collect();
    assert_eq!(left, [node.at("/etc"), node.at("/etc/containerd"), config]);
}

#[test]
fn a_config_that_was_there_before_is_never_ours() {
    let node = Node::new();
    fs::create_dir_all(node.at("/etc/containerd")).unwrap();
    fs::write(node.at(plan::CONFIG), "mine\n").unwrap();
    fs::write(node.at(containerd::CONFIG), "version = 2\n").unwrap();
    let before = node.tree();
    let report = node.install("1");
    assert!(report.notes.iter().any(|note| note.contains("imports = [")), "{report:?}");
    assert!(fs::read_to_string(node.at(containerd::DROP_IN)).unwrap().contains("version = 2"));
    uninstall(&node.root()).unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn a_failure_half_way_leaves_the_old_state() {
    let node = Node::new();
    node.install("1");
    let before = node.tree();

    let mut parts = node.parts("2");
    parts.ctl = node.directory.path().join("missing");
    let error = format!("{:#}", install(&node.root(), &parts).unwrap_err());
    assert!(error.contains("missing"), "{error}");
    assert_eq!(node.tree(), before);

    // A directory in the way of a file stops the staging after most files are written.
    let in_the_way = node.at("/usr/share/microvm/runtimeclass.yaml");
    fs::remove_file(&in_the_way).unwrap();
    fs::create_dir(&in_the_way).unwrap();
    let before = node.tree();
    let error = format!("{:#}", install(&node.root(), &node.parts("2")).unwrap_err());
    assert!(error.contains("everything is as before") && error.contains("is a directory"), "{error}");
    assert_eq!(node.tree(), before);
}

#[test]
fn a_failure_of_the_last_rename_brings_everything_back() {
    let node = Node::new();
    node.install("1");
    let before = node.tree();
    let parts = node.parts("2");
    let registration = containerd::registration(parts.containerd, None).unwrap();
    let items = plan::items(&parts, &registration).unwrap();
    let root = node.root();
    let mut transaction = Transaction::new(&root);
    for item in &items {
        transaction.stage(item).unwrap();
    }
    // Whoever removes a staged file makes its rename fail.
    let lost = fs::read_dir(node.at("/etc/containerd/conf.d")).unwrap().map(|entry| entry.unwrap().path());
    let lost = lost.into_iter().find(|path| path.to_string_lossy().contains(".microvm-install-")).unwrap();
    fs::remove_file(lost).unwrap();
    transaction.commit().unwrap_err();
    let failures = transaction.undo();
    assert_eq!(failures.len(), 1, "only the lost file can't be removed: {failures:?}");
    assert_eq!(node.tree(), before);
}

#[test]
fn what_a_killed_installer_left_is_swept_away() {
    let node = Node::new();
    node.install("1");
    let before = node.tree();
    fs::write(node.at("/usr/local/bin/.microvm-install-abc"), "half").unwrap();
    node.install("1");
    assert_eq!(node.tree(), before);
}

#[test]
fn a_running_binary_can_be_replaced() {
    let node = Node::new();
    let parts = node.parts("1");
    fs::copy("/bin/sleep", &parts.shim).unwrap();
    install(&node.root(), &parts).unwrap();
    let mut running = Command::new(node.at(plan::SHIM)).arg("60").stdin(Stdio::null()).spawn().unwrap();
    let report = install(&node.root(), &node.parts("2"));
    end(&mut running);
    report.unwrap();
    assert_eq!(fs::read(node.at(plan::SHIM)).unwrap(), b"shim 2");
}

fn end(process: &mut Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn assets_stay_while_a_process_runs_on_them() {
    let node = Node::new();
    node.install("1");
    let version = node.parts("1").assets.version;
    let kernel = node.at(plan::GUEST).join(&version).join("vmlinux");
    let mut vmm =
        Command::new("sh").args(["-c", "read line"]).arg(&kernel).stdin(Stdio::piped()).spawn().unwrap();
    let report = node.install("2");
    assert!(report.notes[0].contains(&format!("process {}", vmm.id())), "{report:?}");
    assert!(kernel.exists());
    end(&mut vmm);
    node.install("2");
    assert!(!kernel.parent().unwrap().exists());
}

#[test]
fn assets_stay_while_a_sandbox_or_a_snapshot_names_them() {
    let node = Node::new();
    node.install("1");
    let folder = node.at(plan::GUEST).join(node.parts("1").assets.version);
    fs::write(node.at(plan::CONFIG), "snapshot_store = \"/srv/snapshots\"\n").unwrap();
    for record in ["/run/microvm/k8s.io/pod/sandbox.json", "/srv/snapshots/one/manifest.json"] {
        let record = node.at(record);
        fs::create_dir_all(record.parent().unwrap()).unwrap();
        fs::write(&record, format!("{{\"kernel\": {:?}}}", folder.join("vmlinux"))).unwrap();
        let report = node.install("2");
        assert!(report.notes.iter().any(|note| note.contains(&record.display().to_string())), "{report:?}");
        assert!(folder.join("vmlinux").exists());
        fs::remove_file(&record).unwrap();
    }
    node.install("2");
    assert!(!folder.exists());
}

#[test]
fn two_installers_do_not_meet() {
    let node = Node::new();
    let held = lock(&node.root()).unwrap();
    let error = install(&node.root(), &node.parts("1")).unwrap_err();
    assert!(format!("{error:#}").contains("Another installer"), "{error:#}");
    drop(held);
    node.install("1");
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_and_not_followed() {
    let node = Node::new();
    let victim = node.directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::create_dir_all(node.at("/usr/local/bin")).unwrap();
    symlink(&victim, node.at(plan::SHIM)).unwrap();
    node.install("1");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(fs::read(node.at(plan::SHIM)).unwrap(), b"shim 1");
}
