//! What the tests share: one runtime with one reaper for the process, and per test a cgroup root, a root file system and a spec.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agent::container::{Container, CreateSpec, Namespaces, Runtime};
use agent::error::Result;
use agent::reaper::Reaper;
use agent_proto::oci::{LinuxNamespace, Mount, Process, Spec};
use tokio::time::timeout;

/// No single step takes longer, however busy the machine is.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// As a container runtime gives them by default.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
];

struct Shared {
    tokio: tokio::runtime::Runtime,
    reaper: Arc<Reaper>,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let reaper = tokio.block_on(async { Reaper::start() }).unwrap();
        Shared { tokio, reaper }
    })
}

/// A test's own place. When it is dropped nothing of it is left, and that is checked.
pub(crate) struct World {
    pub(crate) runtime: Arc<Runtime>,
    /// The root of its cgroups.
    pub(crate) cgroups: PathBuf,
    pub(crate) root: tempfile::TempDir,
    number: u32,
}

/// How a process ended and what it wrote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn test<F: Future<Output = ()>>(body: impl FnOnce(Arc<World>) -> F) {
    let shared = shared();
    let _inside = shared.tokio.enter();
    let world = Arc::new(World::new(&shared.reaper));
    shared.tokio.block_on(async {
        timeout(LONG, body(world.clone())).await.expect("the test takes too long");
    });
    drop(Arc::into_inner(world).expect("the test has let go of its world"));
}

impl World {
    fn new(reaper: &Arc<Reaper>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unified = Path::new("/sys/fs/cgroup/unified");
        let all = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        let cgroups = all.join(format!("agent-test-{}-{number}", std::process::id()));
        fs::create_dir(&cgroups).unwrap();
        let runtime =
            Runtime::new(reaper.clone(), &cgroups, env!("CARGO_BIN_EXE_microvm-agent").into()).unwrap();
        let root = tempfile::tempdir().unwrap();
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{name}"), root.path().join(name)).unwrap();
        }
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(
            root.path().join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
        )
        .unwrap();
        // A user of the container gets to it.
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { runtime, cgroups, root, number }
    }

    pub(crate) fn id(&self) -> String {
        format!("c{}", self.number)
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside.trim_start_matches('/'))
    }

    /// A container that runs `script`, as containerd would ask for it.
    pub(crate) fn spec(&self, script: &str) -> Spec {
        let mut spec = Spec::new();
        spec.Root.mut_or_insert_default().Path = self.root.path().display().to_string();
        spec.Process = Some(shell(script)).into();
        spec.Mounts = vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("/usr", "bind", "/usr", &["rbind", "ro"]),
        ];
        let linux = spec.Linux.mut_or_insert_default();
        for kind in ["pid", "ipc", "uts", "mount"] {
            let mut namespace = LinuxNamespace::new();
            namespace.Type = kind.to_owned();
            linux.Namespaces.push(namespace);
        }
        spec
    }

    pub(crate) async fn create(&self, spec: Spec) -> Result<Arc<Container>> {
        self.create_in(spec, Namespaces::default()).await
    }

    pub(crate) async fn create_in(&self, spec: Spec, namespaces: Namespaces) -> Result<Arc<Container>> {
        let spec = CreateSpec { id: self.id(), spec, root: self.root.path().to_owned(), namespaces };
        Container::create(&self.runtime, spec).await
    }

    pub(crate) async fn start(&self, script: &str) -> Arc<Container> {
        let container =
            self.create(self.spec(script)).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        container.start().await.unwrap_or_else(|error| panic!("{}", error.chain()));
        container
    }

    /// From its creation to its removal.
    pub(crate) async fn run(&self, spec: Spec) -> Outcome {
        let container = self.create(spec).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        container.start().await.unwrap_or_else(|error| panic!("{}", error.chain()));
        let outcome = outcome(&container, "").await;
        self.remove(&container).await;
        outcome
    }

    pub(crate) async fn script(&self, script: &str) -> Outcome {
        self.run(self.spec(script)).await
    }

    pub(crate) async fn remove(&self, container: &Arc<Container>) {
        container.remove().await.unwrap_or_else(|error| panic!("{}", error.chain()));
        assert!(!container.cgroup().exists());
    }

    /// The text of a failed creation, of which nothing may be left.
    pub(crate) async fn refused(&self, spec: Spec) -> String {
        let error = self.create(spec).await.expect_err("must be refused");
        assert!(!self.cgroups.join("microvm").join(self.id()).exists(), "the cgroup was left");
        error.chain()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The failure has been told; here only what would disturb others is taken away.
            let _ = fs::write(self.cgroups.join("cgroup.kill"), "1");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let left = self.cgroups.join("microvm").join(self.id());
        while std::thread::panicking()
            && left.exists()
            && fs::remove_dir(&left).is_err()
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
        let gone = fs::remove_dir(self.cgroups.join("microvm")).and_then(|()| fs::remove_dir(&self.cgroups));
        if !std::thread::panicking() {
            gone.unwrap();
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(self.root.path().to_str().unwrap()), "a mount was left: {mounts}");
        }
    }
}

pub(crate) fn shell(script: &str) -> Process {
    let mut process = Process::new();
    process.Args = ["sh", "-c", script].map(str::to_owned).to_vec();
    process.Env = vec!["PATH=/usr/sbin:/usr/bin".to_owned()];
    process.Cwd = "/".to_owned();
    let names = || CAPABILITIES.map(str::to_owned).to_vec();
    let sets = process.Capabilities.mut_or_insert_default();
    (sets.Bounding, sets.Effective, sets.Permitted) = (names(), names(), names());
    process
}

pub(crate) fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::new();
    (mount.destination, mount.type_, mount.source) = (target.to_owned(), kind.to_owned(), source.to_owned());
    mount.options = options.iter().map(|&option| option.to_owned()).collect();
    mount
}

/// All that a process writes, then how it ends.
pub(crate) async fn outcome(container: &Arc<Container>, exec_id: &str) -> Outcome {
    let (out, err) = tokio::join!(read_all(container, exec_id, false), read_all(container, exec_id, true));
    let code = timeout(LONG, container.wait(exec_id)).await.unwrap().unwrap();
    Outcome { code, out, err }
}

pub(crate) async fn read_all(container: &Arc<Container>, exec_id: &str, stderr: bool) -> String {
    let mut all = Vec::new();
    loop {
        let read = if stderr {
            container.read_stderr(exec_id, 4096).await
        } else {
            container.read_stdout(exec_id, 4096).await
        };
        match read.unwrap() {
            data if data.is_empty() => return String::from_utf8(all).unwrap(),
            data => all.extend(data),
        }
    }
}

/// Reads standard output until `text` has come.
pub(crate) async fn read_until(container: &Arc<Container>, exec_id: &str, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let data = container.read_stdout(exec_id, 4096).await.unwrap();
        assert!(!data.is_empty(), "ended before {text:?} came: {all:?}");
        all.push_str(&String::from_utf8(data).unwrap());
    }
    all
}
