//! What of the host a guest can reach: it is root there, with every capability, and changes nothing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cri::Pod;
use tests::images::{self, Image};
use tests::programs;

use crate::harness::Bench;
use crate::support::{exec, idle, processes, with_idle, with_pod};
use crate::tree::Tree;

crate::harness::tests![;
    microvm only: the_image_stays_as_it_was,
    a_read_only_volume_stays_as_it_was,
    a_container_adds_no_file_and_no_block_device,
    a_large_image_is_not_copied,
];

/// Where `main.rs` lays the program.
pub(crate) const INTRUDER: &str = "/opt/testhost/intruder";
/// An image with that program and a folder for it.
const IMAGE: &str = "localhost/intruder:1";
/// What the intruder tries.
const ATTEMPTS: usize = 18;

/// Runs a test with an image that holds the intruder, which is removed afterwards.
fn with_intruder(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let program = fs::read(INTRUDER).with_context(|| format!("Could not read {INTRUDER}"))?;
    let image = Image::busybox(IMAGE)?
        .file("intruder", 0o755, program)
        .folder("tree", 0o755)
        .folder("tree/folder", 0o755)
        .file("tree/file", 0o644, "a file\n")
        .file("tree/other", 0o644, "another\n");
    images::import("default", &[image])?;
    let result = test();
    remove_image(IMAGE)?;
    result
}

fn remove_image(name: &str) -> Result<()> {
    programs::run(Command::new("ctr").args(["images", "delete", "--sync", name]))
}

/// Every attempt on `folder` of the guest must have ended so.
fn attempts(id: &str, folder: &str, all: impl Fn(&str) -> bool) -> Result<()> {
    let text = exec(id, &["/intruder", folder])?;
    let ends: Vec<&str> = text.lines().filter_map(|line| line.split_once(": ").map(|(_, end)| end)).collect();
    ensure!(ends.len() == ATTEMPTS && ends.iter().all(|end| all(end)), "On {folder}:\n{text}");
    Ok(())
}

/// Nothing was changed, and not because it is not there.
fn refused(end: &str) -> bool {
    end != "done" && !end.starts_with("No such file")
}

/// Mounts one tree of the share a second time in the guest, by its tag, and makes it writable there; where the folder
/// `tree` is then. Linux gives what of that tag is mounted already: the whole, or what the host has mounted at `place`.
fn writable(id: &str, tag: &str, place: &str) -> Result<String> {
    let script = format!(
        "mkdir -p /{tag} && mount -t virtiofs {tag} /{tag} && at=/{tag} && if [ ! -d $at/tree ]; then at=$at/{place}; fi && \
         ls $at/tree && mount -o remount,rw $at && grep \" $at virtiofs rw\" /proc/mounts && echo $at/tree"
    );
    let text = exec(id, &["sh", "-c", &script])?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// The only entry of one tree of a sandbox's share.
fn entry(id: &str, tree: &str) -> Result<String> {
    let folder = PathBuf::from(format!("/run/microvm/default/{id}/share/{tree}"));
    let names = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    let [name] = names.as_slice() else { anyhow::bail!("{} holds {names:?}", folder.display()) };
    Ok(name.clone())
}

fn the_image_stays_as_it_was(bench: &Bench) -> Result<()> {
    with_intruder(|| {
        with_idle(bench, &["--privileged"], IMAGE, "share", || {
            let name = entry("share", "images")?;
            let shown = format!("/run/microvm/default/share/share/images/{name}/rootfs");
            // The layers as containerd keeps them, and the same as the daemon shows it.
            let read = || -> Result<[Tree; 2]> {
                let layers =
                    Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
                Ok([Tree::read(layers)?, Tree::read(Path::new(&shown))?])
            };
            let before = read()?;
            let place = writable("share", "kataShared", &format!("{name}/rootfs"))?;
            attempts("share", &place, refused)?;
            // The overlay on it is the container's own: there the same attempts succeed, in the guest alone.
            attempts("share", "/tree", |end| end == "done")?;
            let changes: Vec<String> =
                read()?.iter().zip(&before).flat_map(|(now, then)| now.changes_since(then)).collect();
            ensure!(changes.is_empty(), "Changed on the host:\n{}", changes.join("\n"));
            Ok(())
        })
    })
}

fn a_read_only_volume_stays_as_it_was(bench: &Bench) -> Result<()> {
    let volume = Path::new("/tmp/e2e-share");
    fs::create_dir_all(volume.join("tree/folder"))?;
    for name in ["file", "other"] {
        fs::write(volume.join("tree").join(name), "as it was\n")?;
    }
    let before = Tree::read(volume)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", volume.display());
    let result = with_intruder(|| {
        with_idle(bench, &["--privileged", "--mount", &mount], IMAGE, "share", || {
            exec("share", &["mount", "-o", "remount,rw,bind", "/data"])?;
            attempts("share", "/data/tree", refused)?;
            let name = entry("share", "volumes")?;
            let index = entry("share", &format!("volumes/{name}"))?;
            let place = writable("share", "volumes", &format!("{name}/{index}"))?;
            attempts("share", &place, refused)?;
            let changes = Tree::read(volume)?.changes_since(&before);
            ensure!(changes.is_empty(), "Changed on the host:\n{}", changes.join("\n"));
            Ok(())
        })
    });
    fs::remove_dir_all(volume)?;
    result
}

/// Regular files with content below a folder, not looking into what is mounted there.
fn files(folder: &Path, device: u64, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_file() && metadata.len() > 0 {
            found.push(path);
        } else if metadata.is_dir() {
            files(&path, device, found)?;
        }
    }
    Ok(())
}

