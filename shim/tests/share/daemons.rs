//! Both daemons as real processes.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shim::Config;
use shim::config::Source;
use shim::ledger::Resource;
use shim::share::{Image, Volume};

use crate::frontend::{Guest, ROOT};
use crate::place::{Place, bind, children, fingerprint, is_read_only, web};

const DEADLINE: Duration = Duration::from_secs(10);

fn config(text: &str) -> Config {
    Config::load(&Source::Body(text.into()), []).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// The processes that the ledger knows, which wait for those that serve.
fn waiters(place: &Place) -> Vec<u32> {
    let pid = |resource| match resource {
        Resource::Process { pid, .. } => Some(pid),
        _ => None,
    };
    place.ledger.resources().into_iter().filter_map(pid).collect()
}

/// The process that serves, behind each one that waits for it.
fn servers(place: &Place) -> Vec<u32> {
    waiters(place).into_iter().flat_map(children).collect()
}

/// What a process has open.
fn files(pid: u32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
}

fn root(pid: u32) -> PathBuf {
    format!("/proc/{pid}/root").into()
}

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
}

pub(crate) fn daemon_sees_what_is_added_later() {
    let place = Place::new();
    let layer = place.tree("layer", &[("bin/sh", "#")]);
    let data = place.tree("data", &[("a", "1")]);
    // As of a cgroup, and a descriptor that a careless library has left open for children.
    let procs = place.tree("cgroup", &[("cgroup.procs", "")]).join("cgroup.procs");
    let (leak, _other) = nix::unistd::pipe().unwrap();
    let leaked = fs::read_link(format!("/proc/self/fd/{}", leak.as_raw_fd())).unwrap();
    assert!(leaked.to_string_lossy().starts_with("pipe:"));
    block_on(async {
        place.share.start(&config(""), std::slice::from_ref(&procs)).await.unwrap();
        assert_eq!(fs::read_to_string(&procs).unwrap(), "0");
        let servers = servers(&place);
        for pid in servers.iter().copied().chain(waiters(&place)) {
            assert!(!files(pid).contains(&leaked), "{pid} has {}", leaked.display());
        }
        let [images, volumes] = servers.as_slice() else { panic!("{servers:?}") };
        for (pid, capabilities) in [(images, "0000000000000004"), (volumes, "00000000880000df")] {
            assert_eq!(status(*pid, "Seccomp:"), "2");
            assert_eq!(status(*pid, "CapEff:"), capabilities);
            assert_eq!(status(*pid, "CapBnd:"), "0000000000000000");
        }

        place.share.add_image(&web(), 1, Image::Mounts(&[bind(&layer)])).unwrap();
        let volume = |read_only| Volume { source: &data, read_only, follow_mounts: false };
        place.share.add_volume(&web(), 1, 0, volume(false)).unwrap();
        place.share.add_volume(&web(), 1, 1, volume(true)).unwrap();
        let image = root(*images).join("web@1/rootfs");
        assert_eq!(fs::read_to_string(image.join("bin/sh")).unwrap(), "#");
        assert!(is_read_only(&image) && is_read_only(&root(*images)));
        let shown = root(*volumes).join("web@1");
        fs::write(shown.join("0/b"), "2").unwrap();
        assert_eq!(fs::read_to_string(data.join("b")).unwrap(), "2");
        assert!(is_read_only(&shown.join("1")) && is_read_only(&shown) && is_read_only(&root(*volumes)));
        // Neither daemon can name anything else of the host.
        assert!(!root(*images).join("etc").exists() && !root(*volumes).join("web@1/rootfs").exists());

        place.share.remove(&web(), 1).unwrap();
        assert!(!image.exists() && !shown.exists());
        for device in place.share.devices() {
            assert!(device.socket.exists(), "{device:?}");
        }
        place.share.stop().await.unwrap();
        assert!(servers.iter().all(|pid| !Path::new(&format!("/proc/{pid}/stat")).exists()));
    });
    place.end();
}

