//! The config's documentation, made from the table of keys: the commented template that `cargo xtask install`
//! lays down, and `docs/config.md`.

use super::keys::KEYS;
use super::{ANNOTATION_PREFIX, DEFAULT_PATH, PATH_VARIABLE};

/// Longest line of a comment.
const WIDTH: usize = 100;

/// The config file that a fresh node gets: every key with its documentation, each commented out at its default.
#[must_use]
pub fn template() -> String {
    let mut text =
        String::from("# Config of containerd's runtime io.containerd.microvm.v1; see docs/config.md.\n");
    text.push_str("# Every key stands here at its default; remove the # to change one. New pods read it.\n");
    for key in KEYS {
        if let Some(group) = key.group {
            text.push_str(&format!("\n# --- {group} ---\n"));
        }
        text.push('\n');
        for line in wrap(key.text) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("#{} = {}\n", key.name, key.default));
    }
    text
}

/// The page `docs/config.md`.
#[must_use]
pub fn page() -> String {
    let mut text = format!(
        "# Config\n\n<!-- Made by shim/src/config/doc.rs from keys.rs; `UPDATE=1 cargo test -p \
         containerd-shim-microvm-v1 config` writes it. -->\n\n\
         The shim reads one TOML file each time it starts a pod. Where it comes from, first match wins:\n\n\
         1. `ConfigPath` in the runtime's options table of containerd's config; or the other keys of that table, \
         which are taken as keys of this page and win over the file of 2 or 3,\n\
         2. the file that the environment variable `{PATH_VARIABLE}` of containerd names (for tests),\n\
         3. `{DEFAULT_PATH}`; without it the defaults apply.\n\n\
         A file that is named but missing is an error, and so are unknown keys and bad values: the pod fails with \
         every problem at once, each with its line. Sizes are strings with their unit (`KiB`, `MiB`, `GiB`), and so \
         are times (`ms`, `s`, `m`).\n\n\
         Keys marked with *pod* can be set for one pod by the annotation `{ANNOTATION_PREFIX}<key>`, within the \
         node's limits; containerd passes it on if its config lists the prefix under `pod_annotations`.\n"
    );
    for key in KEYS {
        if let Some(group) = key.group {
            text.push_str(&format!("\n## {group}\n\n| key | default | meaning |\n|---|---|---|\n"));
        }
        let pod = if key.annotation { " *pod*" } else { "" };
        text.push_str(&format!("| `{}`{pod} | `{}` | {} |\n", key.name, key.default, key.text));
    }
    text
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::check;
    use crate::config::file::File;
    use crate::config::{Origin, keys};

    #[test]
    fn template_names_every_key_at_its_default() {
        let text = template();
        let defaults = check(&[]).unwrap();
        assert_eq!(check(&[File::parse(Origin::Options, &text)]).unwrap(), defaults);
        let live: Vec<_> = text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect();
        let live: Vec<_> = live.into_iter().filter(|line| !line.starts_with(' ')).collect();
        let file = File::parse(Origin::Options, &live.join("\n"));
        assert_eq!(file.entries.len(), keys::KEYS.len());
        assert_eq!(check(&[file]).unwrap(), defaults);
    }

    #[test]
    fn page_is_what_docs_hold() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "docs/config.md is stale; set UPDATE=1");
    }
}
