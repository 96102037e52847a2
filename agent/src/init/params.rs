//! The agent's parameters on the kernel's command line, as the host's VMM module writes them.

use log::LevelFilter;

/// Where the host reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// vsock port 1024.
    Vsock,
    /// The virtio-serial port `microvm.agent.0`.
    Serial,
}

/// `microvm.agent=serial|vsock` and `microvm.log=off|error|warn|info|debug|trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// `None`: the serial port if there is one.
    pub channel: Option<Channel>,
    /// How much goes to the console.
    pub log: LevelFilter,
    /// Parameters of ours that mean nothing, each with the reason; a wrong one must not keep the guest from starting.
    pub problems: Vec<String>,
}

impl Default for Params {
    fn default() -> Self {
        Self { channel: None, log: LevelFilter::Info, problems: Vec::new() }
    }
}

impl Params {
    /// Reads a command line; of a parameter given twice, the last counts.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let mut params = Self::default();
        for word in line.split_ascii_whitespace() {
            if let Some((key, value)) = word.strip_prefix("microvm.").and_then(|ours| ours.split_once('=')) {
                params.set(key, value);
            }
        }
        params
    }

    fn set(&mut self, key: &str, value: &str) {
        match (key, value, value.parse()) {
            ("agent", "vsock", _) => self.channel = Some(Channel::Vsock),
            ("agent", "serial", _) => self.channel = Some(Channel::Serial),
            ("log", _, Ok(level)) => self.log = level,
            ("agent", ..) => self.problems.push(format!("microvm.agent={value} is neither serial nor vsock")),
            ("log", ..) => {
                self.problems
                    .push(format!("microvm.log={value} is none of off, error, warn, info, debug, trace"));
            }
            _ => self.problems.push(format!("microvm.{key} is not a parameter of this agent")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_parameter_counts_and_others_are_left_alone() {
        let params =
            Params::parse("console=hvc0 quiet microvm.agent=vsock microvm.log=debug microvm.agent=serial\n");
        let expected =
            Params { channel: Some(Channel::Serial), log: LevelFilter::Debug, problems: Vec::new() };
        assert_eq!(params, expected);
        assert_eq!(Params::parse(""), Params::default());
    }

    #[test]
    fn what_means_nothing_is_named_and_ignored() {
        let params = Params::parse("microvm.agent=tcp microvm.log=loud microvm.fast=1");
        assert_eq!((params.channel, params.log), (None, LevelFilter::Info));
        let text = params.problems.join("\n");
        for expected in ["microvm.agent=tcp", "microvm.log=loud", "microvm.fast"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
