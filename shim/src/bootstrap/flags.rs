//! containerd's command line, in the form of Go's flags: one dash or two, `-name value` or `-name=value`, the action at
//! the end. Ours adds flags for the server.

use std::ffi::OsString;
use std::path::PathBuf;

use log::LevelFilter;

use crate::error::{Error, Kind, Result};

/// What is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Action {
    #[default]
    None,
    Start,
    Delete,
    Info,
    Version,
}

/// The command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) namespace: String,
    pub(super) id: String,
    /// containerd's gRPC socket.
    pub(super) address: PathBuf,
    /// containerd's ttrpc socket; the environment has it unless this is the server.
    pub(super) ttrpc_address: String,
    /// containerd's binary.
    pub(super) publish_binary: PathBuf,
    /// The bundle, for `delete`.
    pub(super) bundle: PathBuf,
    /// Path of the server's own socket.
    pub(super) socket: PathBuf,
    /// What the server logs; none: the default.
    pub(super) log_level: Option<LevelFilter>,
    pub(super) debug: bool,
    pub(super) action: Action,
}

impl Flags {
    /// # Errors
    /// `InvalidArgument` naming the argument that is not understood.
    pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut flags = Flags::default();
        let mut arguments = arguments.map(|argument| {
            argument.into_string().map_err(|argument| invalid(format!("Argument {argument:?} is not UTF-8")))
        });
        while let Some(argument) = arguments.next().transpose()? {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                flags.action = action(&argument)?;
                continue;
            };
            let (name, value) =
                flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            if flags.set_switch(name, value)? {
                continue;
            }
            let value = match value {
                Some(value) => value.to_owned(),
                None => arguments
                    .next()
                    .transpose()?
                    .ok_or_else(|| invalid(format!("Flag -{name} has no value")))?,
            };
            flags.set(name, value)?;
        }
        Ok(flags)
    }

    /// Whether `name` is a flag that stands alone.
    fn set_switch(&mut self, name: &str, value: Option<&str>) -> Result<bool> {
        let on = match value {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) if !matches!(name, "debug" | "info" | "v" | "version") => return Ok(false),
            Some(value) => return Err(invalid(format!("Flag -{name} can't be {value:?}"))),
        };
        match name {
            "debug" => self.debug = on,
            "info" if on => self.action = Action::Info,
            "v" | "version" if on => self.action = Action::Version,
            "info" | "v" | "version" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value.into(),
            "ttrpc-address" => self.ttrpc_address = value,
            "publish-binary" => self.publish_binary = value.into(),
            "bundle" => self.bundle = value.into(),
            "socket" => self.socket = value.into(),
            "log-level" => {
                let level = value.parse().map_err(|_| invalid(format!("There is no log level {value:?}")))?;
                self.log_level = Some(level);
            }
            _ => return Err(invalid(format!("There is no flag -{name}"))),
        }
        Ok(())
    }

    /// The command line that makes the same flags, without the action.
    pub(super) fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| {
            if !value.is_empty() {
                arguments.extend([name.into(), value]);
            }
        };
        add("-namespace", self.namespace.clone().into());
        add("-id", self.id.clone().into());
        add("-address", self.address.clone().into());
        add("-ttrpc-address", self.ttrpc_address.clone().into());
        add("-bundle", self.bundle.clone().into());
        add("-socket", self.socket.clone().into());
        add("-log-level", self.log_level.map(|level| level.to_string()).unwrap_or_default().into());
        arguments
    }

    /// # Errors
    /// `InvalidArgument` unless namespace and id are there and can be parts of paths.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(invalid(format!("Flag -{name} is missing")));
            }
            if value.contains('/') || value == "." || value == ".." {
                return Err(invalid(format!("Flag -{name} can't be {value:?}: it becomes part of a path")));
            }
        }
        Ok(())
    }
}

fn action(argument: &str) -> Result<Action> {
    match argument {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        other => Err(invalid(format!("There is no action {other:?}: use start or delete"))),
    }
}

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_line_that_containerd_uses() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start";
        let flags = parse(line).unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("k8s.io", "abc", true));
        assert_eq!((flags.address, flags.action), ("/run/c.sock".into(), Action::Start));
        let flags = parse("--namespace=default -id=a=b -debug=false -bundle /b delete").unwrap();
        assert_eq!((flags.id.as_str(), flags.debug, flags.action), ("a=b", false, Action::Delete));
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("").unwrap().action, Action::None);
    }

    #[test]
    fn what_the_server_gets_is_what_it_reads() {
        let mut flags =
            parse("-namespace n -id i -address /a -bundle /b -socket /s -log-level debug").unwrap();
        flags.ttrpc_address = "/a.ttrpc".into();
        assert_eq!(Flags::parse(flags.to_arguments().into_iter()).unwrap(), flags);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, name) in [
            ("stop", "\"stop\""),
            ("-nosuch x start", "-nosuch"),
            ("-id", "-id"),
            ("-debug=maybe start", "\"maybe\""),
            ("-log-level loud", "\"loud\""),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(name), "{error}");
        }
        for line in [
            "-id a start",
            "-namespace n start",
            "-namespace n -id a/../b start",
            "-namespace .. -id a start",
        ] {
            assert!(parse(line).unwrap().check().is_err(), "{line}");
        }
    }
}
