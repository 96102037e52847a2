//! Device rules of a container as a BPF program: cgroup v2 has no control file for them. Without a program any container with
//! CAP_MKNOD could make a node for the guest's console or disks and use it.

use agent_proto::oci::{LinuxDevice, LinuxDeviceCgroup};

use super::bpf::Instruction;
use crate::error::{Error, Kind, Result};

/// Longest list of rules; a program has to stay below the kernel's limit of 4096 instructions.
const MOST_RULES: usize = 256;

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

const BLOCK: u8 = 1;
const CHARACTER: u8 = 2;

/// What every container may use: null, zero, full, random, urandom, tty, console, ptmx and the terminals of its own devpts;
/// as in the OCI runtimes. Making any node is allowed too, only its use is not.
const DEFAULTS: [(u8, Option<u32>, Option<u32>, u8); 11] = [
    (CHARACTER, Some(1), Some(3), ALL),
    (CHARACTER, Some(1), Some(5), ALL),
    (CHARACTER, Some(1), Some(7), ALL),
    (CHARACTER, Some(1), Some(8), ALL),
    (CHARACTER, Some(1), Some(9), ALL),
    (CHARACTER, Some(5), Some(0), ALL),
    (CHARACTER, Some(5), Some(1), ALL),
    (CHARACTER, Some(5), Some(2), ALL),
    (CHARACTER, Some(136), None, ALL),
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
];

/// One rule; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    kind: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// The spec's rules, the last match wins, then the defaults. Nothing is allowed that no rule names. With no
/// rules at all, the devices that the spec puts into the container may be used.
pub(super) fn rules(spec: &[LinuxDeviceCgroup], nodes: &[LinuxDevice]) -> Result<Vec<Rule>> {
    let mut rules = spec.iter().map(parse).collect::<Result<Vec<_>>>()?;
    if rules.is_empty() {
        for node in nodes.iter().filter(|node| node.Type != "p") {
            let kind = if node.Type == "b" { BLOCK } else { CHARACTER };
            let (major, minor) = (number(node.Major, "major")?, number(node.Minor, "minor")?);
            rules.push(Rule { allow: true, kind: Some(kind), major, minor, access: ALL });
        }
    }
    if rules.len() > MOST_RULES {
        let text = format!("{} device rules are too many: {MOST_RULES} is the most", rules.len());
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let defaults = DEFAULTS.map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    });
    rules.extend(defaults);
    Ok(rules)
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match rule.Type.as_str() {
        "" | "a" => None,
        "b" => Some(BLOCK),
        "c" | "u" => Some(CHARACTER),
        other => {
            let text = format!("Device rule of type {other:?} is unknown: use a, b or c");
            return Err(Error::new(Kind::InvalidArgument, text));
        }
    };
    let mut access = 0;
    for letter in rule.Access.chars() {
        access |= match letter {
            'm' => MKNOD,
            'r' => READ,
            'w' => WRITE,
            other => {
                let text = format!("Device access {other:?} is unknown: use r, w and m");
                return Err(Error::new(Kind::InvalidArgument, text));
            }
        };
    }
    let access = if access == 0 { ALL } else { access };
    // An absent number comes over the wire as -1 or, from other hosts, as major 0, which no device has.
    let major = number(rule.Major, "major")?.filter(|&major| major != 0);
    let minor = if major.is_none() && rule.Minor == 0 { None } else { number(rule.Minor, "minor")? };
    Ok(Rule { allow: rule.Allow, kind, major, minor, access })
}

fn number(value: i64, what: &str) -> Result<Option<u32>> {
    if value < 0 {
        return Ok(None);
    }
    // Compared as a signed 32-bit immediate; the kernel's numbers have 12 and 20 bits.
    i32::try_from(value).map(|value| Some(value.cast_unsigned())).map_err(|error| {
        Error::caused(Kind::InvalidArgument, format!("Device {what} number {value} is too large"), error)
    })
}

/// The program: the rules backwards, the first that matches decides.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = Instruction::load_device_context();
    for rule in rules.iter().rev() {
        let checks = checks(rule);
        let open = checks.is_empty();
        program.extend(jump_past(checks));
        program.extend(Instruction::answer(rule.allow));
        if open {
            // The kernel refuses a program with code that can't be reached.
            return program;
        }
    }
    program.extend(Instruction::answer(false));
    program
}

