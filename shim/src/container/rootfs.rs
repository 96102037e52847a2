//! The root filesystem as containerd gives it, mounted on `bundle/rootfs` for whoever looks there on the host
//! (containerd's metrics, a checkpoint import). The guest never sees this mount. Called by container create and delete.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};
use crate::share::{OPTIONS, by_descriptor};
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
        // The descriptors name the layers until the mount is made.
        let (data, _layers) = data.map(|data| fit(entry, data)).transpose()?.unzip();
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

/// `data` in what mount(2) takes. Longer data it cuts without a word: an overlay of many layers has its layers named by
/// descriptors instead, which must stay open until then.
fn fit(entry: &Mount, data: String) -> Result<(String, Vec<OwnedFd>)> {
    if data.len() < OPTIONS {
        return Ok((data, Vec::new()));
    }
    let mut layers = Vec::new();
    let mut shorter = Vec::new();
    for option in data.split(',') {
        match option.strip_prefix("lowerdir=") {
            Some(lowers) if entry.kind == "overlay" => {
                let lowers: Vec<&Path> = lowers.split(':').map(Path::new).collect();
                let opened = by_descriptor(&lowers).context(|| "Could not open a layer".into())?;
                let (names, descriptors): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
                shorter.push(format!("lowerdir={}", names.join(":")));
                layers.extend(descriptors);
            }
            _ => shorter.push(option.to_owned()),
        }
    }
    let shorter = shorter.join(",");
    if shorter.len() < OPTIONS {
        return Ok((shorter, layers));
    }
    let text = format!(
        "The options of the {} mount of the root filesystem, with {} layers, take {} bytes, and the kernel takes {OPTIONS}",
        entry.kind,
        layers.len(),
        shorter.len()
    );
    Err(Error::new(Kind::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ledger;

    #[test]
    fn options_fall_into_flags_and_data() {
        let given = ["rbind", "ro", "lowerdir=/a:/b", "index=off"].map(String::from);
        let (flags, data) = options(&given);
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(data.as_deref(), Some("lowerdir=/a:/b,index=off"));
    }

    /// An overlay of `count` layers, each with a file of its own and one that is in all of them.
    fn overlay(dir: &Path, count: usize) -> Mount {
        let layers: Vec<String> = (0..count)
            .map(|number| {
                let layer = dir.join(format!("{number}-{}", "x".repeat(60)));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(number.to_string()), "").unwrap();
                std::fs::write(layer.join("all"), number.to_string()).unwrap();
                layer.display().to_string()
            })
            .collect();
        let [upper, work] = ["upper", "work"].map(|name| dir.join(name));
        for dir in [&upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        let options = vec![
            format!("lowerdir={}", layers.join(":")),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    #[test]
    fn an_image_may_have_more_layers_than_fit_into_a_page_by_name() {
        // Not on an overlay, of which a machine's /tmp may be made.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let ledger = ledger(&dir.path().join("sandbox")).unwrap();
        let mount = overlay(dir.path(), 120);
        assert!(mount.options[0].len() > 2 * OPTIONS);
        let root = mount_all(dir.path(), &[mount], &ledger).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("all")).unwrap(), "0");
        assert!((0..120).all(|number| root.join(number.to_string()).exists()));
        std::fs::write(root.join("new"), "").unwrap();
        assert!(dir.path().join("upper/new").exists());
        assert!(ledger.release_all().is_empty());
        assert!(!root.join("all").exists());
    }

    #[test]
    fn options_that_fit_in_no_way_are_refused_with_their_number() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let ledger = ledger(&dir.path().join("sandbox")).unwrap();
        let error = mount_all(dir.path(), &[overlay(dir.path(), 300)], &ledger).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.chain().contains("300 layers"), "{}", error.chain());
        assert!(ledger.release_all().is_empty());
    }

    #[test]
    fn a_target_stays_below_the_root() {
        assert_eq!(place(Path::new("/b/rootfs"), "/etc/x").unwrap(), Path::new("/b/rootfs/etc/x"));
        assert_eq!(place(Path::new("/b/rootfs"), "").unwrap(), Path::new("/b/rootfs"));
        assert_eq!(place(Path::new("/b"), "../x").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
