//! What is run for which figures, with which runtimes and how often. Called by `main.rs`.

use anyhow::{Context, Result, ensure};

use crate::world::{Runtime, World};
use crate::{crowd, snapshots, starts, streams};

const BOTH: &[Runtime] = &[Runtime::Runc, Runtime::Microvm];
const OWN: &[Runtime] = &[Runtime::Microvm];

/// One thing to run, from nothing to nothing.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    figures: &'static [&'static str],
    runtimes: &'static [Runtime],
    /// It runs in one round of so many: what takes long, or gives several samples.
    every: usize,
    run: fn(&mut World, Runtime) -> Result<()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "ctr-run",
        figures: &["ctr-run", "clone"],
        runtimes: BOTH,
        every: 1,
        run: starts::ctr_run,
    },
    Scenario {
        name: "cold",
        figures: &["cold-run", "cold-boot"],
        runtimes: OWN,
        every: 2,
        run: |world, _| starts::cold_run(world),
    },
    Scenario {
        name: "pod",
        figures: &["pod-start", "exec", "pod-remove", "clone", "pss", "pss-guest", "pss-vmm", "pss-rest"],
        runtimes: BOTH,
        every: 1,
        run: starts::pod,
    },
    Scenario {
        name: "snapshot-256",
        figures: &[
            "touched-256",
            "still-256",
            "checkpoint",
            "restore",
            "guest-restore",
            "snapshot-plain",
            "snapshot-packed",
        ],
        runtimes: OWN,
        every: 1,
        run: |world, _| snapshots::of_256(world),
    },
    Scenario {
        name: "snapshot-1024",
        figures: &["touched-1024", "still-1024"],
        runtimes: OWN,
        every: 4,
        run: |world, _| snapshots::of_1024(world),
    },
    Scenario {
        name: "snapshot-4096",
        figures: &["touched-4096", "still-4096"],
        runtimes: OWN,
        every: 4,
        run: |world, _| snapshots::of_4096(world),
    },
    Scenario {
        name: "streams",
        figures: &["log", "exec-out", "exec-in"],
        runtimes: BOTH,
        every: 4,
        run: streams::run,
    },
    Scenario {
        name: "crowd",
        figures: &["crowd-start", "crowd-remove"],
        runtimes: BOTH,
        every: 10,
        run: crowd::run,
    },
];

/// The scenarios that give a figure whose name contains `only`; all without it.
pub(crate) fn chosen(only: Option<&str>) -> Result<Vec<&'static Scenario>> {
    let wanted = only.unwrap_or_default();
    let gives = |scenario: &&Scenario| scenario.figures.iter().any(|figure| figure.contains(wanted));
    let chosen: Vec<_> = SCENARIOS.iter().filter(gives).collect();
    let names: Vec<_> = crate::figures::FIGURES.iter().map(|figure| figure.name).collect();
    ensure!(!chosen.is_empty(), "No figure is called {wanted:?}; there are {}", names.join(", "));
    Ok(chosen)
}

/// One round to warm up, then so many that count.
pub(crate) fn run(scenarios: &[&Scenario], rounds: usize, world: &mut World) -> Result<()> {
    for round in 0..=rounds {
        world.counts = round > 0;
        let title = if round == 0 { "warm-up".to_owned() } else { format!("round {round} of {rounds}") };
        eprintln!("{title}");
        // The last of so many rounds, so that one round runs everything and a crowd comes late.
        let due = |scenario: &&&Scenario| match round {
            0 => scenario.every < 10,
            round => (round - 1) % scenario.every == 0,
        };
        for scenario in scenarios.iter().filter(due) {
            let mut order = scenario.runtimes.to_vec();
            if round % 2 == 1 {
                order.reverse();
            }
            for runtime in order {
                (scenario.run)(world, runtime)
                    .with_context(|| format!("{title}: {} with {}", scenario.name, runtime.handler()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures;

    #[test]
    fn every_figure_comes_from_a_scenario_and_every_scenario_names_figures() {
        for scenario in SCENARIOS {
            assert!(
                scenario.figures.iter().all(|figure| figures::find(figure).is_some()),
                "{}",
                scenario.name
            );
        }
        for figure in figures::FIGURES {
            assert!(!chosen(Some(figure.name)).unwrap().is_empty());
        }
        let error = chosen(Some("nonsense")).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("pod-start"), "{error}");
    }
}
