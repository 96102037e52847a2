//! Other people's clients and suites, built from `tests/clients`, a Go module for each project with pinned versions. Called
//! by the commands that run tests with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, is_ci, step};

/// Where they are in a test host.
const BIN: &str = "usr/local/bin";

/// A program of a Go module.
struct Client {
    /// Folder below `tests/clients`.
    module: &'static str,
    program: &'static str,
    package: &'static str,
    /// Whether the package is a test binary.
    is_test: bool,
    /// The module and the variable that its version is written to.
    version: (&'static str, &'static str),
}

const CRI_TOOLS: (&str, &str) = ("sigs.k8s.io/cri-tools", "sigs.k8s.io/cri-tools/pkg/version.Version");

const CLIENTS: &[Client] = &[
    Client {
        module: "cri-tools",
        program: "crictl",
        package: "sigs.k8s.io/cri-tools/cmd/crictl",
        is_test: false,
        version: CRI_TOOLS,
    },
    Client {
        module: "cri-tools",
        program: "critest",
        package: "sigs.k8s.io/cri-tools/cmd/critest",
        is_test: true,
        version: CRI_TOOLS,
    },
];

/// Builds the clients and lays them into `root`, a test host's tree. Without Go: an error in CI; elsewhere it says what is
/// left out, and the answer is false.
pub(crate) fn lay_into(workspace: &Workspace, root: &Path) -> Result<bool> {
    let programs = CLIENTS.iter().map(|client| client.program).collect::<Vec<_>>().join(", ");
    let probe = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        let how = "install Go 1.26 or later (Debian's golang-go, or the toolchain of the Go project)";
        if is_ci() {
            bail!("Go is missing, which {programs} are built with: {how}");
        }
        println!("==> Left out: Go is missing, so there are no {programs}; {how}");
        return Ok(false);
    }
    let bin = root.join(BIN);
    std::fs::create_dir_all(&bin).with_context(|| format!("Could not make {}", bin.display()))?;
    for client in CLIENTS {
        let built = build(workspace, client)?;
        let to = bin.join(client.program);
        std::fs::copy(&built, &to).with_context(|| format!("Could not write {}", to.display()))?;
    }
    Ok(true)
}

/// Builds a client; Go's own cache makes this short the second time.
fn build(workspace: &Workspace, client: &Client) -> Result<PathBuf> {
    let module = workspace.root.join("tests/clients").join(client.module);
    let folder = workspace.target.join("clients");
    std::fs::create_dir_all(&folder).with_context(|| format!("Could not make {}", folder.display()))?;
    let program = folder.join(client.program);
    let (from, variable) = client.version;
    let version = pinned(&module.join("go.mod"), from)?;
    let mut go = Command::new("go");
    go.args(if client.is_test { &["test", "-c"][..] } else { &["build"] })
        .args(["-trimpath", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(format!("-ldflags=-s -w -X {variable}={version}"))
        .arg(client.package)
        .current_dir(&module)
        // A static program runs in every tree; a cache in `target` goes with it; no other version of Go is fetched.
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", folder.join("cache"))
        .env("GOTOOLCHAIN", "local");
    step(&format!("Build {} {version}", client.program), &mut go)?;
    Ok(program)
}

/// The version that a go.mod pins.
fn pinned(file: &Path, module: &str) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("Could not read {}", file.display()))?;
    let version = text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    });
    let version = version.with_context(|| format!("{} does not require {module}", file.display()))?;
    Ok(version.trim_start_matches('v').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_pin_what_they_build() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients");
        for client in CLIENTS {
            let version = pinned(&root.join(client.module).join("go.mod"), client.version.0).unwrap();
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        }
        assert!(pinned(&root.join("cri-tools/go.mod"), "no.such/module").is_err());
    }
}
