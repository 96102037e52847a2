//! Checkpoint and restore of pods: what goes on, what is new, what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::counts::{first_count, last_count, wait_for_count};
use tests::cri::{Container, Pod};
use tests::programs;

use crate::harness::Bench;
use crate::support::{BUSYBOX, idle, refused, wait_for, with_pod};

crate::harness::tests![;
    microvm only: a_pod_goes_on_as_a_new_pod,
    a_restored_pod_has_the_new_pods_identity,
    a_container_stays_frozen_until_its_start,
    three_checkpoints_in_a_row_are_complete,
    a_restarted_container_is_restored,
    a_checkpoint_leaves_the_pod_running,
    memory_volumes_ride_along,
    another_image_is_refused,
    a_missing_snapshot_is_named,
    a_damaged_snapshot_is_refused,
    a_full_disk_leaves_the_guest_running,
];

/// Names a snapshot in a pod's annotations.
const RESTORE_FROM: &str = "io.containerd.microvm.v1/restore-from";
/// Where the node keeps its snapshots.
const STORE: &str = "/var/lib/microvm/snapshots";

fn counter() -> Container {
    Container::new("counter", "localhost/counter:1")
}

fn web() -> Container {
    Container::new("web", "localhost/web:1")
}

/// Checkpoints a pod into a folder that the caller removes.
fn checkpoint_into(pod_id: &str, folder: &Path) -> Result<()> {
    let done = programs::run(ctr().args(["tasks", "checkpoint", "--image-path"]).arg(folder).arg(pod_id));
    // ctr makes an image of it all the same, which holds nothing.
    let filter = format!("name~=\"^containerd.io/checkpoint/{pod_id}\"");
    for image in programs::output(ctr().args(["images", "list", "--quiet", &filter]))?.lines() {
        programs::run(ctr().args(["images", "remove", image]))?;
    }
    done
}

fn ctr() -> Command {
    let mut ctr = Command::new("ctr");
    ctr.args(["--namespace", "k8s.io"]);
    ctr
}

fn microvmctl(arguments: &[&str]) -> Result<()> {
    programs::run(Command::new("microvmctl").args(["--namespace", "k8s.io", "snapshot"]).args(arguments))
}

/// Checkpoints a pod into the store.
fn save(pod_id: &str, name: &str) -> Result<()> {
    microvmctl(&["create", pod_id, name])
}

fn forget(name: &str) -> Result<()> {
    microvmctl(&["rm", name])
}

/// A pod that is restored from a snapshot.
fn restored(name: &str, uid: &str, snapshot: &str) -> Pod {
    Pod::new(name, uid).annotation(RESTORE_FROM, snapshot)
}

/// Runs a pod until `prepare` is done with it, saves it as `name`, and removes it.
fn saved(bench: &Bench, name: &str, pod: &Pod, prepare: impl FnOnce(&Pod, &str) -> Result<()>) -> Result<()> {
    with_pod(bench, pod, |pod, pod_id| {
        prepare(pod, pod_id)?;
        save(pod_id, name)
    })
}

/// Runs a test with a snapshot that is removed afterwards, whatever the test says.
fn with_snapshot(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = test();
    let forgotten = forget(name);
    result?;
    forgotten
}

fn a_pod_goes_on_as_a_new_pod(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    let (counter, web) = (counter(), web());
    let mut before = Vec::new();
    let mut after = Vec::new();
    let old = Pod::new("goes-on", "c1");
    let containers = [&counter, &web];
    saved(bench, "goes-on", &old, |pod, pod_id| {
        for container in containers {
            let id = cri.run(pod_id, pod, container)?;
            wait_for_count(pod, container, 3)?;
            cri.read(&id, &["sh", "-c", &format!("echo {} > /marker", container.name)])?;
            before.push(last_count(pod, container)?);
        }
        Ok(())
    })?;
    for container in containers {
        after.push(last_count(&old, container)?);
    }
    with_snapshot("goes-on", || {
        with_pod(bench, &restored("goes-on", "c2", "goes-on"), |pod, pod_id| {
            for (number, container) in containers.into_iter().enumerate() {
                let id = cri.run(pod_id, pod, container)?;
                let first = first_count(pod, container, Duration::from_secs(20))?;
                let (before, after) = (before[number], after[number]);
                ensure!(
                    first.memory > before.memory
                        && first.memory <= after.memory + 1
                        && first.file == first.memory,
                    "{}: {first} is not between {before} and {after}",
                    container.name
                );
                wait_for_count(pod, container, first.memory + 3)?;
                ensure!(cri.read(&id, &["cat", "/marker"])?.trim() == container.name);
            }
            Ok(())
        })
    })
}

