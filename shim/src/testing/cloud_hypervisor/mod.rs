//! A Cloud Hypervisor without a VM, as a process: it speaks the real one's API over the socket that it inherits, keeps
//! the same states, and its guest is the scripted agent behind a hybrid vsock. A script says what goes wrong. Tests
//! name a wrapper of it as the config's `cloud_hypervisor_path`.

mod http;
mod machine;
mod script;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{UnixListener, UnixStream};

use self::http::Request;
use self::machine::{Machine, Refusal};
pub use self::script::{Fault, Script, When};

/// The whole VMM.
#[derive(Debug)]
struct Vmm {
    script: Script,
    machine: tokio::sync::Mutex<Machine>,
    events: Mutex<File>,
}

/// What the process was told on its command line.
#[derive(Debug, Default)]
struct Arguments {
    api: Option<i32>,
    events: Option<i32>,
    script: Option<PathBuf>,
    version: bool,
}

impl Arguments {
    fn parse(mut all: impl Iterator<Item = OsString>) -> Self {
        let mut arguments = Arguments::default();
        while let Some(argument) = all.next() {
            let mut fd = || all.next()?.to_str()?.strip_prefix("fd=")?.parse().ok();
            match argument.to_str() {
                Some("--api-socket") => arguments.api = fd(),
                Some("--event-monitor") => arguments.events = fd(),
                Some("--script") => arguments.script = all.next().map(PathBuf::from),
                Some("--version") => arguments.version = true,
                _ => {}
            }
        }
        arguments
    }
}

/// Is the VMM. `arguments` are the real one's, and `--script` with the file of a [`Script`].
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = Arguments::parse(arguments);
    let Some(script) = arguments.script.as_deref().and_then(Script::read) else {
        eprintln!("the scripted VMM has no script");
        return ExitCode::FAILURE;
    };
    if arguments.version {
        println!("cloud-hypervisor v{}", script.version);
        return ExitCode::SUCCESS;
    }
    let (Some(api), Some(events)) = (arguments.api, arguments.events) else {
        eprintln!("the scripted VMM needs --api-socket and --event-monitor with descriptors");
        return ExitCode::FAILURE;
    };
    // SAFETY: both were passed for this process to own, and nothing else here knows them.
    let (api, events) =
        unsafe { (std::os::unix::net::UnixListener::from_raw_fd(api), File::from_raw_fd(events)) };
    let served = Machine::new().and_then(|machine| {
        let vmm = Vmm { script, machine: tokio::sync::Mutex::new(machine), events: Mutex::new(events) };
        serve(vmm, api)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the scripted VMM failed: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(vmm: Vmm, api: std::os::unix::net::UnixListener) -> std::io::Result<()> {
    api.set_nonblocking(true)?;
    let api = UnixListener::from_std(api)?;
    let vmm = Arc::new(vmm);
    vmm.tell("vmm", "starting");
    loop {
        let (stream, _) = api.accept().await?;
        tokio::spawn(Arc::clone(&vmm).answer(stream));
    }
}

impl Vmm {
    /// Writes an event, as the real one writes them.
    fn tell(&self, source: &str, event: &str) {
        let event = serde_json::json!({
            "timestamp": { "secs": 0, "nanos": 1 }, "source": source, "event": event, "properties": null
        });
        // Whoever listened may be gone, which the real one does not mind either.
        let _ = write!(lock(&self.events), "{event:#}\n\n");
    }

    async fn answer(self: Arc<Self>, mut stream: UnixStream) {
        let Some(request) = Request::read(&mut stream).await else { return };
        self.script.note(&request);
        let fault = self.script.fault(&request.verb);
        match fault {
            Some(Fault::Refuse) => {
                http::refuse(&mut stream, 500, "scripted refusal").await;
                return;
            }
            Some(Fault::Half) => {
                http::half(&mut stream).await;
                return;
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Die(When::Before)) => die(),
            _ => {}
        }
        match self.act(&request).await {
            Ok(body) => http::accept(&mut stream, &body).await,
            Err(Refusal(status, text)) => http::refuse(&mut stream, status, &text).await,
        }
        match fault {
            Some(Fault::Die(When::After)) => die(),
            Some(Fault::Reboot) => self.tell("vm", "rebooting"),
            _ => {}
        }
    }

    async fn act(&self, request: &Request) -> Result<String, Refusal> {
        let mut machine = self.machine.lock().await;
        let nothing = |()| String::new();
        match (&*request.method, &*request.verb) {
            ("GET", "vmm.ping") => {
                let version = &self.script.version;
                let pid = std::process::id();
                let pong = serde_json::json!({
                    "build_version": format!("v{version}"), "version": version, "pid": pid, "features": ["kvm"]
                });
                Ok(pong.to_string())
            }
            ("GET", "vm.info") => machine.info(),
            ("PUT", "vm.create") => machine.create(&request.body).map(nothing),
            ("PUT", "vm.boot") => machine.boot().await.map(nothing),
            ("PUT", "vm.pause") => machine.go("Running", "Paused").map(nothing),
            ("PUT", "vm.resume") => machine.go("Paused", "Running").map(nothing),
            ("PUT", "vm.snapshot") => machine.snapshot(&request.body).map(nothing),
            ("PUT", "vm.restore") => machine.restore(&request.body).await.map(nothing),
            (method, verb) => Err(Refusal(404, format!("there is no {method} {verb}"))),
        }
    }
}

/// Ends as a VMM that crashes.
fn die() -> ! {
    eprintln!("scripted death");
    std::process::exit(101)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
