//! A container of the new pod takes over the one of its name in the snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Restored;
use crate::container::{InGuest, Origin};
use crate::error::{Error, Kind, Result};
use crate::guest::spec::{GuestPids, Volume};
use crate::guest::{GuestName, spec};
use crate::images;
use crate::sandbox::facts::Spec;
use crate::sandbox::pod::Pod;
use crate::snapshot::manifest::{ContainerRecord, ContainerState};
use crate::task::Create;

impl Restored {
    /// The place in the guest of the container that `request` makes; none if the snapshot has no container of that
    /// name (`cri`, or the only one where there is no CRI), or it is taken.
    ///
    /// # Errors
    /// `FailedPrecondition` when it has another image, or volumes at other places, than it had.
    pub(in crate::sandbox) async fn adopt(
        &self,
        pod: &Arc<Pod>,
        spec: &Spec,
        cri: Option<&str>,
        request: &Create,
    ) -> Result<Option<InGuest>> {
        let found = self.unclaimed().iter().find(|container| container.cri_name.as_deref() == cri).cloned();
        let Some(record) = found else { return Ok(None) };
        let name = GuestName::parse(&record.guest_name)?;
        same_image(pod, &record, request).await?;
        // The new pod's volumes get places that the guest has never looked at, so that it can't know a stale one.
        let volumes = pod.next_generation(&name);
        let workload = spec::workload(spec, &name, volumes, &pod.layout(&request.bundle))?;
        same_volumes(&record, &workload.volumes)?;
        if record.terminal != request.streams.terminal {
            let had = if record.terminal { "had" } else { "had no" };
            let text =
                format!("Container {} can't go on from the snapshot: there it {had} a terminal", request.id);
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        self.unclaimed().retain(|container| container.guest_name != record.guest_name);
        let origin = match record.state {
            ContainerState::Created => Origin::Created,
            _ => Origin::Frozen,
        };
        Ok(Some(InGuest {
            name,
            generation: record.generation,
            volumes,
            workload,
            pids: GuestPids::default(),
            origin,
        }))
    }
}

/// Refuses a container whose image is not, layer by layer, the one in the snapshot.
async fn same_image(pod: &Pod, record: &ContainerRecord, request: &Create) -> Result<()> {
    let Some(wanted) = &record.image else { return Ok(()) };
    let client = images::Client::connect(&pod.home.containerd_address, &pod.home.namespace).await?;
    let image = client.image_of_container(&request.id).await?;
    if image.layers == wanted.layers {
        return Ok(());
    }
    let text = format!(
        "Container {} can't go on from the snapshot: its image is {} ({}), the snapshot's was {} ({})",
        request.id, image.name, image.digest, wanted.name, wanted.digest
    );
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// Refuses a container whose volumes are not at the places where they were.
fn same_volumes(record: &ContainerRecord, volumes: &[Volume]) -> Result<()> {
    let old: BTreeSet<&str> = record.volumes.iter().map(|volume| volume.destination.as_str()).collect();
    let new: BTreeSet<&str> = volumes.iter().map(|volume| volume.destination.as_str()).collect();
    match old.symmetric_difference(&new).next() {
        None => Ok(()),
        Some(place) => {
            let whose = if old.contains(place) { "the snapshot" } else { "the new pod" };
            let text = format!(
                "Container {} can't go on from the snapshot: only {whose} has a volume at {place}",
                record.guest_name
            );
            Err(Error::new(Kind::FailedPrecondition, text))
        }
    }
}
