//! How long each phase of an operation took, as one line of JSON in the log. Always on: it costs some clock reads.
//! Called by `sandbox`; read by people, and by `cargo xtask bench`.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// One operation that is timed. When it is dropped, its line goes to the log, also when the operation has failed.
#[derive(Debug)]
pub(crate) struct Phases {
    operation: &'static str,
    begun: Instant,
    last: Instant,
    taken: Vec<(&'static str, Duration)>,
    complete: bool,
}

impl Phases {
    /// Begins to time `operation` and its first phase.
    pub(crate) fn begin(operation: &'static str) -> Self {
        let now = Instant::now();
        Phases { operation, begun: now, last: now, taken: Vec::new(), complete: false }
    }

    /// Ends `phase`, which began where the one before it ended.
    pub(crate) fn done(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.taken.push((phase, now - self.last));
        self.last = now;
    }

    /// Ends the operation with success.
    pub(crate) fn finish(mut self) {
        self.complete = true;
    }

    /// `{"operation":"start","complete":true,"total_ms":12.3,"phases":[["share",8.1],…]}`: in milliseconds, and in
    /// the order in which the phases happened.
    fn line(&self, total: Duration) -> Value {
        let phases: Vec<Value> = self.taken.iter().map(|(name, time)| json!([name, millis(*time)])).collect();
        let mut line = Map::new();
        line.insert("operation".into(), self.operation.into());
        line.insert("complete".into(), self.complete.into());
        line.insert("total_ms".into(), millis(total));
        line.insert("phases".into(), phases.into());
        line.into()
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        log::info!("phases {}", self.line(self.begun.elapsed()));
    }
}

/// Milliseconds with three digits behind the point.
fn millis(time: Duration) -> Value {
    json!(Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_phases_in_their_order_and_says_whether_all_went_well() {
        let mut phases = Phases::begin("start");
        phases.done("share");
        phases.done("network");
        phases.taken[0].1 = Duration::from_micros(8125);
        phases.taken[1].1 = Duration::ZERO;
        let expected = r#"{"operation":"start","complete":false,"total_ms":12.5,"phases":[["share",8.125],["network",0.0]]}"#;
        let line: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(phases.line(Duration::from_micros(12_500)), line);
        phases.complete = true;
        assert_eq!(phases.line(Duration::ZERO)["complete"], true);
    }
}
