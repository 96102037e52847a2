//! Measures microvm beside runc on one containerd, in a test host of its own. Called by `cargo xtask bench`.
//!
//! Every round runs each scenario once with each runtime, in turns, so that whatever else the machine does hits both
//! alike. The first round warms up and is thrown away.
//!
//! | file | what it does |
//! |---|---|
//! | `figures.rs` | every figure: what it is, its unit, its goal |
//! | `scenarios.rs` | what is run for which figures, and how often |
//! | `starts.rs`, `snapshots.rs`, `streams.rs`, `crowd.rs` | the scenarios |
//! | `memory.rs` | what the processes of a pod hold |
//! | `phases.rs` | the shim's own timings, read from its log |
//! | `world.rs` | the clients, and the samples so far |
//! | `report.rs`, `table.rs`, `facts.rs` | the result, for people and for scripts |

mod crowd;
mod facts;
mod figures;
mod memory;
mod phases;
mod report;
mod scenarios;
mod snapshots;
mod starts;
mod statistics;
mod streams;
mod table;
mod world;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use tests::host::containerd::Containerd;
use tests::host::{self, Payload};
use tests::{images, programs};

use report::Report;
use world::World;

/// Where the report lies in the test host's folder of logs.
const REPORT: &str = "bench.json";

#[derive(Debug, Parser)]
struct Arguments {
    /// The workspace's target folder
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Folder made by `cargo xtask install --root`, laid over the test host's tree
    #[arg(long)]
    installed: Option<PathBuf>,
    /// Measure only figures whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Samples of each latency
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Write the report to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// What was built, for the report
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Set in the test host
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    host::main(|| run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<i32> {
    if arguments.inside {
        return measure(arguments).map(|()| 0);
    }
    let mut inside: Vec<OsString> = vec!["--inside".into(), "--commit".into(), (&arguments.commit).into()];
    inside.extend(["--rounds".into(), arguments.rounds.to_string().into()]);
    if let Some(only) = &arguments.only {
        inside.extend(["--only".into(), only.into()]);
    }
    let installed = arguments.installed.clone();
    let payload = Payload { name: "bench".into(), arguments: inside, installed, ..Payload::default() };
    let target = std::path::absolute(&arguments.target)?;
    let code = host::run(&target, &payload)?;
    if let Some(file) = arguments.json.as_ref().filter(|_| code == 0) {
        std::fs::copy(target.join("testhost/logs/bench").join(REPORT), file)
            .with_context(|| format!("Could not write the report to {}", file.display()))?;
    }
    Ok(code)
}

/// Inside: containerd, the rounds, the report.
fn measure(arguments: &Arguments) -> Result<()> {
    let scenarios = scenarios::chosen(arguments.only.as_deref())?;
    let containerd = Containerd::start()?;
    for namespace in ["default", "k8s.io"] {
        images::import(namespace, &images::shared()?)?;
    }
    // Ahead, as an operator would: what the first pods pay is the figure of a cold run.
    for interfaces in ["0", "1"] {
        programs::run(Command::new("microvmctl").args(["template", "make", "--interfaces", interfaces]))?;
    }
    let mut world = World::connect()?;
    let result = scenarios::run(&scenarios, arguments.rounds, &mut world);
    if result.is_err() {
        eprintln!("The last lines of containerd's log:\n{}", containerd.tail(15));
    }
    containerd.stop()?;
    result?;
    phases::read(&mut world)?;
    let report = Report::new(&world, facts::Facts::gather(&arguments.commit, arguments.rounds)?);
    println!("{}", table::of(&report));
    let file = Path::new(host::LOGS).join(REPORT);
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("Could not write {}", file.display()))
}
