//! Makes a template: boots a machine like a pod's, mounts its shares, saves it, and ends it. In a process of its own,
//! whose mode of the shim's binary this is: it takes seconds, and must not end with the pod that wanted it first. Called
//! by `main`.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assets::Assets;
use super::boot;
use super::pod::blocking;
use crate::config::Config;
use crate::error::{Context, Error, Kind, Result};
use crate::guest::{Agent, spec};
use crate::ledger::{Ledger, Owner, Shim};
use crate::share::Share;
use crate::template::{Found, Key, Lock, MAC, Order, Store};
use crate::vm::memory::Ram;
use crate::vm::{self, NetDevice, Placement, Vm, Vmm};
use crate::{network, snapshot};

/// Folder for the one machine that is being made, in the run directory. containerd's namespaces never start with a dot.
const FOLDER: &str = ".templates";
/// Niceness: pods come first.
const NICE: i32 = 19;
/// How much longer than a pod such a machine may take, which gets what CPU pods leave.
const PATIENCE: u32 = 4;
/// Longest copy of the guest's RAM; it has touched some 60 MB.
const COPY: Duration = Duration::from_secs(60);

/// Makes the template that the first of `arguments`, those after [`crate::template::MODE`], orders.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let what = || "The order of a template is no JSON: this is for the shim and microvmctl to run".to_owned();
    let order = arguments.next().and_then(|argument| argument.into_string().ok()).unwrap_or_default();
    let order: Order = serde_json::from_str(&order).kind(Kind::InvalidArgument, what)?;
    if let Err(error) = rustix::process::nice(NICE) {
        log::debug!("Could not lower the priority: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "Could not start a runtime".into())?;
    runtime.block_on(make(&order, Path::new("/proc/self/exe"), None))
}

/// Makes the template of `order`, unless there is one, or another process makes one just now. `program` is the shim's
/// binary; `vmm` takes the place of what the config says, for tests.
///
/// # Errors
/// Why it could not be made. The store remembers it, and for an hour no pod orders it again; not that it took too long.
pub async fn make(order: &Order, program: &Path, vmm: Option<Arc<dyn Vmm>>) -> Result<()> {
    let config = Config::load(&order.config, [])?;
    let store = Store::new(config.template_store());
    let Some(lock) = store.lock()? else { return Ok(()) };
    let ledger = Arc::new(ledger(&config)?);
    let made = async {
        let vmm = match vmm {
            Some(vmm) => vmm,
            None => vm::choose(&config).await?,
        };
        let share = Share::prepare(ledger.dir(), &ledger)?;
        let made = build(order, &config, &share, &ledger, vmm.as_ref(), (&store, &lock, program)).await;
        also(made, share.stop().await.err().into_iter().collect())
    };
    let made = made.await;
    let releasing = ledger.clone();
    let made = also(made, blocking(move || Ok(releasing.release_all())).await?);
    made.and(store.prune(&lock, config.templates() as usize))
}

async fn build(
    order: &Order,
    config: &Config,
    share: &Share,
    ledger: &Arc<Ledger>,
    vmm: &dyn Vmm,
    (store, lock, program): (&Store, &Lock, &Path),
) -> Result<()> {
    let machine = assemble(order, config, share, ledger)?;
    let ram = machine.ram.clone();
    let vm = vmm.machine(machine.clone(), ledger);
    let identity = vm.identity().await?;
    let key = Key::of(&machine, &identity, vm::binary(config, &identity), program)?;
    if let Found::Ready(_) = store.find(&key)? {
        return Ok(());
    }
    let saved = async {
        share.start(config, &[]).await?;
        let fill = async |devices: &Path, copy: &Path| save(vm.as_ref(), config, devices, (&ram, copy)).await;
        store.add(lock, key.clone(), fill).await
    };
    let saved = also(saved.await, vm.stop().await.err().into_iter().collect());
    match saved {
        Ok(()) => Ok(()),
        // A node that is busy now may not be so when the next pod asks.
        Err(error) if error.kind() == Kind::DeadlineExceeded => Err(error),
        Err(error) => {
            let noted = store.refuse(key, &error.chain());
            Err(error.with_cleanup(noted.err().into_iter().collect()))
        }
    }
}

/// A machine with everything that a pod's has, its tap leading nowhere.
fn assemble(order: &Order, config: &Config, share: &Share, ledger: &Arc<Ledger>) -> Result<vm::Machine> {
    let assets = Assets::find(config)?;
    let netns = ledger.dir().join("netns");
    network::create_netns(&netns, ledger)?;
    let taps = network::taps(&netns, order.nics, ledger)?;
    let ram = Ram::create(ledger.dir(), order.memory, config.huge_pages(), ledger)?;
    Ok(vm::Machine {
        dir: ledger.dir().to_path_buf(),
        kernel: assets.kernel,
        initramfs: assets.initramfs,
        kernel_params: boot::kernel_params(config),
        vcpus: order.vcpus,
        memory: order.memory,
        ram: ram.path().to_path_buf(),
        shares: share.devices(),
        nics: taps.into_iter().map(|tap| NetDevice { tap, mac: MAC.to_owned() }).collect(),
        placement: Placement { netns: Some(netns), cgroup_procs: Vec::new() },
    })
}

/// Boots the machine and saves it as soon as it has what every pod has: the VMM's files into `devices`, RAM from one file into
/// the other.
async fn save(vm: &dyn Vm, config: &Config, devices: &Path, (ram, copy): (&Path, &Path)) -> Result<()> {
    vm.boot().await?;
    let stream = vm.connect_agent(config.boot_timeout() * PATIENCE).await?;
    let agent = Agent::connect(stream, config.agent_timeout() * PATIENCE).await?;
    if !agent.is_extended().await? {
        let text = "The guest's agent can't make a clone a machine of its own; use the guest that comes with this shim";
        return Err(Error::new(Kind::Unimplemented, text));
    }
    // What is the same in every pod. The name is for nobody to see.
    agent.create_sandbox(&spec::sandbox("template", "template")).await?;
    vm.pause().await?;
    let files = vm.save(devices).await?;
    let paths: Vec<_> = files.iter().map(|name| devices.join(name)).collect();
    let (ram, copy) = (ram.to_path_buf(), copy.to_path_buf());
    blocking(move || {
        let what = || format!("Could not copy the guest's RAM {}", ram.display());
        let from = File::open(&ram).context(what)?;
        let to = File::options().read(true).write(true).create_new(true).open(&copy).context(what)?;
        snapshot::copy_ram(&from, &to, Instant::now() + COPY)?;
        snapshot::drop_zero_pages(&to)?;
        // What the host had not written yet when it crashed must not be taken for a template after that.
        for path in paths {
            File::open(&path).and_then(|file| file.sync_all()).context(what)?;
        }
        to.sync_all().context(what)
    })
    .await
}

/// The ledger of the one machine that is being made. What a killed predecessor left is undone first.
fn ledger(config: &Config) -> Result<Ledger> {
    let dir = config.run_dir().join(FOLDER).join("machine");
    if let Ok(old) = Ledger::open(&dir) {
        Error::first_of(old.release_all())?;
    }
    let owner = Owner {
        namespace: FOLDER.into(),
        sandbox: "machine".into(),
        bundle: Default::default(),
        containerd_address: Default::default(),
        ttrpc_address: String::new(),
        shim: Shim::current()?,
    };
    Ledger::create(&dir, owner)
}

/// The result, with what failed after it.
fn also(result: Result<()>, failures: Vec<Error>) -> Result<()> {
    match result {
        Ok(()) => Error::first_of(failures),
        Err(error) => Err(error.with_cleanup(failures)),
    }
}