fn a_restored_pod_has_the_new_pods_identity(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    let mut old_ip = String::new();
    let mut old_random = String::new();
    saved(bench, "identity", &Pod::new("first-name", "c3"), |pod, pod_id| {
        let id = cri.run(pod_id, pod, &idle("one"))?;
        old_ip = cri.pod_ip(pod_id)?;
        old_random = cri.read(&id, &["sh", "-c", "head -c 16 /dev/urandom | od -An -tx1"])?;
        Ok(())
    })?;
    with_snapshot("identity", || {
        let mut pod = restored("second-name", "c4", "identity");
        pod.dns_servers = vec!["192.0.2.77".into()];
        // Another pod holds the old address, so that the new one differs.
        with_pod(bench, &Pod::new("holder", "c5"), |_, _| {
            with_pod(bench, &pod, |pod, pod_id| {
                let id = cri.run(pod_id, pod, &idle("one"))?;
                ensure!(cri.read(&id, &["hostname"])? == "second-name\n");
                let ip = cri.pod_ip(pod_id)?;
                let addresses = cri.read(&id, &["ip", "-4", "-o", "address", "show", "eth0"])?;
                ensure!(
                    addresses.contains(&format!(" {ip}/24 ")) && addresses.lines().count() == 1,
                    "{addresses}"
                );
                ensure!(ip == old_ip || !addresses.contains(&format!(" {old_ip}/")), "{addresses}");
                let resolv = cri.read(&id, &["cat", "/etc/resolv.conf"])?;
                ensure!(resolv.contains("192.0.2.77"), "{resolv}");
                let random = cri.read(&id, &["sh", "-c", "head -c 16 /dev/urandom | od -An -tx1"])?;
                ensure!(random != old_random);
                let guest: u64 = cri.read(&id, &["date", "+%s"])?.trim().parse()?;
                let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
                ensure!(guest.abs_diff(host) <= 2, "The guest's clock is at {guest}, the host's at {host}");
                Ok(())
            })
        })
    })
}

fn a_container_stays_frozen_until_its_start(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    let (counter, web) = (counter(), web());
    saved(bench, "frozen", &Pod::new("frozen", "c6"), |pod, pod_id| {
        for container in [&counter, &web] {
            cri.run(pod_id, pod, container)?;
            wait_for_count(pod, container, 3)?;
        }
        Ok(())
    })?;
    with_snapshot("frozen", || {
        with_pod(bench, &restored("frozen", "c7", "frozen"), |pod, pod_id| {
            cri.run(pod_id, pod, &counter)?;
            let counted = first_count(pod, &counter, Duration::from_secs(20))?;
            // The other one has time to count ten times more, if it could.
            wait_for_count(pod, &counter, counted.memory + 15)?;
            cri.run(pod_id, pod, &web)?;
            let late = first_count(pod, &web, Duration::from_secs(20))?;
            ensure!(late.memory <= counted.memory + 8, "web counted while it was not started: {late}");
            Ok(())
        })
    })
}

fn three_checkpoints_in_a_row_are_complete(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    // A file on the root filesystem is a file on the guest's tmpfs: pages of guest RAM like any other.
    let write = |id: &str, name: &str| {
        cri.read(
            id,
            &["sh", "-c", &format!("head -c 4000000 /dev/urandom > /{name}; md5sum /{name} > /{name}.sum")],
        )
    };
    let check = |id: &str, name: &str| cri.read(id, &["md5sum", "-c", &format!("/{name}.sum")]);
    saved(bench, "row-1", &Pod::new("row", "c8"), |pod, pod_id| {
        let id = cri.run(pod_id, pod, &idle("one"))?;
        write(&id, "before").map(drop)
    })?;
    with_snapshot("row-1", || {
        saved(bench, "row-2", &restored("row", "c9", "row-1"), |pod, pod_id| {
            let id = cri.run(pod_id, pod, &idle("one"))?;
            check(&id, "before")?;
            write(&id, "between").map(drop)
        })
    })?;
    with_snapshot("row-2", || {
        saved(bench, "row-3", &restored("row", "c10", "row-2"), |pod, pod_id| {
            // Touches nothing: what was written before must be in the third one all the same.
            cri.run(pod_id, pod, &idle("one")).map(drop)
        })
    })?;
    with_snapshot("row-3", || {
        with_pod(bench, &restored("row", "c11", "row-3"), |pod, pod_id| {
            let id = cri.run(pod_id, pod, &idle("one"))?;
            check(&id, "before")?;
            check(&id, "between").map(drop)
        })
    })
}

fn a_restarted_container_is_restored(bench: &Bench) -> Result<()> {
    let cri = &bench.cri;
    saved(bench, "again", &Pod::new("again", "c12"), |pod, pod_id| {
        let mut container = idle("one");
        let first = cri.run(pod_id, pod, &container)?;
        cri.stop(&first, Duration::from_secs(5))?;
        cri.remove(&first)?;
        container.attempt = 1;
        let second = cri.run(pod_id, pod, &container)?;
        cri.read(&second, &["sh", "-c", "echo second > /which"]).map(drop)
    })?;
    with_snapshot("again", || {
        with_pod(bench, &restored("again", "c13", "again"), |pod, pod_id| {
            let id = cri.run(pod_id, pod, &idle("one"))?;
            ensure!(cri.read(&id, &["cat", "/which"])? == "second\n");
            Ok(())
        })
    })
}

