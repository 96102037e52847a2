//! The shim's own timings: one line of JSON in its log for each create, start and checkpoint. Called by `main.rs` when all
//! rounds are over.

use std::fs;
use std::path::Path;

use ::tests::host::LOGS;
use anyhow::{Context, Result};
use serde_json::Value;

use crate::world::{Runtime, World};

/// How the shim's message begins, in containerd's log.
const MARK: &str = "msg=\"phases ";

/// One operation of a shim.
#[derive(Debug, PartialEq)]
struct Line {
    sandbox: String,
    operation: String,
    phases: Vec<(String, f64)>,
}

impl Line {
    fn of(&self, name: &str) -> Option<f64> {
        self.phases.iter().find(|(phase, _)| phase == name).map(|(_, time)| *time)
    }

    /// The sum of phases, if all of them were there.
    fn sum(&self, names: &[&str]) -> Option<f64> {
        names.iter().map(|name| self.of(name)).sum()
    }

    /// What was done, in a person's words.
    fn title(&self) -> String {
        match self.operation.as_str() {
            "start" if self.of("kernel").is_some() => "start from the kernel".into(),
            "start" if self.of("template").is_some() => "start from a template".into(),
            "start" if self.of("renew").is_some() => "start from a snapshot".into(),
            "start" => "start of a container".into(),
            other => other.to_owned(),
        }
    }
}

/// Reads containerd's log, adds the figures that come from it, and all phases.
pub(crate) fn read(world: &mut World) -> Result<()> {
    let file = Path::new(LOGS).join("containerd.log");
    let text = fs::read(&file).with_context(|| format!("Could not read {}", file.display()))?;
    world.counts = true;
    for line in String::from_utf8_lossy(&text).lines().filter_map(parse) {
        let Some(scenario) = world.sandboxes.get(&line.sandbox).copied() else { continue };
        figures(world, scenario, &line);
        if scenario.ends_with("-1024") || scenario.ends_with("-4096") {
            continue;
        }
        let total = line.phases.iter().map(|(_, time)| time).sum();
        for (phase, time) in line.phases.iter().chain([&("all".to_owned(), total)]) {
            let key = (line.title(), phase.clone());
            match world.phases.iter_mut().find(|(known, _)| *known == key) {
                Some((_, samples)) => samples.push(*time),
                None => world.phases.push((key, vec![*time])),
            }
        }
    }
    Ok(())
}

fn figures(world: &mut World, scenario: &str, line: &Line) {
    let own = Runtime::Microvm;
    if let Some(time) = line.sum(&["vmm", "kernel"]).filter(|_| line.operation == "start") {
        world.note("cold-boot", own, time);
    }
    if let Some(time) = line.sum(&["vmm", "agent"]) {
        let figure = if line.of("template").is_some() { "clone" } else { "guest-restore" };
        world.note(figure, own, time);
    }
    if let Some(time) = line.sum(&["pause", "state", "ram", "resume"]) {
        match scenario {
            "snapshot-256" => world.note("still-256", own, time),
            "snapshot-1024" => world.note("still-1024", own, time),
            _ => world.note("still-4096", own, time),
        }
    }
}

/// A line of the log, if it has the phases of an operation that succeeded.
fn parse(line: &str) -> Option<Line> {
    let (_, rest) = line.split_once(MARK)?;
    let (message, fields) = rest.split_once("}\" ")?;
    // Quotes and backslashes are escaped as JSON has it.
    let message: String = serde_json::from_str(&format!("\"{message}}}\"")).ok()?;
    let message: Value = serde_json::from_str(&message).ok()?;
    let sandbox = fields.split(' ').find_map(|field| field.strip_prefix("sandbox="))?;
    let phases = message["phases"].as_array()?.iter();
    let phases = phases.map(|phase| Some((phase[0].as_str()?.to_owned(), phase[1].as_f64()?)));
    (message["complete"] == true).then_some(Line {
        sandbox: sandbox.trim_matches('"').to_owned(),
        operation: message["operation"].as_str()?.to_owned(),
        phases: phases.collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"time="2026-11-25T10:00:00.1Z" level=info msg="phases {\"complete\":true,\"operation\":\"start\",\"phases\":[[\"vmm\",40.5],[\"kernel\",1900.0]],\"total_ms\":1941.0}" namespace=k8s.io sandbox=p1 runtime=microvm"#;

    #[test]
    fn lines_of_the_log_are_found_among_others() {
        let line = parse(LINE).unwrap();
        assert_eq!((line.sandbox.as_str(), line.operation.as_str()), ("p1", "start"));
        assert_eq!(line.sum(&["vmm", "kernel"]), Some(1940.5));
        assert_eq!(line.sum(&["vmm", "agent"]), None);
        assert_eq!(line.title(), "start from the kernel");
        assert_eq!(parse(&LINE.replace("true", "false")), None);
        assert_eq!(parse("time=x level=info msg=\"phases of the moon\" sandbox=p1"), None);
    }
}
