//! What this machine's own apt configuration says: the Debian mirror and its keyring. Called by the builder of the guest,
//! and by the test host's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The keyring of Debian's archive where a source names none.
const DEFAULT_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror of Debian's main archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its address, as in a source of apt.
    pub uri: String,
    /// File with the keys that sign it.
    pub keyring: PathBuf,
}

/// One `deb` source, from either of apt's two formats.
#[derive(Debug, Default)]
struct Source {
    uri: String,
    suites: Vec<String>,
    keyring: Option<PathBuf>,
}

/// The mirror from which this machine's own release is installed. It serves the other releases too.
///
/// # Errors
/// When this is no Debian, or no source of apt serves its release.
pub fn of_this_machine() -> Result<Mirror> {
    let release = std::fs::read_to_string("/etc/os-release").context("Could not read /etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release has no VERSION_CODENAME: is this a Debian?")?
        .trim_matches('"')
        .to_owned();
    let mut sources = Vec::new();
    for file in source_files(Path::new("/etc/apt"))? {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("Could not read the apt source {}", file.display()))?;
        let deb822 = file.extension().is_some_and(|extension| extension == "sources");
        sources.extend(if deb822 { parse_deb822(&text) } else { parse_one_line(&text) });
    }
    match choose(sources, &codename) {
        Some(mirror) => Ok(mirror),
        None => {
            bail!("No apt source on this machine serves the suite {codename}: see /etc/apt/sources.list.d")
        }
    }
}

fn source_files(etc_apt: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let single = etc_apt.join("sources.list");
    if single.exists() {
        files.push(single);
    }
    let folder = etc_apt.join("sources.list.d");
    if folder.exists() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("Could not list {}", folder.display()))?;
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.retain(|file| file.extension().is_some_and(|kind| kind == "list" || kind == "sources"));
    files.sort();
    Ok(files)
}

fn choose(sources: Vec<Source>, codename: &str) -> Option<Mirror> {
    let source = sources.into_iter().find(|source| source.suites.iter().any(|suite| suite == codename))?;
    Some(Mirror {
        uri: source.uri,
        keyring: source.keyring.unwrap_or_else(|| PathBuf::from(DEFAULT_KEYRING)),
    })
}

/// Stanzas of `Key: value` lines, separated by empty lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let mut source = Source::default();
        let mut binary = false;
        for line in stanza.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.to_ascii_lowercase().as_str() {
                "types" => binary = value.split_whitespace().any(|kind| kind == "deb"),
                "uris" => source.uri = value.split_whitespace().next().unwrap_or_default().to_owned(),
                "suites" => source.suites = value.split_whitespace().map(str::to_owned).collect(),
                "signed-by" if value.starts_with('/') => source.keyring = Some(PathBuf::from(value)),
                _ => {}
            }
        }
        if binary && !source.uri.is_empty() {
            sources.push(source);
        }
    }
    sources
}

/// Lines of `deb [options] uri suite component…`.
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let keyring = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        sources.push(Source {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            keyring: keyring.map(PathBuf::from),
        });
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stanza_of_the_own_release_is_chosen() {
        let text = "Types: deb\nURIs: http://a.invalid/security\nSuites: bookworm-security\n\n\
                    Types: deb deb-src\n# a comment: ignored\nURIs: http://a.invalid/debian\n\
                    Suites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
        let mirror = choose(parse_deb822(text), "bookworm").unwrap();
        assert_eq!(mirror, Mirror { uri: "http://a.invalid/debian".into(), keyring: "/k.gpg".into() });
    }

    #[test]
    fn one_line_sources_may_have_options_and_comments() {
        let text = "# deb http://b.invalid/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/o.gpg] http://a.invalid/debian bookworm main\n\
                    deb http://a.invalid/debian trixie main\n";
        let chosen = choose(parse_one_line(text), "bookworm").unwrap();
        assert_eq!(chosen, Mirror { uri: "http://a.invalid/debian".into(), keyring: "/o.gpg".into() });
        let plain = choose(parse_one_line(text), "trixie").unwrap();
        assert_eq!(plain.keyring, Path::new(DEFAULT_KEYRING));
        assert_eq!(choose(parse_one_line(text), "sid"), None);
    }
}