fn a_checkpoint_leaves_the_pod_running(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("runs-on", "c14"), |pod, pod_id| {
        let counter = counter();
        let id = bench.cri.run(pod_id, pod, &counter)?;
        wait_for_count(pod, &counter, 3)?;
        let folder = "/tmp/e2e-runs-on";
        checkpoint_into(pod_id, Path::new(folder))?;
        let imported = microvmctl(&["import", folder, "runs-on"]);
        fs::remove_dir_all(folder)?;
        imported?;
        with_snapshot("runs-on", || {
            let then = last_count(pod, &counter)?;
            wait_for_count(pod, &counter, then.memory + 5)?;
            ensure!(bench.cri.read(&id, &["echo", "alive"])? == "alive\n");
            Ok(())
        })
    })
}

fn memory_volumes_ride_along(bench: &Bench) -> Result<()> {
    saved(bench, "shm", &Pod::new("shm", "c15"), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        bench.cri.read(&id, &["sh", "-c", "echo shared > /dev/shm/word"]).map(drop)
    })?;
    with_snapshot("shm", || {
        with_pod(bench, &restored("shm", "c16", "shm"), |pod, pod_id| {
            let id = bench.cri.run(pod_id, pod, &idle("one"))?;
            ensure!(bench.cri.read(&id, &["cat", "/dev/shm/word"])? == "shared\n");
            Ok(())
        })
    })
}

fn another_image_is_refused(bench: &Bench) -> Result<()> {
    saved(bench, "other", &Pod::new("other", "c17"), |pod, pod_id| {
        bench.cri.run(pod_id, pod, &Container::new("counter", "localhost/counter:1")).map(drop)
    })?;
    with_snapshot("other", || {
        with_pod(bench, &restored("other", "c18", "other"), |pod, pod_id| {
            match bench.cri.run(pod_id, pod, &Container::new("counter", BUSYBOX)) {
                Ok(_) => bail!("A container with another image was adopted"),
                Err(error) => {
                    let text = format!("{error:#}");
                    ensure!(text.contains("image"), "The error does not say why: {text}");
                    Ok(())
                }
            }
        })
    })
}

fn a_missing_snapshot_is_named(bench: &Bench) -> Result<()> {
    refused(bench, &restored("missing", "c19", "no-such-snapshot"), &["no-such-snapshot"])?;
    refused(bench, &restored("missing", "c20", "../../etc"), &["../../etc"])
}

fn a_damaged_snapshot_is_refused(bench: &Bench) -> Result<()> {
    saved(bench, "damaged", &Pod::new("damaged", "c21"), |pod, pod_id| {
        bench.cri.run(pod_id, pod, &idle("one")).map(drop)
    })?;
    with_snapshot("damaged", || {
        let folder = Path::new(STORE).join("damaged");
        let damage = |file: &Path, how: &dyn Fn(&Path) -> Result<()>| -> Result<()> {
            let kept = fs::read(file)?;
            how(file)?;
            let result = refused(bench, &restored("damaged", "c22", "damaged"), &["damaged"]);
            if file.symlink_metadata().is_ok() {
                fs::remove_file(file)?;
            }
            fs::write(file, kept)?;
            result
        };
        for entry in fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()? {
            let file = entry.path();
            damage(&file, &|file| Ok(fs::File::options().write(true).open(file)?.set_len(100)?))?;
            damage(&file, &|file| {
                let mut bytes = fs::read(file)?;
                // Zero pages are not read from the file at all.
                let middle = bytes.len() / 2;
                let at = (middle..bytes.len()).find(|at| bytes[*at] != 0).context("The rest is zero")?;
                bytes[at] ^= 0x10;
                Ok(fs::write(file, bytes)?)
            })?;
            damage(&file, &|file| {
                fs::remove_file(file)?;
                Ok(symlink("/etc/passwd", file)?)
            })?;
            damage(&file, &|file| Ok(fs::remove_file(file)?))?;
        }
        Ok(())
    })
}

fn a_full_disk_leaves_the_guest_running(bench: &Bench) -> Result<()> {
    let folder = Path::new("/tmp/e2e-full");
    fs::create_dir_all(folder)?;
    programs::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "none"]).arg(folder))?;
    let result = with_pod(bench, &Pod::new("full", "c23"), |pod, pod_id| {
        let counter = counter();
        bench.cri.run(pod_id, pod, &counter)?;
        wait_for_count(pod, &counter, 3)?;
        let target = folder.join("checkpoint");
        ensure!(checkpoint_into(pod_id, &target).is_err(), "A checkpoint fits into 1 MiB");
        let left = fs::read_dir(&target).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} files are left of a checkpoint that failed");
        let then = last_count(pod, &counter)?;
        wait_for("the guest to run on", || Ok(last_count(pod, &counter)?.memory > then.memory + 3))
    });
    programs::run(Command::new("umount").arg(folder))?;
    fs::remove_dir_all(folder)?;
    result
}
