//! Stable names of containers inside the VM. Called by `container`, which keeps them in snapshots, and by `share`
//! for paths.

use std::fmt::{self, Write as _};

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// Longest container name of Kubernetes (a DNS label, RFC 1123).
const MOST_LABEL: usize = 63;
/// Most bytes of a name. The agent takes ids of 200; an escaped id of containerd (76 characters at most, half of them
/// separators) has 152.
const MOST: usize = 160;
/// Starts an escaped id. Kubernetes' names have no `.`.
const ESCAPED: &str = "x.";
/// Starts the digest of an id that is longer than containerd's ids ever are.
const HASHED: &str = "h.";
/// The same for CRI names that Kubernetes would not give: other clients give any.
const ESCAPED_NAME: &str = "n.";
const HASHED_NAME: &str = "m.";
/// Starts a CRI name that the agent needs for directories of its own.
const MOVED: &str = "c.";
/// Those names.
const RESERVED: &[&str] = &["sandbox", "shared"];
/// Ends a workload's id. No guest name has a `_`, so no carrier's id ends so.
const WORKLOAD: &str = "_ovl";

/// Name of a container inside the VM, frozen in snapshots: a CRI container name as it is where Kubernetes could have
/// given it (but for the two that name directories of the agent), and any other name or id escaped.
///
/// The kinds never meet, different ids have different names, and a name has letters, digits, `-` and `.` only
/// and at most 160 bytes, so that it is one component of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestName(String);

impl GuestName {
    /// The name of a container that CRI calls `name`.
    #[must_use]
    pub fn from_cri(name: &str) -> Self {
        if RESERVED.contains(&name) {
            return Self(format!("{MOVED}{name}"));
        }
        if is_label(name) { Self(name.into()) } else { Self::escape(name, ESCAPED_NAME, HASHED_NAME) }
    }

    /// The name of a container that only has an id.
    #[must_use]
    pub fn from_id(id: &str) -> Self {
        Self::escape(id, ESCAPED, HASHED)
    }

