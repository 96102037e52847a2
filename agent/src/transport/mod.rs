//! The agent's channel to the host: vsock, or a virtio-serial port where the VMM has no vsock. `main.rs` listens
//! once; `rpc` serves what is accepted, a connection at a time or many.

use std::time::Duration;

use ttrpc::asynchronous::transport::Listener;

use crate::error::{Context as _, Result};
use crate::init::params::Channel;

mod port;
mod serial;

/// The kata-agent protocol's vsock port.
const VSOCK: &str = "vsock://-1:1024";
/// The name that the VMM gives the agent's virtio-serial port.
const SERIAL: &str = "microvm.agent.0";
/// How long the kernel may take to name the port, which it does some milliseconds after the device is found.
const PORT_APPEARS: Duration = Duration::from_secs(5);
/// The same where nothing says that there is a port.
const PORT_MAY_APPEAR: Duration = Duration::from_millis(300);

/// Opens the channel that the kernel's command line asks for: without a word there, the serial port if the VM
/// has it, else vsock.
///
/// # Errors
/// If the channel is missing or cannot be opened.
pub async fn listen(channel: Option<Channel>) -> Result<Listener> {
    match channel {
        Some(Channel::Vsock) => vsock(),
        Some(Channel::Serial) => serial::listen(port::open(SERIAL, PORT_APPEARS).await?),
        None => match port::find(SERIAL, PORT_MAY_APPEAR).await {
            Ok(device) => serial::listen(port::Port::open(&device)?),
            Err(_) => vsock(),
        },
    }
}

fn vsock() -> Result<Listener> {
    Listener::bind(VSOCK).context(|| format!("Could not listen on {VSOCK}"))
}
