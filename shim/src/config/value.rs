//! Values as people write them in the config: sizes, durations, counts, choices. Called by the table of keys.

use std::path::PathBuf;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Most that one container may write to its root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperSize {
    /// Share of the guest's RAM, 1 to 100.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl Default for UpperSize {
    fn default() -> Self {
        UpperSize::Percent(50)
    }
}

impl UpperSize {
    /// The size in bytes in a guest with `memory` bytes of RAM.
    #[must_use]
    pub fn of(self, memory: u64) -> u64 {
        match self {
            UpperSize::Percent(percent) => memory / 100 * u64::from(percent),
            UpperSize::Bytes(bytes) => bytes.min(memory),
        }
    }
}

/// A value without its meaning: all that the table of keys knows to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar {
    Text(String),
    /// Decimal digits with their sign.
    Number(String),
    Flag(bool),
    /// Of an annotation, where everything is a string: text, number or flag, whatever the key wants.
    Untyped(String),
    /// An array, table, float or date, which no key takes.
    Other,
}

impl Scalar {
    fn text(&self) -> Option<&str> {
        match self {
            Scalar::Text(text) | Scalar::Untyped(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Option<&str> {
        match self {
            Scalar::Number(text) | Scalar::Untyped(text) => Some(text),
            _ => None,
        }
    }

    fn flag(&self) -> Option<bool> {
        match self {
            Scalar::Flag(flag) => Some(*flag),
            Scalar::Untyped(text) => text.parse().ok(),
            _ => None,
        }
    }
}

/// What would have been right, for a [`super::Problem`].
pub(super) type Want = String;

/// An absolute path.
pub(super) fn path(value: &Scalar) -> Result<PathBuf, Want> {
    match value.text().map(PathBuf::from) {
        Some(path) if path.is_absolute() && !path.components().any(|c| c.as_os_str() == "..") => Ok(path),
        _ => Err("an absolute path without `..`, as a string".into()),
    }
}

/// An absolute path, or none for the empty string.
pub(super) fn optional_path(value: &Scalar) -> Result<Option<PathBuf>, Want> {
    match value.text() {
        Some("") => Ok(None),
        _ => path(value).map(Some).map_err(|want| format!("{want}, or \"\" for none")),
    }
}

/// One line of text.
pub(super) fn line(value: &Scalar) -> Result<String, Want> {
    match value.text() {
        Some(text) if !text.chars().any(char::is_control) => Ok(text.into()),
        _ => Err("one line of text, as a string".into()),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &Scalar) -> Result<bool, Want> {
    value.flag().ok_or_else(|| "true or false".into())
}

/// One of a few names.
pub(super) fn choice<T: Copy>(value: &Scalar, names: &[(&str, T)]) -> Result<T, Want> {
    let found = value.text().and_then(|text| names.iter().find(|(name, _)| *name == text));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("one of {}", names.join(", "))
    })
}

/// A whole number between `low` and `high`.
pub(super) fn count(value: &Scalar, low: u32, high: u32) -> Result<u32, Want> {
    let number = value.number().and_then(|digits| digits.parse().ok());
    number
        .filter(|number| (low..=high).contains(number))
        .ok_or_else(|| format!("a whole number from {low} to {high}"))
}

/// A size between `low` and `high` bytes, as `"256MiB"`.
pub(super) fn size(value: &Scalar, low: u64, high: u64) -> Result<u64, Want> {
    let bytes = value.text().and_then(parse_size);
    bytes.filter(|bytes| (low..=high).contains(bytes)).ok_or_else(|| {
        format!("a size from \"{}\" to \"{}\", with its unit (KiB, MiB, GiB)", show(low), show(high))
    })
}

/// A size as above, or a share of guest RAM as `"50%"`.
pub(super) fn upper_size(value: &Scalar) -> Result<UpperSize, Want> {
    if let Some(percent) = value.text().and_then(|text| text.strip_suffix('%')) {
        let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
        return percent.map(UpperSize::Percent).ok_or_else(|| "a share from \"1%\" to \"100%\"".into());
    }
    let bytes = size(value, MIB, 1024 * GIB).map_err(|want| format!("\"1%\" to \"100%\", or {want}"))?;
    Ok(UpperSize::Bytes(bytes))
}

/// A time between `low` and `high`, as `"30s"`.
pub(super) fn duration(value: &Scalar, low: Duration, high: Duration) -> Result<Duration, Want> {
    let time = value.text().and_then(parse_duration);
    time.filter(|time| (low..=high).contains(time)).ok_or_else(|| {
        format!("a time from \"{low:?}\" to \"{}s\", with its unit (ms, s, m)", high.as_secs())
    })
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = split(text)?;
    let unit = match unit {
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    digits.checked_mul(unit)
}

fn parse_duration(text: &str) -> Option<Duration> {
    match split(text)? {
        (number, "ms") => Some(Duration::from_millis(number)),
        (number, "s") => Some(Duration::from_secs(number)),
        (number, "m") => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// Digits and the unit after them; a blank between them is fine.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

fn show(bytes: u64) -> String {
    let (unit, name) = match bytes {
        bytes if bytes.is_multiple_of(GIB) => (GIB, "GiB"),
        bytes if bytes.is_multiple_of(MIB) => (MIB, "MiB"),
        _ => (KIB, "KiB"),
    };
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_need_their_unit_and_do_not_overflow() {
        assert_eq!(parse_size("256MiB"), Some(256 * MIB));
        assert_eq!(parse_size("2 GiB"), Some(2 * GIB));
        for bad in [
            "256",
            "MiB",
            "1.5GiB",
            "-1MiB",
            "256MB",
            "99999999999999999999GiB",
            "18446744073709551615KiB",
            "",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("30"), None);
    }

    #[test]
    fn upper_size_never_exceeds_the_guest() {
        assert_eq!(UpperSize::Bytes(5 * GIB).of(GIB), GIB);
        assert_eq!(UpperSize::Percent(50).of(1000), 500);
        assert!(UpperSize::Percent(100).of(u64::MAX) > u64::MAX - 100);
    }
}
