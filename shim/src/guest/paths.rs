//! Paths inside the guest and inside the share, which must agree. Called by `guest::spec` and `share`.

use super::GuestName;

/// Tag and mount point of the images' virtio-fs device.
pub const IMAGES_TAG: &str = "kataShared";
/// Where the guest mounts it.
pub const IMAGES: &str = "/run/kata-containers/shared/containers";
/// Tag of the volumes' virtio-fs device.
pub const VOLUMES_TAG: &str = "volumes";
/// Where the guest mounts it.
pub const VOLUMES: &str = "/run/kata-containers/shared/volumes";
/// What `/dev/shm` is in all containers of the pod.
pub const SHM: &str = "/run/kata-containers/sandbox/shm";
/// Where emptyDir volumes in memory are, by the volume's name.
pub const EPHEMERAL: &str = "/run/kata-containers/sandbox/ephemeral";

/// Directory of one container in either tree of the share.
#[must_use]
pub fn entry(name: &GuestName, generation: u32) -> String {
    format!("{name}@{generation}")
}

/// Where the guest sees a container's image.
#[must_use]
pub fn image(name: &GuestName, generation: u32) -> String {
    format!("{IMAGES}/{}/rootfs", entry(name, generation))
}

/// Where the guest sees a container's volume.
#[must_use]
pub fn volume(name: &GuestName, generation: u32, index: u32) -> String {
    format!("{VOLUMES}/{}/{index}", entry(name, generation))
}

/// Directory that the agent keeps for a container with this guest id.
pub(super) fn container(id: &str) -> String {
    format!("/run/kata-containers/{id}")
}
