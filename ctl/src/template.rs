//! `microvmctl template`: the node's templates. Called by `main`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::json;
use shim::Config;
use shim::template::{Listed, MODE, Order, State, Store, size_class};

use crate::cli::{Cli, Make, TemplateVerb};
use crate::table::{age, size, table};

/// The shim, which makes templates.
const SHIM: &str = "containerd-shim-microvm-v1";

pub(crate) fn run(cli: &Cli, config: &Config, verb: &TemplateVerb) -> Result<()> {
    let store = Store::new(config.template_store());
    match verb {
        TemplateVerb::Ls => list(cli, &store),
        TemplateVerb::Make(wanted) => make(cli, config, &store, wanted),
        TemplateVerb::Rm { name } => {
            store.remove(name)?;
            match cli.json {
                true => println!("{}", json!({"name": name, "done": "removed"})),
                false => println!("{name}: removed"),
            }
            Ok(())
        }
    }
}

fn make(cli: &Cli, config: &Config, store: &Store, wanted: &Make) -> Result<()> {
    if config.templates() == 0 {
        bail!("The config turns templates off (templates = 0)");
    }
    let order = Order {
        config: crate::source(cli),
        vcpus: wanted.vcpus.unwrap_or(config.default_vcpus()),
        memory: size_class(wanted.memory.map_or(config.default_memory(), |mebibytes| mebibytes << 20)),
        nics: wanted.interfaces.into(),
    };
    let shim = shim()?;
    let mut command = Command::new(&shim);
    let made = command.arg(MODE).arg(order.argument()?).output();
    let made = made.with_context(|| format!("Could not run {}", shim.display()))?;
    if !made.status.success() {
        bail!("No template was made: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    let is_it = |one: &&Listed| {
        one.state == State::Ready
            && one.key.as_ref().is_some_and(|key| {
                (key.vcpus, key.memory, key.nics) == (order.vcpus, order.memory, order.nics) && !one.stale
            })
    };
    let all = store.list()?;
    let Some(found) = all.iter().find(is_it) else {
        bail!("Another process makes a template just now; try again when it is done");
    };
    match cli.json {
        true => println!("{}", listed_json(found)),
        false => println!("{}: made; {} on disk", found.name, size(found.bytes)),
    }
    Ok(())
}

/// The shim's binary: beside ours, where it is installed, or along PATH.
fn shim() -> Result<PathBuf> {
    let own = std::env::current_exe().context("Could not find the own program")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = own.parent().map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join(SHIM)).find(|file| file.is_file());
    found.with_context(|| format!("{SHIM} is neither beside {} nor in PATH", own.display()))
}

fn list(cli: &Cli, store: &Store) -> Result<()> {
    let all = store.list()?;
    if cli.json {
        let all: Vec<_> = all.iter().map(listed_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let rows: Vec<_> = all.iter().map(row).collect();
    print!("{}", table(&["NAME", "USED", "CPUS", "MEMORY", "INTERFACES", "ON DISK", "STATE"], &rows));
    Ok(())
}

fn listed_json(listed: &Listed) -> serde_json::Value {
    let key = listed.key.as_ref();
    json!({
        "name": listed.name,
        "vcpus": key.map(|key| key.vcpus),
        "memory": key.map(|key| key.memory),
        "interfaces": key.map(|key| key.nics),
        "bytes": listed.bytes,
        "state": state(listed),
    })
}

fn row(listed: &Listed) -> Vec<String> {
    let used = SystemTime::now().duration_since(listed.used).unwrap_or_default();
    let number =
        |of: fn(&shim::template::Key) -> String| listed.key.as_ref().map_or_else(|| "-".to_owned(), of);
    vec![
        listed.name.clone(),
        age(used.as_secs()),
        number(|key| key.vcpus.to_string()),
        number(|key| size(key.memory)),
        number(|key| key.nics.to_string()),
        size(listed.bytes),
        state(listed),
    ]
}

fn state(listed: &Listed) -> String {
    match &listed.state {
        State::Failed(reason) => format!("failed: {reason}"),
        State::Ready if listed.stale => "stale: the kernel, initramfs, VMM or shim has changed".into(),
        State::Ready => "ready".into(),
    }
}
