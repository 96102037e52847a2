//! PID 1 of the guest. Its first argument makes the same binary one of the agent's helper processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::container::{self, Runtime};
use agent::error::{Context as _, Result};
use agent::init::{self, params::Params};
use agent::network::Network;
use agent::reaper::Reaper;
use agent::rpc::{self, Parts};
use agent::sandbox::{Sandbox, dns, namespaces};
use agent::transport;
use tokio::sync::Notify;

/// Where the guest's one hierarchy of cgroups is.
const CGROUPS: &str = "/sys/fs/cgroup";
/// This binary, for the processes that it helps itself with.
const SELF: &str = "/proc/self/exe";
/// Threads that serve: a second one answers while the first is in a call that takes its time.
const WORKERS: usize = 2;
/// Threads for what blocks, at most: mounts that hang must not use up all there are.
const BLOCKING: usize = 64;
/// How long the guest goes on serving after it was told to end.
const LAST_ANSWER: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let code = match args.next() {
        Some(mode) if mode == OsStr::new(container::HELPER) => container::helper_main(args),
        Some(mode) if mode == OsStr::new(namespaces::INIT) => namespaces::init_main(),
        _ if std::process::id() != 1 => {
            eprintln!(
                "This is the agent of a micro-VM's guest: it runs as PID 1 of an initramfs and nowhere else."
            );
            2
        }
        _ => {
            guest();
            1
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Runs until the guest shall end, then powers it off. Returns only if that fails, for the kernel to panic.
fn guest() {
    let result = init::boot().and_then(|params| serve(&params));
    if let Err(error) = result {
        // The log may not have been started yet; standard error is the console too.
        log::error!("{}", error.chain());
        eprintln!("agent: {}", error.chain());
    }
    init::power_off();
}

fn serve(params: &Params) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context(|| "Could not start the runtime")?;
    runtime.block_on(async {
        let network = Network::start()?;
        network.start_loopback().await?;
        dns::link()?;
        let reaper = Reaper::start()?;
        let containers = Runtime::new(reaper.clone(), Path::new(CGROUPS), PathBuf::from(SELF))?;
        let sandbox = Sandbox::new(containers, reaper, PathBuf::from(SELF));
        let parts = Arc::new(Parts { sandbox, network, end: Notify::new() });
        let listener = transport::listen(params.channel).await?;
        log::info!("Agent {} serves", env!("CARGO_PKG_VERSION"));
        let mut serving = pin!(rpc::serve(listener, parts.clone()));
        tokio::select! {
            () = &mut serving => log::error!("The channel to the host has ended"),
            () = parts.end.notified() => {
                log::info!("The guest ends");
                // The call that ends the guest is answered too.
                _ = tokio::time::timeout(LAST_ANSWER, serving).await;
            }
        }
        Ok(())
    })
}
