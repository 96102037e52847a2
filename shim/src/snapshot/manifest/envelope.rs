//! The bytes of `manifest.json`: a header that is read on its own, and the body that it guards. Called by
//! `snapshot::save` and `snapshot::open`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{FORMAT, Manifest, VERSION, check, raw};
use crate::error::{Context, Error, Kind, Result};
use crate::snapshot::Checksum;

/// Longest manifest that is read, in bytes.
pub(in crate::snapshot) const MAX_BYTES: u64 = 4 << 20;

/// All that is looked at before format and version are known to be ours.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Serialize)]
struct Written<'a> {
    format: &'a str,
    version: u32,
    checksum: Checksum,
    snapshot: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<'a> {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    checksum: String,
    #[serde(borrow)]
    snapshot: &'a RawValue,
}

/// The text of a manifest. It is read back and checked, so that nothing is written that a restore would refuse.
///
/// # Errors
/// `InvalidArgument` with every problem.
pub(in crate::snapshot) fn render(manifest: &Manifest) -> Result<Vec<u8>> {
    let body = serde_json::to_string_pretty(manifest).context(|| "Could not write the manifest".into())?;
    let body = RawValue::from_string(body).context(|| "Could not write the manifest".into())?;
    let text = envelope(&body)?;
    parse(&text).context(|| "The pod can't be described in a manifest".into())?;
    Ok(text)
}

fn envelope(body: &RawValue) -> Result<Vec<u8>> {
    let checksum = Checksum::of(body.get().as_bytes());
    let written = Written { format: FORMAT, version: VERSION, checksum, snapshot: body };
    let mut text = serde_json::to_vec(&written).context(|| "Could not write the manifest".into())?;
    text.push(b'\n');
    Ok(text)
}

/// Reads the text of a manifest.
///
/// # Errors
/// `FailedPrecondition` for another version of the format; `InvalidArgument` for anything that is not a manifest,
/// was changed, or has problems, all of which are named.
pub(in crate::snapshot) fn parse(text: &[u8]) -> Result<Manifest> {
    let invalid = |what: &str| Error::new(Kind::InvalidArgument, what.to_owned());
    let header: Header = serde_json::from_slice(text)
        .kind(Kind::InvalidArgument, || "The manifest is damaged or not one of ours".into())?;
    if header.format != FORMAT {
        let format: String = header.format.chars().take(80).collect();
        return Err(invalid(&format!("The manifest has the format {format:?}, want {FORMAT:?}")));
    }
    if header.version != VERSION {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "The snapshot has version {} of the format, this build reads version {VERSION}; restore it with \
                 the release that made it",
                header.version
            ),
        ));
    }
    let damaged = || "The manifest is damaged".to_owned();
    let read: Read = serde_json::from_slice(text).kind(Kind::InvalidArgument, damaged)?;
    let checksum = Checksum::of(read.snapshot.get().as_bytes());
    // Rendered again it must be the same bytes: no change anywhere goes unseen, not even of a blank.
    if read.checksum != checksum.to_string() || envelope(read.snapshot)? != text {
        return Err(invalid("The manifest was changed: its checksum does not match"));
    }
    let raw: raw::Manifest =
        serde_json::from_str(read.snapshot.get()).kind(Kind::InvalidArgument, damaged)?;
    check::check(raw).map_err(|problems| {
        let shown: Vec<_> = problems.iter().take(20).map(ToString::to_string).collect();
        let more = problems.len().saturating_sub(shown.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        invalid(&format!("The manifest has problems: {}{more}", shown.join("; ")))
    })
}
