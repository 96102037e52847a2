//! Tests of storages with real mounts, in a mount namespace of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::testing::isolated;

fn storage(driver: &str, kind: &str, source: &str, options: &[&str], at: &str) -> Storage {
    Storage {
        driver: driver.into(),
        fstype: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        mount_point: format!("{ROOT}/{at}"),
        ..Storage::default()
    }
}

fn image() -> PathBuf {
    let image = PathBuf::from(ROOT).join("web/rootfs");
    fs::create_dir_all(&image).unwrap();
    fs::write(image.join("from-image"), "old").unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(&image, Some(5), Some(6)).unwrap();
    image
}

fn overlay(size: &str) -> Storage {
    let own = format!("{ROOT}/web_ovl");
    let lower = format!("lowerdir={ROOT}/web/rootfs");
    let (upper, work) = (format!("upperdir={own}/upper/fs"), format!("workdir={own}/upper/work"));
    let options = [lower.as_str(), &upper, &work];
    let driver_options =
        vec!["io.katacontainers.fs-opt.overlay-rw".into(), format!("microvm.upper-size={size}")];
    Storage { driver_options, ..storage("overlayfs", "overlay", "overlay", &options, "web_ovl/rootfs") }
}

/// Mounts below the agent's directory, and what is in it.
fn rest() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = fs::read_dir(ROOT).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    (mountinfo::below(Path::new(ROOT)).unwrap(), entries.unwrap_or_default())
}

