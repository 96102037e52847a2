//! `linux.cgroupsPath` of an OCI spec: a cgroup path, or systemd's three parts. The result is relative to the root of
//! each hierarchy.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// Slice of a systemd path that names none.
const DEFAULT_SLICE: &str = "system.slice";

pub(super) fn parse(text: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] if !text.starts_with('/') => systemd(slice, prefix, name),
        _ => plain(text),
    };
    path.ok_or_else(|| {
        let text = format!(
            "The OCI spec's cgroupsPath {text:?} is neither an absolute path below the root, nor slice:prefix:name"
        );
        Error::new(Kind::InvalidArgument, text)
    })
}

/// None for a path that is the root or leaves it.
fn plain(text: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

/// systemd nests slices by the dashes in their names: `a-b.slice` is `a.slice/a-b.slice`.
fn systemd(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    let is_name = |part: &str| !part.contains('/') && part != "." && part != "..";
    if name.is_empty() || ![slice, prefix, name].into_iter().all(is_name) {
        return None;
    }
    let mut path = PathBuf::new();
    let stem = slice.strip_suffix(".slice")?;
    // `-.slice` is the root.
    if stem != "-" {
        let mut whole = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return None;
            }
            whole = if whole.is_empty() { part.to_owned() } else { format!("{whole}-{part}") };
            path.push(format!("{whole}.slice"));
        }
    }
    if name.ends_with(".slice") {
        path.push(name);
    } else if prefix.is_empty() {
        path.push(format!("{name}.scope"));
    } else {
        path.push(format!("{prefix}-{name}.scope"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_name_a_cgroup_below_the_root() {
        for (text, path) in [
            ("/kubepods/burstable/pod1/abc", "kubepods/burstable/pod1/abc"),
            ("default/c1", "default/c1"),
            ("/default/a:b:c", "default/a:b:c"),
            ("system.slice:cri-containerd:abc", "system.slice/cri-containerd-abc.scope"),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:abc",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope",
            ),
            (":p:abc", "system.slice/p-abc.scope"),
            ("-.slice::abc", "abc.scope"),
        ] {
            assert_eq!(parse(text).unwrap(), Path::new(path), "{text}");
        }
    }

    #[test]
    fn nothing_leaves_the_hierarchy_or_means_all_of_it() {
        for text in [
            "/",
            ".",
            "/a/../../b",
            "..",
            "a/b.slice:p:n",
            "x:p:n",
            "a.slice:p:",
            "a.slice:p:../b",
            "a--b.slice:p:n",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
            assert!(error.to_string().contains(text));
        }
    }
}
