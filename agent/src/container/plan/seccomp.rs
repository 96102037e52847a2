//! The spec's seccomp section compiled to BPF. This happens once per container and in the agent, not in the helper:
//! compiling takes most of the time of an exec, and every exec'd process gets the same filter.

use std::io::{Read, Seek};
use std::str::FromStr;

use agent_proto::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use log::warn;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::refuse;
use crate::error::{Context as _, Error, Kind, Result};

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Filter {
    /// Each a `struct sock_filter` in memory order.
    pub(in crate::container) instructions: Vec<u64>,
    /// SECCOMP_FILTER_FLAG_…
    pub(in crate::container) flags: u64,
}

/// `None` for a profile that allows everything.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Option<Filter>> {
    if profile.DefaultAction.is_empty() {
        return Ok(None);
    }
    let default = action(&profile.DefaultAction, profile.DefaultErrnoRet)?;
    if default == ScmpAction::Allow && profile.Syscalls.is_empty() {
        return Ok(None);
    }
    let flags = profile.Flags.iter().map(|name| flag(name)).sum::<Result<u64>>()?;
    let mut context = ScmpFilterContext::new(default).context(|| "Could not make a seccomp filter")?;
    for name in &profile.Architectures {
        let arch = ScmpArch::from_str(name).map_err(|error| {
            Error::caused(Kind::InvalidArgument, format!("Seccomp architecture {name:?} is unknown"), error)
        })?;
        context.add_arch(arch).context(|| format!("Could not add seccomp architecture {name}"))?;
    }
    for rule in &profile.Syscalls {
        add(&mut context, default, rule)?;
    }
    Ok(Some(Filter { instructions: export(&context)?, flags }))
}

fn add(context: &mut ScmpFilterContext, default: ScmpAction, rule: &LinuxSyscall) -> Result<()> {
    let action = action(&rule.Action, rule.errnoret)?;
    if action == default {
        return Ok(());
    }
    let conditions = rule.Args.iter().map(condition).collect::<Result<Vec<_>>>()?;
    // Several conditions on one argument are alternatives for the kernel's library, one rule each.
    let repeated = rule
        .Args
        .iter()
        .enumerate()
        .any(|(at, arg)| rule.Args.iter().take(at).any(|it| it.Index == arg.Index));
    for name in &rule.Names {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            // Profiles name calls of other architectures and of newer kernels.
            continue;
        };
        let result: Result<(), SeccompError> = if repeated {
            conditions
                .iter()
                .try_for_each(|one| context.add_rule_conditional(action, syscall, &[*one]).map(drop))
        } else {
            context.add_rule_conditional(action, syscall, &conditions).map(drop)
        };
        result.context(|| format!("Could not add a seccomp rule for {name}"))?;
    }
    Ok(())
}

fn action(name: &str, errno: u32) -> Result<ScmpAction> {
    let number = i32::try_from(errno).ok().filter(|&errno| errno < 4096);
    let number = number.ok_or_else(|| refuse(format!("Seccomp errno {errno} is too large")))?;
    // Over the wire 0 is "not given", which the spec defines as EPERM.
    let number = if number == 0 { libc::EPERM } else { number };
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(number),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(u16::try_from(number).unwrap_or(0)),
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        "SCMP_ACT_NOTIFY" => {
            return Err(refuse("Seccomp action SCMP_ACT_NOTIFY needs an agent on the host: not supported"));
        }
        other => return Err(refuse(format!("Seccomp action {other:?} is unknown"))),
    })
}

fn condition(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    let index = u32::try_from(arg.Index).ok().filter(|&index| index < 6);
    let index =
        index.ok_or_else(|| refuse(format!("Seccomp argument {} does not exist: 0 to 5", arg.Index)))?;
    let (operator, value) = match arg.Op.as_str() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, arg.Value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, arg.Value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, arg.Value),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, arg.Value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, arg.Value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, arg.Value),
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(arg.Value), arg.ValueTwo),
        other => return Err(refuse(format!("Seccomp operator {other:?} is unknown"))),
    };
    Ok(ScmpArgCompare::new(index, operator, value))
}

