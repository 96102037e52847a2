//! Mounts, device nodes, hidden and read-only paths.
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::world::{mount, test};
use agent_proto::oci::LinuxDevice;

#[test]
fn the_usual_file_systems_are_there() {
    test(async |world| {
        let end = world.script("
            set -e
            for path in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup; do
                echo $path $(stat -f -c %T $path) $(grep \" $path \" /proc/mounts | cut -d' ' -f4 | cut -d, -f1)
            done
            cat /proc/self/cgroup | grep ^0
            test -w /proc/sys/kernel && echo writable-sysctls
            ls /dev | tr '\\n' ' '
            echo; readlink /dev/fd /dev/ptmx; head -c 3 /dev/zero | wc -c; echo x > /dev/null; cat /dev/full | head -c 1 | wc -c
            umask
        ").await;
        assert_eq!(end.code, 0, "{end:?}");
        for line in [
            "/proc proc rw",
            "/dev tmpfs rw",
            "/dev/pts devpts rw",
            "/dev/shm tmpfs rw",
            "/sys sysfs ro",
            "/sys/fs/cgroup cgroup2fs ro",
            "0::/\n",
            "/proc/self/fd\npts/ptmx\n3\n1\n0022",
        ] {
            assert!(end.out.contains(line), "{line} in {}", end.out);
        }
        for name in [
            "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero",
        ] {
            assert!(end.out.split_whitespace().any(|word| word == name), "{name} in {}", end.out);
        }
    });
}

#[test]
fn binds_follow_their_options() {
    test(async |world| {
        let volume = tempfile::tempdir().unwrap();
        fs::write(volume.path().join("file"), "content").unwrap();
        let source = volume.path().to_str().unwrap();
        let file = format!("{source}/file");
        let mut spec = world.spec("
            cat /made/file /also/made/single; echo
            for path in /ro /rro /ro/sub /rro/sub; do touch $path/x 2>/dev/null && echo $path yes || echo $path no; done
            touch /rw/new && echo rw yes
            grep -E ' (/flags) ' /proc/mounts | cut -d' ' -f4
        ");
        spec.Mounts.extend([
            mount("/made", "bind", source, &["rbind", "ro"]),
            mount("/also/made/single", "none", &file, &["bind"]),
            mount("/rw", "bind", source, &["bind", "rprivate"]),
            mount("/flags", "bind", source, &["bind", "ro", "nosuid", "nodev", "noexec", "noatime"]),
            mount("/ro", "bind", source, &["rbind", "ro"]),
            mount("/rro", "bind", source, &["rbind", "rro"]),
        ]);
        fs::create_dir(volume.path().join("sub")).unwrap();
        let end = world.run(spec).await;
        assert!(end.out.contains("contentcontent\n/ro no\n/rro no\n/ro/sub no\n/rro/sub no\nrw yes\nro,nosuid,nodev,noexec,noatime"), "{end:?}");
        assert!(volume.path().join("new").exists(), "a bind is the source itself");
    });
}

#[test]
fn read_only_recursive_reaches_mounts_below_and_plain_read_only_does_not() {
    test(async |world| {
        let mut spec = world.spec(
            "
            touch /outer/ro/sub/x 2>/dev/null && echo ro-sub yes || echo ro-sub no
            touch /outer/rro/sub/x 2>/dev/null && echo rro-sub yes || echo rro-sub no
        ",
        );
        // /dev has mounts below it in any mount namespace; a copy of it is taken with them.
        let source = "/dev";
        spec.Mounts.extend([
            mount("/outer/ro", "bind", source, &["rbind", "ro"]),
            mount("/outer/rro", "bind", source, &["rbind", "rro"]),
        ]);
        let below = fs::read_to_string("/proc/mounts").unwrap();
        let Some(shm) =
            below.lines().filter_map(|line| line.split(' ').nth(1)).find(|path| *path == "/dev/shm")
        else {
            panic!("this machine has no /dev/shm mount to test with");
        };
        let name = shm.trim_start_matches("/dev/");
        let probe = format!("agent-test-{}", std::process::id());
        spec.Process.mut_or_insert_default().Args[2] = format!(
            "touch /outer/ro/{name}/{probe} && rm /outer/ro/{name}/{probe} && echo ro-below yes; touch /outer/rro/{name}/{probe} || echo rro-below no"
        );
        let end = world.run(spec).await;
        assert_eq!(end.out, "ro-below yes\nrro-below no\n", "{end:?}");
    });
}

#[test]
fn mount_points_and_nodes_never_leave_the_root_through_a_symlink() {
    test(async |world| {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("victim")).unwrap();
        symlink(outside.path(), world.path("/escape")).unwrap();
        symlink("../../../../../../../..", world.path("/up")).unwrap();
        let mut spec = world.spec("grep -c tmpfs.*victim /proc/mounts; test -d /tmp-up/below && echo inside");
        spec.Mounts.extend([
            mount("/escape/victim", "tmpfs", "tmpfs", &["size=1m"]),
            mount("/escape/made", "tmpfs", "tmpfs", &["size=1m"]),
            mount("/up/tmp-up/below", "tmpfs", "tmpfs", &["size=1m"]),
        ]);
        let mut device = LinuxDevice::new();
        (device.Path, device.Type, device.Major, device.Minor) =
            ("/escape/null".to_owned(), "c".to_owned(), 1, 3);
        spec.Linux.mut_or_insert_default().Devices.push(device);
        let end = world.run(spec).await;
        assert_eq!(end.out, "1\ninside\n", "{end:?}");
        let names: Vec<_> =
            fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["victim"], "something was made outside");
        assert!(!std::path::Path::new("/tmp-up").exists());
    });
}

#[test]
fn proc_can_only_be_covered_with_what_is_harmless() {
    test(async |world| {
        symlink("/proc/sys", world.path("/alias")).unwrap();
        for target in ["/proc/sys", "/proc/self/../sys", "/proc", "/alias"] {
            let mut spec = world.spec("true");
            spec.Mounts.push(mount(target, "tmpfs", "tmpfs", &[]));
            let text = world.refused(spec).await;
            assert!(text.contains("Only proc itself"), "{target}: {text}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "forged").unwrap();
        let mut spec = world.spec("cat /proc/uptime");
        spec.Mounts.push(mount("/proc/uptime", "bind", file.path().to_str().unwrap(), &["bind"]));
        assert_eq!(world.run(spec).await.out, "forged");
    });
}

#[test]
fn paths_are_masked_and_made_read_only() {
    test(async |world| {
        fs::create_dir(world.path("/secrets")).unwrap();
        fs::write(world.path("/secrets/key"), "secret").unwrap();
        fs::write(world.path("/token"), "secret").unwrap();
        symlink("/token", world.path("/alias")).unwrap();
        let mut spec = world.spec(
            "
            cat /token /alias /proc/version; ls -A /secrets; touch /secrets/x 2>/dev/null || echo no
            (echo 1 > /proc/sys/kernel/printk) 2>/dev/null || echo no; touch /var-x && echo yes
        ",
        );
        let linux = spec.Linux.mut_or_insert_default();
        linux.MaskedPaths =
            ["/token", "/secrets", "/proc/version", "/absent", "/token/below"].map(str::to_owned).to_vec();
        linux.ReadonlyPaths = ["/proc/sys", "/absent"].map(str::to_owned).to_vec();
        let end = world.run(spec).await;
        assert_eq!((end.out.as_str(), end.err.as_str()), ("no\nno\nyes\n", ""));
    });
}

#[test]
fn a_read_only_root_still_has_writable_mounts() {
    test(async |world| {
        fs::create_dir(world.path("/data")).unwrap();
        fs::set_permissions(world.path("/data"), fs::Permissions::from_mode(0o1751)).unwrap();
        let mut spec = world.spec("touch /x 2>/dev/null || echo ro; touch /data/x /dev/shm/x && stat -c %a /data; touch /frozen/x 2>/dev/null || echo ro");
        spec.Root.mut_or_insert_default().Readonly = true;
        spec.Mounts.push(mount("/data", "tmpfs", "tmpfs", &["size=1m"]));
        spec.Mounts.push(mount("/frozen", "tmpfs", "tmpfs", &["size=1m", "ro"]));
        spec.Mounts.push(mount("/frozen/below", "tmpfs", "tmpfs", &["size=1m"]));
        spec.Process.mut_or_insert_default().Cwd = "/made/for/me".to_owned();
        let end = world.run(spec).await;
        assert_eq!(end.out, "ro\n1751\nro\n", "{end:?}");
        assert!(world.path("/made/for/me").is_dir(), "the working directory is made if it is missing");
    });
}

#[test]
fn errors_of_mounts_have_the_kernels_words_and_leave_nothing() {
    test(async |world| {
        let mut spec = world.spec("true");
        spec.Mounts.push(mount("/mnt", "tmpfs", "tmpfs", &["size=lots"]));
        let text = world.refused(spec).await;
        assert!(text.contains("Could not mount tmpfs on /mnt") && text.contains("size"), "{text}");
        let mut spec = world.spec("true");
        spec.Mounts.push(mount("/mnt", "nofs", "none", &[]));
        assert!(
            world
                .refused(spec)
                .await
                .contains("Could not mount nofs on /mnt: Could not make the mount: No such device")
        );
        let mut spec = world.spec("true");
        spec.Mounts.push(mount("/mnt", "bind", "/no/such/source", &["bind"]));
        assert!(world.refused(spec).await.contains("Could not mount /no/such/source on /mnt"));
        let mut spec = world.spec("true");
        spec.Linux.mut_or_insert_default().Sysctl.insert("kernel.panic".to_owned(), "1".to_owned());
        assert!(world.refused(spec).await.contains("kernel.panic"));
    });
}

#[test]
fn devices_of_the_spec_are_made_and_others_cannot_be_used() {
    test(async |world| {
        // As many programs do: make a node for the console's UART and write to it.
        let mut spec = world.spec(
            "
            stat -c '%F %t:%T %a %u:%g' /dev/mine /deep/down/fifo
            mknod /uart c 4 64; (echo x > /uart) 2>&1 | grep -o 'not permitted'
            mknod /null c 1 3; echo x > /null && echo null works
            (head -c1 /dev/mine) 2>&1 | grep -c 'not permitted'
        ",
        );
        let mut device = LinuxDevice::new();
        (device.Path, device.Type, device.Major, device.Minor) =
            ("/dev/mine".to_owned(), "c".to_owned(), 120, 1);
        (device.FileMode, device.UID, device.GID) = (0o640, 7, 8);
        let mut fifo = LinuxDevice::new();
        (fifo.Path, fifo.Type, fifo.FileMode) = ("/deep/down/fifo".to_owned(), "p".to_owned(), 0o600);
        let linux = spec.Linux.mut_or_insert_default();
        linux.Devices = vec![device, fifo];
        let end = world.run(spec.clone()).await;
        let expected =
            "character special file 78:1 640 7:8\nfifo 0:0 600 0:0\nnot permitted\nnull works\n0\n";
        assert_eq!(end.out, expected, "{end:?}");
        // Rules that are given count alone: then the spec's node is there but of no use.
        let mut deny = agent_proto::oci::LinuxDeviceCgroup::new();
        (deny.Type, deny.Access, deny.Major, deny.Minor) = ("a".to_owned(), "rwm".to_owned(), -1, -1);
        spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default().Devices.push(deny);
        for path in ["/uart", "/null"] {
            fs::remove_file(world.path(path)).unwrap();
        }
        let end = world.run(spec.clone()).await;
        assert_eq!(end.out, expected.replace("\n0\n", "\n1\n"), "{end:?}");
        // A privileged container may use all.
        let mut allow = spec.Linux.Resources.Devices[0].clone();
        allow.Allow = true;
        spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default().Devices.push(allow);
        for path in ["/uart", "/null"] {
            fs::remove_file(world.path(path)).unwrap();
        }
        let end = world.run(spec).await;
        assert!(!end.out.contains("not permitted"), "{end:?}");
    });
}
