//! A virtio-serial port as the kernel's virtio_console offers it; `serial` makes connections of its bytes.
//!
//! Reading gives 0 bytes while no host is connected, and poll(2) says HUP all that time. Tokio's own readiness can't
//! wait for the end of a HUP, and polling would cost a guest its idle. So the port is in an epoll instance of its
//! own, edge-triggered: the driver wakes it at each arrival of data, each room to write and each change of the
//! connection, and the runtime waits for that instance, which never hangs up.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use super::serial::Line;
use crate::error::{Context as _, Error, Kind, Result};

const PORTS: &str = "/sys/class/virtio-ports";
/// A port's name comes by a message of its own, and nothing announces it but a change of this directory's files.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    file: File,
    epoll: Epoll,
    edges: AsyncFd<OwnedFd>,
}

/// Opens the port of this name, which the VM must have.
pub(super) async fn open(name: &str, deadline: Duration) -> Result<Port> {
    Port::open(&find(name, deadline).await?)
}

/// The device of the port of this name, once the kernel has it.
pub(super) async fn find(name: &str, deadline: Duration) -> Result<PathBuf> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(device) = look(Path::new(PORTS), name) {
            return Ok(device);
        }
        if Instant::now() >= end {
            let text = format!(
                "No virtio-serial port is named {name} after {deadline:?}: the VMM must give the VM one"
            );
            return Err(Error::new(Kind::NotFound, text));
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn look(ports: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(ports).ok()?;
    let named =
        |port: &PathBuf| fs::read_to_string(port.join("name")).is_ok_and(|found| found.trim_end() == name);
    let port = entries.flatten().map(|entry| entry.path()).find(named)?;
    Some(Path::new("/dev").join(port.file_name()?))
}

impl Port {
    /// A port opens once only: the agent keeps it for good.
    pub(super) fn open(device: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(device)
            .context(|| format!("Could not open the serial port {}", device.display()))?;
        Self::watch(file).context(|| format!("Could not watch the serial port {}", device.display()))
    }

    fn watch(file: File) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLET;
        epoll.add(&file, EpollEvent::new(flags, 0))?;
        let watched = epoll.0.try_clone()?;
        // SAFETY: an OwnedFd answers the same descriptor for as long as it lives, and `edges` owns it.
        let edges = unsafe { AsyncFd::register_with_interest(watched, tokio::io::Interest::READABLE)? };
        Ok(Self { file, epoll, edges })
    }
}

impl Line for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    async fn changed(&self) -> io::Result<()> {
        let mut guard = self.edges.readable().await?;
        let mut events = [EpollEvent::empty(); 1];
        match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // An edge after the wait above sets the readiness anew, and this does not clear it then.
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.other.0\n"), ("vport2p1", "microvm.agent.0\n")] {
            fs::create_dir(ports.path().join(port)).unwrap();
            fs::write(ports.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(ports.path().join("vport3p1")).unwrap(); // not named yet
        assert_eq!(look(ports.path(), "microvm.agent.0"), Some(PathBuf::from("/dev/vport2p1")));
        assert_eq!(look(ports.path(), "microvm.agent"), None);
        assert_eq!(look(&ports.path().join("absent"), "microvm.agent.0"), None);
    }

    #[tokio::test]
    async fn each_change_wakes_once_even_after_a_hang_up() {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut port = Port::watch(File::from(OwnedFd::from(near))).unwrap();
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, port.changed()).await.unwrap().unwrap(); // writable from the beginning
        let quiet = Duration::from_millis(30);
        assert!(tokio::time::timeout(quiet, port.changed()).await.is_err(), "nothing has happened");
        (&far).write_all(b"hi").unwrap();
        tokio::time::timeout(patience, port.changed()).await.unwrap().unwrap();
        assert_eq!(port.read(&mut [0; 8]).unwrap(), 2);
        drop(far);
        tokio::time::timeout(patience, port.changed()).await.unwrap().unwrap();
        assert_eq!(port.read(&mut [0; 8]).unwrap(), 0);
        assert!(
            tokio::time::timeout(quiet, port.changed()).await.is_err(),
            "a lasting hang-up must not spin"
        );
    }
}
