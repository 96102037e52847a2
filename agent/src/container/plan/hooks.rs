//! Hooks of the spec that run in the guest.

use agent_proto::oci;
use serde::{Deserialize, Serialize};

use super::{absolute, refuse};
use crate::error::Result;

/// A hook that sets no limit itself gets this one: nothing in the guest may hang for ever. Seconds.
const DEADLINE: u64 = 30;
/// The longest a hook may ask for, in seconds.
const LONGEST: u64 = 600;

/// A program to run at one point of a container's life; its standard input is the container's state.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::container) struct Hook {
    pub(in crate::container) path: String,
    /// From `argv[0]` on.
    pub(in crate::container) args: Vec<String>,
    pub(in crate::container) env: Vec<(String, String)>,
    /// Seconds.
    pub(in crate::container) deadline: u64,
}

impl Hook {
    pub(super) fn new(hook: &oci::Hook) -> Result<Self> {
        let deadline = match u64::try_from(hook.Timeout) {
            Ok(0) => DEADLINE,
            Ok(seconds) if seconds <= LONGEST => seconds,
            _ => {
                let text = format!("Hook {} may run 1 to {LONGEST} seconds, not {}", hook.Path, hook.Timeout);
                return Err(refuse(text));
            }
        };
        let split = |pair: &String| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(refuse(format!("Hook {} has the environment entry {pair:?} without a name", hook.Path))),
        };
        Ok(Self {
            path: absolute(&hook.Path, "Hook")?,
            args: hook.Args.clone(),
            env: hook.Env.iter().map(split).collect::<Result<_>>()?,
            deadline,
        })
    }
}
