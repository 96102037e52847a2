//! What containerd must know: the drop-in that registers the runtime, and whether containerd will read it. Called by
//! the plan.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

/// containerd's own config file.
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
/// Our part of it.
pub(super) const DROP_IN: &str = "/etc/containerd/conf.d/microvm.toml";
/// Where our part lies when containerd can't take it as a drop-in.
pub(super) const BY_HAND: &str = "/usr/share/microvm/containerd-1.7.toml";
/// Value of `imports` that makes containerd read [`DROP_IN`].
const IMPORT: &str = "/etc/containerd/conf.d/*.toml";
/// Plugin that a config of version 2 configures runtimes in.
const CRI_V2: &str = "io.containerd.grpc.v1.cri";

/// The containerd of a node, as far as its config format goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containerd {
    /// 1.7: configs of version 2; an imported file replaces the whole section of a plugin.
    V1,
    /// 2.0 or newer: configs of version 2 or 3; imported files are merged key by key.
    V2,
}

impl Containerd {
    /// Asks the containerd that is installed below `root`. Without one, the newer kind is assumed.
    ///
    /// # Errors
    /// When containerd is there but does not tell its version, or tells one that we can't serve.
    pub fn detect(root: &Path) -> Result<Self> {
        let there = ["usr/bin/containerd", "usr/local/bin/containerd"];
        let Some(program) = there.into_iter().find(|path| root.join(path).exists()) else {
            return Ok(Self::V2);
        };
        let output = Command::new("chroot").arg(root).arg(format!("/{program}")).arg("--version").output();
        let output = output.with_context(|| format!("Could not run {program} of {}", root.display()))?;
        ensure!(output.status.success(), "`{program} --version` failed: {}", output.status);
        Self::of(&String::from_utf8_lossy(&output.stdout))
    }

    /// Reads the answer of `containerd --version`, whose third word is the version.
    fn of(answer: &str) -> Result<Self> {
        let version = answer.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
        let mut numbers = version.split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(1)), Some(Ok(minor))) if minor >= 7 => Ok(Self::V1),
            (Some(Ok(major)), Some(Ok(_))) if major >= 2 => Ok(Self::V2),
            _ => bail!("containerd answers {:?} for its version; 1.7 or newer is needed", answer.trim()),
        }
    }
}

/// What to lay down for containerd.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registration {
    /// Path and text of our part.
    pub(super) part: (&'static str, &'static str),
    /// Text of [`CONFIG`], if the node has none.
    pub(super) config: Option<String>,
    /// What is left for a person to do.
    pub(super) notes: Vec<String>,
}

/// Decides by containerd's version and the text of its config, if it has one.
pub(super) fn registration(containerd: Containerd, config: Option<&str>) -> Result<Registration> {
    let Some(config) = config else {
        let version = if containerd == Containerd::V1 { 2 } else { 3 };
        let text = format!(
            "# Made by `cargo xtask install`, because containerd had no config.\n\
             version = {version}\nimports = [\"{IMPORT}\"]\n"
        );
        return Ok(Registration { part: (DROP_IN, part(version)), config: Some(text), notes: Vec::new() });
    };
    let config: Table = toml::from_str(config).with_context(|| format!("{CONFIG} is no TOML"))?;
    // Whatever is imported must not be of a newer version than the config itself, and is best of the same.
    let version = match config.get("version").and_then(Value::as_integer) {
        Some(version @ 2..) => version.min(3),
        _ => bail!(
            "{CONFIG} is of version 1; `containerd config migrate` shows it in a version that this runtime can join"
        ),
    };
    if containerd == Containerd::V1
        && config.get("plugins").is_some_and(|plugins| plugins.get(CRI_V2).is_some())
    {
        let note = format!(
            "containerd 1.7 would drop the settings that {CONFIG} has in [plugins.\"{CRI_V2}\"] for those of a drop-in: \
             add the lines of {BY_HAND} to it by hand, then restart containerd"
        );
        return Ok(Registration { part: (BY_HAND, part(2)), config: None, notes: vec![note] });
    }
    let notes = if imports(&config).any(|pattern| covers(pattern, DROP_IN)) {
        Vec::new()
    } else {
        vec![missing(&config)]
    };
    Ok(Registration { part: (DROP_IN, part(version)), config: None, notes })
}

/// Our part in the config format `version`.
fn part(version: i64) -> &'static str {
    match version {
        2 => include_str!("../../files/containerd-v2.toml"),
        _ => include_str!("../../files/containerd-v3.toml"),
    }
}

