//! Templates: made in the background, cloned, and given up when they are damaged; a clone is a machine of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tests::cri::Pod;
use tests::host::LOGS;
use tests::leaks::{TEMPLATES, wait_for_template};
use tests::programs;

use crate::harness::Bench;
use crate::support::{idle, wait_for, with_pod};

crate::harness::tests![;
    microvm only: two_clones_differ,
    the_first_pod_of_its_kind_has_a_template_made,
    a_damaged_template_is_given_up,
];

/// Guest RAM of the pods that have a template of their own here, in MiB; no other test uses it.
const MEMORY: &str = "320";

/// A pod with this much guest RAM.
fn sized(name: &str, uid: &str) -> Pod {
    Pod::new(name, uid).annotation("io.containerd.microvm.v1/default_memory", &format!("{MEMORY}MiB"))
}

fn microvmctl(words: &[&str]) -> Result<String> {
    programs::output(Command::new("microvmctl").arg("template").args(words))
}

fn make() -> Result<()> {
    wait_for_template()?;
    microvmctl(&["make", "--memory", MEMORY]).map(drop)
}

/// Name and state of the template for pods of that size; none if there is none.
fn template() -> Result<Option<(String, String)>> {
    let list: serde_json::Value = serde_json::from_str(&microvmctl(&["ls", "--json"])?)?;
    let bytes = MEMORY.parse::<u64>()? << 20;
    let found = list.as_array().context("The list is none")?.iter().find(|one| one["memory"] == bytes);
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    Ok(found.map(|one| (text(one, "name"), text(one, "state"))))
}

fn forget() -> Result<()> {
    match template()? {
        Some((name, _)) => microvmctl(&["rm", &name]).map(drop),
        None => Ok(()),
    }
}

/// Runs a test and removes the template afterwards, whatever the test says.
fn with_template(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = test();
    wait_for_template()?;
    let forgotten = forget();
    result?;
    forgotten
}

/// Lines that the shim of a pod has logged which contain all of `words`.
fn logged(pod_id: &str, words: &[&str]) -> Result<usize> {
    let log = fs::read(Path::new(LOGS).join("containerd.log"))?;
    let log = String::from_utf8_lossy(&log);
    let own = format!("sandbox={pod_id} ");
    Ok(log.lines().filter(|line| line.contains(&own) && words.iter().all(|word| line.contains(word))).count())
}

/// Whether a running pod was cloned, as its shim's log says.
fn was_cloned(pod_id: &str) -> Result<bool> {
    let start = r#"\"operation\":\"start\""#;
    wait_for("the shim to log its start", || Ok(logged(pod_id, &[start])? > 0))?;
    Ok(logged(pod_id, &[start, r#"[\"template\","#])? > 0)
}

/// What must be different in every machine: one line each.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; \
    cat /proc/sys/kernel/random/uuid; hostname; cat /sys/class/net/eth0/address; \
    ip -4 -o address show eth0 | awk '{print $4}'";

fn two_clones_differ(bench: &Bench) -> Result<()> {
    with_template(|| {
        make()?;
        with_pod(bench, &sized("twin-a", "t1"), |a, a_id| {
            with_pod(bench, &sized("twin-b", "t2"), |b, b_id| {
                ensure!(was_cloned(a_id)? && was_cloned(b_id)?, "They have booted");
                let a_container = bench.cri.run(a_id, a, &idle("one"))?;
                let b_container = bench.cri.run(b_id, b, &idle("one"))?;
                let of = |container: &str| bench.cri.read(container, &["sh", "-c", IDENTITY]);
                let (first, second) = (of(&a_container)?, of(&b_container)?);
                ensure!(first.lines().count() == 6 && second.lines().count() == 6, "{first}{second}");
                for (ours, theirs) in first.lines().zip(second.lines()) {
                    ensure!(!ours.trim().is_empty() && ours != theirs, "{ours:?} is in both");
                }
                ensure!(first.contains("\ntwin-a\n") && second.contains("\ntwin-b\n"), "{first}{second}");
                for (pod_id, text) in [(a_id, &first), (b_id, &second)] {
                    let ip = bench.cri.pod_ip(pod_id)?;
                    ensure!(text.contains(&format!("\n{ip}/")), "{text} has not the address {ip}");
                    programs::run(Command::new("busybox").args(["ping", "-c", "1", "-W", "5", &ip]))?;
                }
                let guest: u64 = bench.cri.read(&b_container, &["date", "+%s"])?.trim().parse()?;
                let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
                ensure!(guest.abs_diff(host) <= 2, "The guest's clock is at {guest}, the host's at {host}");
                // They reach each other: no address of one is in the other.
                let ip = bench.cri.pod_ip(a_id)?;
                bench.cri.read(&b_container, &["ping", "-c", "1", "-W", "5", &ip])?;
                Ok(())
            })
        })
    })
}

fn the_first_pod_of_its_kind_has_a_template_made(bench: &Bench) -> Result<()> {
    forget()?;
    with_template(|| {
        with_pod(bench, &sized("first", "t3"), |_, pod_id| {
            ensure!(!was_cloned(pod_id)?, "There was a template already");
            wait_for("the making of a template to begin", || {
                Ok(template()?.is_some() || Path::new(TEMPLATES).join(".unfinished").exists())
            })?;
            wait_for_template()?;
            match template()? {
                Some((_, state)) if state == "ready" => Ok(()),
                other => bail!("The template is {other:?}"),
            }
        })?;
        with_pod(bench, &sized("second", "t4"), |_, pod_id| {
            ensure!(was_cloned(pod_id)?, "The second pod has booted");
            Ok(())
        })
    })
}

fn a_damaged_template_is_given_up(bench: &Bench) -> Result<()> {
    with_template(|| {
        make()?;
        let (name, _) = template()?.context("There is no template")?;
        let state = Path::new(TEMPLATES).join(name).join("devices/state");
        fs::write(&state, "no device state").with_context(|| format!("{}", state.display()))?;
        let warning = "Booting the kernel, because the template could not be cloned";
        with_pod(bench, &sized("unlucky", "t5"), |pod, pod_id| {
            let id = bench.cri.run(pod_id, pod, &idle("one"))?;
            bench.cri.read(&id, &["true"])?;
            let said = logged(pod_id, &[warning])?;
            ensure!(said == 1, "It was said {said} times");
            Ok(())
        })?;
        let (_, state) = template()?.context("There is no note")?;
        ensure!(state.starts_with("failed: "), "{state}");
        with_pod(bench, &sized("warned", "t6"), |_, pod_id| {
            ensure!(!was_cloned(pod_id)? && logged(pod_id, &[warning])? == 0, "It was tried again");
            Ok(())
        })
    })
}
