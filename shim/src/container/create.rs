//! Create: the host half makes what stands for the container on the host and shares its image; the guest half makes
//! the carrier and the workload. On failure each half leaves nothing, by way of `delete`.

use std::sync::Arc;

use super::hooks::{self, Moment};
use super::process::lock;
use super::{Container, Origin, delete, rootfs};
use crate::error::Result;
use crate::guest::spec;
use crate::sandbox::pod::Pod;
use crate::share::{Image, Volume};
use crate::task::Mount;

/// Makes the container's host half: the root filesystem on the bundle, the stub in its cgroup, the streams, the image
/// and the volumes in the share, and runs the hooks.
pub(crate) async fn on_host(pod: &Arc<Pod>, container: &Container, mounts: &[Mount]) -> Result<()> {
    let made = try_on_host(pod, container, mounts).await;
    match made {
        Ok(()) => Ok(()),
        Err(error) => Err(error.with_cleanup(delete::on_host(pod, container).await)),
    }
}

async fn try_on_host(pod: &Arc<Pod>, container: &Container, mounts: &[Mount]) -> Result<()> {
    let resources = container.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let cgroup = Arc::new(pod.cgroup.container(&container.id, resources.as_ref())?);
    let place = pod.place(cgroup.procs());
    *lock(&container.cgroup) = Some(cgroup);
    pod.oom_score.raise(&container.spec);
    pod.oom_score.apply(pod.machine().ok().and_then(|machine| machine.vm.pid()));
    container.init.open_streams(&pod.home.namespace).await?;
    container.init.embody(&place, &pod.ledger).await?;

    let (bundle, list, ledger) = (container.bundle.clone(), mounts.to_vec(), pod.ledger.clone());
    let root = pod.blocking(move || rootfs::mount_all(&bundle, &list, &ledger)).await?;
    if let Some(guest) = &container.guest {
        // The images of a restored pod's members were shared before its VM was restored.
        if guest.origin == Origin::New || !pod.outlives(container) {
            let image = if mounts.is_empty() { Image::Directory(&root) } else { Image::Mounts(mounts) };
            pod.share.add_image(&guest.name, guest.generation, image)?;
        }
        for volume in &guest.workload.volumes {
            let shown = Volume {
                source: &volume.source,
                read_only: volume.read_only,
                follow_mounts: volume.follow_mounts,
            };
            pod.share.add_volume(&guest.name, guest.volumes, volume.index, shown)?;
        }
    }
    let (about, deadline) = (container.about(), pod.config.hook_timeout());
    for hook in hooks::poststop(&container.spec, about, deadline)? {
        pod.ledger.claim(hook)?;
    }
    hooks::run(&container.spec, Moment::Create, about, deadline).await
}

/// Makes the container's guest half: its carrier and its workload, created and not started.
pub(crate) async fn in_guest(pod: &Pod, container: &Container) -> Result<()> {
    let Some(guest) = &container.guest else { return Ok(()) };
    if guest.origin != Origin::New {
        return Ok(());
    }
    let agent = &pod.machine()?.agent;
    agent.create_container(&spec::carrier(&guest.name, guest.generation)).await?;
    let created = agent.create_container(&guest.workload.request(&guest.pids)).await;
    if let Err(error) = created {
        return Err(error.with_cleanup(
            agent.remove_container(guest.name.carrier_id()).await.err().into_iter().collect(),
        ));
    }
    let waiting = lock(&container.waiting_update).take();
    match waiting {
        Some(resources) => super::tune::in_guest(pod, container, &resources).await,
        None => Ok(()),
    }
}
