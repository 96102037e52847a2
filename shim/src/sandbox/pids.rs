//! Whose processes a new container sees. CRI names a task of the pod by its pid on the host, which is the sandbox's
//! own for a shared process namespace and another container's for an ephemeral container with a target. Called by
//! Create.

use super::Sandbox;
use super::facts::{Role, Spec};
use crate::error::{Error, Kind, Result};
use crate::guest::spec::{GuestPids, PidNamespace, pid_namespace};

/// Finds the task of this sandbox that `spec` names.
///
/// # Errors
/// `InvalidArgument` for a path that names no task of this sandbox.
pub(super) fn seen_by(spec: &Spec, sandbox: &Sandbox) -> Result<GuestPids> {
    let path = match pid_namespace(spec) {
        PidNamespace::Own => return Ok(GuestPids::Own),
        PidNamespace::Of(path) => path,
    };
    let refuse = || {
        let text = format!(
            "The container asks for the processes of {}, which is no task of sandbox {}; processes of the host or of \
             another pod can't be seen in a micro-VM",
            path.display(),
            sandbox.home.id
        );
        Error::new(Kind::InvalidArgument, text)
    };
    let pid = PidNamespace::task(&path).ok_or_else(refuse)?;
    let containers = sandbox.containers();
    let target = containers.iter().find(|container| container.init.pid() == pid).ok_or_else(refuse)?;
    match (&target.role, &target.guest) {
        (Role::Pod, _) | (_, None) => Ok(GuestPids::Pod),
        (_, Some(guest)) => Ok(GuestPids::Of(guest.name.workload_id())),
    }
}