    fn escape(text: &str, escaped: &str, hashed: &str) -> Self {
        let name = text.bytes().fold(String::from(escaped), |mut name, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => {
                name.push(char::from(byte));
                name
            }
            other => hex(name, ".", other),
        });
        if name.len() <= MOST {
            return Self(name);
        }
        let digest = Sha256::digest(text.as_bytes());
        Self(digest.iter().fold(hashed.into(), |name, byte| hex(name, "", *byte)))
    }

    /// Reads a name back that one of the above has made, as from a snapshot, which may be forged.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else.
    pub fn parse(name: &str) -> Result<Self> {
        let unescaped = |prefix| name.strip_prefix(prefix).map(unescape);
        let is_digest = |prefix| {
            name.strip_prefix(prefix).is_some_and(|digest| {
                digest.len() == 64 && digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
            })
        };
        let made = match (unescaped(ESCAPED), unescaped(ESCAPED_NAME), name.strip_prefix(MOVED)) {
            (Some(id), _, _) => id.is_some_and(|id| Self::from_id(&id).0 == name),
            (_, Some(cri), _) => cri.is_some_and(|cri| Self::from_cri(&cri).0 == name),
            (_, _, Some(moved)) => RESERVED.contains(&moved),
            _ if is_label(name) => !RESERVED.contains(&name),
            _ => is_digest(HASHED) || is_digest(HASHED_NAME),
        };
        if made {
            return Ok(Self(name.into()));
        }
        Err(Error::new(Kind::InvalidArgument, format!("{name:?} is no name of a container in a guest")))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The agent's id of the carrier.
    #[must_use]
    pub fn carrier_id(&self) -> &str {
        &self.0
    }

    /// The agent's id of the workload.
    #[must_use]
    pub fn workload_id(&self) -> String {
        format!("{}{WORKLOAD}", self.0)
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(name: &str) -> bool {
    let inner = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=MOST_LABEL).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn hex(mut name: String, mark: &str, byte: u8) -> String {
    // Writing to a String can't fail.
    let _ = write!(name, "{mark}{byte:02x}");
    name
}

/// The id whose escaped form is `body`, if there is one; looser than the escaping, so compare.
fn unescape(body: &str) -> Option<String> {
    let mut parts = body.split('.');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cri_names_stay_and_other_ids_are_escaped() {
        assert_eq!(GuestName::from_cri("web").workload_id(), "web_ovl");
        assert_eq!(GuestName::from_cri("shared").carrier_id(), "c.shared");
        assert_eq!(GuestName::from_id("web").carrier_id(), "x.web");
        assert_eq!(GuestName::from_id("web_ovl").carrier_id(), "x.web.5fovl");
        assert_eq!(GuestName::from_id("../a").as_str(), "x..2e.2e.2fa");
        assert_eq!(GuestName::from_id(&"é".repeat(38)).as_str().len(), 66);
    }

    #[test]
    fn cri_names_that_kubernetes_would_not_give_are_escaped() {
        assert_eq!(GuestName::from_cri("OOM-test_1").as_str(), "n.OOM-test.5f1");
        assert_eq!(GuestName::from_cri("../a").as_str(), "n..2e.2e.2fa");
        assert_eq!(GuestName::from_cri("").as_str(), "n.");
        assert_eq!(GuestName::from_cri(&"a".repeat(64)).as_str().len(), 66);
        assert_eq!(GuestName::from_cri(&"_".repeat(64)).as_str().len(), 66);
    }

    #[test]
    fn forged_names_are_refused() {
        for bad in [
            "", "..", ".", "x.a/b", "x._", "x.a.2", "x.a.zz", "x..61", "x.A.5F", "x.\0", "h.12", "a_ovl",
            "h.../", "shared", "c.web", "n.web", "n.shared", "m.12", "n._",
        ] {
            assert!(GuestName::parse(bad).is_err(), "{bad}");
        }
    }

    /// Names as CRI makes them, ids as containerd takes them, and anything.
    fn any_name() -> impl Strategy<Value = (bool, String)> {
        prop_oneof![
            "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?|shared|sandbox".prop_map(|name| (true, name)),
            "[A-Za-z0-9]{1,8}([._-][A-Za-z0-9]{1,4}){0,9}".prop_map(|id| (false, id)),
            "[xc]\\.([a-f0-9.]{0,8}|shared)|[a-z]{1,4}_ovl|h\\.[0-9a-f]{64}".prop_map(|id| (false, id)),
            ".{0,100}".prop_map(|id| (false, id)),
            ".{0,100}".prop_map(|name| (true, name)),
        ]
    }

    proptest! {
        #[test]
        fn names_never_clash(all in prop::collection::vec(any_name(), 1..40)) {
            let mut ids = HashMap::new();
            for (cri, source) in all {
                let name = if cri { GuestName::from_cri(&source) } else { GuestName::from_id(&source) };
                prop_assert!(name.as_str().len() <= MOST);
                prop_assert!(!RESERVED.contains(&name.as_str()));
                prop_assert!(name.as_str().bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.'));
                prop_assert!(!matches!(name.as_str(), "." | ".."));
                prop_assert_eq!(&GuestName::parse(name.as_str()).unwrap(), &name);
                for id in [name.carrier_id().to_owned(), name.workload_id()] {
                    let owner = (cri, source.clone(), id == name.carrier_id());
                    let first = ids.entry(id).or_insert_with(|| owner.clone());
                    prop_assert_eq!(&*first, &owner);
                }
            }
        }

        #[test]
        fn parse_takes_only_what_was_made(text in "(x|h|n|m)\\.[A-Za-z0-9.-]{0,40}|.{0,40}") {
            if let Ok(name) = GuestName::parse(&text) {
                let unescaped = |prefix| text.strip_prefix(prefix).and_then(unescape);
                let id = unescaped(ESCAPED).is_some_and(|id| GuestName::from_id(&id) == name);
                let cri = unescaped(ESCAPED_NAME).is_some_and(|cri| GuestName::from_cri(&cri) == name);
                let other = [HASHED, HASHED_NAME, MOVED].iter().any(|prefix| text.starts_with(prefix));
                prop_assert!(is_label(&text) || other || id || cri);
            }
        }
    }
}
