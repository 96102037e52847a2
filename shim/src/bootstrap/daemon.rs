//! Which containerd calls: 1.7 and 2.0 to 2.2 run `start` in the same way, but take different replies. Called by `start`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Printing a version takes a Go program some ten milliseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether `binary`, the containerd that started us, is of version 1. One that can't be asked counts as newer.
pub(super) fn is_version_1(binary: &Path) -> bool {
    if binary.as_os_str().is_empty() {
        return false;
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return false;
    };
    let asked = runtime.block_on(async {
        let mut command = Command::new(binary);
        command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        timeout(LIMIT, command.output()).await.ok()?.ok()
    });
    asked.is_some_and(|output| is_1(&String::from_utf8_lossy(&output.stdout)))
}

/// `containerd github.com/containerd/containerd v1.7.24 <revision>`; Debian leaves the `v` out.
fn is_1(text: &str) -> bool {
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    version.trim_start_matches('v').starts_with("1.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_third_word() {
        assert!(is_1("containerd github.com/containerd/containerd v1.7.24 88bf19b2105c"));
        assert!(is_1("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6"));
        assert!(!is_1("containerd github.com/containerd/containerd/v2 v2.1.9 7b2f"));
        assert!(!is_1("") && !is_version_1(Path::new("/nonexistent/containerd")));
    }
}
