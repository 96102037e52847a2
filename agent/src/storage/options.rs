//! Mount options as storages carry them: words for flags of mount(2), all others for the file system.

use nix::mount::MsFlags;

use crate::error::{Error, Kind, Result};

/// A storage's options, sorted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    /// For the file system, comma-separated.
    pub(super) data: String,
    /// kata's `fsgid=`: the group that owns the mount's root.
    pub(super) group: Option<u32>,
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { flags: MsFlags::empty(), data: String::new(), group: None };
        for word in words.iter().flat_map(|words| words.split(',')).filter(|word| !word.is_empty()) {
            options.add(word)?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) -> Result<()> {
        if let Some(group) = word.strip_prefix("fsgid=") {
            let wrong =
                || Error::new(Kind::InvalidArgument, format!("Mount option {word:?} holds no group number"));
            self.group = Some(group.parse().map_err(|_| wrong())?);
            return Ok(());
        }
        match flag(word) {
            Some((flag, true)) => self.flags.insert(flag),
            Some((flag, false)) => self.flags.remove(flag),
            None => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                self.data.push_str(word);
            }
        }
        Ok(())
    }

    /// The value of `key=value` among the file system's options.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.data.split(',').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

fn flag(word: &str) -> Option<(MsFlags, bool)> {
    Some(match word {
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn flags_and_data_are_told_apart_and_the_last_word_counts() {
        let options = parse(&["ro,nosuid", "mode=1777", "rw", "size=5", "fsgid=7", "defaults"]);
        assert_eq!(options.flags, MsFlags::MS_NOSUID);
        assert_eq!((options.data.as_str(), options.group), ("mode=1777,size=5", Some(7)));
        assert_eq!((options.value("size"), options.value("siz")), (Some("5"), None));
    }

    #[test]
    fn a_group_that_is_no_number_is_named() {
        let error = Options::parse(&["fsgid=-1".into()]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.chain().contains("fsgid=-1"));
    }
}
