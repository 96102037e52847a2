//! The root filesystem as containerd gives it, mounted on `bundle/rootfs` for whoever looks there on the host
//! (containerd's metrics, a checkpoint import). The guest never sees this mount. Called by container create and delete.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};
use crate::task::Mount;

/// Mounts `mounts` in order on `bundle/rootfs` and answers that path. The first goes on the root itself, each next
/// below it at its target.
///
/// # Errors
/// `InvalidArgument` for a target that is not a plain relative path; anything that mount(2) refuses, with its words.
pub(crate) fn mount_all(bundle: &Path, mounts: &[Mount], ledger: &Ledger) -> Result<PathBuf> {
    let root = bundle.join("rootfs");
    if mounts.is_empty() {
        return Ok(root);
    }
    std::fs::create_dir_all(&root).context(|| format!("Could not make {}", root.display()))?;
    ledger.claim(Resource::Mount(root.clone()))?;
    for entry in mounts {
        let place = place(&root, &entry.target)?;
        let (flags, data) = options(&entry.options);
        let bind = entry.kind == "bind" || flags.contains(MsFlags::MS_BIND);
        let kind = (!bind).then_some(entry.kind.as_str());
        let flags = if bind { flags | MsFlags::MS_BIND } else { flags };
        mount(Some(entry.source.as_str()), &place, kind, flags, data.as_deref())
            .context(|| format!("Could not mount {} {} on {}", entry.kind, entry.source, place.display()))?;
        if bind && flags.contains(MsFlags::MS_RDONLY) {
            let flags = (flags & !MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
            mount(None::<&str>, &place, None::<&str>, flags, None::<&str>)
                .context(|| format!("Could not make {} read-only", place.display()))?;
        }
    }
    Ok(root)
}

fn place(root: &Path, target: &str) -> Result<PathBuf> {
    let plain = Path::new(target.trim_start_matches('/'));
    if plain.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        return Ok(root.join(plain));
    }
    Err(Error::new(
        Kind::InvalidArgument,
        format!("Mount target \"{target}\" leads out of the root filesystem"),
    ))
}

/// Splits `mount -o` options into flags and what the filesystem itself takes.
fn options(options: &[String]) -> (MsFlags, Option<String>) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags &= !MsFlags::MS_RDONLY,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            other => data.push(other),
        }
    }
    (flags, (!data.is_empty()).then(|| data.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_fall_into_flags_and_data() {
        let given = ["rbind", "ro", "lowerdir=/a:/b", "index=off"].map(String::from);
        let (flags, data) = options(&given);
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(data.as_deref(), Some("lowerdir=/a:/b,index=off"));
    }

    #[test]
    fn a_target_stays_below_the_root() {
        assert_eq!(place(Path::new("/b/rootfs"), "/etc/x").unwrap(), Path::new("/b/rootfs/etc/x"));
        assert_eq!(place(Path::new("/b/rootfs"), "").unwrap(), Path::new("/b/rootfs"));
        assert_eq!(place(Path::new("/b"), "../x").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
