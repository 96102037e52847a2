//! Images that mean no good, and large ones.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::cri::{Container, Pod};
use tests::images::{self, Image};
use tests::programs;

use crate::harness::Bench;
use crate::support::with_pod;

crate::harness::tests![
    links_in_an_image_lead_nowhere_outside,
    an_image_needs_no_folders_for_mounts,
    an_image_may_have_seventy_layers,
];

const IDLE: &[&str] = &["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"];

/// Runs a container of an image that is removed afterwards.
fn with_image(
    bench: &Bench,
    image: Image,
    pod: &Pod,
    container: &Container,
    test: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    images::import("k8s.io", &[image])?;
    let result = with_pod(bench, pod, |pod, pod_id| test(&bench.cri.run(pod_id, pod, container)?));
    programs::run(Command::new("ctr").args([
        "--namespace",
        "k8s.io",
        "images",
        "delete",
        "--sync",
        &container.image,
    ]))?;
    result
}

/// Mount targets that are links to absolute paths and out of the root: each must be resolved in the container.
fn links_in_an_image_lead_nowhere_outside(bench: &Bench) -> Result<()> {
    let given = Path::new("/tmp/e2e-links");
    fs::create_dir_all(given)?;
    fs::write(given.join("word"), "given")?;
    let image = Image::busybox("localhost/links:1")?
        .folder("real", 0o755)
        .link("absolute", "/real")
        .link("upwards", "../../../../real")
        .link("host", "/../../tmp/e2e-links-target")
        .command(IDLE);
    let mut container = Container::new("one", "localhost/links:1");
    container.mounts = ["/absolute/a", "/upwards/b", "/host/c"]
        .map(|target| (given.to_owned(), target.to_owned(), true))
        .into();
    let result = with_image(bench, image, &Pod::new("links", "i1"), &container, |id| {
        let words =
            bench.cri.read(id, &["cat", "/real/a/word", "/real/b/word", "/tmp/e2e-links-target/c/word"])?;
        ensure!(words == "givengivengiven", "{words:?}");
        ensure!(!Path::new("/tmp/e2e-links-target").exists(), "A mount target was made on the host");
        Ok(())
    });
    fs::remove_dir_all(given)?;
    result
}

fn an_image_needs_no_folders_for_mounts(bench: &Bench) -> Result<()> {
    let busybox = fs::read("/usr/bin/busybox")?;
    let image = Image::empty("localhost/bare:1")
        .file("busybox", 0o755, busybox)
        .command(&["/busybox", "sleep", "1000"]);
    let container = Container::new("one", "localhost/bare:1");
    with_image(bench, image, &Pod::new("bare", "i2"), &container, |id| {
        let mounts = bench.cri.read(id, &["/busybox", "cat", "/proc/self/mounts"])?;
        ensure!(["/proc", "/dev", "/sys"].iter().all(|at| mounts.contains(&format!(" {at} "))), "{mounts}");
        Ok(())
    })
}

/// Their paths are more than fits into the page of options that mount(2) takes.
fn an_image_may_have_seventy_layers(bench: &Bench) -> Result<()> {
    let mut image = Image::busybox("localhost/layers:1")?.folder("layers", 0o755).command(IDLE);
    for number in 0..70 {
        let file = format!("layers/{number}");
        image = image.layer().file(&file, 0o644, "").file("layers/last", 0o644, number.to_string());
    }
    let container = Container::new("one", "localhost/layers:1");
    with_image(bench, image, &Pod::new("layers", "i3"), &container, |id| {
        let words = bench.cri.read(id, &["sh", "-c", "ls /layers | wc -l; cat /layers/last"])?;
        ensure!(words.split_whitespace().eq(["71", "69"]), "{words}");
        Ok(())
    })
}
