//! Checks raw config sources against the table of keys and reports every problem at once. Called by
//! [`super::Config::load`].

use std::fmt;

use super::Origin;
use super::file::{Entry, File, line_of};
use super::keys::{KEYS, Key, Values};
use super::value::Scalar;
use super::{Accelerator, VmmChoice};
use crate::error::{Error, Kind, Result};

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File, or another source of keys.
    pub origin: String,
    /// Line in it, from 1; 0 where there is none.
    pub line: usize,
    /// The key.
    pub key: String,
    /// The value as it was written.
    pub got: String,
    /// What would have been right.
    pub want: String,
    /// What to do, if that is not plain from `want`.
    pub hint: Option<String>,
}

impl Problem {
    /// Something that is not TOML.
    pub(super) fn syntax(origin: &Origin, text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let got = text.lines().nth(line - 1).unwrap_or_default().trim().chars().take(60).collect();
        Problem {
            origin: origin.to_string(),
            line,
            key: String::new(),
            got,
            want: "`key = value` lines in TOML".into(),
            hint: Some(error.message().to_owned()),
        }
    }

    fn of(origin: &Origin, entry: &Entry, want: String, hint: Option<String>) -> Self {
        let (key, got) = (entry.key.clone(), entry.got.clone());
        Problem { origin: origin.to_string(), line: entry.line, key, got, want, hint }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        match self.key.as_str() {
            "" => write!(f, ": {}: want {}", self.got, self.want)?,
            key => write!(f, ": {key} = {}: want {}", self.got, self.want)?,
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Defaults => f.write_str("built-in defaults"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Options => f.write_str("runtime options in containerd's config"),
            Origin::Annotations => f.write_str("pod annotation"),
        }
    }
}

/// The defaults with `files` on top, later ones winning.
pub(super) fn check(files: &[File]) -> Result<Values> {
    let mut values = Values::blank();
    let mut problems = Vec::new();
    apply_defaults(&mut values, &mut problems);
    for file in files {
        problems.extend(file.broken.iter().cloned());
        for entry in &file.entries {
            problems.extend(apply(&mut values, &file.origin, entry));
        }
    }
    problems.extend(across(&values, files));
    if problems.is_empty() { Ok(values) } else { Err(report(&problems)) }
}

fn apply_defaults(values: &mut Values, problems: &mut Vec<Problem>) {
    for key in KEYS {
        let file = File::parse(Origin::Defaults, &format!("{} = {}", key.name, key.default));
        for entry in &file.entries {
            problems.extend(apply(values, &file.origin, entry));
        }
    }
}

fn apply(values: &mut Values, origin: &Origin, entry: &Entry) -> Option<Problem> {
    let annotation = *origin == Origin::Annotations;
    let Some(key) = KEYS.iter().find(|key| key.name == entry.key) else {
        // Other rooms read annotations of the same prefix, and refuse those that nobody reads.
        return if annotation { None } else { Some(unknown(origin, entry)) };
    };
    if annotation && !key.annotation {
        let hint = Some("only the node's config may set it".to_owned());
        return Some(Problem::of(origin, entry, "no such annotation".into(), hint));
    }
    let want = (key.set)(values, &entry.value).err()?;
    Some(Problem::of(origin, entry, want, hint(key, entry)))
}

fn hint(key: &Key, entry: &Entry) -> Option<String> {
    match &entry.value {
        Scalar::Number(digits) if key.default.starts_with('"') => {
            Some(format!("for example {} = \"{digits}{}\"", key.name, unit(key)))
        }
        Scalar::Text(digits) if digits.parse::<u32>().is_ok() && !key.default.starts_with('"') => {
            Some(format!("without quotes: {} = {digits}", key.name))
        }
        _ => Some(format!("the default is {}", key.default)),
    }
}

/// The unit of the default, which is the likeliest one to be meant.
fn unit(key: &Key) -> &str {
    key.default.trim_matches('"').trim_start_matches(|c: char| c.is_ascii_digit())
}

fn unknown(origin: &Origin, entry: &Entry) -> Problem {
    let names = KEYS.iter().map(|key| key.name);
    let nearest = names.map(|name| (distance(name, &entry.key), name)).min();
    let hint = match nearest {
        Some((distance, name)) if distance <= 2 + name.len() / 4 => format!("did you mean {name:?}?"),
        _ => "docs/config.md lists all keys".to_owned(),
    };
    Problem::of(origin, entry, "a known key".into(), Some(hint))
}

/// What no key can tell alone.
fn across(values: &Values, files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut exceeds = |key: &str, limit: &str, broken: bool, bound: String| {
        if broken {
            problems.push(culprit(
                files,
                &[key, limit],
                format!("{key} not above {limit}, which is {bound}"),
            ));
        }
    };
    let (cpus, memory) = (values.max_vcpus, values.max_memory);
    exceeds("default_vcpus", "max_vcpus", values.default_vcpus > cpus, cpus.to_string());
    let bound = format!("{} MiB", memory >> 20);
    exceeds("default_memory", "max_memory", values.default_memory > memory, bound);
    if values.vmm == VmmChoice::CloudHypervisor && values.accelerator == Accelerator::Tcg {
        let want = "another VMM with accelerator = \"tcg\": cloud-hypervisor needs KVM".to_owned();
        problems.push(culprit(files, &["vmm", "accelerator"], want));
    }
    problems
}

/// The problem at the last place that set one of `keys`.
fn culprit(files: &[File], keys: &[&str], want: String) -> Problem {
    let mut places = files.iter().flat_map(|file| file.entries.iter().map(move |entry| (file, entry)));
    match places.rfind(|(_, entry)| keys.contains(&entry.key.as_str())) {
        Some((file, entry)) => Problem::of(&file.origin, entry, want, None),
        None => {
            let (origin, key) = (Origin::Defaults.to_string(), keys.concat());
            Problem { origin, line: 0, key, got: String::new(), want, hint: None }
        }
    }
}

fn report(problems: &[Problem]) -> Error {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Error::new(
        Kind::InvalidArgument,
        format!("The config has {}: {}", counted(lines.len()), lines.join("; ")),
    )
}

fn counted(problems: usize) -> String {
    if problems == 1 { "a problem".to_owned() } else { format!("{problems} problems") }
}

/// Edit distance of two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        check(&[File::parse(Origin::File("/c.toml".into()), text)]).unwrap_err().to_string()
    }

    #[test]
    fn every_default_is_valid_and_an_empty_file_works() {
        let values = check(&[]).unwrap();
        assert_eq!(values.default_memory, 256 << 20);
        assert_eq!(values, check(&[File::parse(Origin::Options, "\n# nothing\n")]).unwrap());
    }

    #[test]
    fn all_problems_come_at_once_with_line_value_and_hint() {
        let text = "vmm = \"xen\"\ndefault_memery = \"1GiB\"\n\ndefault_memory = 512\nmax_vcpus = \"4\"\nboom = [1]\n";
        let report = problems(text);
        assert!(
            report.starts_with("The config has 5 problems: /c.toml:1: vmm = \"xen\": want one of"),
            "{report}"
        );
        for part in [
            "/c.toml:2: default_memery = \"1GiB\": want a known key (did you mean \"default_memory\"?)",
            "/c.toml:4: default_memory = 512: want a size from \"128MiB\" to \"1024GiB\", with its unit \
             (KiB, MiB, GiB) (for example default_memory = \"512MiB\")",
            "/c.toml:5: max_vcpus = \"4\": want a whole number from 1 to 255 (without quotes: max_vcpus = 4)",
            "/c.toml:6: boom = [1]: want a known key (docs/config.md lists all keys)",
        ] {
            assert!(report.contains(part), "{part} is not in {report}");
        }
    }

    #[test]
    fn broken_toml_is_reported_beside_the_rest() {
        let report = problems("vmm = qemu\nlog_level = \"loud\"\n");
        assert!(report.contains("/c.toml:1: vmm = qemu: want `key = value` lines in TOML"), "{report}");
        assert!(report.contains("/c.toml:2: log_level = \"loud\": want one of"), "{report}");
    }

    #[test]
    fn limits_are_compared_across_sources() {
        let base = File::parse(Origin::File("/c.toml".into()), "max_memory = \"256MiB\"");
        let pod = File::from_annotations([("io.containerd.microvm.v1/default_memory", "1GiB")]);
        let report = check(&[base, pod]).unwrap_err().to_string();
        let want = "The config has a problem: pod annotation: default_memory = \"1GiB\": want default_memory not \
                    above max_memory, which is 256 MiB";
        assert_eq!(report, want);
    }

    #[test]
    fn a_pod_sets_only_what_it_may() {
        let pod = File::from_annotations([
            ("io.containerd.microvm.v1/restore-from", "x"),
            ("io.containerd.microvm.v1/default_vcpus", "3"),
            ("kernel", "/etc/shadow"),
        ]);
        assert_eq!(check(&[pod]).unwrap().default_vcpus, 3);
        let pod = File::from_annotations([("io.containerd.microvm.v1/qemu_path", "/bin/sh")]);
        let report = check(&[pod]).unwrap_err().to_string();
        assert!(report.contains("only the node's config may set it"), "{report}");
    }
}
