//! Refuses, by name and all at once, what a spec asks for and a micro-VM can't give; and says which hooks the guest
//! runs. Called by the translation before anything else.

use agent_proto::oci;
use oci_spec::runtime::{
    Hook, LinuxNamespaceType, LinuxPersonalityDomain, LinuxSeccompAction, Process, Spec,
};

use crate::error::{Error, Kind, Result};

/// Names everything in `spec` that is missing or can't be had.
pub(super) fn check(spec: &Spec) -> Result<()> {
    let mut refused = Vec::new();
    let mut wrong = spec.process().as_ref().map_or(vec!["it has no process".into()], process);
    if spec.mounts().iter().flatten().any(|mount| !mount.destination().is_absolute()) {
        wrong.push("a mount's destination is not absolute".into());
    }
    if let Some(linux) = spec.linux() {
        let types = linux.namespaces().iter().flatten().map(|namespace| namespace.typ());
        if types.clone().any(|typ| typ == LinuxNamespaceType::User) {
            refused.push("a user namespace (hostUsers: false)");
        }
        if linux.personality().as_ref().is_some_and(|p| p.domain() != LinuxPersonalityDomain::PerLinux) {
            refused.push("a personality");
        }
        if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
            refused.push("network devices of the host (linux.netDevices)");
        }
        if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
            refused.push("time offsets");
        }
        if let Some(seccomp) = linux.seccomp() {
            let syscalls = seccomp.syscalls().iter().flatten().map(|rule| rule.action());
            if syscalls.chain([seccomp.default_action()]).any(|a| a == LinuxSeccompAction::ScmpActNotify) {
                refused.push("a seccomp profile that notifies a supervisor (SCMP_ACT_NOTIFY)");
            }
        }
    }
    if !wrong.is_empty() {
        let text = format!("The container's spec is invalid: {}", wrong.join("; "));
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    if !refused.is_empty() {
        let text = format!("The container asks for what a micro-VM does not offer: {}", refused.join(", "));
        return Err(Error::new(Kind::Unimplemented, text));
    }
    Ok(())
}

/// What is wrong with a process.
pub(super) fn process(process: &Process) -> Vec<String> {
    let mut wrong = Vec::new();
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        wrong.push("process.args is empty".into());
    }
    if !process.cwd().is_absolute() {
        wrong.push(format!("process.cwd is {:?}, want an absolute path", process.cwd()));
    }
    let strings = process.args().iter().chain(process.env()).flatten();
    if strings.into_iter().any(|text| text.contains('\0')) {
        wrong.push("process.args or process.env has a zero byte".into());
    }
    wrong
}

/// The hooks of the container's own namespaces, which run in the guest. `container` runs the others, whose paths are on
/// the host.
pub(super) fn guest_hooks(spec: &Spec) -> Option<oci::Hooks> {
    let hooks = spec.hooks().as_ref()?;
    let all = |hooks: &Option<Vec<Hook>>| hooks.iter().flatten().map(hook).collect::<Vec<_>>();
    let guest = oci::Hooks {
        CreateContainer: all(hooks.create_container()),
        StartContainer: all(hooks.start_container()),
        ..Default::default()
    };
    let some = !guest.CreateContainer.is_empty() || !guest.StartContainer.is_empty();
    some.then_some(guest)
}

fn hook(hook: &Hook) -> oci::Hook {
    oci::Hook {
        Path: hook.path().to_string_lossy().into_owned(),
        Args: hook.args().clone().unwrap_or_default(),
        Env: hook.env().clone().unwrap_or_default(),
        Timeout: hook.timeout().unwrap_or_default(),
        ..Default::default()
    }
}
