//! What we ask of containerd, asked of a real one: the one of the test host, if that has been made.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy.toml's exception covers unit tests only")]

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shim::error::Kind;
use shim::images::checkpoint::CHECKPOINT_TYPE;
use shim::images::{Client, release_lease};
use shim::ledger::Resource;
use tar::{Builder, Header};

const NAMESPACE: &str = "test";

/// A containerd without anything that needs the host: its directories are temporary, its sockets in them.
struct Containerd {
    tree: PathBuf,
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Containerd {
    /// Starts one; none if the test host was not made yet.
    fn start() -> Option<Self> {
        let Some(tree) = tree().filter(|_| nix::unistd::geteuid().is_root()) else {
            eprintln!("skipped: needs root, and the test host's containerd (`cargo xtask demo` makes it)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 3\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\", \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("c.ttrpc")
        );
        fs::write(at("config.toml"), config).unwrap();
        let mut command = program(&tree, "containerd");
        command.args(["--config", &at("config.toml")]).stdout(Stdio::null());
        let daemon = command.stderr(File::create(at("log")).unwrap()).spawn().unwrap();
        let log = at("log");
        let containerd = Self { tree, dir, daemon };
        containerd.answers(&log);
        Some(containerd)
    }

    /// Waits until it serves: its log is written by then.
    fn answers(&self, log: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(log).unwrap().contains("containerd successfully booted") {
            assert!(
                Instant::now() < deadline,
                "containerd did not boot: {}",
                fs::read_to_string(log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    fn ctr(&self, args: &[&str]) -> String {
        let mut command = program(&self.tree, "ctr");
        let done = command.arg("-a").arg(self.socket()).args(["-n", NAMESPACE]).args(args).output().unwrap();
        assert!(done.status.success(), "ctr {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Imports an archive of images; a checkpoint is one without layers, which nobody unpacks.
    fn import(&self, archive: &mut File, how: &[&str]) {
        let path = self.dir.path().join("image.tar");
        archive.rewind().unwrap();
        std::io::copy(archive, &mut File::create(&path).unwrap()).unwrap();
        self.ctr(&[&["images", "import"], how, &[path.to_str().unwrap()]].concat());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Nothing runs below it: no container was ever started.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The newest test host's tree below the target directory.
fn tree() -> Option<PathBuf> {
    let hosts = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.join("testhost");
    let trees = fs::read_dir(hosts).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    trees.filter(|tree| tree.join("usr/bin/containerd").exists() && tree.join("usr/bin/ctr").exists()).max()
}

/// A program of the tree with the tree's own libraries.
fn program(tree: &Path, name: &str) -> Command {
    let loader = tree.join("usr/lib64/ld-linux-x86-64.so.2");
    let mut command = Command::new(loader);
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    command.arg("--library-path").arg(libraries).arg(tree.join("usr/bin").join(name));
    command
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An OCI archive of one image with the given parts.
fn oci(name: &str, media_type: &str, root: &Value, blobs: &[Vec<u8>]) -> File {
    let root = serde_json::to_vec(root).unwrap();
    let layout = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": media_type, "digest": digest(&root), "size": root.len(),
        "annotations": {"io.containerd.image.name": name}
    }]});
    let path = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replace(':', "/"));
    let mut files: Vec<(String, Vec<u8>)> =
        blobs.iter().map(|blob| (path(blob), blob.clone())).chain([(path(&root), root.clone())]).collect();
    files.push(("index.json".into(), serde_json::to_vec(&layout).unwrap()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &tar(&files)).unwrap();
    file
}

/// An image of two layers; its archive, digest and chain ids.
fn image(name: &str) -> (File, String, [String; 2]) {
    let layers = [tar(&[("a", b"lower")]), tar(&[("b", b"upper")])];
    let ids = layers.each_ref().map(|layer| digest(layer));
    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}
    }));
    let config = config.unwrap();
    let part =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.each_ref().map(|layer| part("application/vnd.oci.image.layer.v1.tar", layer))
    });
    let chain = [ids[0].clone(), digest(format!("{} {}", ids[0], ids[1]).as_bytes())];
    let manifest_digest = digest(&serde_json::to_vec(&manifest).unwrap());
    let [lower, upper] = layers;
    (oci(name, manifest_type, &manifest, &[lower, upper, config]), manifest_digest, chain)
}

#[tokio::test]
async fn images_are_found_by_their_layers_viewed_under_a_lease_and_let_go() {
    let Some(containerd) = Containerd::start() else { return };
    let name = "registry.example/two:1";
    let (mut archive, digest, chain) = image(name);
    containerd.import(&mut archive, &["--local", "--snapshotter", "native"]);
    containerd.ctr(&["containers", "create", "--snapshotter", "native", name, "one"]);
    let client = Client::connect(&containerd.socket(), NAMESPACE).await.unwrap();
    assert!(client.version().await.unwrap().starts_with(|c: char| c.is_ascii_digit()));

    let found = client.image_of_container("one").await.unwrap();
    assert_eq!(
        (found.name.as_str(), found.digest.as_str(), found.snapshotter.as_str()),
        (name, &*digest, "native")
    );
    assert_eq!(found.layers.iter().map(|id| id.as_str()).collect::<Vec<_>>(), chain);
    assert_eq!(client.image_of_container("two").await.unwrap_err().kind(), Kind::NotFound);

    client.create_lease("pod-1").await.unwrap();
    client.create_lease("pod-1").await.unwrap();
    let mounts = client.view(&found, "pod-1", "pod-1/one").await.unwrap();
    assert_eq!(
        client.view(&found, "pod-1", "pod-1/one").await.unwrap(),
        mounts,
        "asked again, the same view"
    );
    assert_eq!(mounts.len(), 1);
    assert!(mounts[0].options.contains(&"ro".into()), "{mounts:?}");
    let source = Path::new(&mounts[0].source);
    assert_eq!(fs::read(source.join("a")).unwrap(), b"lower");
    assert_eq!(fs::read(source.join("b")).unwrap(), b"upper");

    let mut absent = found.clone();
    absent.layers.push(
        Sha256::digest("x")
            .iter()
            .fold("sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
            .parse()
            .unwrap(),
    );
    let error = client.view(&absent, "pod-1", "pod-1/two").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.chain().contains(name) && error.chain().contains(&digest), "{}", error.chain());

    // Blocking, on a thread of the runtime, as the ledger's undo may be called.
    let lease =
        Resource::Lease { address: containerd.socket(), namespace: NAMESPACE.into(), id: "pod-1".into() };
    assert!(format!("{lease}").contains("pod-1"));
    release_lease(&containerd.socket(), NAMESPACE, "pod-1").unwrap();
    assert!(!containerd.ctr(&["leases", "ls"]).contains("pod-1"));
    assert!(!containerd.ctr(&["snapshots", "--snapshotter", "native", "ls"]).contains("pod-1"));
    release_lease(&containerd.socket(), NAMESPACE, "pod-1").expect("once more is no failure");
}

#[tokio::test]
async fn checkpoint_images_give_their_archive_and_others_say_so() {
    let Some(containerd) = Containerd::start() else { return };
    let client = Client::connect(&containerd.socket(), NAMESPACE).await.unwrap();
    let blob = tar(&[("manifest.json", b"{}"), ("ram", &[7; 3_000_000])]);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
        {"mediaType": CHECKPOINT_TYPE, "digest": digest(&blob), "size": blob.len(),
         "platform": {"os": "linux", "architecture": "amd64"}}
    ]});
    let mut archive = oci("registry.example/checkpoint:1", index_type, &index, std::slice::from_ref(&blob));
    containerd.import(&mut archive, &["--local", "--no-unpack", "--all-platforms"]);
    let mut to = tempfile::tempfile().unwrap();
    client.fetch_checkpoint("registry.example/checkpoint:1", &mut to).await.unwrap();
    to.rewind().unwrap();
    let mut read = Vec::new();
    to.read_to_end(&mut read).unwrap();
    assert!(read == blob);

    let (mut archive, ..) = image("registry.example/two:1");
    containerd.import(&mut archive, &["--local", "--snapshotter", "native"]);
    let error = client.fetch_checkpoint("registry.example/two:1", &mut to).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.chain().contains("holds no checkpoint"), "{}", error.chain());
    assert!(!client.has_image("registry.example/none:1").await.unwrap());
    let error = client.fetch_checkpoint("registry.example/none:1", &mut to).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn nobody_at_the_socket_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(&dir.path().join("none.sock"), "k8s.io").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let path = dir.path().join("none.sock");
    let error =
        tokio::task::spawn_blocking(move || release_lease(&path, "k8s.io", "x")).await.unwrap().unwrap_err();
    assert!(error.chain().contains("none.sock"), "{}", error.chain());
}
