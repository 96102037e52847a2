//! Versions of Cloud Hypervisor, and which are good enough. Called by this VMM and by `probe`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// Oldest version that saves and restores vhost-user file systems.
const OLDEST: Version = Version { major: 52, minor: 0 };

/// Major and minor number; the third one never changes what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::vm) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Whether it can do all that a pod needs.
    ///
    /// # Errors
    /// `FailedPrecondition` naming both versions.
    pub(in crate::vm) fn check(self) -> Result<()> {
        if self >= OLDEST {
            return Ok(());
        }
        let text = format!(
            "Cloud Hypervisor {self} is too old: it can't checkpoint a pod's files; install {OLDEST} or newer"
        );
        Err(Error::new(Kind::FailedPrecondition, text))
    }
}

/// As the API says it, `53.0.0`, and as the program does, `v53.0`, with whatever follows after a dash.
impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().trim_start_matches('v');
        let number = number.split_once('-').map_or(number, |(number, _)| number);
        let mut parts = number.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), None | Some(Ok(_)), None) => Ok(Self { major, minor }),
            _ => {
                let shown: String = text.trim().chars().take(60).collect();
                Err(Error::new(Kind::Internal, format!("{shown:?} is no version of Cloud Hypervisor")))
            }
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_however_they_are_told() {
        for (text, version) in [("53.0.0", "53.0"), ("v53.0", "53.0"), ("v52.1-3-gabc-dirty", "52.1")] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), version);
        }
        for text in ["", "53", "v53.x", "53.0.0.1", "53.-1", "unknown"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_too_old_is_told_with_what_is_not() {
        "v52.0".parse::<Version>().unwrap().check().unwrap();
        "100.0".parse::<Version>().unwrap().check().unwrap();
        let error = "51.2.0".parse::<Version>().unwrap().check().unwrap_err();
        assert!(error.chain().starts_with("Cloud Hypervisor 51.2 is too old"), "{}", error.chain());
        assert!(error.chain().ends_with("install 52.0 or newer"), "{}", error.chain());
    }
}
