//! The result of all rounds. Called by `main.rs`; shown by `table.rs`, written as JSON.

use serde::Serialize;

use crate::facts::Facts;
use crate::figures::{FIGURES, Figure, Goal};
use crate::statistics::Summary;
use crate::world::{Runtime, Samples, World};

/// How much a latency may vary: its 95th percentile over its median.
const STEADY: f64 = 1.5;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) facts: Facts,
    pub(crate) figures: Vec<Row>,
    pub(crate) phases: Vec<PhaseRow>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) runc: Option<Summary>,
    pub(crate) microvm: Option<Summary>,
    /// microvm's median by runc's.
    pub(crate) ratio: Option<f64>,
    /// The goal in words; empty if there is none.
    pub(crate) goal: String,
    pub(crate) met: Option<bool>,
    /// Whether p95 is at most 1.5 times the median; of latencies only.
    pub(crate) steady: Option<bool>,
}

/// One phase of one of the shim's operations, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseRow {
    pub(crate) operation: String,
    pub(crate) phase: String,
    pub(crate) time: Summary,
}

impl Report {
    pub(crate) fn new(world: &World, facts: Facts) -> Report {
        let figures = FIGURES.iter().map(|figure| row(figure, &world.samples));
        let phases = world.phases.iter().filter_map(|((operation, phase), samples)| {
            let (operation, phase) = (operation.clone(), phase.clone());
            Some(PhaseRow { operation, phase, time: Summary::of(samples)? })
        });
        Report {
            facts,
            figures: figures.filter(|row| row.runc.is_some() || row.microvm.is_some()).collect(),
            phases: phases.collect(),
        }
    }
}

fn row(figure: &Figure, samples: &Samples) -> Row {
    let of = |name, runtime| samples.get(&(name, runtime)).and_then(|samples| Summary::of(samples));
    let (runc, microvm) = (of(figure.name, Runtime::Runc), of(figure.name, Runtime::Microvm));
    let own = microvm.as_ref().map(|summary| summary.median);
    let ratio = own.zip(runc.as_ref()).map(|(own, runc)| own / runc.median);
    let (goal, met) = match figure.goal {
        Goal::None => (String::new(), None),
        Goal::Times(most) => (format!("≤ {most} × runc"), ratio.map(|ratio| ratio <= most)),
        Goal::Least(least) => (format!("≥ {least} × runc"), ratio.map(|ratio| ratio >= least)),
        Goal::Most(most) => (format!("≤ {most}"), own.map(|own| own <= most)),
        Goal::Line { base, slope, of: other } => {
            let bound = of(other, Runtime::Microvm).map(|other| base + slope * other.median);
            let text = bound.map_or("not measured".to_owned(), |bound| format!("≤ {}", short(bound)));
            (text, own.zip(bound).map(|(own, bound)| own <= bound))
        }
    };
    let steady = microvm.as_ref().filter(|_| figure.unit == "ms").map(|own| own.p95 <= STEADY * own.median);
    let Figure { name, what, unit, .. } = *figure;
    Row { name, what, unit, runc, microvm, ratio, goal, met, steady }
}

/// A number with about three digits.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::find;

    fn of(name: &'static str, samples: &[(&'static str, Runtime, f64)]) -> Row {
        let mut all = Samples::new();
        for (figure, runtime, value) in samples {
            all.entry((*figure, *runtime)).or_default().push(*value);
        }
        row(find(name).unwrap(), &all)
    }

    #[test]
    fn goals_are_judged_by_medians() {
        let (runc, own) = (Runtime::Runc, Runtime::Microvm);
        let run = |times: f64| of("ctr-run", &[("ctr-run", runc, 100.0), ("ctr-run", own, 100.0 * times)]);
        assert_eq!((run(3.0).met, run(3.1).met), (Some(true), Some(false)));
        assert_eq!(run(2.0).ratio, Some(2.0));
        let log = of("log", &[("log", runc, 100.0), ("log", own, 49.0)]);
        assert_eq!((log.met, log.steady), (Some(false), None));
        let still = |time| of("still-256", &[("still-256", own, time), ("touched-256", own, 100.0)]);
        assert_eq!((still(50.0).met, still(51.0).met), (Some(true), Some(false)));
        assert_eq!(of("still-256", &[("still-256", own, 1.0)]).met, None);
        assert_eq!(of("ctr-run", &[("ctr-run", own, 1.0)]).met, None);
    }

    #[test]
    fn a_latency_whose_p95_is_far_off_is_not_steady() {
        let own = Runtime::Microvm;
        let run = |slow: f64| {
            of("ctr-run", &[("ctr-run", own, 10.0), ("ctr-run", own, 10.0), ("ctr-run", own, slow)])
        };
        assert_eq!((run(15.0).steady, run(16.0).steady), (Some(true), Some(false)));
    }
}
