//! A test host that is a virtual machine: emulated as a whole, processor and all, so that KVM works in it on any
//! machine, a hundred times slower than it should. Its root is the Debian tree over virtio-fs. Called by `init.rs`, in a
//! pid namespace that ends with it.

pub(super) mod init;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::CloneFlags;

use super::instance::Spec;
use super::{LOGS, NESTED_ARGUMENT, mounts};

/// What the machine is told, as the outer test host is.
const SPEC: &str = "/opt/testhost/spec.json";
/// The payload's exit code, written by the machine before it ends, among the logs.
const EXIT_CODE: &str = "exit-code";
/// Sockets of the daemons that serve the root and the folder of logs, in the test host's tree.
const SOCKETS: [&str; 2] = ["/opt/testhost/root.sock", "/opt/testhost/logs.sock"];
/// Mount tag of the folder of logs.
const LOGS_TAG: &str = "logs";
/// The guests' kernel is the machine's too.
const KERNEL: &str = "/usr/share/microvm/guest/current/vmlinux";
/// Our own binary is the daemon.
const SHIM: &str = "/usr/local/bin/containerd-shim-microvm-v1";
/// Longest life of a machine. The core tests take a quarter of it.
const DEADLINE: Duration = Duration::from_secs(3600);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs the machine to its end and returns the payload's exit code.
pub(super) fn run(spec: &Spec) -> Result<i32> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .context("Could not enter a mount namespace: are you root?")?;
    mounts::make_private()?;
    let root = spec.folder.join("root");
    mounts::overlay(spec, &root)?;
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for folder in ["/opt/testhost", "/var/lib/microvm", "/var/lib/containerd", LOGS] {
        fs::create_dir_all(inside(folder))?;
    }
    fs::copy(&spec.own_program, inside(mounts::PAYLOAD)).context("Could not copy the own program")?;
    fs::write(inside(SPEC), serde_json::to_vec_pretty(spec)?)?;
    ensure!(inside(KERNEL).exists(), "A nested test host needs the guest's kernel at {KERNEL}");

    let [root_socket, logs_socket] = SOCKETS.map(inside);
    let shim = inside(SHIM);
    let mut daemons = vec![serve(&shim, &root, &root_socket, true)?];
    daemons.push(serve(&shim, &spec.logs, &logs_socket, false)?);
    let ran = machine(&root);
    // They end with their only client; a machine that never started leaves them waiting.
    for mut daemon in daemons {
        let _ = daemon.kill();
        daemon.wait()?;
    }
    ran?;
    let code = fs::read_to_string(spec.logs.join(EXIT_CODE)).context("The machine ended without a result")?;
    code.trim().parse().with_context(|| format!("The machine's result is {code:?}"))
}

/// Starts the daemon of a folder. What is read-only is read once: it can't change.
fn serve(shim: &Path, folder: &Path, socket: &Path, read_only: bool) -> Result<Child> {
    let listener: OwnedFd = UnixListener::bind(socket)
        .with_context(|| format!("Could not make the socket {}", socket.display()))?
        .into();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut daemon = Command::new(shim);
    daemon.arg("virtiofsd").arg(format!("--fd={}", listener.as_raw_fd())).arg("--shared-dir").arg(folder);
    daemon.args(read_only.then_some("--readonly")).stdin(Stdio::null()).stderr(Stdio::null());
    daemon.spawn().with_context(|| format!("Could not run {}", shim.display()))
}

/// Runs QEMU, the test host's own, until the machine has powered itself off.
fn machine(root: &Path) -> Result<()> {
    let mut qemu = Command::new("chroot");
    qemu.arg(root).args(["qemu-system-x86_64", "-no-user-config", "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-machine", "q35,accel=tcg,memory-backend=mem", "-cpu", "max,+svm"]);
    qemu.args(["-smp", "2", "-m", "4G", "-object", "memory-backend-memfd,id=mem,size=4G,share=on"]);
    qemu.args(["-kernel", KERNEL, "-append"]).arg(parameters());
    qemu.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=console,signal=off"]);
    qemu.args(["-device", "virtconsole,chardev=console", "-device", "virtio-rng-pci"]);
    for (tag, socket) in ["root", LOGS_TAG].iter().zip(SOCKETS) {
        qemu.args(["-chardev", &format!("socket,id={tag},path={socket}")]);
        qemu.args(["-device", &format!("vhost-user-fs-pci,chardev={tag},tag={tag}")]);
    }
    let mut qemu = qemu.stdin(Stdio::null()).spawn().context("Could not run chroot")?;
    let end = Instant::now() + DEADLINE;
    loop {
        match qemu.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("The machine's QEMU ended with {status}; its words are above"),
            None if Instant::now() > end => {
                qemu.kill()?;
                bail!("The machine did not end within {DEADLINE:?}");
            }
            None => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// The machine's kernel parameters: what an emulated processor needs, and this program as its init.
fn parameters() -> String {
    format!(
        "console=hvc0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable cgroup_no_v1=all \
         root=root rootfstype=virtiofs ro init={} -- {NESTED_ARGUMENT}",
        mounts::PAYLOAD
    )
}
