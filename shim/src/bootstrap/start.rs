//! `start`: answers the address of the shim that serves a container: one that runs already, or a new one.

use std::path::Path;
use std::process::Child;

use super::bundle::{self, Bundle};
use super::daemon;
use super::dialect::{self, Dialect, Params};
use super::flags::Flags;
use super::launch;
use super::socket::{self, Bound};
use crate::config::{Config, Source};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Shim, start_time};

/// Where containerd's ttrpc socket is, for containerds that don't say so on stdin.
const TTRPC_VARIABLE: &str = "TTRPC_ADDRESS";

/// Answers what goes to stdout.
pub(super) fn start(flags: &Flags, input: &[u8]) -> Result<Vec<u8>> {
    flags.check()?;
    let params = dialect::parse(input, flags)?;
    let bundle = Bundle::current()?;
    let annotations = bundle.annotations()?;
    let group = bundle::group(&annotations, &flags.id);
    let path = socket::path(params.socket_dir.as_deref(), &flags.address, &flags.namespace, group)?;
    let address = format!("unix://{}", path.display());
    match socket::bind(&path)? {
        Bound::Theirs => bundle.write_address(&address)?,
        Bound::Ours(listener) => {
            let served = settings(flags, &params, &bundle, &path, &annotations).and_then(|flags| {
                let child = launch::launch(&flags, bundle.path(), listener.into())?;
                introduce(child, &params, &bundle, &address)
            });
            // Without a server, the socket would make the next `start` wait for an answer.
            served.map_err(|error| error.with_cleanup(socket::unlink(&path).err().into_iter().collect()))?;
        }
    }
    let dialect = match params.dialect {
        Dialect::Json if daemon::is_version_1(&flags.publish_binary) => Dialect::OldJson,
        dialect => dialect,
    };
    dialect::reply(dialect, &address)
}

/// The server's flags. The config is read here already: what is wrong with it reaches the user this way only.
fn settings(
    flags: &Flags,
    params: &Params,
    bundle: &Bundle,
    socket: &Path,
    annotations: &std::collections::HashMap<String, String>,
) -> Result<Flags> {
    let source = Source::from_options(params.options.as_ref())?;
    let restore = crate::sandbox::RESTORE_FROM;
    let keys = annotations.iter().filter(|(key, _)| *key != restore);
    let config = Config::load(&source, keys.map(|(key, value)| (key.as_str(), value.as_str())))?;
    release_leftovers(&config.run_dir().join(&flags.namespace).join(&flags.id))?;
    let debug = flags.debug.then_some(log::LevelFilter::Debug);
    let level = [debug, params.log_level, Some(config.log_level())].into_iter().flatten().max();
    let ttrpc = params.ttrpc_address.clone().or_else(|| std::env::var(TTRPC_VARIABLE).ok());
    Ok(Flags {
        ttrpc_address: ttrpc.unwrap_or_else(|| format!("{}.ttrpc", flags.address.display())),
        bundle: bundle.path().to_owned(),
        socket: socket.to_owned(),
        log_level: level,
        ..flags.clone()
    })
}

/// A sandbox with this id whose shim died, and whose `delete` failed or never came, must not be in the way.
fn release_leftovers(dir: &Path) -> Result<()> {
    let ledger = match Ledger::open(dir) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        ledger => ledger?,
    };
    let shim = ledger.owner().shim;
    if shim.is_alive() {
        let text = format!("Sandbox {} is served by shim {} already", dir.display(), shim.pid);
        return Err(Error::new(Kind::AlreadyExists, text));
    }
    Error::first_of(ledger.release_all())
}

/// containerd calls no `delete` for a server that it never reached.
fn still_runs(child: &mut Child) -> Result<()> {
    match child.try_wait().context(|| "Could not look after the shim's server".into())? {
        None => Ok(()),
        Some(status) => {
            let text = format!("The shim's server ended at once, with {status}: see containerd's log");
            Err(Error::new(Kind::Unavailable, text))
        }
    }
}

/// What must be true before containerd hears of the server. It is ended if that can't be.
fn introduce(mut child: Child, params: &Params, bundle: &Bundle, address: &str) -> Result<()> {
    let pid = child.id();
    let introduced = launch::adjust_oom_score(pid)
        .and_then(|()| launch::join_cgroup(pid, params.options.as_ref()))
        .and_then(|()| bundle.write_shim(&Shim { pid, start_time: start_time(pid)? }))
        .and_then(|()| bundle.write_address(address))
        .and_then(|()| still_runs(&mut child));
    if introduced.is_err() {
        // It holds nothing on the host yet.
        let _ = child.kill().and_then(|()| child.wait());
    }
    introduced
}
