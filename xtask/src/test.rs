//! `cargo xtask test`: checks, unit and shim-level tests, and, in a test host, the end-to-end tests and critest.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::workspace::{Workspace, step};
use crate::{check, clients, packages, shell};

#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// Run only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Runtime handler of the end-to-end tests: microvm, or runc to see whether the tests themselves are right
    #[arg(long, default_value = "microvm")]
    handler: String,
    /// Run only end-to-end tests whose name contains this, or specs of critest whose name matches it
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Check,
    Unit,
    E2e,
    Critest,
}

/// What test runners counted.
#[derive(Debug, Default)]
struct Count {
    passed: u32,
    failed: u32,
}

pub(crate) fn run(workspace: &Workspace, test: &Test) -> Result<ExitCode> {
    let wanted = |part| test.only.is_none_or(|only| only == part);
    let mut count = Count::default();
    let mut broken = Vec::new();
    if wanted(Part::Check)
        && test.filter.is_none()
        && let Err(error) = check::run(workspace)
    {
        eprintln!("xtask: {error:#}");
        broken.push("check");
    }
    if wanted(Part::Unit) && test.filter.is_none() {
        packages::need(packages::BUILD)?;
        let mut cargo = workspace.cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
        if !counted("Unit and shim-level tests", &mut cargo, &mut count)? {
            broken.push("unit");
        }
    }
    if wanted(Part::E2e) && !end_to_end(workspace, test, &mut count)? {
        broken.push("e2e");
    }
    let in_all = test.only.is_none() && test.filter.is_none();
    if (in_all || test.only == Some(Part::Critest)) && !critest(workspace, test, &mut count)? {
        broken.push("critest");
    }
    // A part that broke without a failing test, a compile error for example, is a failure all the same.
    let failed = count.failed.max(u32::try_from(broken.len()).unwrap_or(1));
    let summary = format!("{} passed, {failed} failed", count.passed);
    std::fs::write(workspace.target.join("test-summary"), format!("{summary}\n"))?;
    if !broken.is_empty() {
        println!("failed: {}", broken.join(", "));
    }
    println!("{summary}");
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn end_to_end(workspace: &Workspace, test: &Test, count: &mut Count) -> Result<bool> {
    packages::need(packages::BUILD)?;
    packages::need(packages::TESTHOST)?;
    let root = test.root(workspace)?;
    clients::lay_into(workspace, &root)?;
    let program = build(workspace)?;
    counted("End-to-end tests", &mut test.runner(workspace, &program, &root), count)
}

/// Builds the end-to-end tests; their program.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    // Static, because it runs in containers whose images have no libraries.
    let build = ["rustc", "--quiet", "--locked", "-p", "tests", "--bin", "intruder"];
    let mut intruder = workspace.cargo(&build);
    step("Build what runs in their containers", intruder.args(["--", "-C", "target-feature=+crt-static"]))?;
    program(workspace, "e2e")
}

fn program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let build = ["build", "--quiet", "--locked", "-p", "tests", "--bin", name];
    step(&format!("Build the runner {name}"), &mut workspace.cargo(&build))?;
    Ok(workspace.target.join("debug").join(name))
}

/// The CRI's own suite, five minutes long.
fn critest(workspace: &Workspace, test: &Test, count: &mut Count) -> Result<bool> {
    packages::need(packages::TESTHOST)?;
    let root = test.root(workspace)?;
    if !clients::lay_into(workspace, &root)? {
        return Ok(true);
    }
    let program = program(workspace, "conformance")?;
    counted("critest", &mut test.runner(workspace, &program, &root), count)
}

impl Test {
    /// What is laid over the test host's tree, fresh.
    fn root(&self, workspace: &Workspace) -> Result<PathBuf> {
        if self.handler == "runc" { shell::empty(workspace) } else { shell::installed(workspace) }
    }

    /// A program that starts a test host and runs in it.
    fn runner(&self, workspace: &Workspace, program: &Path, root: &Path) -> Command {
        let mut runner = Command::new(program);
        runner
            .arg("--target")
            .arg(&workspace.target)
            .arg("--installed")
            .arg(root)
            .args(["--handler", &self.handler])
            .args(&self.filter);
        runner
    }
}

/// Runs a test runner, shows what it prints, and adds up its closing lines. Whether it succeeded.
fn counted(title: &str, command: &mut Command, count: &mut Count) -> Result<bool> {
    println!("==> {title}");
    let begun = Instant::now();
    let mut runner = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("Could not run {:?}", command.get_program()))?;
    if let Some(output) = runner.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            add(&line, count);
        }
    }
    let status = runner.wait()?;
    println!("    {title}: {:.1} s", begun.elapsed().as_secs_f32());
    Ok(status.success())
}

/// `test result: ok. 3 passed; 0 failed; …`
fn add(line: &str, count: &mut Count) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    for part in rest.split([';', '.']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) =
            (words.next().and_then(|word| word.parse::<u32>().ok()), words.next())
        else {
            continue;
        };
        match what {
            "passed" => count.passed += number,
            "failed" => count.failed += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut count = Count::default();
        add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            &mut count,
        );
        add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured", &mut count);
        add("test a::b ... ok", &mut count);
        assert_eq!((count.passed, count.failed), (5, 4));
    }
}
