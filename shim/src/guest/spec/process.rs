//! OCI process → guest: a container's first one, or an exec. Called by the translation and by `container`.

use agent_proto::oci;
use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimit, Process};

use super::check;
use crate::error::{Error, Kind, Result};

/// Translates a process. AppArmor and SELinux labels stay behind: the guest has neither.
///
/// # Errors
/// `InvalidArgument` for a process without arguments or with a relative directory.
pub fn process(process: &Process) -> Result<oci::Process> {
    let wrong = check::process(process);
    if !wrong.is_empty() {
        let text = format!("The process is invalid: {}", wrong.join("; "));
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let user = process.user();
    let user = oci::User {
        UID: user.uid(),
        GID: user.gid(),
        AdditionalGids: user.additional_gids().clone().unwrap_or_default(),
        Username: user.username().clone().unwrap_or_default(),
        ..Default::default()
    };
    let size = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let console = process.console_size().map(|console| oci::Box {
        Height: size(console.height()),
        Width: size(console.width()),
        ..Default::default()
    });
    Ok(oci::Process {
        Terminal: process.terminal().unwrap_or(false),
        ConsoleSize: console.into(),
        User: Some(user).into(),
        Args: process.args().clone().unwrap_or_default(),
        Env: process.env().clone().unwrap_or_default(),
        Cwd: process.cwd().to_string_lossy().into_owned(),
        Capabilities: process.capabilities().as_ref().map(capabilities).into(),
        Rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
        NoNewPrivileges: process.no_new_privileges().unwrap_or(false),
        OOMScoreAdj: process.oom_score_adj().unwrap_or_default().into(),
        ..Default::default()
    })
}

fn capabilities(capabilities: &LinuxCapabilities) -> oci::LinuxCapabilities {
    oci::LinuxCapabilities {
        Bounding: names(capabilities.bounding()),
        Effective: names(capabilities.effective()),
        Inheritable: names(capabilities.inheritable()),
        Permitted: names(capabilities.permitted()),
        Ambient: names(capabilities.ambient()),
        ..Default::default()
    }
}

/// Sorted, so that the same spec always gives the same request.
fn names(set: &Option<Capabilities>) -> Vec<String> {
    let mut names: Vec<_> = set.iter().flatten().map(|name| format!("CAP_{name}")).collect();
    names.sort_unstable();
    names
}

fn rlimit(limit: &PosixRlimit) -> oci::POSIXRlimit {
    oci::POSIXRlimit {
        Type: limit.typ().to_string(),
        Hard: limit.hard(),
        Soft: limit.soft(),
        ..Default::default()
    }
}
