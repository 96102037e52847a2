//! A shim's surroundings for one test: a bundle, a config, a sandbox on the scripted VMM, and what is left afterwards.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shim::config::Source;
use shim::events::{Recorder, Sender, recorder};
use shim::sandbox::{Home, Sandbox, Served};
use shim::task::{Create, Exit, ProcessRef, Streams, Tasks};
use shim::testing::ScriptedVmm;

/// Longest wait for anything in these tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One test's shim.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) vmm: Arc<ScriptedVmm>,
    pub(crate) tasks: Served,
    pub(crate) recorder: Recorder,
    pub(crate) sender: Sender,
    pub(crate) id: String,
    before: Leftovers,
}

/// What a sandbox could leave on the host.
#[derive(Debug, PartialEq, Eq)]
struct Leftovers {
    mounts: Vec<String>,
    /// Empty of processes too, or they could not have been removed.
    cgroups: Vec<PathBuf>,
}

impl Host {
    /// A shim that serves the sandbox `id`, which must be unique among the tests.
    pub(crate) fn new(id: &str) -> Self {
        let vmm = Arc::new(ScriptedVmm::default());
        Self::with(id, Some(vmm), |_| String::new())
    }

    /// The same with this VMM, or without one with what the config names; `config` makes more of its lines, and may
    /// make files in the test's directory.
    pub(crate) fn with(
        id: &str,
        scripted: Option<Arc<ScriptedVmm>>,
        config: impl FnOnce(&Path) -> String,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix(&format!("microvm-{id}-")).tempdir().unwrap();
        let before = Leftovers::of(id, dir.path());
        let (sender, recorder) = recorder();
        let home = Home {
            namespace: "test".into(),
            id: id.into(),
            containerd_address: dir.path().join("containerd.sock"),
            ttrpc_address: String::new(),
            program: env!("CARGO_BIN_EXE_containerd-shim-microvm-v1").into(),
            vmm: scripted.clone().map(|vmm| vmm as Arc<dyn shim::vm::Vmm>),
        };
        for name in ["kernel", "initramfs"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        // The daemon is the shim's own binary, not this test's.
        let virtiofsd = dir.path().join("virtiofsd");
        let script = format!(
            "#!/bin/sh\nexec {} virtiofsd \"$@\"\n",
            env!("CARGO_BIN_EXE_containerd-shim-microvm-v1")
        );
        std::fs::write(&virtiofsd, script).unwrap();
        std::fs::set_permissions(&virtiofsd, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "run_dir = \"{0}/run\"\nkernel = \"{0}/kernel\"\ninitramfs = \"{0}/initramfs\"\n\
             virtiofsd_path = \"{0}/virtiofsd\"\nagent_timeout = \"3s\"\ntemplates = 0\n{1}",
            dir.path().display(),
            config(dir.path())
        );
        std::fs::write(dir.path().join("microvm.toml"), config).unwrap();
        let tasks = Served(Sandbox::new(home, sender.clone()));
        let vmm = scripted.unwrap_or_default();
        Host { dir, vmm, tasks, recorder, sender, id: id.into(), before }
    }

    /// A bundle for a container that runs `args`; `extra` are further members of its spec.
    pub(crate) fn bundle(&self, id: &str, args: &[&str], extra: serde_json::Value) -> PathBuf {
        let bundle = self.dir.path().join("bundles").join(id);
        std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
        std::fs::write(bundle.join("rootfs/bin/tool"), "image").unwrap();
        let mut spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}},
            "linux": {
                "cgroupsPath": format!("/microvm-test/{}-{id}", self.id),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]
            }
        });
        if let (Some(spec), serde_json::Value::Object(extra)) = (spec.as_object_mut(), extra) {
            spec.extend(extra);
        }
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        bundle
    }

    /// A request to create the container `id` that runs `args`.
    pub(crate) fn create(&self, id: &str, args: &[&str]) -> Create {
        self.create_with(id, args, serde_json::json!({}))
    }

    /// The same with further members of its spec.
    pub(crate) fn create_with(&self, id: &str, args: &[&str], extra: serde_json::Value) -> Create {
        Create {
            id: id.into(),
            bundle: self.bundle(id, args, extra),
            rootfs: Vec::new(),
            streams: Streams::default(),
            checkpoint: String::new(),
            config: Source::Path(self.dir.path().join("microvm.toml")),
        }
    }

    /// The annotations by which CRI marks a pod's container; `name` is none for the pause container.
    pub(crate) fn cri(&self, name: Option<&str>) -> serde_json::Value {
        let kind = if name.is_some() { "container" } else { "sandbox" };
        serde_json::json!({"annotations": {
            "io.kubernetes.cri.container-type": kind,
            "io.kubernetes.cri.sandbox-id": self.id,
            "io.kubernetes.cri.container-name": name.unwrap_or_default(),
        }})
    }

    /// Waits for the end of a process.
    pub(crate) async fn ended(&self, container: &str, exec: &str) -> Exit {
        tokio::time::timeout(SOON, self.tasks.wait(process(container, exec))).await.unwrap().unwrap()
    }

    /// The events so far, each `topic`.
    pub(crate) async fn events(&self) -> Vec<String> {
        self.sender.flush(SOON).await.unwrap();
        self.recorder.topics()
    }

    /// The directory of the sandbox.
    pub(crate) fn sandbox_dir(&self) -> PathBuf {
        self.dir.path().join("run/test").join(&self.id)
    }

    /// Asserts that the host is as it was before the test.
    pub(crate) async fn assert_clean(&self) {
        let clean = async {
            while Leftovers::of(&self.id, self.dir.path()) != self.before || self.sandbox_dir().exists() {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), clean).await.is_err() {
            assert_eq!(Leftovers::of(&self.id, self.dir.path()), self.before);
            panic!("{} is left", self.sandbox_dir().display());
        }
    }
}

impl Leftovers {
    fn of(id: &str, dir: &Path) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = dir.to_str().unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect();
        let mut cgroups = Vec::new();
        find(Path::new("/sys/fs/cgroup"), id, 4, &mut cgroups);
        Leftovers { mounts, cgroups }
    }
}

/// Directories below `dir` whose name begins with `id`.
fn find(dir: &Path, id: &str, depth: u32, found: &mut Vec<PathBuf>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(&format!("{id}-")) {
                found.push(path.clone());
            }
            find(&path, id, depth, found);
        }
    }
}

/// Names a process.
pub(crate) fn process<'a>(container: &'a str, exec: &'a str) -> ProcessRef<'a> {
    ProcessRef { container, exec }
}
