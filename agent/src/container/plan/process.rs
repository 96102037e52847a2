//! One process of a container, checked.

use agent_proto::oci;
use log::warn;
use serde::{Deserialize, Serialize};

use super::{Filter, absolute, refuse};
use crate::error::Result;

/// In the order of their numbers, linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// In the order of their numbers, asm-generic/resource.h.
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// What a process is when its program starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::container) struct Process {
    pub(in crate::container) args: Vec<String>,
    pub(in crate::container) env: Vec<String>,
    pub(in crate::container) cwd: String,
    /// `Some` if it gets a terminal.
    pub(in crate::container) terminal: Option<Size>,
    pub(in crate::container) uid: u32,
    pub(in crate::container) gid: u32,
    pub(in crate::container) groups: Vec<u32>,
    pub(in crate::container) capabilities: Capabilities,
    pub(in crate::container) limits: Vec<Limit>,
    pub(in crate::container) no_new_privileges: bool,
    pub(in crate::container) oom_score_adj: i64,
    pub(in crate::container) filter: Option<Filter>,
}

/// A terminal's size; 0x0 if the spec names none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Size {
    pub(in crate::container) rows: u16,
    pub(in crate::container) columns: u16,
}

/// Sets of capabilities, bit n for number n. Absent is empty: a process gets nothing that the spec does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Capabilities {
    pub(in crate::container) bounding: u64,
    pub(in crate::container) effective: u64,
    pub(in crate::container) inheritable: u64,
    pub(in crate::container) permitted: u64,
    pub(in crate::container) ambient: u64,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Limit {
    /// RLIMIT_…
    pub(in crate::container) resource: u32,
    pub(in crate::container) soft: u64,
    pub(in crate::container) hard: u64,
}

impl Process {
    pub(in crate::container) fn new(process: &oci::Process, filter: Option<Filter>) -> Result<Self> {
        if process.Args.first().is_none_or(String::is_empty) {
            return Err(refuse("The process has no program: args is empty"));
        }
        if let Some(text) = process.Args.iter().chain(&process.Env).find(|text| text.contains('\0')) {
            return Err(refuse(format!(
                "The process has an argument or variable with a zero byte: {text:?}"
            )));
        }
        if let Some(pair) = process.Env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
            return Err(refuse(format!("Environment entry {pair:?} has no name")));
        }
        if !(-1000..=1000).contains(&process.OOMScoreAdj) {
            return Err(refuse(format!("oomScoreAdj {} is not between -1000 and 1000", process.OOMScoreAdj)));
        }
        let user = process.User.get_or_default();
        if let Some(id) = [user.UID, user.GID].iter().chain(&user.AdditionalGids).find(|&&id| id == u32::MAX)
        {
            return Err(refuse(format!("User or group id {id} is not valid")));
        }
        let cwd = if process.Cwd.is_empty() { "/" } else { &process.Cwd };
        Ok(Self {
            args: process.Args.clone(),
            env: process.Env.clone(),
            cwd: absolute(cwd, "Working directory")?,
            terminal: process.Terminal.then(|| size(process)),
            uid: user.UID,
            gid: user.GID,
            groups: user.AdditionalGids.clone(),
            capabilities: process.Capabilities.as_ref().map(capabilities).unwrap_or_default(),
            limits: process.Rlimits.iter().map(limit).collect::<Result<_>>()?,
            no_new_privileges: process.NoNewPrivileges,
            oom_score_adj: process.OOMScoreAdj,
            filter,
        })
    }
}

fn size(process: &oci::Process) -> Size {
    let clip = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = process.ConsoleSize.get_or_default();
    Size { rows: clip(size.Height), columns: clip(size.Width) }
}

fn capabilities(sets: &oci::LinuxCapabilities) -> Capabilities {
    let set =
        |names: &[String]| names.iter().filter_map(|name| capability(name)).fold(0, |set, bit| set | bit);
    Capabilities {
        bounding: set(&sets.Bounding),
        effective: set(&sets.Effective),
        inheritable: set(&sets.Inheritable),
        permitted: set(&sets.Permitted),
        ambient: set(&sets.Ambient),
    }
}

fn capability(name: &str) -> Option<u64> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    let number = CAPABILITIES.iter().position(|known| *known == bare);
    if number.is_none() {
        // One that this kernel does not know can't be given, which is the safe side.
        warn!("Skipped the unknown capability {name:?}");
    }
    number.map(|number| 1 << number)
}

fn limit(limit: &oci::POSIXRlimit) -> Result<Limit> {
    let bare = limit.Type.strip_prefix("RLIMIT_").unwrap_or(&limit.Type);
    let number = LIMITS.iter().position(|known| *known == bare).and_then(|number| u32::try_from(number).ok());
    let resource = number.ok_or_else(|| refuse(format!("Resource limit {:?} is unknown", limit.Type)))?;
    if limit.Soft > limit.Hard {
        let text = format!("Resource limit {}: soft {} is above hard {}", limit.Type, limit.Soft, limit.Hard);
        return Err(refuse(text));
    }
    Ok(Limit { resource, soft: limit.Soft, hard: limit.Hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> oci::Process {
        let mut process = oci::Process::new();
        process.Args = vec!["sh".to_owned()];
        process
    }

    #[test]
    fn absent_capabilities_are_none_and_unknown_ones_are_skipped() {
        assert_eq!(Process::new(&process(), None).unwrap().capabilities, Capabilities::default());
        let mut some = process();
        let sets = some.Capabilities.mut_or_insert_default();
        sets.Bounding =
            ["CAP_CHOWN", "KILL", "CAP_CHECKPOINT_RESTORE", "CAP_MAGIC"].map(str::to_owned).to_vec();
        assert_eq!(Process::new(&some, None).unwrap().capabilities.bounding, 1 | 1 << 5 | 1 << 40);
    }

    #[test]
    fn numbers_of_limits_are_the_kernels() {
        let mut some = process();
        let mut nofile = oci::POSIXRlimit::new();
        (nofile.Type, nofile.Soft, nofile.Hard) = ("RLIMIT_NOFILE".to_owned(), 5, 6);
        some.Rlimits.push(nofile);
        let limits = Process::new(&some, None).unwrap().limits;
        assert_eq!(limits, [Limit { resource: libc::RLIMIT_NOFILE, soft: 5, hard: 6 }]);
        some.Rlimits[0].Soft = 7;
        assert!(Process::new(&some, None).unwrap_err().to_string().contains("RLIMIT_NOFILE"));
        some.Rlimits[0].Type = "RLIMIT_X".to_owned();
        assert!(Process::new(&some, None).unwrap_err().to_string().contains("RLIMIT_X"));
    }

    #[test]
    fn a_process_that_cannot_run_is_refused() {
        let broken: [fn(&mut oci::Process); 6] = [
            |it| it.Args.clear(),
            |it| it.Args.push("a\0b".to_owned()),
            |it| it.Env.push("NOVALUE".to_owned()),
            |it| it.Cwd = "relative".to_owned(),
            |it| it.OOMScoreAdj = 1001,
            |it| it.User.mut_or_insert_default().UID = u32::MAX,
        ];
        for change in broken {
            let mut process = process();
            change(&mut process);
            assert!(Process::new(&process, None).is_err(), "{process:?}");
        }
        assert_eq!(Process::new(&process(), None).unwrap().cwd, "/");
    }
}