fn a_container_adds_no_file_and_no_block_device(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("bare", "s1"), |pod, pod_id| {
        let folder = PathBuf::from(format!("/run/microvm/k8s.io/{pod_id}"));
        let device = fs::metadata(&folder)?.dev();
        let list = || -> Result<Vec<PathBuf>> {
            let mut found = Vec::new();
            files(&folder, device, &mut found)?;
            found.sort();
            Ok(found)
        };
        bench.cri.run(pod_id, pod, &idle("one"))?;
        let before = list()?;
        let id = bench.cri.run(pod_id, pod, &idle("two"))?;
        let after = list()?;
        ensure!(before == after, "With a second container: {after:?}, with one: {before:?}");
        let devices = bench.cri.read(&id, &["ls", "/sys/class/block"])?;
        ensure!(devices.is_empty(), "The guest has block devices: {devices}");
        Ok(())
    })
}

/// Bytes of the large image.
const LARGE: u64 = 3 << 30;
/// What its start may write on the host, in all: the copy of a template's RAM is a part of it.
const WRITTEN: u64 = 128 << 20;
/// How much longer its start may take than that of a small image.
const LONGER: Duration = Duration::from_secs(3);

/// Writes bytes that no filesystem can leave out. Pseudo-random: a block that differs by its number.
fn write_large(file: &Path) -> Result<()> {
    let mut random = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
    let mut file = fs::File::create(file).with_context(|| format!("Could not make {}", file.display()))?;
    for number in 0..LARGE >> 20 {
        random[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&random)?;
    }
    Ok(())
}

/// Bytes that processes have written by any means, to files, pipes and sockets, by their `/proc/<pid>/io`.
fn written() -> Result<u64> {
    let mut sum = 0;
    // The shim and what it becomes have containerd in their names.
    for words in [&["containerd"][..], &["qemu-system"]] {
        for pid in processes(words)? {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/io")) else { continue };
            let field =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            sum += field("wchar:").unwrap_or(0u64);
        }
    }
    Ok(sum)
}

fn a_large_image_is_not_copied(bench: &Bench) -> Result<()> {
    const NAME: &str = "localhost/large:1";
    let start = || -> Result<Duration> {
        let begun = Instant::now();
        with_idle(bench, &[], crate::support::BUSYBOX, "small", || Ok(begun.elapsed()))
    };
    let small = start()?;
    images::import("default", &[Image::busybox(NAME)?.folder("large", 0o755).file("large/here", 0o644, "")])?;
    let result = (|| {
        // Straight into the snapshot that the import has made: 3 GiB through a tar would prove nothing more.
        let snapshots = Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
        let layer = fs::read_dir(snapshots)?
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("fs/large"))
            .find(|folder| folder.join("here").exists())
            .context("The large image has no layer")?;
        write_large(&layer.join("file"))?;
        let before = written()?;
        let begun = Instant::now();
        with_idle(bench, &[], NAME, "large", || {
            let took = begun.elapsed();
            let wrote = written()?.saturating_sub(before);
            ensure!(wrote < WRITTEN, "Its start wrote {wrote} bytes");
            ensure!(took < small + LONGER, "Its start took {took:?}, that of a small image {small:?}");
            // The bytes are there all the same: the last block has its number.
            let script = "stat -c %s /large/file; tail -c 1048576 /large/file | head -c 8 | od -An -tu8";
            let seen = exec("large", &["sh", "-c", script])?;
            let expected = [LARGE.to_string(), ((LARGE >> 20) - 1).to_string()];
            ensure!(seen.split_whitespace().eq(expected.iter().map(String::as_str)), "{seen}");
            println!("    3 GiB: started in {took:?} (small: {small:?}), {wrote} bytes written");
            Ok(())
        })
    })();
    remove_image(NAME)?;
    result
}
