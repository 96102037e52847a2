//! Median and 95th percentile of samples. Called by the report.

use serde::Serialize;

/// What several samples of one figure come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) p95: f64,
    pub(crate) samples: Vec<f64>,
}

impl Summary {
    /// Of at least one sample.
    pub(crate) fn of(samples: &[f64]) -> Option<Summary> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let median = (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0;
        // The smallest sample that 95 of 100 do not exceed.
        let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
        Some(Summary { median, p95, samples: samples.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_p95() {
        assert_eq!(Summary::of(&[]), None);
        let of = |samples: &[f64]| Summary::of(samples).map(|summary| (summary.median, summary.p95));
        assert_eq!(of(&[3.0]), Some((3.0, 3.0)));
        assert_eq!(of(&[4.0, 1.0]), Some((2.5, 4.0)));
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(of(&hundred), Some((50.5, 95.0)));
        let twenty: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(of(&twenty), Some((10.5, 19.0)));
    }
}