fn flag(name: &str) -> Result<u64> {
    Ok(match name {
        "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // The process has one thread when it gets its filter.
        "SECCOMP_FILTER_FLAG_TSYNC" => 0,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
            warn!("Skipped seccomp flag {name}: there is no listener to wait for");
            0
        }
        other => return Err(refuse(format!("Seccomp flag {other:?} is unknown"))),
    })
}

/// Through a file in memory: libseccomp before 2.6 writes to nothing else.
fn export(context: &ScmpFilterContext) -> Result<Vec<u64>> {
    let read = || -> Result<Vec<u8>> {
        let memory =
            memfd_create("seccomp", MFdFlags::MFD_CLOEXEC).context(|| "Could not make a file in memory")?;
        context.export_bpf(&memory).context(|| "Could not compile the seccomp filter")?;
        let mut file = std::fs::File::from(memory);
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .context(|| "Could not read the seccomp filter")?;
        Ok(bytes)
    };
    let bytes = read()?;
    let (instructions, rest) = bytes.as_chunks::<8>();
    if instructions.is_empty() || !rest.is_empty() || instructions.len() > usize::from(u16::MAX) {
        return Err(refuse(format!(
            "The seccomp filter has {} bytes, which the kernel would refuse",
            bytes.len()
        )));
    }
    Ok(instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(default: &str, action: &str, names: &[&str]) -> LinuxSeccomp {
        let mut rule = LinuxSyscall::new();
        rule.Action = action.to_owned();
        rule.Names = names.iter().map(|&name| name.to_owned()).collect();
        let mut profile = LinuxSeccomp::new();
        profile.DefaultAction = default.to_owned();
        profile.Syscalls.push(rule);
        profile
    }

    #[test]
    fn profiles_compile_and_unknown_calls_are_skipped() {
        let filter = compile(&profile("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", &["mkdir", "no_such_call"]))
            .unwrap()
            .unwrap();
        assert!(filter.instructions.len() > 3);
        assert_eq!(filter.flags, 0);
        let mut allow_all = profile("SCMP_ACT_ALLOW", "", &[]);
        allow_all.Syscalls.clear();
        assert!(compile(&allow_all).unwrap().is_none());
        assert!(compile(&LinuxSeccomp::new()).unwrap().is_none());
    }

    #[test]
    fn default_errno_is_the_profiles() {
        // SECCOMP_RET_ERRNO with the number in its low half: what the instruction at the end returns.
        let returns = |errno: u32, wanted: u64| {
            let mut given = profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", &["mkdir"]);
            given.DefaultErrnoRet = errno;
            let filter = compile(&given).unwrap().unwrap();
            filter.instructions.iter().any(|instruction| instruction >> 32 == 0x5_0000 | wanted)
        };
        assert!(returns(38, 38) && !returns(38, 1));
        assert!(returns(0, 1));
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name() {
        for (default, action) in
            [("SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY"), ("SCMP_ACT_ALLOW", "X"), ("Y", "SCMP_ACT_ALLOW")]
        {
            let error = compile(&profile(default, action, &["mkdir"])).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
        let mut flags = profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", &["mkdir"]);
        flags.Flags = vec!["SECCOMP_FILTER_FLAG_LOG".to_owned(), "SECCOMP_FILTER_FLAG_X".to_owned()];
        assert!(compile(&flags).unwrap_err().to_string().contains("FLAG_X"));
        let mut arch = profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", &["mkdir"]);
        arch.Architectures = vec!["SCMP_ARCH_X86_64".to_owned(), "SCMP_ARCH_X86".to_owned()];
        assert!(compile(&arch).unwrap().is_some());
        arch.Architectures.push("SCMP_ARCH_VAX".to_owned());
        assert!(compile(&arch).unwrap_err().to_string().contains("VAX"));
    }
}
