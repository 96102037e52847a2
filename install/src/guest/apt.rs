//! Debian's packages through an apt of our own: its directories are private, so neither the machine's package lists
//! nor its configuration change. The mirror is the one that this machine uses. Called by [`super::package`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Architecture;
use crate::{fsx, mirror};

/// Debian release of the guest's kernel.
pub(super) const SUITE: &str = "trixie";

/// A package that can be downloaded, as Debian's signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
}

/// An apt whose files are all in one directory.
pub(super) struct Apt {
    directory: PathBuf,
    architecture: Architecture,
}

impl Apt {
    /// Makes the directories and the list of sources.
    pub(super) fn open(directory: &Path, architecture: Architecture) -> Result<Self> {
        let directory = std::path::absolute(directory).context("Could not tell the current directory")?;
        for sub in ["etc", "state/lists/partial", "cache/archives/partial", "download"] {
            fsx::make_directory(&directory.join(sub))?;
        }
        let mirror = mirror::of_this_machine()?;
        let keyring = mirror.keyring.display();
        ensure!(
            mirror.keyring.exists(),
            "{keyring} is missing; `apt-get install debian-archive-keyring` brings the keys that sign the guest's kernel"
        );
        let source = format!("deb [signed-by={keyring}] {} {SUITE} main\n", mirror.uri);
        fsx::replace(&directory.join("etc/sources.list"), source.as_bytes(), 0o644)?;
        Ok(Self { directory, architecture })
    }

    /// Gets the newest index; apt checks its signature.
    pub(super) fn update(&self) -> Result<()> {
        run(self.command("apt-get").arg("update")).map(drop)
    }

    /// The packages that `meta` depends on, newest first, and `wanted` if the index still has it.
    pub(super) fn candidates(&self, meta: &str, wanted: &str) -> Result<Vec<Candidate>> {
        let mut names = depended_on(&self.show(meta)?);
        let known = self.answer(&["pkgnames", wanted])?;
        if known.lines().any(|name| name == wanted) && !names.iter().any(|name| name == wanted) {
            names.push(wanted.into());
        }
        let mut found = Vec::new();
        for name in names {
            found.extend(parse_candidates(&self.show(&name)?));
        }
        Ok(found)
    }

    /// Downloads a package; apt checks it against its index.
    pub(super) fn download(&self, candidate: &Candidate) -> Result<PathBuf> {
        let directory = self.directory.join("download");
        let package = format!("{}={}", candidate.name, candidate.version);
        run(self.command("apt-get").current_dir(&directory).args(["download", &package]))?;
        let prefix = format!("{}_", candidate.name);
        for entry in
            fs::read_dir(&directory).with_context(|| format!("Could not list {}", directory.display()))?
        {
            let path = entry.context("Could not list the downloads")?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                return Ok(path);
            }
        }
        bail!("apt-get downloaded {package}, but there is no such file in {}", directory.display())
    }

    fn show(&self, package: &str) -> Result<String> {
        self.answer(&["show", package])
    }

    fn answer(&self, question: &[&str]) -> Result<String> {
        let output = run(self.command("apt-cache").args(question))?;
        String::from_utf8(output.stdout).context("apt-cache answered something that is no text")
    }

    fn command(&self, program: &str) -> Command {
        let path = |sub: &str| self.directory.join(sub).display().to_string();
        let architecture = self.architecture.debian();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8");
        for option in [
            format!("Dir={}", self.directory.display()),
            format!("Dir::Etc::sourcelist={}", path("etc/sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            format!("Dir::State={}", path("state")),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", path("cache")),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            // Only the index of binary packages is of use: no translations, no descriptions of applications.
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            // As root, apt would download as a user that can't enter our directories.
            "APT::Sandbox::User=root".into(),
            "Acquire::Retries=3".into(),
            "Acquire::http::Timeout=30".into(),
            "Acquire::https::Timeout=30".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Runs a program to its end; what it said is part of the error.
pub(super) fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("Could not run {program}; the guest's kernel comes from a Debian package")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, said.trim());
    }
    Ok(output)
}

/// Names of the kernel packages in the `Depends:` fields.
fn depended_on(shown: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in shown.lines().filter_map(|line| line.strip_prefix("Depends:")) {
        for name in line.split([',', '|']).filter_map(|part| part.split_whitespace().next()) {
            if name.starts_with("linux-image-") && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    names
}

fn parse_candidates(shown: &str) -> Vec<Candidate> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    shown
        .split("\n\n")
        .filter_map(|paragraph| {
            let name = field(paragraph, "Package:")?;
            let version = field(paragraph, "Version:")?;
            let sha256 = field(paragraph, "SHA256:").filter(|sum| sum.len() == 64)?;
            Some(Candidate { name, version, sha256 })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versioned_packages_are_read_from_what_apt_shows() {
        let meta = "Package: linux-image-cloud-amd64\nVersion: 6.12.2-1\n\
                    Depends: linux-image-6.12.2+deb13-cloud-amd64 (= 6.12.2-1), kmod\n";
        assert_eq!(depended_on(meta), ["linux-image-6.12.2+deb13-cloud-amd64"]);

        let sum = "a".repeat(64);
        let shown =
            format!("Package: k\nVersion: 2-1\nSHA256: {sum}\n\nPackage: k\nVersion: 1-1\nSHA256: short\n");
        let found = parse_candidates(&shown);
        assert_eq!(found, [Candidate { name: "k".into(), version: "2-1".into(), sha256: sum }]);
    }

    #[test]
    fn what_a_program_said_is_part_of_the_error() {
        let error =
            run(Command::new("sh").args(["-c", "echo no such suite >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("no such suite") && error.contains("3"), "{error}");
    }
}
