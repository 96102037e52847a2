//! Whom the kernel kills when the host has no memory left: the VMM holds all memory of the pod, so it is as dispensable
//! as the most dispensable of its containers. The shim itself, whose value a VMM would inherit, is never to be chosen.
//! Called when a container is made and when the VM has started.

use std::sync::atomic::{AtomicI32, Ordering};

use super::facts::Spec;

/// The highest `oomScoreAdj` of a pod's containers.
#[derive(Debug)]
pub(crate) struct OomScore(AtomicI32);

impl OomScore {
    /// That of the sandbox's own container: CRI's pause container has the lowest there is. Without one it is the kernel's
    /// own middle, 0.
    pub(crate) fn of(sandbox: &Spec) -> Self {
        OomScore(AtomicI32::new(wanted(sandbox).unwrap_or(0)))
    }

    /// Takes another container in.
    pub(crate) fn raise(&self, container: &Spec) {
        if let Some(score) = wanted(container) {
            self.0.fetch_max(score, Ordering::Relaxed);
        }
    }

    /// Tells the kernel. A VMM that is gone needs none.
    pub(crate) fn apply(&self, vmm: Option<u32>) {
        let Some(pid) = vmm else { return };
        let score = self.0.load(Ordering::Relaxed);
        if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
            log::warn!("The VMM keeps the shim's oom_score_adj instead of {score}: {error}");
        }
    }
}

fn wanted(spec: &Spec) -> Option<i32> {
    // The kernel takes no other values.
    spec.process().as_ref()?.oom_score_adj().map(|score| score.clamp(-1000, 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(score: Option<i32>) -> Spec {
        let score = score.map_or(serde_json::Value::Null, Into::into);
        let process = serde_json::json!({"cwd": "/", "args": ["a"], "user": {"uid": 0, "gid": 0}, "oomScoreAdj": score});
        serde_json::from_value(serde_json::json!({"ociVersion": "1.1.0", "process": process})).unwrap()
    }

    #[test]
    fn the_most_dispensable_container_counts() {
        let score = OomScore::of(&spec(Some(-998)));
        score.raise(&spec(Some(-997)));
        score.raise(&spec(None));
        assert_eq!(score.0.load(Ordering::Relaxed), -997);
        score.raise(&spec(Some(100_000)));
        assert_eq!(score.0.load(Ordering::Relaxed), 1000);
        assert_eq!(OomScore::of(&spec(None)).0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_process_gets_the_score() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        OomScore::of(&spec(Some(321))).apply(Some(child.id()));
        let told = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(told, "321\n");
    }
}