#[test]
fn a_containers_writes_stay_above_its_image_and_within_their_bound() {
    isolated(|| async {
        let image = image();
        let storages = Storages::default();
        let request = overlay("1048576");
        let at = storages.acquire(&request).await.unwrap();
        assert_eq!(fs::read_to_string(at.join("from-image")).unwrap(), "old");
        let root = fs::metadata(&at).unwrap();
        assert_eq!(
            (root.mode() & 0o7777, root.uid(), root.gid()),
            (0o711, 5, 6),
            "the image's own owner and mode"
        );
        fs::write(at.join("from-image"), "new").unwrap();
        let error = fs::write(at.join("big"), vec![1; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let upper = bounded_upper(&request).unwrap();
        let (used, limit) = upper_usage(&upper).unwrap();
        assert_eq!(limit, 1 << 20);
        assert!(used > limit / 2 && used <= limit, "{used}");
        let twice = storages.acquire(&request).await.unwrap_err();
        assert_eq!(twice.kind(), Kind::FailedPrecondition, "two containers must not share one");
        storages.release(&at).await.unwrap();
        assert_eq!(rest().0, Vec::<PathBuf>::new());
        assert_eq!(fs::read_to_string(image.join("from-image")).unwrap(), "old");
        assert!(!at.exists() && !upper.exists());
    });
}

#[test]
fn an_overlay_that_cannot_be_made_leaves_nothing_and_says_why() {
    isolated(|| async {
        image();
        let storages = Storages::default();
        for (size, expected) in [("0", "microvm.upper-size=0"), ("many", "microvm.upper-size=many")] {
            let error = storages.acquire(&overlay(size)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.chain().contains(expected), "{}", error.chain());
        }
        let mut request = overlay("4096");
        request.options.push("no_such_option".into());
        let error = storages.acquire(&request).await.unwrap_err();
        assert!(error.chain().contains("no_such_option"), "{}", error.chain());
        let mut request = overlay("4096");
        request.options[0] = "lowerdir=/etc".into();
        assert_eq!(storages.acquire(&request).await.unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(rest().0, Vec::<PathBuf>::new());
        assert!(
            !Path::new(ROOT).join("web_ovl/rootfs").exists()
                && !Path::new(ROOT).join("web_ovl/upper").exists()
        );
        assert!(storages.slots().is_empty());
    });
}

#[test]
fn no_mount_point_and_no_source_leads_through_a_symlink() {
    isolated(|| async {
        fs::create_dir_all("/run/outside").unwrap();
        fs::create_dir_all(ROOT).unwrap();
        symlink("/run/outside", format!("{ROOT}/link")).unwrap();
        symlink("/run/outside", format!("{ROOT}/last")).unwrap();
        let storages = Storages::default();
        for at in ["link/deep/mount", "last"] {
            for request in [
                storage("ephemeral", "tmpfs", "tmpfs", &[], at),
                storage("local", "local", "local", &["mode=0777"], at),
                storage("bind", "bind", &format!("{ROOT}/link"), &[], "good"),
            ] {
                let error = storages.acquire(&request).await.unwrap_err();
                assert_eq!(error.kind(), Kind::InvalidArgument, "{request:?}: {}", error.chain());
            }
        }
        assert_eq!(fs::read_dir("/run/outside").unwrap().count(), 0);
        assert_eq!(rest().0, Vec::<PathBuf>::new());
    });
}

#[test]
fn paths_outside_the_agents_tree_are_refused() {
    for text in [
        "",
        "/",
        "relative",
        ROOT,
        "/run/kata-containersx/a",
        "/run/kata-containers/../x",
        "/run/kata-containers/./x",
        "/run/kata-containers/a\0b",
        "/etc",
    ] {
        assert_eq!(path::own(text).unwrap_err().kind(), Kind::InvalidArgument, "{text:?}");
    }
    assert_eq!(path::own("/run/kata-containers//a/").unwrap(), Path::new("/run/kata-containers/a"));
}

#[test]
fn a_shared_storage_lives_as_long_as_one_of_its_users() {
    isolated(|| async {
        let storages = Storages::default();
        let options = ["size=1048576", "mode=1777", "noexec,nosuid", "fsgid=42"];
        let shm = storage("ephemeral", "tmpfs", "shm", &options, "sandbox/shm");
        let at = storages.acquire(&shm).await.unwrap();
        assert_eq!(storages.acquire(&shm).await.unwrap(), at);
        assert_eq!(rest().0, std::slice::from_ref(&at), "mounted once");
        let root = fs::metadata(&at).unwrap();
        assert_eq!((root.gid(), root.mode() & 0o3777), (42, 0o3777));
        let other = Storage { options: vec!["size=5".into()], ..shm.clone() };
        assert_eq!(storages.acquire(&other).await.unwrap_err().kind(), Kind::FailedPrecondition);
        storages.release(&at).await.unwrap();
        fs::write(at.join("still"), "there").unwrap();
        let bigger = Storage { options: vec!["size=4194304".into()], ..shm.clone() };
        remount(&storages, bigger).await.unwrap();
        assert_eq!(upper_usage(&at).unwrap().1, 4 << 20);
        storages.release(&at).await.unwrap();
        storages.release(&at).await.unwrap(); // once too often does nothing
        assert!(rest().0.is_empty() && !at.exists());
        assert_eq!(remount(&storages, shm).await.unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn a_local_directory_goes_with_what_containers_left_but_nothing_they_point_to() {
    isolated(|| async {
        fs::create_dir("/run/precious").unwrap();
        fs::write("/run/precious/file", "").unwrap();
        let storages = Storages::default();
        let request = storage("local", "local", "local", &["mode=0750"], "sandbox/empty");
        let at = storages.acquire(&request).await.unwrap();
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o750);
        symlink("/run/precious", at.join("link")).unwrap();
        fs::create_dir_all(at.join("a/b")).unwrap();
        storages.release(&at).await.unwrap();
        assert!(!at.exists() && Path::new("/run/precious/file").exists());
    });
}

#[test]
fn a_bind_mount_is_limited_and_its_source_is_not() {
    isolated(|| async {
        let image = image();
        let storages = Storages::default();
        let source = image.to_string_lossy();
        let at = storages
            .acquire(&storage("bind", "bind", &source, &["ro", "nodev"], "carrier/rootfs"))
            .await
            .unwrap();
        assert_eq!(fs::read_to_string(at.join("from-image")).unwrap(), "old");
        assert_eq!(fs::write(at.join("x"), "").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        fs::write(image.join("x"), "").unwrap();
        let file = format!("{source}/from-image");
        let single =
            storages.acquire(&storage("bind", "bind", &file, &["ro"], "carrier/file")).await.unwrap();
        assert_eq!(fs::read_to_string(&single).unwrap(), "old");
        storages.release(&single).await.unwrap();
        storages.release(&at).await.unwrap();
        assert!(rest().0.is_empty() && !single.exists() && image.join("from-image").exists());
    });
}

#[test]
fn concurrent_users_mount_once_and_unmount_once() {
    isolated(|| async {
        let storages = Arc::new(Storages::default());
        let request = storage("ephemeral", "tmpfs", "tmpfs", &[], "sandbox/ephemeral/x");
        let users = (0..16).map(|_| {
            let (storages, request) = (storages.clone(), request.clone());
            tokio::spawn(async move {
                let at = storages.acquire(&request).await.unwrap();
                tokio::task::yield_now().await;
                storages.release(&at).await.unwrap();
            })
        });
        for user in users.collect::<Vec<_>>() {
            user.await.unwrap();
        }
        assert!(rest().0.is_empty() && storages.slots().is_empty());
    });
}

#[test]
fn what_the_kernel_mounted_in_the_share_is_let_go_deepest_first() {
    isolated(|| async {
        let image = PathBuf::from(share::SHARED).join("containers/web@1/rootfs");
        let other = PathBuf::from(share::SHARED).join("containers/web@2/rootfs");
        let storages = Storages::default();
        // Stand-ins for virtio-fs submounts: one with another mount below it.
        for at in [
            "shared/containers/web@1/rootfs",
            "shared/containers/web@1/rootfs/sub",
            "shared/containers/web@2/rootfs",
        ] {
            storages.acquire(&storage("ephemeral", "tmpfs", "tmpfs", &[], at)).await.unwrap();
        }
        // This machine keeps its caches: the kernel's file is covered by another.
        let (caches, asked) = ("/proc/sys/vm/drop_caches", "/run/asked");
        fs::write(asked, "").unwrap();
        nix::mount::mount(Some(asked), caches, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .unwrap();
        share::forget(vec![PathBuf::from("/proc"), PathBuf::from(ROOT)]).await.unwrap();
        assert_eq!(fs::read_to_string(asked).unwrap(), "", "nothing of the share was named");
        share::forget(vec![image]).await.unwrap();
        assert_eq!(rest().0, [other]);
        assert_eq!(fs::read_to_string(asked).unwrap(), "2");
        share::touch().await.unwrap();
        assert!(Path::new("/proc/self").exists());
    });
}