/// A condition under which a rule does not apply.
#[derive(Debug, Clone, Copy)]
enum Unless {
    Kind(u8),
    Major(u32),
    Minor(u32),
    /// An allowing rule needs all of the asked access to be its own.
    Covers(u8),
    /// A denying rule needs any of it.
    Meets(u8),
}

fn checks(rule: &Rule) -> Vec<Unless> {
    let access = (rule.access != ALL).then_some(if rule.allow {
        Unless::Covers(rule.access)
    } else {
        Unless::Meets(rule.access)
    });
    let all =
        [rule.kind.map(Unless::Kind), access, rule.major.map(Unless::Major), rule.minor.map(Unless::Minor)];
    all.into_iter().flatten().collect()
}

/// The checks as instructions, each jumping over the rest and the two instructions of the answer.
fn jump_past(checks: Vec<Unless>) -> Vec<Instruction> {
    let length = |check: &Unless| match check {
        Unless::Covers(_) | Unless::Meets(_) => 3,
        Unless::Kind(_) | Unless::Major(_) | Unless::Minor(_) => 1,
    };
    let mut rest: i16 = 2 + checks.iter().map(length).sum::<i16>();
    let mut program = Vec::new();
    for check in checks {
        rest -= length(&check);
        match check {
            Unless::Kind(kind) => program.push(Instruction::skip_unless_kind(kind, rest)),
            Unless::Major(major) => program.push(Instruction::skip_unless_major(major, rest)),
            Unless::Minor(minor) => program.push(Instruction::skip_unless_minor(minor, rest)),
            Unless::Covers(access) => program.extend(Instruction::skip_unless_access_within(access, rest)),
            Unless::Meets(access) => program.extend(Instruction::skip_unless_access_meets(access, rest)),
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, numbers: (i64, i64), access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::new();
        (rule.Allow, rule.Type, rule.Access) = (allow, kind.to_owned(), access.to_owned());
        (rule.Major, rule.Minor) = numbers;
        rule
    }

    #[test]
    fn absent_numbers_are_any_and_nonsense_is_named() {
        let all = Rule { allow: true, kind: None, major: None, minor: None, access: ALL };
        assert_eq!(parse(&rule(true, "a", (-1, -1), "rwm")).unwrap(), all);
        assert_eq!(parse(&rule(true, "", (0, 0), "")).unwrap(), all);
        let null = parse(&rule(true, "c", (1, 3), "r")).unwrap();
        assert_eq!((null.major, null.minor, null.access), (Some(1), Some(3), READ));
        let text = parse(&rule(true, "x", (1, 3), "r")).unwrap_err().to_string();
        assert!(text.contains("\"x\""), "{text}");
        assert!(parse(&rule(true, "c", (1 << 40, 3), "r")).is_err());
        assert!(parse(&rule(true, "c", (1, 3), "rx")).is_err());
    }

    #[test]
    fn without_rules_the_nodes_of_the_spec_may_be_used() {
        let mut fuse = LinuxDevice::new();
        (fuse.Type, fuse.Major, fuse.Minor) = ("c".to_owned(), 10, 229);
        let given = rules(&[], &[fuse.clone()]).unwrap();
        assert!(given.iter().any(|rule| rule.major == Some(10) && rule.minor == Some(229)));
        let given = rules(&[rule(false, "a", (-1, -1), "rwm")], &[fuse]).unwrap();
        assert!(!given.iter().any(|rule| rule.major == Some(10)));
        let many = vec![rule(true, "c", (1, 3), "r"); MOST_RULES + 1];
        assert_eq!(rules(&many, &[]).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn nothing_follows_a_rule_that_always_matches() {
        let open = [rule(false, "c", (4, 64), "rw"), rule(true, "a", (-1, -1), "rwm")];
        let program = program(&open.iter().map(|rule| parse(rule).unwrap()).collect::<Vec<_>>());
        assert_eq!(program.len(), Instruction::load_device_context().len() + 2);
    }
}
