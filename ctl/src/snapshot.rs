//! `microvmctl snapshot`: the node's store. Called by `main`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use shim::Config;
use shim::config::StoreRam;
use shim::images::Client;
use shim::snapshot::store::Listed;
use shim::snapshot::{FinishedSave, Form, Manifest, Store};

use crate::cli::{Cli, Create, Import, RamForm, SnapshotVerb};
use crate::table::{age, size, table};

pub(crate) async fn run(cli: &Cli, config: &Config, verb: &SnapshotVerb) -> Result<()> {
    let store = Store::new(config.snapshot_store());
    match verb {
        SnapshotVerb::Ls => list(cli, &store),
        SnapshotVerb::Create(create) => {
            let done = create_from(cli, config, &store, create).await?;
            say(cli, &create.name, &done.manifest, done.bytes, "created")
        }
        SnapshotVerb::Import(import) => {
            let done = import_from(cli, config, &store, import).await?;
            say(cli, &import.name, &done.manifest, done.bytes, "imported")
        }
        SnapshotVerb::Verify { name } => {
            let snapshot = store.open(name)?;
            snapshot.verify().with_context(|| format!("The snapshot {name} can't be used"))?;
            say(cli, name, snapshot.manifest(), snapshot.disk_bytes()?, "verified")
        }
        SnapshotVerb::Rm { name } => {
            store.remove(name)?;
            match cli.json {
                true => println!("{}", json!({"name": name, "done": "removed"})),
                false => println!("{name}: removed"),
            }
            Ok(())
        }
    }
}

fn wanted_form(asked: Option<RamForm>, config: &Config) -> Form {
    match (asked, config.snapshot_ram()) {
        (Some(RamForm::Plain), _) | (None, StoreRam::Plain) => Form::Plain,
        (Some(RamForm::Packed), _) | (None, StoreRam::Packed) => Form::Packed,
    }
}

async fn create_from(cli: &Cli, config: &Config, store: &Store, create: &Create) -> Result<FinishedSave> {
    let client = Client::connect(&cli.address, &cli.namespace).await?;
    let id = client.find_task(&create.pod).await?;
    let form = wanted_form(create.ram, config);
    let capture = async |into: &Path| client.checkpoint(&id, into, create.exit).await;
    Ok(store.capture(&create.name, form, capture).await?)
}

async fn import_from(cli: &Cli, config: &Config, store: &Store, import: &Import) -> Result<FinishedSave> {
    let form = wanted_form(import.ram, config);
    let (source, name) = (import.source.as_str(), import.name.as_str());
    let path = Path::new(source);
    let is_path = path.is_absolute() || source.starts_with('.') || path.exists();
    if !is_path {
        return from_image(cli, store, source, name, form).await;
    }
    let metadata = path.metadata().with_context(|| format!("Could not find {source}"))?;
    if metadata.is_dir() {
        return Ok(store.import_dir(path, name, form)?);
    }
    if !metadata.is_file() {
        bail!("{source} is neither a directory nor an archive");
    }
    let archive = File::open(path).with_context(|| format!("Could not open {source}"))?;
    Ok(store.import_archive(&archive, name, form)?)
}

async fn from_image(cli: &Cli, store: &Store, image: &str, name: &str, form: Form) -> Result<FinishedSave> {
    let client = Client::connect(&cli.address, &cli.namespace).await.with_context(|| {
        format!("{image} is no file, so it should be an image, but containerd can't be asked")
    })?;
    if !client.has_image(image).await? {
        bail!(
            "{image} is neither a file nor an image in containerd's namespace {}; --namespace names another",
            cli.namespace
        );
    }
    let mut archive = store.scratch_file()?;
    client.fetch_checkpoint(image, &mut archive).await?;
    Ok(store.import_archive(&archive, name, form)?)
}

fn list(cli: &Cli, store: &Store) -> Result<()> {
    let all = store.list()?;
    if cli.json {
        let all: Vec<_> = all.iter().map(listed_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let rows: Vec<_> = all.iter().map(row).collect();
    let heads = ["NAME", "AGE", "POD", "CONTAINERS", "MEMORY", "ON DISK", "RAM", "VMM", "PROBLEM"];
    print!("{}", table(&heads, &rows));
    Ok(())
}

fn listed_json(listed: &Listed) -> serde_json::Value {
    match &listed.manifest {
        Ok(manifest) => json!({"name": listed.name, "bytes": listed.bytes, "manifest": manifest}),
        Err(error) => json!({"name": listed.name, "bytes": listed.bytes, "problem": error.chain()}),
    }
}

fn row(listed: &Listed) -> Vec<String> {
    let (name, bytes) = (listed.name.clone(), size(listed.bytes));
    let manifest = match &listed.manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            let dash = || "-".to_owned();
            return vec![name, dash(), dash(), dash(), dash(), bytes, dash(), dash(), error.chain()];
        }
    };
    let pod = &manifest.contents;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let containers: Vec<_> = pod.containers.iter().map(|one| one.guest_name.as_str()).collect();
    vec![
        name,
        age(since.as_secs().saturating_sub(pod.made.at)),
        if pod.sandbox.pod_name.is_empty() { "-".into() } else { pod.sandbox.pod_name.clone() },
        containers.join(","),
        size(pod.machine.memory),
        bytes,
        form_name(manifest).into(),
        format!("{} {} {}", pod.vmm.name, pod.vmm.version, pod.vmm.accelerator),
    ]
}

fn form_name(manifest: &Manifest) -> &'static str {
    match manifest.ram.form {
        Form::Plain => "plain",
        Form::Packed => "packed",
    }
}

fn say(cli: &Cli, name: &str, manifest: &Manifest, bytes: u64, done: &str) -> Result<()> {
    if cli.json {
        println!("{}", json!({"name": name, "done": done, "bytes": bytes, "manifest": manifest}));
        return Ok(());
    }
    let pod = &manifest.contents;
    println!(
        "{name}: {done}; {} containers, {} of RAM, {} on disk ({})",
        pod.containers.len(),
        size(pod.machine.memory),
        size(bytes),
        form_name(manifest)
    );
    Ok(())
}
