//! What single values of a manifest must look like. Called by `check`.

use super::Digest;
use crate::guest::GuestName;
use crate::snapshot::Checksum;

/// A value that is not what it must be: what would have been right.
pub(super) type Want = String;

/// Text for people: no control characters, so that it can be shown and logged.
pub(super) fn text(value: String, max: usize) -> Result<String, Want> {
    if value.len() > max || value.chars().any(char::is_control) {
        return Err(format!("one line of at most {max} bytes"));
    }
    Ok(value)
}

/// Text as above that is not empty.
pub(super) fn filled(value: String, max: usize) -> Result<String, Want> {
    text(value, max).and_then(|value| if value.is_empty() { Err("some text".into()) } else { Ok(value) })
}

/// A name that becomes part of a path or of an id: ASCII, one component, not hidden.
pub(super) fn name(value: String) -> Result<String, Want> {
    let fine = |c: u8| c.is_ascii_alphanumeric() || b"._-%~+=:".contains(&c);
    if value.is_empty() || value.len() > 128 || value.starts_with('.') || !value.bytes().all(fine) {
        return Err("a name of 1 to 128 of A-Z a-z 0-9 . _ - % ~ + = : that starts with no dot".into());
    }
    Ok(value)
}

/// A container's name in the guest.
pub(super) fn guest_name(value: String) -> Result<String, Want> {
    match GuestName::parse(&value) {
        Ok(_) => Ok(value),
        Err(_) => Err("a guest name: a CRI container name, or another id in its escaped form".into()),
    }
}

/// A number in a range.
pub(super) fn within<T: PartialOrd + std::fmt::Display + Copy>(value: T, low: T, high: T) -> Result<T, Want> {
    if value < low || value > high { Err(format!("{low} to {high}")) } else { Ok(value) }
}

/// An OCI digest.
pub(super) fn digest(value: &str) -> Result<Digest, Want> {
    value.parse().map_err(|()| "a digest as sha256:<64 hex digits>".into())
}

/// A checksum of ours.
pub(super) fn checksum(value: &str) -> Result<Checksum, Want> {
    value.parse().map_err(|()| "a checksum as blake3:<64 hex digits>".into())
}

/// A MAC address.
pub(super) fn mac(value: String) -> Result<String, Want> {
    let octet = |part: &str| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
    if value.split(':').count() == 6 && value.split(':').all(octet) {
        return Ok(value);
    }
    Err("a MAC address as aa:bb:cc:dd:ee:ff".into())
}

/// An absolute path in a container, without `.` and `..`.
pub(super) fn guest_path(value: String) -> Result<String, Want> {
    let fine = value.starts_with('/') && !value.split('/').any(|part| matches!(part, "." | ".."));
    if !fine || value.len() > 4096 || value.chars().any(char::is_control) {
        return Err("an absolute path without `.` and `..`".into());
    }
    Ok(value)
}
