//! `docs/promises.md` names a test for each promise: it must exist.
#![allow(clippy::unwrap_used, reason = "clippy.toml's exception covers unit tests only")]

use std::fs;
use std::path::Path;

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut promises = 0;
    let mut broken = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |")) {
        promises += 1;
        let named: Vec<_> = line.split('`').skip(1).step_by(2).collect();
        let [.., file, test] = named[..] else {
            broken.push(format!("names no test: {line}"));
            continue;
        };
        let source = fs::read_to_string(root.join(file)).unwrap_or_default();
        if !source.contains(&format!("fn {test}(")) {
            broken.push(format!("{file} has no test {test}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(promises > 20, "only {promises} were found");
}