pub(crate) fn hostile_guest_can_not_write() {
    const EROFS: Result<(), i32> = Err(nix::libc::EROFS);
    let place = Place::new();
    let layer = place.tree("layer", &[("bin/sh", "#!")]);
    let (own, other) = (place.tree("own", &[("a", "1")]), place.tree("other", &[("kept", "1")]));
    let before = [&layer, &other].map(|tree| fingerprint(tree));
    block_on(async {
        place.share.start(&config(""), &[]).await.unwrap();
        place.share.add_image(&web(), 1, Image::Mounts(&[bind(&layer)])).unwrap();
        for (index, source, read_only) in [(0, &own, false), (1, &other, true)] {
            let volume = Volume { source, read_only, follow_mounts: false };
            place.share.add_volume(&web(), 1, index, volume).unwrap();
        }
        let sockets = place.share.devices().into_iter().map(|device| device.socket);
        let [mut images, mut volumes] =
            <[_; 2]>::try_from(sockets.map(|s| Guest::connect(&s)).collect::<Vec<_>>())
                .unwrap_or_else(|_| panic!("two devices"));

        let (bin, sh) =
            (images.walk("web@1/rootfs/bin").unwrap(), images.walk("web@1/rootfs/bin/sh").unwrap());
        let handle = images.open(sh, nix::libc::O_RDONLY).unwrap();
        assert_eq!(images.read(sh, handle).unwrap(), b"#!");
        assert_eq!(images.open(sh, nix::libc::O_RDWR).map(drop), EROFS);
        assert!(images.open(sh, nix::libc::O_RDONLY | nix::libc::O_TRUNC).is_err());
        assert_eq!(
            [images.create(bin, "new"), images.mkdir(ROOT, "new"), images.unlink(bin, "sh")],
            [EROFS; 3]
        );

        let (writable, shown) = (volumes.walk("web@1/0").unwrap(), volumes.walk("web@1/1").unwrap());
        volumes.create(writable, "new").unwrap();
        assert!(own.join("new").exists());
        let file = volumes.walk("web@1/1/kept").unwrap();
        assert_eq!(volumes.open(file, nix::libc::O_RDWR).map(drop), EROFS);
        assert_eq!([volumes.create(shown, "new"), volumes.unlink(shown, "kept")], [EROFS; 2]);
        // No place for a symbolic link among the mount points, and no way up: the daemon takes names as they are.
        assert_eq!([volumes.create(ROOT, "web@2"), volumes.mkdir(ROOT, "web@2")], [EROFS; 2]);
        assert_eq!(volumes.unlink(writable, "../1/kept"), EROFS);
        let up = place.dir.path().strip_prefix("/").unwrap().join("other/kept");
        assert!(volumes.unlink(writable, &format!("../../../../../{}", up.display())).is_err());

        drop((images, volumes));
        let mut death = place.share.death();
        let told =
            tokio::time::timeout(DEADLINE, death.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
        let told = told.unwrap();
        assert!(told.ends_with("has ended (exit status: 0)"), "{told}");
        place.share.stop().await.unwrap();
    });
    assert_eq!([&layer, &other].map(|tree| fingerprint(tree)), before);
    place.end();
}

pub(crate) fn death_is_told() {
    let place = Place::new();
    block_on(async {
        let mut death = place.share.death();
        place.share.start(&config(""), &[]).await.unwrap();
        assert_eq!(*death.borrow(), None);
        let server = *servers(&place).last().unwrap();
        kill(Pid::from_raw(server.try_into().unwrap()), Signal::SIGTERM).unwrap();
        let told =
            tokio::time::timeout(DEADLINE, death.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
        assert_eq!(told.unwrap(), "the virtiofsd of volumes has ended (exit status: 1)");
        place.share.stop().await.unwrap();
        assert!(death.borrow().as_ref().unwrap().contains("volumes"), "the first cause stays");
    });
    place.end();
}

pub(crate) fn failed_start_says_why() {
    let place = Place::new();
    let program = place.dir.path().join("virtiofsd");
    fs::write(&program, "#!/bin/sh\necho \"no fuse\x1b today\" >&2\nexit 3\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    block_on(async {
        let own = config(&format!("virtiofsd_path = {:?}", program.to_str().unwrap()));
        let error = place.share.start(&own, &[]).await.unwrap_err().chain();
        let want = "Could not start the virtiofsd of kataShared: the virtiofsd of kataShared has ended \
                    (exit status: 3): no fuse\\u{1b} today";
        assert_eq!(error, want);
        let error = place.share.start(&config("virtiofsd_path = \"/none\""), &[]).await.unwrap_err().chain();
        assert!(error.contains("No such file"), "{error}");
        // A cgroup that is not there.
        let procs = [PathBuf::from("/none/cgroup.procs")];
        assert!(place.share.start(&config(""), &procs).await.is_err());
        place.share.start(&config(""), &[]).await.unwrap();
        place.share.stop().await.unwrap();
    });
    place.end();
}
