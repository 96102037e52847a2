//! Port-forward. containerd dials `localhost:<port>` in the pod's network namespace, but the pod's servers are in the
//! guest: every TCP connection to the namespace's loopback is carried to the guest's, through the agent. Started by
//! `sandbox` once the guest runs, and ended with it.

mod lookup;
mod stream;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener as Listener};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::namespace::inside;
use crate::error::{Context, Error, Result};
use crate::guest::Agent;
use lookup::Lookup;

/// Most connections at a time, as many as the agent carries; more wait in the listener's queue.
const MOST: usize = 256;
/// Rest after an accept that failed: for want of descriptors, as a rule.
const PAUSE: Duration = Duration::from_millis(100);

/// The forwarding of one pod. The network namespace can't go before it has been stopped.
#[derive(Debug)]
pub struct Forward {
    accepting: Mutex<JoinSet<()>>,
}

/// What listens in the namespace, by family.
struct Listeners {
    sockets: [Option<Listener>; 2],
    lookup: Lookup,
}

impl Forward {
    /// Forwards the loopback of `netns` to that of `agent`'s guest.
    ///
    /// # Errors
    /// When the kernel does not allow it: Linux before 5.9, or without BPF.
    pub fn start(netns: &Path, agent: &Agent) -> Result<Self> {
        let Listeners { sockets, lookup } = inside(netns, listen)?;
        let (lookup, places) = (Arc::new(lookup), Arc::new(Semaphore::new(MOST)));
        let mut accepting = JoinSet::new();
        for socket in sockets.into_iter().flatten() {
            let listener = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
            let listener = listener.context(failed)?;
            let (agent, lookup, places) = (agent.clone(), lookup.clone(), places.clone());
            accepting.spawn(async move {
                tokio::select! {
                    () = accept(&listener, &agent, &places) => {}
                    () = agent.closed() => {}
                }
                drop(lookup);
            });
        }
        Ok(Forward { accepting: Mutex::new(accepting) })
    }

    /// Ends it and every connection that it carries. Twice is as good as once.
    pub async fn stop(&self) {
        let mut accepting =
            std::mem::take(&mut *self.accepting.lock().unwrap_or_else(PoisonError::into_inner));
        accepting.shutdown().await;
    }
}

/// Carries connections until it is dropped, and they with it.
async fn accept(listener: &TcpListener, agent: &Agent, places: &Arc<Semaphore>) {
    let mut carried = JoinSet::new();
    loop {
        // Never closed, so there is always a place to wait for.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let agent = agent.clone();
                carried.spawn(async move {
                    if let Err(error) = stream::carry(&agent, socket).await {
                        log::info!("Port-forward: {}", Error::chain(&error));
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("Port-forward: could not accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while carried.try_join_next().is_some() {}
    }
}

/// Runs in the namespace. IPv6 may be switched off on the host.
fn listen() -> Result<Listeners> {
    let four = Listener::bind((Ipv4Addr::LOCALHOST, 0)).context(failed)?;
    let six = Listener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
    let netns = File::open("/proc/thread-self/ns/net").context(failed)?;
    let sockets = [Some(four), six];
    let listeners = sockets.each_ref().map(|socket| socket.as_ref().map(AsFd::as_fd));
    let lookup = Lookup::attach(netns.as_fd(), listeners).context(failed)?;
    Ok(Listeners { sockets, lookup })
}

fn failed() -> String {
    "Could not make port-forward for the pod; it needs Linux 5.9 with BPF".into()
}
