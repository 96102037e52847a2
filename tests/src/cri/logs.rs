//! Container logs in the CRI format, read as `crictl logs` reads them: from the file. Called by the demo and the
//! end-to-end tests.

use std::fs;

use anyhow::{Context, Result};

use super::{Container, Pod};

/// One line, or a part of one, that a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text without its line end.
    pub text: String,
    /// Whether the line ends here.
    pub whole: bool,
}

/// The lines that a container has written so far; none if it has no log yet.
pub fn read_logs(pod: &Pod, container: &Container) -> Result<Vec<Line>> {
    let path = pod.log_folder().join(container.log_path());
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("Could not read the log {}", path.display()));
        }
    };
    text.lines()
        .map(|line| parse(line).with_context(|| format!("The log {} has {line:?}", path.display())))
        .collect()
}

/// `<time> <stream> <F or P> <text>`
fn parse(line: &str) -> Option<Line> {
    let mut fields = line.splitn(4, ' ');
    let (_time, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
    let text = fields.next().unwrap_or_default();
    Some(Line { stream: stream.to_owned(), text: text.to_owned(), whole: tag == "F" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_its_spaces_and_may_be_empty() {
        let line = parse("2026-11-25T10:00:00.1Z stderr P a  b ").unwrap();
        assert_eq!(line, Line { stream: "stderr".into(), text: "a  b ".into(), whole: false });
        assert_eq!(parse("2026-11-25T10:00:00.1Z stdout F ").unwrap().text, "");
        assert_eq!(parse("2026-11-25T10:00:00.1Z"), None);
    }
}
