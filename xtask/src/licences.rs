//! Licences of all dependencies, against the list in `deny.toml`. Called by `cargo xtask check`.
//!
//! cargo-deny knows more (advisories need a database from outside); where it is installed it is run as well.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, step};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let text =
        std::fs::read_to_string(workspace.root.join("deny.toml")).context("Could not read deny.toml")?;
    let settings: toml::Table = text.parse().context("Could not read deny.toml")?;
    let allowed: BTreeSet<&str> = settings["licenses"]["allow"]
        .as_array()
        .context("deny.toml has no licenses.allow")?
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    let output = workspace
        .cargo(&["metadata", "--locked", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("Could not run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let mut refused = Vec::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_allowed(licence, &allowed) {
            refused.push(format!(
                "{} {}: {licence}",
                text_of(&package["name"]),
                text_of(&package["version"])
            ));
        }
    }
    if !refused.is_empty() {
        bail!("Licences that deny.toml does not allow:\n  {}", refused.join("\n  "));
    }
    println!("==> Check the licences of {} packages: all allowed by deny.toml", packages.len());

    let there =
        Command::new("cargo-deny").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        let arguments = ["deny", "--offline", "check", "bans", "licenses", "sources"];
        return step("Check the dependencies with cargo-deny", &mut workspace.cargo(&arguments));
    }
    println!("    left out: bans and sources by cargo-deny; `cargo install --locked cargo-deny` brings it");
    Ok(())
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// An SPDX expression without nesting beyond one level of parentheses: `A OR B`, `(A OR B) AND C`, and `/` of old.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some((left, right)) = split_outside(&expression, " OR ") {
        return is_allowed(left, allowed) || is_allowed(right, allowed);
    }
    if let Some((left, right)) = split_outside(&expression, " AND ") {
        return is_allowed(left, allowed) && is_allowed(right, allowed);
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => {
            allowed.contains(one) || one.split_once(" WITH ").is_some_and(|(base, _)| allowed.contains(base))
        }
    }
}

/// Splits at the first `word` that stands in no parentheses.
fn split_outside<'a>(expression: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0;
    for (at, letter) in expression.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && expression[at..].starts_with(word) => {
                return Some((&expression[..at], &expression[at + word.len()..]));
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_says() {
        let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Unicode-3.0"]);
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(GPL-3.0 OR MIT) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "none", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", ""] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }
}
