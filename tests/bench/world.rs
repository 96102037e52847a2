//! The clients that scenarios use, and the samples that they have taken. Called by the scenarios.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use tests::cri::{Container, Cri};
use tests::programs;

/// An image with a shell and nothing that runs by itself.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";

/// What is measured beside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Runtime {
    Runc,
    Microvm,
}

impl Runtime {
    /// The CRI's name.
    pub(crate) fn handler(self) -> &'static str {
        match self {
            Runtime::Runc => "runc",
            Runtime::Microvm => "microvm",
        }
    }

    /// containerd's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Runtime::Runc => "io.containerd.runc.v2",
            Runtime::Microvm => "io.containerd.microvm.v1",
        }
    }
}

/// The samples of one figure with one runtime.
pub(crate) type Samples = BTreeMap<(&'static str, Runtime), Vec<f64>>;

/// Clients and samples.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cri: Cri,
    pub(crate) samples: Samples,
    /// Time of each phase in milliseconds, by what the shim did and the phase; filled at the end.
    pub(crate) phases: Vec<((String, String), Vec<f64>)>,
    /// Which scenario a sandbox of microvm belonged to.
    pub(crate) sandboxes: BTreeMap<String, &'static str>,
    /// Whether the round counts.
    pub(crate) counts: bool,
    number: usize,
}

impl World {
    pub(crate) fn connect() -> Result<World> {
        Ok(World {
            cri: Cri::connect()?,
            samples: Samples::new(),
            phases: Vec::new(),
            sandboxes: BTreeMap::new(),
            counts: false,
            number: 0,
        })
    }

    /// A name that nothing had before.
    pub(crate) fn name(&mut self, what: &str) -> String {
        self.number += 1;
        format!("bench-{what}-{}", self.number)
    }

    /// Notes a sample, unless the round is for warming up.
    pub(crate) fn note(&mut self, figure: &'static str, runtime: Runtime, value: f64) {
        if self.counts {
            self.samples.entry((figure, runtime)).or_default().push(value);
        }
    }

    /// Has the phases of this sandbox belong to `scenario`.
    pub(crate) fn note_sandbox(&mut self, id: &str, scenario: &'static str) {
        if self.counts {
            self.sandboxes.insert(id.to_owned(), scenario);
        }
    }

    /// Runs `work` and notes how many milliseconds it took.
    pub(crate) fn time<T>(
        &mut self,
        figure: &'static str,
        runtime: Runtime,
        work: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let result = work(self)?;
        self.note(figure, runtime, milliseconds(begun));
        Ok(result)
    }
}

/// Milliseconds since then.
pub(crate) fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

/// Runs a command of `ctr`; it has two minutes.
pub(crate) fn ctr(namespace: &str, words: &[&str]) -> Result<()> {
    programs::run(Command::new("timeout").args(["120", "ctr", "--namespace", namespace]).args(words))
}

/// A container that does nothing until it is told to end.
pub(crate) fn idle(name: &str) -> Container {
    Container::new(name, BUSYBOX).command(&[
        "sh",
        "-c",
        "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done",
    ])
}
