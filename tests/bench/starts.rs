//! Starting, executing, removing. Called by `scenarios.rs`.

use anyhow::{Context, Result};
use tests::cri::Pod;

use crate::memory;
use crate::world::{BUSYBOX, Runtime, World, ctr, idle};

/// A config without templates.
const COLD: &str = "/tmp/bench-cold.toml";
/// How often a command is executed in each pod.
const EXECS: usize = 3;

/// A container of `ctr`'s that ends at once.
pub(crate) fn ctr_run(world: &mut World, runtime: Runtime) -> Result<()> {
    let id = world.name("run");
    world.note_sandbox(&id, "ctr-run");
    let words = ["run", "--rm", "--runtime", runtime.name(), BUSYBOX, &id, "true"];
    world.time("ctr-run", runtime, |_| ctr("default", &words))
}

/// The same with templates turned off.
pub(crate) fn cold_run(world: &mut World) -> Result<()> {
    std::fs::write(COLD, "templates = 0\n").with_context(|| format!("Could not write {COLD}"))?;
    let id = world.name("cold");
    world.note_sandbox(&id, "cold");
    let runtime = Runtime::Microvm;
    let words =
        ["run", "--rm", "--runtime", runtime.name(), "--runtime-config-path", COLD, BUSYBOX, &id, "true"];
    world.time("cold-run", runtime, |_| ctr("default", &words))
}

/// A pod as kubelet starts it, what one can do in it, and its end.
pub(crate) fn pod(world: &mut World, runtime: Runtime) -> Result<()> {
    let name = world.name("pod");
    let (pod, container) = (Pod::new(&name, &name), idle("idle"));
    let (pod_id, id) = world.time("pod-start", runtime, |world| {
        let pod_id = world.cri.run_pod(&pod, runtime.handler())?;
        let id = world.cri.run(&pod_id, &pod, &container)?;
        Ok((pod_id, id))
    })?;
    world.note_sandbox(&pod_id, "pod");
    for number in 0..EXECS {
        let exec = format!("exec-{number}");
        let words = ["tasks", "exec", "--exec-id", &exec, &id, "true"];
        world.time("exec", runtime, |_| ctr("k8s.io", &words))?;
    }
    let held = memory::of_pod(&pod_id).context("Could not read the memory of the pod's processes")?;
    for (figure, value) in held.figures(runtime) {
        world.note(figure, runtime, value);
    }
    world.time("pod-remove", runtime, |world| world.cri.remove_pod(&pod_id))
}
