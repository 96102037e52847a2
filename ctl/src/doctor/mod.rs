//! `microvmctl doctor`: whether pods can start on this node, and if not, why. Every check is made for real where that
//! is cheap: a tap is made, KVM is booted. Called by `main`.

mod containerd;
mod host;
mod kernel;
mod vmm;

use anyhow::Result;
use serde::Serialize;
use shim::Config;
use shim::config::Source;

use crate::cli::Cli;
use crate::table::table;

/// What a check found.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    outcome: Outcome,
    /// What was found.
    detail: String,
    /// What to do; empty if nothing.
    hint: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As it should be.
    Ok,
    /// Pods start, but slower or with less than they could.
    Poor,
    /// Pods can't start.
    Broken,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Finding { check, outcome: Outcome::Ok, detail: detail.into(), hint: String::new() }
    }

    fn poor(check: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Finding { check, outcome: Outcome::Poor, detail: detail.into(), hint: hint.into() }
    }

    fn broken(check: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Finding { check, outcome: Outcome::Broken, detail: detail.into(), hint: hint.into() }
    }
}

/// Makes all checks and shows what they found; whether pods can start.
pub(crate) async fn run(cli: &Cli) -> Result<bool> {
    let mut findings = vec![privileges()];
    match load(cli) {
        Ok(config) => {
            findings.push(Finding::ok("config", config_origin(cli)));
            findings.extend(vmm::check(&config).await);
            findings.extend(host::check(&config));
        }
        Err(error) => {
            let hint = "docs/config.md describes every key; the checks that need the config were left out";
            findings.push(Finding::broken("config", error.chain(), hint));
        }
    }
    findings.extend(kernel::check());
    findings.extend(containerd::check(cli).await);
    show(cli, &findings)?;
    Ok(findings.iter().all(|finding| finding.outcome != Outcome::Broken))
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Finding::ok("privileges", "runs as root");
    }
    Finding::broken("privileges", "does not run as root", "run it as root, as containerd runs the shim")
}

fn load(cli: &Cli) -> shim::Result<Config> {
    Config::load(&cli.config.clone().map_or(Source::Node, Source::Path), [])
}

fn config_origin(cli: &Cli) -> String {
    let variable = std::env::var_os(shim::config::PATH_VARIABLE).map(std::path::PathBuf::from);
    let path = cli.config.clone().or(variable).unwrap_or_else(|| shim::config::DEFAULT_PATH.into());
    match path.exists() {
        true => format!("{} is valid", path.display()),
        false => format!("{} does not exist: defaults", path.display()),
    }
}

fn show(cli: &Cli, findings: &[Finding]) -> Result<()> {
    if cli.json {
        println!("{}", serde_json::to_string_pretty(findings)?);
        return Ok(());
    }
    let mut rows = Vec::new();
    for Finding { check, outcome, detail, hint } in findings {
        let outcome = match outcome {
            Outcome::Ok => "ok",
            Outcome::Poor => "poor",
            Outcome::Broken => "BROKEN",
        };
        rows.push(vec![(*check).to_owned(), outcome.to_owned(), detail.clone()]);
        if !hint.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("→ {hint}")]);
        }
    }
    print!("{}", table(&["CHECK", "", "FOUND"], &rows));
    let broken = findings.iter().filter(|finding| finding.outcome == Outcome::Broken).count();
    match broken {
        0 => println!("\nPods can start on this node."),
        count => println!("\nPods can't start on this node: {count} of {} checks say why.", findings.len()),
    }
    Ok(())
}
