//! Files of the guest that the host asks for by path: parts of kata's CopyFile, volume statistics and diagnostics.
//! Called by `rpc`. Paths and what is found there may be a container's: no symlink is followed, nothing blocks on
//! a FIFO.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use agent_proto::agent::{VolumeStatsResponse, VolumeUsage};
use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;

use crate::error::{Context as _, Error, Kind, Result};
use crate::storage::path;

mod copy;

pub use copy::copy;

/// Units of a volume's usage, as the CSI numbers them.
const BYTES: u32 = 1;
const INODES: u32 = 2;

/// The last `most` bytes of a regular file, as text.
///
/// # Errors
/// `NotFound` if it is absent, `InvalidArgument` if it is no regular file.
pub fn read_tail(at: &Path, most: usize) -> Result<String> {
    let text = || format!("Could not read {}", at.display());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = File::from(path::open(at, flags)?);
    let metadata = file.metadata().context(text)?;
    if !metadata.is_file() {
        return Err(Error::new(Kind::InvalidArgument, format!("{} is no regular file", at.display())));
    }
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(most))).context(text)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).context(text)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Bytes and inodes of the file system at a path of the agent's tree.
///
/// # Errors
/// `InvalidArgument` for a path elsewhere, `NotFound` if there is nothing.
pub fn volume_stats(path: &str) -> Result<VolumeStatsResponse> {
    let at = path::own(path)?;
    let open = path::open(&at, OFlag::O_PATH)?;
    let stat = fstatvfs(&open).context(|| format!("Could not ask {}", at.display()))?;
    let usage = |unit: u32, total: u64, free: u64, available: u64| VolumeUsage {
        total,
        available,
        used: total.saturating_sub(free),
        unit,
        ..Default::default()
    };
    let size = stat.fragment_size();
    let bytes = usage(BYTES, stat.blocks() * size, stat.blocks_free() * size, stat.blocks_available() * size);
    let inodes = usage(INODES, stat.files(), stat.files_free(), stat.files_available());
    Ok(VolumeStatsResponse { usage: vec![bytes, inodes], ..Default::default() })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::storage::ROOT;
    use crate::testing::isolated;

    #[test]
    fn the_end_of_a_file_is_read_and_nothing_that_could_block() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("message"), "0123456789").unwrap();
        assert_eq!(read_tail(&at("message"), 4).unwrap(), "6789");
        assert_eq!(read_tail(&at("message"), 400).unwrap(), "0123456789");
        assert_eq!(read_tail(&at("absent"), 4).unwrap_err().kind(), Kind::NotFound);
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        assert_eq!(read_tail(&at("link"), 4).unwrap_err().kind(), Kind::InvalidArgument);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read_tail(&at("fifo"), 4).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn a_volumes_numbers_are_its_file_systems() {
        isolated(|| async {
            let volume = PathBuf::from(ROOT).join("volume");
            std::fs::create_dir_all(&volume).unwrap();
            let none = None::<&str>;
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(none, &volume, Some("tmpfs"), flags, Some("size=1048576,nr_inodes=100"))
                .unwrap();
            std::fs::write(volume.join("file"), vec![1; 8192]).unwrap();
            let stats = volume_stats(&volume.to_string_lossy()).unwrap();
            let [bytes, inodes] = stats.usage.as_slice() else { panic!("{stats:?}") };
            assert_eq!((bytes.unit, bytes.total, bytes.used), (BYTES, 1 << 20, 8192));
            assert_eq!((inodes.unit, inodes.total, inodes.used), (INODES, 100, 2));
            assert_eq!(volume_stats("/etc").unwrap_err().kind(), Kind::InvalidArgument);
        });
    }
}
