//! Running other programs and saying well what went wrong. Called by demo, leak check and end-to-end tests.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Runs a program that must end with 0; what it printed on standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that must end with 0.
pub fn run(command: &mut Command) -> Result<()> {
    finish(command).map(drop)
}

fn finish(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("Could not run {:?}", command.get_program()))?;
    if !output.status.success() {
        let text = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!(
            "{} {} ended with {}: {}",
            command.get_program().to_string_lossy(),
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&text).trim()
        );
    }
    Ok(output)
}
