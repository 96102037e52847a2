//! critest, the CRI's own suite: its images, its run, and what its specs said. Called by `main.rs`, in the test host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tests::host::LOGS;
use tests::host::containerd::{Containerd, SOCKET};
use tests::leaks::{self, Snapshot};
use tests::{images, programs, registry};

use crate::excused::{Excuse, excuses};
use crate::report::{Report, Spec, State};

/// Its temporary files, which it does not all remove.
const SCRATCH: &str = "/var/tmp/critest";
/// Longest run. It takes five minutes under emulation on a loaded machine.
const LIMIT: &str = "30m";

/// What to run.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) handler: String,
    pub(crate) filter: Option<String>,
}

impl Suite {
    /// Names the folder of its logs and report. A part of the suite never takes the place of the whole.
    pub(crate) fn name(&self) -> String {
        let part = if self.filter.is_some() { "-part" } else { "" };
        format!("critest-{}{part}", self.handler)
    }
}

/// Runs it and answers the exit code.
pub(crate) fn run(suite: &Suite) -> Result<i32> {
    let containerd = Containerd::start()?;
    images::import("k8s.io", &images::shared()?)?;
    registry::serve(&crate::images::all()?)?;
    let before = Snapshot::take()?;
    let begun = Instant::now();
    let excuses = excuses(&suite.handler);
    let mut specs = specs(&critest(suite, &excuses)?, &excuses)?;
    specs.push(leftovers(&before));
    let report = Report {
        suite: "critest".into(),
        version: version("critest", &["-version"], "critest version: ")?,
        containerd: version("containerd", &["--version"], "")?,
        handler: suite.handler.clone(),
        seconds: begun.elapsed().as_secs(),
        specs,
    };
    report.print();
    report.write(&Path::new(LOGS).join("report.json"))?;
    containerd.stop()?;
    Ok(i32::from(report.failed() > 0))
}

/// Runs the program; its report.
fn critest(suite: &Suite, excuses: &[Excuse]) -> Result<PathBuf> {
    fs::create_dir_all(SCRATCH)?;
    let log = Path::new(LOGS).join("critest.log");
    let report = Path::new(LOGS).join("ginkgo.json");
    let output = File::create(&log)?;
    let mut program = Command::new("critest");
    program
        .env("TMPDIR", SCRATCH)
        .arg(format!("-runtime-endpoint=unix://{SOCKET}"))
        .arg(format!("-runtime-handler={}", suite.handler))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .arg(format!("-ginkgo.timeout={LIMIT}"))
        .args(["-ginkgo.seed=1", "-ginkgo.no-color"])
        .args(excuses.iter().map(|excuse| format!("-ginkgo.skip={}", quoted(excuse.spec))));
    program.args(suite.filter.iter().map(|filter| format!("-ginkgo.focus={filter}")));
    // Its own count decides; a run that broke off leaves no report.
    let status = program
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("Could not run critest")?;
    if !report.exists() {
        bail!(
            "critest ended with {status} and without a report:\n{}",
            tests::host::containerd::tail(&log, 30)
        );
    }
    Ok(report)
}

/// A regular expression that matches `text`.
fn quoted(text: &str) -> String {
    text.chars()
        .flat_map(|c| ['\\'].into_iter().filter(move |_| "()[].+*?^$|".contains(c)).chain([c]))
        .collect()
}

/// What ginkgo writes of a suite, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ran {
    spec_reports: Vec<RanSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RanSpec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Every spec that the suite has, but those of a part that was not asked for.
fn specs(report: &Path, excuses: &[Excuse]) -> Result<Vec<Spec>> {
    let what = || format!("Could not read {}", report.display());
    let ran: Vec<Ran> = serde_json::from_slice(&fs::read(report).with_context(what)?).with_context(what)?;
    let all = ran.into_iter().flat_map(|suite| suite.spec_reports);
    Ok(all.filter(|spec| spec.leaf_node_type == "It").filter_map(|spec| judge(spec, excuses)).collect())
}

