//! Which kernel parameters a container may set: those of namespaces it is in, not those of the whole guest.

use std::collections::HashMap;

use super::Spaces;
use super::refuse;
use crate::error::Result;

const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// Paths below /proc/sys and values, sorted. Network parameters are those of the sandbox, which is this guest.
pub(super) fn check(sysctls: &HashMap<String, String>, spaces: &Spaces) -> Result<Vec<(String, String)>> {
    let mut checked = Vec::new();
    for (name, value) in sysctls {
        let path = path(name);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refuse(format!("Sysctl {name:?} is malformed")));
        }
        if !allowed(&path, spaces) {
            return Err(refuse(format!("Sysctl {name} belongs to the whole guest, not to the container")));
        }
        checked.push((path, value.clone()));
    }
    checked.sort();
    Ok(checked)
}

/// As sysctl(8): the first separator tells which of `.` and `/` separates; the other is part of a name ("eth0.100").
fn path(name: &str) -> String {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']).and_then(|at| name.get(at..)) {
        Some(rest) if rest.starts_with('.') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

fn allowed(path: &str, spaces: &Spaces) -> bool {
    match path.strip_prefix("kernel/") {
        Some("domainname") => spaces.own_uts(),
        Some(name) => IPC.contains(&name),
        None => path.starts_with("net/") || path.starts_with("fs/mqueue/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Namespaces;

    #[test]
    fn namespaced_parameters_pass_and_others_are_named() {
        let spaces = Spaces::new(&[], &Namespaces::default()).unwrap();
        let one = |name: &str| check(&HashMap::from([(name.to_owned(), "1".to_owned())]), &spaces);
        assert_eq!(one("net.ipv4.ip_forward").unwrap()[0].0, "net/ipv4/ip_forward");
        assert_eq!(one("net/ipv4/conf/eth0.7/forwarding").unwrap()[0].0, "net/ipv4/conf/eth0.7/forwarding");
        assert_eq!(one("net.ipv4.conf.eth0/7.forwarding").unwrap()[0].0, "net/ipv4/conf/eth0.7/forwarding");
        assert_eq!(one("kernel.shm_rmid_forced").unwrap()[0].0, "kernel/shm_rmid_forced");
        for bad in [
            "kernel.panic",
            "vm.swappiness",
            "kernel.domainname",
            "net..x",
            "net/../kernel/panic",
            "",
            "net.",
        ] {
            let text = one(bad).unwrap_err().to_string();
            assert!(text.contains(bad), "{text}");
        }
    }
}
