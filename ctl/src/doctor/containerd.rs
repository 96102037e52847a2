//! containerd: whether it answers, finds the shim, and knows the runtime. Called by `doctor`.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use shim::images::Client;

use super::Finding;
use crate::cli::Cli;

/// The binary that containerd executes for the runtime type `io.containerd.microvm.v1`.
const BINARY: &str = "containerd-shim-microvm-v1";
/// The runtime type, as it stands in containerd's config.
const RUNTIME: &str = "io.containerd.microvm.v1";
/// Where containerd's config is, and its drop-ins.
const CONFIG: &str = "/etc/containerd";

pub(super) async fn check(cli: &Cli) -> Vec<Finding> {
    const CHECK: &str = "containerd";
    let version = match Client::connect(&cli.address, &cli.namespace).await {
        Ok(client) => client.version().await,
        Err(error) => Err(error),
    };
    match version {
        Ok(version) => vec![of_version(&version), binary(&cli.address), registered(Path::new(CONFIG))],
        Err(error) => {
            let hint = "start containerd, or name its socket with --address";
            vec![Finding::broken(CHECK, error.chain(), hint), registered(Path::new(CONFIG))]
        }
    }
}

fn of_version(version: &str) -> Finding {
    const CHECK: &str = "containerd";
    let number = version.strip_prefix('v').unwrap_or(version);
    let mut parts = number.split(['.', '-', '+', '~']).map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (2, 1) => Finding::ok(CHECK, version),
        (Some(major), Some(minor)) if (major, minor) >= (1, 7) => {
            Finding::poor(CHECK, version, "2.1 or newer is supported in full")
        }
        _ => Finding::broken(CHECK, version, "install containerd 2.1 or newer"),
    }
}

/// Looks for the shim where that very containerd would: along its own PATH.
fn binary(socket: &Path) -> Finding {
    const CHECK: &str = "shim";
    let path = path_of_server(socket).or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    match find(&path, BINARY) {
        Some(found) => Finding::ok(CHECK, found.display().to_string()),
        None => Finding::broken(
            CHECK,
            format!("{BINARY} is not in containerd's PATH {path}"),
            "`cargo xtask install` lays it down in /usr/local/bin",
        ),
    }
}

/// PATH of the process that listens on the socket.
fn path_of_server(socket: &Path) -> Option<String> {
    let stream = UnixStream::connect(socket).ok()?;
    let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="))?;
    String::from_utf8(path.to_vec()).ok()
}

fn find(path: &str, name: &str) -> Option<PathBuf> {
    let runs =
        |file: &PathBuf| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file();
    std::env::split_paths(path).map(|dir| dir.join(name)).find(runs)
}

/// Whether some file of containerd's config names the runtime, which CRI needs; `ctr` does without.
fn registered(config: &Path) -> Finding {
    const CHECK: &str = "runtime in CRI";
    match files(config).into_iter().find(|file| names_runtime(file)) {
        Some(file) => Finding::ok(CHECK, format!("{} names it", file.display())),
        None => Finding::poor(
            CHECK,
            format!("no file below {} names {RUNTIME}", config.display()),
            "Kubernetes can't use the runtime, `ctr --runtime` can; `cargo xtask install` adds the drop-in",
        ),
    }
}

/// The TOML files in the directory and in those in it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let nested = |path: PathBuf| if path.is_dir() { list(&path) } else { vec![path] };
    let all = list(dir).into_iter().flat_map(nested);
    all.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

fn names_runtime(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        !line.trim_start().starts_with('#') && line.contains(RUNTIME) && line.contains("runtime_type")
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn versions_are_judged() {
        let judged = |version| of_version(version).outcome;
        assert_eq!(judged("2.1.9~ds1"), Outcome::Ok);
        assert_eq!(judged("v2.3.0"), Outcome::Ok);
        assert_eq!(judged("1.7.24"), Outcome::Poor);
        assert_eq!(judged("1.6.20"), Outcome::Broken);
        assert_eq!(judged("unknown"), Outcome::Broken);
    }

    #[test]
    fn runtime_is_found_in_drop_ins_but_not_in_comments() {
        let dir = tempfile::tempdir().unwrap();
        let drop_ins = dir.path().join("conf.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(dir.path().join("config.toml"), "# runtime_type = 'io.containerd.microvm.v1'\n")
            .unwrap();
        assert_eq!(registered(dir.path()).outcome, Outcome::Poor);
        std::fs::write(drop_ins.join("m.toml"), "  runtime_type = 'io.containerd.microvm.v1'\n").unwrap();
        assert_eq!(registered(dir.path()).outcome, Outcome::Ok);
    }

    #[test]
    fn binary_is_found_along_the_path_if_it_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("/nowhere:{}", dir.path().display());
        std::fs::write(dir.path().join(BINARY), "").unwrap();
        assert_eq!(find(&path, BINARY), None);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path().join(BINARY), mode).unwrap();
        assert_eq!(find(&path, BINARY), Some(dir.path().join(BINARY)));
    }
}