fn judge(spec: RanSpec, excuses: &[Excuse]) -> Option<Spec> {
    let mut words = spec.container_hierarchy_texts.unwrap_or_default();
    words.push(spec.leaf_node_text);
    let name = words.join(" ");
    let said = spec.failure.map(|failure| failure.message).unwrap_or_default();
    let (state, reason, refused_by) = match spec.state.as_str() {
        "passed" => (State::Passed, String::new(), String::new()),
        "skipped" | "pending" => match excuses.iter().find(|excuse| name.contains(excuse.spec)) {
            Some(excuse) => (State::Skipped, excuse.reason.to_owned(), excuse.refused_by.to_owned()),
            // The suite itself says why, or it was not asked for.
            None if said.is_empty() => return None,
            None => (State::Skipped, format!("the suite says: {}", one_line(&said)), String::new()),
        },
        state => (State::Failed, format!("{state}: {}", one_line(&said)), String::new()),
    };
    Some(Spec { name, state, seconds: spec.run_time / 1_000_000_000, reason, refused_by })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the suite left the host as it found it, as a spec of ours.
fn leftovers(before: &Snapshot) -> Spec {
    let begun = Instant::now();
    let (state, reason) = match leaks::assert_clean(before) {
        Ok(()) => (State::Passed, String::new()),
        Err(error) => (State::Failed, format!("{error:#}")),
    };
    Spec {
        name: "Nothing is left on the host after the suite".into(),
        state,
        seconds: begun.elapsed().as_secs(),
        reason,
        refused_by: String::new(),
    }
}

/// The first word of what a program says about its version that begins with a digit, after `prefix`.
fn version(program: &str, arguments: &[&str], prefix: &str) -> Result<String> {
    let text = programs::output(Command::new(program).args(arguments))?;
    let after = text.split_once(prefix).map_or(text.as_str(), |(_, rest)| rest);
    let starts_with_digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    let words = after.split_whitespace().map(|word| word.trim_start_matches('v'));
    let found = words.into_iter().find(starts_with_digit);
    Ok(found.with_context(|| format!("{program} tells no version: {text:?}"))?.to_owned())
}

#[cfg(test)]
mod unit {
    use super::*;

    fn spec(state: &str, said: &str) -> RanSpec {
        RanSpec {
            container_hierarchy_texts: Some(vec!["[k8s.io] Some".into(), "kind".into()]),
            leaf_node_text: "can do a (thing)".into(),
            leaf_node_type: "It".into(),
            state: state.into(),
            run_time: 2_500_000_000,
            failure: Some(Failure { message: said.into() }),
        }
    }

    #[test]
    fn a_spec_is_left_out_for_a_reason_or_not_at_all() {
        let excuse = Excuse { spec: "can do a (thing)", reason: "no thing", refused_by: "file.rs" };
        let judged = judge(spec("skipped", ""), &[excuse]).unwrap();
        assert_eq!((judged.state, judged.reason.as_str()), (State::Skipped, "no thing"));
        assert_eq!(judged.name, "[k8s.io] Some kind can do a (thing)");
        assert!(judge(spec("skipped", ""), &[]).is_none(), "it was not asked for");
        assert_eq!(
            judge(spec("skipped", "no\n AppArmor"), &[]).unwrap().reason,
            "the suite says: no AppArmor"
        );
        assert_eq!(judge(spec("passed", ""), &[excuse]).unwrap().state, State::Passed);
        let failed = judge(spec("timedout", "too late"), &[excuse]).unwrap();
        assert_eq!((failed.state, failed.reason.as_str()), (State::Failed, "timedout: too late"));
    }

    #[test]
    fn names_are_quoted_for_regular_expressions() {
        assert_eq!(quoted("a (b) [c].d"), r"a \(b\) \[c\]\.d");
    }
}
