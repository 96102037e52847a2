//! A config source as it was written: every key with its value and its line, nothing checked yet. Called by
//! `source` and `check`.

use toml::de::{DeTable, DeValue};

use super::check::Problem;
use super::value::Scalar;
use super::{ANNOTATION_PREFIX, Origin};

/// Largest config that is read, in bytes; ours has 4 KiB with all its comments.
pub(super) const MAX_BYTES: u64 = 256 * 1024;

/// One source of keys.
#[derive(Debug)]
pub(super) struct File {
    pub(super) origin: Origin,
    pub(super) entries: Vec<Entry>,
    /// What is not even TOML.
    pub(super) broken: Vec<Problem>,
}

/// One `key = value`.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line in the file, from 1; 0 where there is none.
    pub(super) line: usize,
    pub(super) value: Scalar,
    /// The value as it was written, shortened.
    pub(super) got: String,
}

impl File {
    /// Takes TOML apart. Broken TOML becomes problems, so that they are reported beside the others.
    pub(super) fn parse(origin: Origin, text: &str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let broken = errors.iter().map(|error| Problem::syntax(&origin, text, error)).collect();
        let entries = table.into_inner().into_iter().map(|(key, value)| {
            let (line, got) = (line_of(text, key.span().start), shorten(text, value.span()));
            Entry { key: key.into_inner().into_owned(), line, value: scalar(value.get_ref()), got }
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|entry| entry.line);
        File { origin, entries, broken }
    }

    /// The annotations that are meant for the config. Those that others of our rooms read are left alone.
    pub(super) fn from_annotations<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let entries = pairs.into_iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(ANNOTATION_PREFIX)?.to_owned();
            let (got, value) = (format!("{value:?}"), Scalar::Untyped(value.to_owned()));
            Some(Entry { key, line: 0, value, got })
        });
        File { origin: Origin::Annotations, entries: entries.collect(), broken: Vec::new() }
    }
}

/// The line, from 1, of the byte `offset`.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn shorten(text: &str, span: std::ops::Range<usize>) -> String {
    let got = text.get(span).unwrap_or_default();
    let first: String = got.lines().next().unwrap_or_default().chars().take(60).collect();
    if first.len() < got.len() { first + "…" } else { first }
}

fn scalar(value: &DeValue<'_>) -> Scalar {
    match value {
        DeValue::String(text) => Scalar::Text(text.to_string()),
        DeValue::Boolean(flag) => Scalar::Flag(*flag),
        DeValue::Integer(number) if number.radix() == 10 => Scalar::Number(number.as_str().to_owned()),
        _ => Scalar::Other,
    }
}
