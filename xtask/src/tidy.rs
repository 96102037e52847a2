//! `cargo xtask tidy`: the habits that no other tool knows. Also a test, so that `cargo test` sees them.
//!
//! Every rule reports all that breaks it, with file and line, and what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Lines that a source file may have. Past it, it is two things.
const LONGEST_FILE: usize = 400;

/// Module edges of the shim: a file below the first path never names any of the modules after it.
const EDGES: &[(&str, &[&str], &str)] = &[
    (
        "shim/src/service",
        &["crate::vm", "crate::share", "crate::snapshot"],
        "the service translates; ask the sandbox",
    ),
    (
        "shim/src/vm",
        &["crate::container", "crate::sandbox", "crate::service"],
        "a VM knows nothing of containers",
    ),
    (
        "shim/src/network",
        &["crate::sandbox", "crate::service", "crate::vm::qemu", "crate::vm::cloud_hypervisor"],
        "the network knows devices only",
    ),
    ("shim/src/ledger", &["crate::sandbox", "crate::service"], "the ledger undoes; it does not decide"),
    ("shim/src/share", &["crate::sandbox", "crate::service"], "the share knows folders and mounts only"),
    (
        "shim/src/guest",
        &["crate::sandbox", "crate::service", "crate::vm"],
        "the guest client knows the wire only",
    ),
];

/// The only folder that may read a snapshot's manifest.
const MANIFEST_READERS: &[&str] = &["shim/src/snapshot"];

/// Hosts of package registries, in two halves each so that this file does not name them.
const REGISTRIES: &[(&str, &str)] = &[
    ("deb.debian", ".org"),
    ("snapshot.debian", ".org"),
    ("crates", ".io"),
    ("docker", ".io"),
    ("registry.k8s", ".io"),
    ("proxy.golang", ".org"),
    ("pypi", ".org"),
    ("registry.npmjs", ".org"),
    ("ghcr", ".io"),
    ("quay", ".io"),
];

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let files = tracked(&workspace.root)?;
    let mut faults = Vec::new();
    for file in &files {
        let path = file.to_string_lossy();
        // Binary files and links to nowhere have no lines to judge.
        let Ok(text) = std::fs::read_to_string(workspace.root.join(file)) else { continue };
        registries(&path, &text, &mut faults);
        if path.ends_with(".rs") {
            head(&path, &text, &mut faults);
            length(&path, &text, &mut faults);
            edges(&path, &text, &mut faults);
        }
        if path.ends_with(".md") {
            links(&workspace.root, file, &text, &mut faults);
        }
    }
    changelog(&workspace.root, &mut faults);
    if !faults.is_empty() {
        bail!("{} things are not tidy:\n  {}", faults.len(), faults.join("\n  "));
    }
    println!("==> Tidy: {} files", files.len());
    Ok(())
}

/// Files that git tracks, or would.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("Could not run git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let list = String::from_utf8(output.stdout).context("A file's name is not UTF-8")?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn head(path: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{path}:1: begin with `//!`: what this is and who calls it"));
    }
}

fn length(path: &str, text: &str, faults: &mut Vec<String>) {
    // A list of end-to-end tests is as long as there are tests.
    let is_list = path.starts_with("tests/e2e/");
    let lines = text.lines().count();
    if lines > LONGEST_FILE && !is_list {
        faults.push(format!("{path}: {lines} lines, {LONGEST_FILE} are allowed: split it"));
    }
}

fn edges(path: &str, text: &str, faults: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for (folder, forbidden, why) in EDGES {
            for module in forbidden.iter().filter(|module| below(path, folder) && names(line, module)) {
                faults.push(format!("{path}:{}: {folder} must not know {module}: {why}", number + 1));
            }
        }
        let reads_manifest =
            ["from_slice", "from_str"].iter().any(|read| line.contains(&[*read, "::<Manifest>"].concat()));
        if reads_manifest && !MANIFEST_READERS.iter().any(|folder| below(path, folder)) {
            faults.push(format!("{path}:{}: only the snapshot module reads manifests", number + 1));
        }
    }
}

fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

/// Whether a line names a module, and not one whose name begins the same.
fn names(line: &str, module: &str) -> bool {
    line.match_indices(module).any(|(at, _)| {
        let next = line[at + module.len()..].chars().next();
        !next.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

/// Links to files of this repository must lead somewhere.
fn links(root: &Path, file: &Path, text: &str, faults: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let Some(target) = part.split(')').next() else { continue };
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = file.parent().unwrap_or(Path::new(""));
            if !root.join(folder).join(target).exists() {
                faults.push(format!("{}:{}: the link to {target} leads nowhere", file.display(), number + 1));
            }
        }
    }
}

fn changelog(root: &Path, faults: &mut Vec<String>) {
    let text = std::fs::read_to_string(root.join("CHANGELOG.md")).unwrap_or_default();
    if !text.contains("\n## [Unreleased]\n") {
        faults.push("CHANGELOG.md: there is no heading `## [Unreleased]`".to_owned());
    }
}

fn registries(path: &str, text: &str, faults: &mut Vec<String>) {
    // Cargo writes its registry's address into the lock file itself.
    if path == "Cargo.lock" {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        for (name, domain) in REGISTRIES {
            if line.contains(&[*name, *domain].concat()) {
                faults.push(format!("{path}:{}: names a package registry's host", number + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        run(&Workspace::find().unwrap()).unwrap();
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let mut faults = Vec::new();
        head("a.rs", "use x;", &mut faults);
        length("a.rs", &"\n".repeat(401), &mut faults);
        edges("shim/src/service/a.rs", "use crate::vm::Vm;", &mut faults);
        edges(
            "shim/src/sandbox/a.rs",
            &["serde_json::from_slice", "::<Manifest>(&text)"].concat(),
            &mut faults,
        );
        registries("a.md", &["see docker", ".io"].concat(), &mut faults);
        links(Path::new("/nowhere"), Path::new("README.md"), "[a](docs/a.md)", &mut faults);
        changelog(Path::new("/nowhere"), &mut faults);
        assert_eq!(faults.len(), 7, "{faults:?}");
    }

    #[test]
    fn what_looks_alike_is_no_fault() {
        let mut faults = Vec::new();
        edges("shim/src/service/a.rs", "// never crate::vm\nuse crate::vmm_free;", &mut faults);
        edges("shim/src/services/a.rs", "use crate::vm::Vm;", &mut faults);
        links(Path::new("/"), Path::new("a.md"), "[a](https://example.invalid) [b](#part)", &mut faults);
        length("a.rs", &"\n".repeat(400), &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
    }
}