fn imports(config: &Table) -> impl Iterator<Item = &str> {
    config.get("imports").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The line to add, exactly.
fn missing(config: &Table) -> String {
    if imports(config).next().is_some() {
        return format!(
            "{CONFIG} does not read {DROP_IN}: add \"{IMPORT}\" to its list `imports`, then restart containerd"
        );
    }
    format!(
        "{CONFIG} does not read {DROP_IN}: add the line `imports = [\"{IMPORT}\"]` above its first [table], then restart \
         containerd"
    )
}

/// Whether an entry of `imports` names `path`: relative to the config's directory, `*` for any part of a name.
fn covers(pattern: &str, path: &str) -> bool {
    let pattern = Path::new("/etc/containerd").join(pattern);
    let path = Path::new(path);
    let mut wanted = path.components();
    for part in pattern.components() {
        let (Some(name), part) = (wanted.next(), part.as_os_str()) else { return false };
        if !matches(part.to_string_lossy().as_bytes(), name.as_os_str().to_string_lossy().as_bytes()) {
            return false;
        }
    }
    wanted.next().is_none()
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        ([one, pattern @ ..], [other, name @ ..]) => one == other && matches(pattern, name),
        ([], []) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS_US: &str = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";

    #[test]
    fn versions_are_read_from_what_containerd_answers() {
        let of = |version: &str| {
            Containerd::of(&format!("containerd github.com/containerd/containerd {version} abc\n"))
        };
        assert_eq!(of("v1.7.24").unwrap(), Containerd::V1);
        assert_eq!(of("2.1.9~ds1-1").unwrap(), Containerd::V2);
        assert_eq!(of("v2.3.0-rc.1").unwrap(), Containerd::V2);
        assert!(of("v1.6.1").unwrap_err().to_string().contains("v1.6.1"));
        assert!(Containerd::of("").is_err());
    }

    #[test]
    fn the_part_has_the_version_of_the_config() {
        for (config, version) in
            [(READS_US, 3), (&READS_US.replace('3', "4"), 3), (&READS_US.replace('3', "2"), 2)]
        {
            let registration = registration(Containerd::V2, Some(config)).unwrap();
            assert_eq!(
                registration,
                Registration { part: (DROP_IN, part(version)), config: None, notes: Vec::new() }
            );
        }
        assert!(
            registration(Containerd::V2, Some("[plugins]\n")).unwrap_err().to_string().contains("version 1")
        );
    }

    #[test]
    fn without_a_config_one_is_made_that_reads_the_part() {
        for (containerd, version) in [(Containerd::V1, 2), (Containerd::V2, 3)] {
            let made = registration(containerd, None).unwrap();
            assert_eq!(made.part, (DROP_IN, part(version)));
            let again = registration(containerd, made.config.as_deref()).unwrap();
            assert_eq!((again.part, again.notes), (made.part, Vec::new()));
        }
    }

    #[test]
    fn a_config_that_does_not_read_the_part_gets_the_exact_line() {
        let notes = registration(Containerd::V2, Some("version = 3\n[debug]\n")).unwrap().notes;
        assert!(notes[0].contains("`imports = [\"/etc/containerd/conf.d/*.toml\"]`"), "{notes:?}");
        let notes =
            registration(Containerd::V2, Some("version = 3\nimports = [\"/etc/other/*\"]\n")).unwrap().notes;
        assert!(notes[0].contains("to its list `imports`"), "{notes:?}");
    }

    #[test]
    fn containerd_1_7_never_loses_the_settings_that_it_has() {
        let config =
            READS_US.replace('3', "2") + "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/x\"\n";
        let by_hand = registration(Containerd::V1, Some(&config)).unwrap();
        assert_eq!(by_hand.part, (BY_HAND, part(2)));
        assert!(by_hand.notes[0].contains(BY_HAND), "{by_hand:?}");
        assert_eq!(registration(Containerd::V2, Some(&config)).unwrap().part, (DROP_IN, part(2)));
    }

    #[test]
    fn imports_are_matched_as_containerd_does() {
        for pattern in
            ["/etc/containerd/conf.d/*.toml", "conf.d/*", "/etc/*/conf.d/micro*.toml", "conf.d/microvm.toml"]
        {
            assert!(covers(pattern, DROP_IN), "{pattern}");
        }
        for pattern in
            ["/etc/containerd/*.toml", "conf.d/*.conf", "/etc/containerd/conf.d", "conf.d/*/microvm.toml"]
        {
            assert!(!covers(pattern, DROP_IN), "{pattern}");
        }
    }

    #[test]
    fn both_parts_register_the_same_runtime() {
        let runtime = |version, plugin: &str| {
            let config: Table = toml::from_str(part(version)).unwrap();
            assert_eq!(config["version"].as_integer(), Some(version));
            config["plugins"][plugin]["containerd"]["runtimes"]["microvm"].clone()
        };
        let new = runtime(3, "io.containerd.cri.v1.runtime");
        assert_eq!(new, runtime(2, CRI_V2));
        assert_eq!(new["runtime_type"].as_str(), Some("io.containerd.microvm.v1"));
    }
}
