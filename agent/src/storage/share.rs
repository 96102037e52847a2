//! The guest's side of the host's share: what the kernel mounted by itself under the two virtio-fs tags when a
//! container's image or volume was first entered. Called by `sandbox`.

use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::mountpoint::unmount;
use super::{blocking, mountinfo, path};
use crate::error::{Context as _, Result};

/// Where both tags are mounted.
pub const SHARED: &str = "/run/kata-containers/shared";

/// Lets go of what a removed container used of the share: unmounts the submounts at and below `paths` and drops what
/// the kernel remembers of them, so that virtiofsd closes its files and the host can detach them.
///
/// # Errors
/// The first path that could not be unmounted; all have been tried.
pub async fn forget(paths: Vec<PathBuf>) -> Result<()> {
    let paths: Vec<_> = paths.into_iter().filter(|path| path.starts_with(SHARED)).collect();
    if paths.is_empty() {
        return Ok(());
    }
    blocking(move || {
        let mut result = Ok(());
        for path in &paths {
            for mounted in mountinfo::below(path)? {
                result = result.and(unmount(&mounted));
            }
        }
        result.and(drop_caches())
    })
    .await
}

/// Looks at each submount once, as the kata runtime asks: virtiofsd learns so what its host no longer has.
///
/// # Errors
/// If the table of mounts cannot be read.
pub async fn touch() -> Result<()> {
    blocking(|| {
        for mounted in mountinfo::below(Path::new(SHARED))? {
            // A mount whose file is gone is what this is for.
            _ = path::open(&mounted, OFlag::O_PATH).map(|file| nix::sys::stat::fstat(&file));
        }
        Ok(())
    })
    .await
}

/// Of names and inodes only (2): file contents in use elsewhere stay cached.
fn drop_caches() -> Result<()> {
    let file = "/proc/sys/vm/drop_caches";
    std::fs::write(file, "2").context(|| format!("Could not write to {file}"))
}
