//! Whether the host's kernel has the Landlock that the VMM insists on. Called by [`crate::vm::choose`].

use crate::error::{Error, Kind, Result};

/// The version of the interface that the VMM asks for, without which it refuses to run.
const NEEDED: libc::c_long = 3;
/// `LANDLOCK_CREATE_RULESET_VERSION`: answer the version of the interface instead of making anything.
const ASK_VERSION: libc::c_ulong = 1;

/// Refuses a host whose kernel is too old for it or has it switched off.
///
/// # Errors
/// `FailedPrecondition` naming the config key that does without.
pub(in crate::vm) fn needs_landlock() -> Result<()> {
    // SAFETY: with this flag the call reads nothing through its pointer, which is null, and makes nothing.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION)
    };
    check(version)
}

fn check(version: libc::c_long) -> Result<()> {
    if version >= NEEDED {
        return Ok(());
    }
    let found = if version < 0 { "none".to_owned() } else { format!("version {version}") };
    let text = format!(
        "This host's kernel has no Landlock of version {NEEDED} (found: {found}), which Cloud Hypervisor confines itself \
         by; use Linux 6.2 or newer with Landlock, or set landlock = false in the config"
    );
    Err(Error::new(Kind::FailedPrecondition, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_key() {
        check(3).unwrap();
        check(7).unwrap();
        for (version, found) in [(-1, "found: none"), (2, "found: version 2")] {
            let error = check(version).unwrap_err().chain();
            assert!(error.contains(found) && error.contains("landlock = false"), "{error}");
        }
    }
}
