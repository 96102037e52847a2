//! `cargo xtask conformance`: writes `docs/conformance.md` from the reports that runs of other people's suites left below
//! `target` (`cargo xtask test --only critest [--handler runc]`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace::Workspace;

/// The runs that the page shows, by the folder of their logs.
const RUNS: &[&str] = &["critest-microvm", "critest-runc"];
const PAGE: &str = "docs/conformance.md";

const HEAD: &str = "# Conformance

What other people's suites say about this runtime, and about runc in the same test host, which shows what is the test
host's doing. Nothing is skipped without a reason. Written by `cargo xtask conformance` from the reports of
`cargo xtask test --only critest` and `cargo xtask test --only critest --handler runc`; do not edit.
";

/// What `tests/conformance/report.rs` writes.
#[derive(Debug, Deserialize)]
struct Report {
    suite: String,
    version: String,
    containerd: String,
    handler: String,
    seconds: u64,
    specs: Vec<Spec>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    name: String,
    state: String,
    reason: String,
    refused_by: String,
}

impl Report {
    fn count(&self, state: &str) -> usize {
        self.specs.iter().filter(|spec| spec.state == state).count()
    }

    /// The names of the specs in a state, by the reason and the file that refuses.
    fn reasons(&self, state: &str) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut reasons: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for spec in self.specs.iter().filter(|spec| spec.state == state) {
            let reason = (spec.reason.as_str(), spec.refused_by.as_str());
            reasons.entry(reason).or_default().push(spec.name.as_str());
        }
        reasons
    }
}

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut reports = Vec::new();
    for run in RUNS {
        let file = workspace.target.join("testhost/logs").join(run).join("report.json");
        match std::fs::read(&file) {
            Ok(text) => reports.push(
                serde_json::from_slice(&text)
                    .with_context(|| format!("Could not read {}", file.display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("==> Left out: no run of {run} has left {}", file.display());
            }
            Err(error) => return Err(error).with_context(|| format!("Could not read {}", file.display())),
        }
    }
    if reports.is_empty() {
        bail!("No suite has been run: begin with `cargo xtask test --only critest`");
    }
    write(&workspace.root.join(PAGE), &page(&reports))
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("Could not write {}", file.display()))?;
    println!("==> Wrote {}", file.display());
    Ok(())
}

fn page(reports: &[Report]) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n| suite | containerd | runtime | passed | failed | skipped | seconds |\n");
    page.push_str("|---|---|---|---|---|---|---|\n");
    for report in reports {
        let Report { suite, version, containerd, handler, seconds, .. } = report;
        let counts = ["passed", "failed", "skipped"].map(|state| report.count(state).to_string()).join(" | ");
        // Writing to a String can't fail.
        let _ = writeln!(page, "| {suite} {version} | {containerd} | {handler} | {counts} | {seconds} |");
    }
    for report in reports {
        for (state, title) in [("failed", "Failed"), ("skipped", "Skipped")] {
            let reasons = report.reasons(state);
            if reasons.is_empty() {
                continue;
            }
            let _ = writeln!(page, "\n## {title}: {} with {}", report.suite, report.handler);
            for ((reason, refused_by), names) in reasons {
                let by = if refused_by.is_empty() { String::new() } else { format!(" (`{refused_by}`)") };
                let _ = writeln!(page, "\n{}{by}:\n", one_line(reason));
                names.iter().for_each(|name| page.push_str(&format!("- {}\n", one_line(name))));
            }
        }
    }
    page
}

/// Text that stays in its line and means nothing to Markdown.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace('[', "\\[").replace('<', "\\<")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_counts_and_gives_reasons() {
        let report = r#"{"suite": "s", "version": "1", "containerd": "2", "handler": "microvm", "seconds": 9, "specs": [
            {"name": "a", "state": "passed", "reason": "", "refused_by": ""},
            {"name": "b[c", "state": "skipped", "reason": "no VM can", "refused_by": "x.rs"}]}"#;
        let text = page(&[serde_json::from_str(report).unwrap()]);
        assert!(text.contains("| s 1 | 2 | microvm | 1 | 0 | 1 | 9 |"), "{text}");
        assert!(text.contains("## Skipped: s with microvm"), "{text}");
        assert!(text.contains("no VM can (`x.rs`):\n\n- b\\[c\n"), "{text}");
        assert!(!text.contains("Failed"), "{text}");
    }
}
