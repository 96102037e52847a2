//! The main job, shown: a pod of two containers in one VM counts, is checkpointed, killed, restored as a new pod, and
//! goes on counting. Called by `testhost demo`, inside the test host.

mod observe;
mod steps;

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::counts::{Count, count, first_count, last_count, wait_for_count};
use crate::cri::{Container, Cri, Pod};
use crate::host::containerd::Containerd;
use crate::leaks::{self, Snapshot};
use crate::{images, programs};
use steps::{Lines, Steps};

/// Names a snapshot in the pod's annotations.
const RESTORE_FROM: &str = "io.containerd.microvm.v1/restore-from";
/// Name of the demo's snapshot in the store.
const SNAPSHOT: &str = "demo";

/// One pod and its two containers, as the demo knows them.
#[derive(Debug)]
struct Running {
    pod: Pod,
    pod_id: String,
    containers: Vec<(Container, String)>,
}

/// Runs the demo with a runtime handler. With `runc`, which can't checkpoint a pod, it ends before the checkpoint.
pub fn run(handler: &str) -> Result<()> {
    let mut steps = Steps::new();
    let mut containerd = None;
    let result = show(handler, &mut steps, &mut containerd);
    let Some(containerd) = containerd else { return result };
    if result.is_err() {
        eprintln!("\nThe last lines of containerd's log:\n{}", containerd.tail(15));
    }
    let stopped = containerd.stop();
    result.and(stopped)?;
    println!("\nThe demo is done: {:.1} s.", steps.elapsed().as_secs_f32());
    Ok(())
}

fn show(handler: &str, steps: &mut Steps, containerd: &mut Option<Containerd>) -> Result<()> {
    *containerd = Some(steps.run("Start containerd", |lines| {
        let running = Containerd::start()?;
        lines.say(programs::output(Command::new("containerd").arg("--version"))?.trim());
        Ok(running)
    })?);
    steps.run("Make and import four images", |_| images::import("k8s.io", &images::shared()?))?;
    let cri = Cri::connect()?;
    let before = Snapshot::take()?;

    let first = start_pod(steps, &cri, handler, Pod::new("demo", "first"))?;
    show_pod(steps, &cri, &first)?;
    if handler == "runc" {
        return clean_up(steps, &cri, &first, &before);
    }
    let at =
        steps.run("Checkpoint the pod: both containers at one instant", |lines| checkpoint(&first, lines))?;
    steps.run("Kill and remove the pod; nothing of it is left but its snapshot", |_| {
        cri.remove_pod(&first.pod_id)?;
        programs::run(Command::new("microvmctl").args(["snapshot", "verify", SNAPSHOT]))
    })?;

    let pod = Pod::new("demo-again", "second").annotation(RESTORE_FROM, SNAPSHOT);
    let second = start_pod(steps, &cri, handler, pod)?;
    steps.run("Prove that memory and files went on", |lines| prove(&cri, &first, &second, &at, lines))?;
    show_pod(steps, &cri, &second)?;
    clean_up(steps, &cri, &second, &before)
}

fn start_pod(steps: &mut Steps, cri: &Cri, handler: &str, pod: Pod) -> Result<Running> {
    let how = if pod.annotations.contains_key(RESTORE_FROM) { "Restore into a new pod" } else { "Run a pod" };
    let pod_id = steps.run(&format!("{how} with the runtime handler {handler}"), |lines| {
        let id = cri.run_pod(&pod, handler)?;
        lines.say(format!("pod {} is {}, address {}", pod.name, short(&id), cri.pod_ip(&id)?));
        Ok(id)
    })?;
    let mut containers = Vec::new();
    for (name, image) in [("counter", "localhost/counter:1"), ("web", "localhost/web:1")] {
        let container = Container::new(name, image);
        let id = steps.run(&format!("Start the container {name} from {image}"), |lines| {
            let id = cri.run(&pod_id, &pod, &container)?;
            lines.say(format!("container {name} is {}", short(&id)));
            Ok(id)
        })?;
        containers.push((container, id));
    }
    Ok(Running { pod, pod_id, containers })
}

