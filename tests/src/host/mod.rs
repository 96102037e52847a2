//! The test host: a Debian with a real containerd in namespaces of its own, so that nothing on the machine changes.
//!
//! `run` (called by the demo, the shell and the end-to-end tests) starts the calling program a second time inside the
//! test host; everything after that, containerd included, is an ordinary program in an ordinary Debian. When the inner
//! program ends, or the outer one dies, the kernel ends the whole pid namespace.
//!
//! | file | what it does |
//! |---|---|
//! | `tree.rs` | the Debian tree, made once with mmdebstrap and kept below `target/testhost` |
//! | `instance.rs` | one test host: its folders and cgroups, and their removal; runs outside |
//! | `init.rs`, `mounts.rs` | PID 1 of the test host: namespaces, mounts, reaping; runs inside |
//! | `nested.rs`, `nested/init.rs` | the same in a virtual machine of its own, where KVM works |
//! | `containerd.rs` | containerd in the test host: configuration, start, stop |

pub mod containerd;
mod init;
mod instance;
mod mounts;
mod nested;
mod tree;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

/// First argument that makes a program of [`main`] the init process of a test host.
const INIT_ARGUMENT: &str = "testhost-init";

/// The same for the init process of a test host that is a virtual machine.
const NESTED_ARGUMENT: &str = "testhost-nested-init";

/// Where a test host that is a virtual machine finds its kernel's modules: files that are loaded in the order of their
/// names.
pub const MODULES: &str = "/opt/testhost/modules";

/// Where the test host keeps the logs that outlive it; a folder of `target/testhost/logs` outside.
pub const LOGS: &str = "/var/log/testhost";

/// What runs in the test host, and what is laid into it.
#[derive(Debug, Default)]
pub struct Payload {
    /// Names the folder of logs, `target/testhost/logs/<name>`.
    pub name: String,
    /// The program's arguments; the program is the caller itself unless `program` says otherwise.
    pub arguments: Vec<OsString>,
    /// A program of the test host's tree to run instead of the caller.
    pub program: Option<PathBuf>,
    /// A folder whose content is laid over the tree before it starts (what `cargo xtask install --root` made).
    pub installed: Option<PathBuf>,
    /// More files: a path of this machine, and where the test host has it.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The test host is a virtual machine, emulated, with a processor in which KVM works. It needs `installed`, with
    /// the modules that [`MODULES`] speaks of.
    pub nested: bool,
}

/// `main` of a program that has itself run in a test host: becomes the test host's init process when the arguments say
/// so, else calls `run`, and exits with its code. No thread may be running yet.
pub fn main(run: impl FnOnce() -> Result<i32>) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|first| first.to_str()) {
        Some(INIT_ARGUMENT) => return code(init::main(arguments.next())),
        Some(NESTED_ARGUMENT) => nested::init::main(),
        _ => {}
    }
    match run() {
        Ok(end) => code(end),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Starts a test host, runs the payload in it, takes the test host down and returns the payload's exit code.
///
/// `target` is the workspace's target folder.
pub fn run(target: &Path, payload: &Payload) -> Result<i32> {
    let home = target.join("testhost");
    std::fs::create_dir_all(&home)
        .with_context(|| format!("Could not make the folder {}", home.display()))?;
    let tree = tree::ensure(&home)?;
    let instance = instance::Instance::create(&home, &tree, payload)?;
    let code = instance.run(payload);
    let removed = instance.remove();
    let code = code?;
    removed?;
    Ok(code)
}
