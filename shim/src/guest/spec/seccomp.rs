//! OCI seccomp profile → guest. Called by the translation.

use agent_proto::oci;
use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};
use serde::Serialize;

/// Translates a profile.
pub(super) fn seccomp(profile: &LinuxSeccomp) -> oci::LinuxSeccomp {
    oci::LinuxSeccomp {
        DefaultAction: word(&profile.default_action()),
        Architectures: profile.architectures().iter().flatten().map(word).collect(),
        Flags: profile.flags().iter().flatten().map(word).collect(),
        Syscalls: profile.syscalls().iter().flatten().map(syscall).collect(),
        DefaultErrnoRet: profile.default_errno_ret().unwrap_or_default(),
        ..Default::default()
    }
}

fn syscall(rule: &LinuxSyscall) -> oci::LinuxSyscall {
    let args = rule.args().iter().flatten().map(|arg| oci::LinuxSeccompArg {
        Index: u64::try_from(arg.index()).unwrap_or(u64::MAX),
        Value: arg.value(),
        ValueTwo: arg.value_two().unwrap_or_default(),
        Op: word(&arg.op()),
        ..Default::default()
    });
    oci::LinuxSyscall {
        Names: rule.names().clone(),
        Action: word(&rule.action()),
        errnoret: rule.errno_ret().unwrap_or_default(),
        Args: args.collect(),
        ..Default::default()
    }
}

/// How the runtime spec writes a value of one of its enumerations.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}