fn show_pod(steps: &mut Steps, cri: &Cri, running: &Running) -> Result<()> {
    steps.run("Both count, in memory and in a file on their root filesystem", |lines| {
        for (container, _) in &running.containers {
            let first = wait_for_count(&running.pod, container, 1)?;
            let later = wait_for_count(&running.pod, container, first.memory + 3)?;
            lines.say(format!("log of {}: {first}, then {later}", container.name));
        }
        Ok(())
    })?;
    steps.run("Exec in both: one kernel, two root filesystems", |lines| {
        let mut boots = Vec::new();
        for (container, id) in &running.containers {
            let kernel = cri.read(id, &["uname", "-r"])?;
            let host = cri.read(id, &["hostname"])?;
            lines.say(format!("{}: kernel {}, hostname {}", container.name, kernel.trim(), host.trim()));
            cri.read(id, &["sh", "-c", &format!("echo {} > /marker", container.name)])?;
            boots.push(cri.read(id, &["cat", "/proc/sys/kernel/random/boot_id"])?);
        }
        ensure!(
            boots.windows(2).all(|pair| pair[0] == pair[1]),
            "The containers run under different kernels"
        );
        Ok(())
    })?;
    steps.run("The pod answers on its address", |lines| {
        let ip = cri.pod_ip(&running.pod_id)?;
        let page = observe::fetch(&format!("http://{ip}:8080/state"))?;
        lines.say(format!("GET http://{ip}:8080/state: {}", page.trim()));
        Ok(())
    })?;
    steps.run("What the host sees of the pod", |lines| {
        for line in observe::processes(&running.pod, &running.pod_id)? {
            lines.say(line);
        }
        Ok(())
    })
}

/// What a container had counted shortly before and shortly after the checkpoint.
#[derive(Debug)]
struct Between {
    before: Count,
    after: Count,
}

fn checkpoint(running: &Running, lines: &mut Lines) -> Result<Vec<Between>> {
    let count_all = || {
        running.containers.iter().map(|(one, _)| last_count(&running.pod, one)).collect::<Result<Vec<_>>>()
    };
    let before = count_all()?;
    let pod = format!("default/{}", running.pod.name);
    let create = ["--namespace", "k8s.io", "snapshot", "create", &pod, SNAPSHOT];
    let created = programs::output(Command::new("microvmctl").args(create))?;
    // A line that was on its way when the VM paused arrives with the next one.
    for ((container, _), count) in running.containers.iter().zip(&before) {
        wait_for_count(&running.pod, container, count.memory + 2)?;
    }
    let after = count_all()?;
    lines.say(format!("microvmctl {}", create.join(" ")));
    lines.say(created.trim());
    Ok(before.into_iter().zip(after).map(|(before, after)| Between { before, after }).collect())
}

fn prove(cri: &Cri, first: &Running, second: &Running, at: &[Between], lines: &mut Lines) -> Result<()> {
    ensure!(first.pod_id != second.pod_id, "The restored pod has the old one's id");
    for ((container, id), at) in second.containers.iter().zip(at) {
        let name = &container.name;
        let resumed = first_count(&second.pod, container, Duration::from_secs(20))?;
        lines.say(format!("{name}: {} at the checkpoint, {resumed} is its first line now", at.before));
        ensure!(
            resumed.memory > at.before.memory && resumed.memory <= at.after.memory + 1,
            "{name} did not go on from where it was: {resumed} is not between {} and {}",
            at.before,
            at.after
        );
        ensure!(
            resumed.file == resumed.memory,
            "{name}: the file on its root filesystem did not go on: {resumed}"
        );
        let marker = cri.read(id, &["cat", "/marker"])?;
        ensure!(marker.trim() == *name, "{name}: /marker holds {marker:?}");
        let now = count(&cri.read(id, &["cat", "/count"])?, resumed.memory)?;
        ensure!(now.file >= resumed.file, "{name}: /count went back to {now}");
    }
    Ok(())
}

fn clean_up(steps: &mut Steps, cri: &Cri, running: &Running, before: &Snapshot) -> Result<()> {
    steps.run("Remove the pod and its snapshot", |_| {
        cri.remove_pod(&running.pod_id)?;
        if running.pod.annotations.contains_key(RESTORE_FROM) {
            programs::run(Command::new("microvmctl").args(["snapshot", "rm", SNAPSHOT]))?;
        }
        Ok(())
    })?;
    steps.run("Nothing is left: mounts, links, namespaces, cgroups, processes, files", |_| {
        leaks::assert_clean(before)
    })
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
