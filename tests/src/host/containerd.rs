//! containerd in the test host: its configuration, start, readiness and stop. Called by the demo and the end-to-end
//! tests, inside the test host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LOGS;

/// containerd's socket.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// The pod network. Addresses come from a range that is reserved for tests (RFC 2544).
pub const POD_SUBNET: &str = "198.18.0.0/24";

/// How long containerd may take to answer (it takes half a second here).
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A node's own part: what an administrator has written before our installer adds its drop-in.
const CONFIG: &str = r#"version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
disabled_plugins = [
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]

[debug]
level = "debug"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/pause:1"

# Pulls go to the test's own registry, if it has one.
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
# This machine may be a sandbox itself, without the capability to lower the score.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/etc/cni/net.d"
"#;

/// crictl's own limit is two seconds, too short for a VM under emulation.
const CRICTL: &str = "runtime-endpoint: unix:///run/containerd/containerd.sock\ntimeout: 30\n";

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Child,
    log: PathBuf,
}

impl Containerd {
    /// Writes the configuration, starts containerd and waits until it answers.
    pub fn start() -> Result<Containerd> {
        fs::create_dir_all("/etc/containerd/conf.d")?;
        fs::write("/etc/containerd/config.toml", CONFIG)?;
        fs::write("/etc/crictl.yaml", CRICTL)?;
        fs::create_dir_all("/etc/cni/net.d")?;
        fs::write("/etc/cni/net.d/10-pods.conflist", cni_network())?;
        // `ctr run --cni` knows this folder only.
        fs::create_dir_all("/opt/cni")?;
        std::os::unix::fs::symlink("/usr/lib/cni", "/opt/cni/bin")?;
        Self::restart(Path::new(LOGS).join("containerd.log"))
    }

    /// Starts containerd on the configuration that is there.
    fn restart(log: PathBuf) -> Result<Containerd> {
        let output = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let process = Command::new("containerd")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("Could not start containerd")?;
        let mut containerd = Containerd { process, log };
        containerd.wait_until_ready()?;
        Ok(containerd)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("containerd ended with {status}; its last words:\n{}", self.tail(20));
            }
            let answer = Command::new("ctr").args(["--connect-timeout", "1s", "version"]).output()?;
            if answer.status.success() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "containerd did not answer on {SOCKET} within {START_DEADLINE:?}; log:\n{}",
                    self.tail(20)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends containerd by a signal and starts it again; containers keep running.
    pub fn bounce(self, signal: Signal) -> Result<Containerd> {
        let log = self.log.clone();
        self.end(signal)?;
        Self::restart(log)
    }

    /// The process id of containerd.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The last lines of the log.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Ends containerd; an error if it has to be killed.
    pub fn stop(self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.process.id())?);
        kill(pid, signal).context("Could not signal containerd")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.process.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                self.process.kill()?;
                self.process.wait()?;
                bail!("containerd did not end within {STOP_DEADLINE:?} of {signal}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// Whole OCI specs appear in containerd's log: nobody reads them on a terminal.
const LONGEST_LINE: usize = 600;

/// The last lines of a text file, or why there are none.
pub fn tail(file: &Path, lines: usize) -> String {
    match fs::read(file) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let all: Vec<String> =
                text.lines().map(|line| line.chars().take(LONGEST_LINE).collect()).collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({} cannot be read: {error})", file.display()),
    }
}

/// One bridge, addresses of the test range, no masquerading: nothing outside exists. Host ports by nftables.
fn cni_network() -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": POD_SUBNET }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, {
            "type": "portmap",
            "backend": "nftables",
            "capabilities": { "portMappings": true },
        }],
    })
    .to_string()
}
