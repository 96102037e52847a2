//! What a checkpoint writes down about the pod and a restore compares: the manifest's contents. Called by
//! `checkpoint`; asks containerd for the images, and nobody else.

use std::sync::Arc;

use super::Sandbox;
use super::pod::{Machine, Pod};
use crate::container::{Container, Origin, Process};
use crate::error::{Error, Kind, Result};
use crate::guest::spec;
use crate::images;
use crate::snapshot::manifest::{
    ContainerRecord, ContainerState, Contents, ExecRecord, ImageRecord, MachineShape, Made, SandboxFacts,
    VolumeRecord,
};
use crate::task::Status;

/// Everything but the files.
pub(super) async fn contents(sandbox: &Sandbox, pod: &Arc<Pod>, machine: &Machine) -> Result<Contents> {
    let mut containers = Vec::new();
    for container in sandbox.containers() {
        containers.extend(container_record(pod, &container).await?);
    }
    if let Some(restored) = &pod.restored {
        containers.extend(restored.waiting());
    }
    Ok(Contents {
        made: Made::now(),
        vmm: machine.vm.identity().await?,
        guest: pod.assets.record().await?,
        machine: MachineShape {
            vcpus: pod.size.vcpus,
            memory: pod.size.memory,
            nics: machine.nics.clone(),
            shares: pod.share.devices().into_iter().map(|device| device.tag).collect(),
            kernel_params: pod.config.kernel_params().into(),
        },
        sandbox: SandboxFacts {
            id: pod.home.id.clone(),
            namespace: pod.home.namespace.clone(),
            pod_name: pod.name.name.clone(),
            pod_namespace: pod.name.namespace.clone(),
            hostname: pod.hostname.clone(),
        },
        containers,
    })
}

async fn container_record(pod: &Pod, container: &Container) -> Result<Option<ContainerRecord>> {
    let Some(guest) = &container.guest else { return Ok(None) };
    let image = match image(pod, container).await {
        Ok(image) => Some(image),
        // A plain container is restored by a Create that brings its root filesystem.
        Err(error) if container.cri_name().is_none() => {
            log::warn!("The snapshot names no image of container {}: {}", container.id, error.chain());
            None
        }
        Err(error) => return Err(error),
    };
    let volumes = guest.workload.volumes.iter().map(|volume| VolumeRecord {
        index: volume.index,
        destination: volume.destination.clone(),
        read_only: volume.read_only,
    });
    Ok(Some(ContainerRecord {
        guest_name: guest.name.as_str().into(),
        generation: guest.generation,
        cri_name: container.cri_name().map(str::to_owned),
        image,
        state: state(container, guest.origin),
        upper_size: pod.layout(&container.bundle).upper_size,
        terminal: container.init.streams.terminal,
        volumes: volumes.collect(),
        execs: container.execs().iter().filter(|exec| runs(exec)).map(|exec| exec_record(exec)).collect(),
    }))
}

async fn image(pod: &Pod, container: &Container) -> Result<ImageRecord> {
    let client = images::Client::connect(&pod.home.containerd_address, &pod.home.namespace).await?;
    client.image_of_container(&container.id).await
}

fn state(container: &Container, origin: Origin) -> ContainerState {
    let state = container.init.state(&container.id, &container.bundle);
    match (state.status, state.exit) {
        (_, Some(exit)) => ContainerState::Stopped(exit.status),
        (Status::Created, _) if origin == Origin::Frozen => ContainerState::Waiting,
        (Status::Created, _) => ContainerState::Created,
        (Status::Paused | Status::Pausing, _) => ContainerState::Paused,
        (Status::Running | Status::Stopped, _) => ContainerState::Running,
    }
}

fn runs(exec: &Process) -> bool {
    exec.pid() != 0 && exec.life().exit().is_none()
}

fn exec_record(exec: &Process) -> ExecRecord {
    ExecRecord { id: exec.exec.clone(), terminal: exec.streams.terminal }
}

/// Refuses volumes whose files a snapshot can't hold.
pub(super) fn refuse_disk_volumes(containers: &[Arc<Container>]) -> Result<()> {
    let disk = containers.iter().find_map(|container| {
        let volumes = &container.guest.as_ref()?.workload.volumes;
        volumes
            .iter()
            .find(|volume| volume.kind == spec::VolumeKind::EmptyDir)
            .map(|volume| (container, volume))
    });
    match disk {
        None => Ok(()),
        Some((container, volume)) => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "Volume {} of container {} is an emptyDir on a disk, whose files are not in a snapshot; give it \
                 medium: Memory, or set disk_volumes = \"leave\" in the config",
                volume.destination, container.id
            ),
        )),
    }
}
