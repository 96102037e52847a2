//! Makes a container: a carrier, which gives an image a stable path, or a workload, which runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_proto::agent::{CreateContainerRequest, Storage};
use agent_proto::oci;

use super::{Entry, Parts, Sandbox, bundle};
use crate::container::{Container, CreateSpec, Namespaces, State};
use crate::error::{Context as _, Error, Kind, Result};
use crate::storage::path;
use crate::storage::{blocking, bounded_upper, share};

/// Says which half of a container a request is about; a request without it makes a workload.
const ROLE: &str = "io.containerd.microvm.v1.role";
/// The container whose processes the new one sees; without it, those that `sandbox_pidns` says.
const PIDS_OF: &str = "io.containerd.microvm.v1.pids-of";
/// Kubelet's name of the file for a container's last words, in the container.
const MESSAGE: &str = "io.kubernetes.container.terminationMessagePath";
/// Longest id: it names files and a cgroup.
const LONGEST: usize = 200;

impl Sandbox {
    /// Makes the container that `request` describes. Nothing is left of a failed one.
    ///
    /// # Errors
    /// `AlreadyExists` for an id in use, `InvalidArgument` for a request that makes no sense, else the step that failed.
    pub async fn create(&self, request: CreateContainerRequest) -> Result<()> {
        let id = request.container_id.clone();
        check_id(&id)?;
        self.reserve(&id)?;
        let made = self.make(request).await;
        let mut state = self.state();
        match made {
            Ok(entry) => {
                state.containers.insert(id, entry);
                Ok(())
            }
            Err(error) => {
                state.containers.remove(&id);
                Err(Error::caused(error.kind(), format!("Could not create container {id}"), error))
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut state = self.state();
        if state.containers.contains_key(id) {
            return Err(Error::new(Kind::AlreadyExists, format!("There is a container {id} already")));
        }
        state.containers.insert(id.to_owned(), Entry::Busy("created"));
        Ok(())
    }

    async fn make(&self, request: CreateContainerRequest) -> Result<Entry> {
        let Some(spec) = request.OCI.into_option() else {
            return Err(Error::new(Kind::InvalidArgument, "The request holds no OCI spec"));
        };
        let is_carrier = match spec.Annotations.get(ROLE).map(String::as_str) {
            None | Some("workload") => false,
            Some("carrier") => true,
            Some(other) => {
                let text = format!("Annotation {ROLE} is {other:?}, neither carrier nor workload");
                return Err(Error::new(Kind::InvalidArgument, text));
            }
        };
        let id = &request.container_id;
        let mut root = path::own(spec.Root.as_ref().map(|root| root.Path.as_str()).unwrap_or_default())?;
        let mut storages = request.storages;
        let shared = shared(&root, &spec);
        if is_carrier {
            storages = vec![stable(&root, id)];
        } else if !storages.iter().any(|storage| Path::new(&storage.mount_point) == root) {
            // kata's way: a root that is no storage of its own is bound to the bundle.
            storages.push(Storage { options: Vec::new(), ..stable(&root, id) });
            root = bundle(id).join("rootfs");
        }
        let mut parts = Parts {
            shared,
            upper: storages.iter().find_map(bounded_upper),
            message: message(&spec, &root),
            ..Parts::default()
        };
        let made = match self.acquire(&storages, &mut parts.storages).await {
            Ok(()) if is_carrier => Ok(None),
            Ok(()) => self.workload((id, root), spec, (request.sandbox_pidns, &storages)).await.map(Some),
            Err(error) => Err(error),
        };
        match made {
            Ok(None) => Ok(Entry::Carrier(Arc::new(parts))),
            Ok(Some(container)) => Ok(Entry::Workload(container, Arc::new(parts))),
            Err(error) => {
                if let Err(also) = self.drop_parts(id, &parts).await {
                    log::warn!("After a failed create: {}", also.chain());
                }
                Err(error)
            }
        }
    }

    async fn workload(
        &self,
        (id, root): (&str, PathBuf),
        spec: oci::Spec,
        (share_pids, storages): (bool, &[Storage]),
    ) -> Result<Arc<Container>> {
        self.keep_shared(storages).await?;
        let shared = &self.pod()?.namespaces;
        if share_pids && shared.pid().is_none() {
            let text = "The sandbox was made without a pid namespace to share";
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        let pid = match spec.Annotations.get(PIDS_OF) {
            Some(target) => Some(self.pids_of(target)?),
            None => shared.pid().filter(|_| share_pids),
        };
        let namespaces = Namespaces { ipc: Some(shared.ipc()), uts: Some(shared.uts()), pid };
        Container::create(&self.runtime, CreateSpec { id: id.to_owned(), spec, root, namespaces }).await
    }

    /// The pid namespace of another container, which lives.
    fn pids_of(&self, target: &str) -> Result<PathBuf> {
        let container = self.container(target)?;
        if let State::Stopped(_) = container.state("")? {
            let text = format!("Container {target}, whose processes are to be seen, has ended");
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/pid", container.pid())))
    }

    /// Storages marked as shared stay until the sandbox goes: an emptyDir outlives each of its containers.
    async fn keep_shared(&self, storages: &[Storage]) -> Result<()> {
        for storage in storages.iter().filter(|storage| storage.shared) {
            let at = path::own(&storage.mount_point)?;
            if self.pod()?.storages.contains(&at) {
                continue;
            }
            self.storages.acquire(storage).await?;
            if let Some(pod) = &mut self.state().pod {
                pod.storages.push(at);
            }
        }
        Ok(())
    }

    /// Undoes all of a container but its processes.
    pub(super) async fn drop_parts(&self, id: &str, parts: &Parts) -> Result<()> {
        let released = self.release(&parts.storages).await;
        let forgotten = share::forget(parts.shared.clone()).await;
        let bundle = bundle(id);
        let removed = blocking(move || match std::fs::remove_dir(&bundle) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("Could not remove {}", bundle.display()))
            }
            _ => Ok(()),
        })
        .await;
        released.and(forgotten).and(removed)
    }
}

fn check_id(id: &str) -> Result<()> {
    let is_sound = !id.is_empty()
        && id.len() <= LONGEST
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-@%+~".contains(&byte));
    // The agent's own directories lie beside the containers' bundles.
    if is_sound && !["shared", "sandbox"].contains(&id) {
        return Ok(());
    }
    let text = format!(
        "Container id {id:?} cannot be used: it must have 1 to {LONGEST} letters, digits and _.-@%+~, not begin \
         with a dot, and be neither \"shared\" nor \"sandbox\""
    );
    Err(Error::new(Kind::InvalidArgument, text))
}

/// The bind mount that gives an image its stable path.
fn stable(root: &Path, id: &str) -> Storage {
    Storage {
        driver: "bind".into(),
        source: root.to_string_lossy().into_owned(),
        fstype: "bind".into(),
        options: vec!["ro".into(), "nodev".into()],
        mount_point: bundle(id).join("rootfs").to_string_lossy().into_owned(),
        ..Storage::default()
    }
}

/// The paths below the share that a container's processes can reach.
fn shared(root: &Path, spec: &oci::Spec) -> Vec<PathBuf> {
    let sources = spec.Mounts.iter().map(|mount| Path::new(&mount.source));
    let below = |path: &&Path| path.starts_with(share::SHARED) && *path != Path::new(share::SHARED);
    std::iter::once(root).chain(sources).filter(below).map(Path::to_owned).collect()
}

/// Where the guest finds the file that the container sees at its termination message path.
fn message(spec: &oci::Spec, root: &Path) -> Option<PathBuf> {
    let wanted = Path::new(spec.Annotations.get(MESSAGE)?);
    let mount = spec.Mounts.iter().find(|mount| Path::new(&mount.destination) == wanted);
    Some(match mount {
        Some(mount) => PathBuf::from(&mount.source),
        None => root.join(wanted.strip_prefix("/").unwrap_or(wanted)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["web", "web_ovl", "a.b-c%2F@1"] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", "../x", "a/b", "shared", "sandbox", "a b", "a\0", &"x".repeat(201)] {
            assert_eq!(check_id(id).unwrap_err().kind(), Kind::InvalidArgument, "{id:?}");
        }
    }

    #[test]
    fn a_containers_part_of_the_share_is_its_image_and_its_volumes() {
        let mount = |source: &str| oci::Mount { source: source.into(), ..Default::default() };
        let volume = "/run/kata-containers/shared/volumes/web@2/0";
        let mut spec = oci::Spec::new();
        spec.Mounts =
            vec![mount("proc"), mount(volume), mount("/run/kata-containers/shared"), mount("/run/x")];
        let image = Path::new("/run/kata-containers/shared/containers/web@2/rootfs");
        assert_eq!(shared(image, &spec), [image, Path::new(volume)]);
    }
}
