//! Which namespaces a container makes and which it joins.

use std::path::PathBuf;

use agent_proto::oci::LinuxNamespace;
use serde::{Deserialize, Serialize};

use super::refuse;
use crate::container::Namespaces;
use crate::error::Result;

/// One namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) enum Space {
    /// The agent's own.
    Shared,
    /// A new one.
    New,
    /// The one this file is a handle of.
    Joined(PathBuf),
}

/// The namespaces about which there is a choice. Mounts and cgroups are always the container's own.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::container) struct Spaces {
    /// Never the agent's: a container could signal it and see all others.
    pub(in crate::container) pid: Space,
    pub(in crate::container) ipc: Space,
    pub(in crate::container) uts: Space,
    pub(in crate::container) net: Space,
}

impl Spaces {
    /// The sandbox's namespaces win over the spec's, as there one namespace stands for the whole sandbox.
    pub(super) fn new(spec: &[LinuxNamespace], joins: &Namespaces) -> Result<Self> {
        let mut spaces = Self { pid: Space::New, ipc: Space::Shared, uts: Space::Shared, net: Space::Shared };
        for namespace in spec {
            let space = match namespace.Path.as_str() {
                "" => Space::New,
                path => Space::Joined(path.into()),
            };
            match namespace.Type.as_str() {
                "pid" => spaces.pid = space,
                "ipc" => spaces.ipc = space,
                "uts" => spaces.uts = space,
                "network" => spaces.net = space,
                "mount" | "cgroup" if space == Space::New => {}
                "mount" | "cgroup" => {
                    return Err(refuse(format!(
                        "Could not join a {} namespace: a container has its own",
                        namespace.Type
                    )));
                }
                other => {
                    return Err(refuse(format!(
                        "Namespaces of type {other:?} are not supported in the guest"
                    )));
                }
            }
        }
        for (space, joined) in
            [(&mut spaces.pid, &joins.pid), (&mut spaces.ipc, &joins.ipc), (&mut spaces.uts, &joins.uts)]
        {
            if let Some(path) = joined {
                *space = Space::Joined(path.clone());
            }
        }
        Ok(spaces)
    }

    pub(super) fn own_uts(&self) -> bool {
        self.uts == Space::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(kinds: &[(&str, &str)]) -> Vec<LinuxNamespace> {
        let make = |&(kind, path): &(&str, &str)| {
            let mut namespace = LinuxNamespace::new();
            (namespace.Type, namespace.Path) = (kind.to_owned(), path.to_owned());
            namespace
        };
        kinds.iter().map(make).collect()
    }

    #[test]
    fn the_sandbox_wins_and_pid_is_never_the_agents() {
        let spaces = Spaces::new(&[], &Namespaces::default()).unwrap();
        assert_eq!((&spaces.pid, &spaces.ipc, &spaces.net), (&Space::New, &Space::Shared, &Space::Shared));
        let joins = Namespaces { ipc: Some("/ipc".into()), ..Namespaces::default() };
        let spec = listed(&[("ipc", ""), ("uts", ""), ("network", "/net"), ("mount", ""), ("cgroup", "")]);
        let spaces = Spaces::new(&spec, &joins).unwrap();
        assert_eq!(spaces.ipc, Space::Joined("/ipc".into()));
        assert_eq!(spaces.net, Space::Joined("/net".into()));
        assert!(spaces.own_uts() && spaces.pid == Space::New);
        for bad in [("user", ""), ("time", ""), ("mount", "/mnt")] {
            let error = Spaces::new(&listed(&[bad]), &joins).unwrap_err().to_string();
            assert!(error.contains(bad.0), "{error}");
        }
    }
}
