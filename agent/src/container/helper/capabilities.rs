//! Capabilities of a process, in two steps: what can be lost early is lost early, but the filter needs CAP_SYS_ADMIN until it is loaded.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::container::plan::Capabilities;
use crate::error::{Context as _, Result};

/// Removes all but `keep` from the bounding set.
pub(super) fn bound(keep: u64) -> Result<()> {
    for number in 0..u64::BITS {
        if keep & (1 << number) != 0 {
            continue;
        }
        let removed = remove_capability_from_bounding_set(one(number));
        if removed == Err(Errno::INVAL) {
            // The kernel has no capability of this number, and none after it.
            return Ok(());
        }
        removed.context(|| format!("Could not remove capability {number} from the bounding set"))?;
    }
    Ok(())
}

/// After a change of user, which takes away the effective set: all that is permitted again.
pub(super) fn raise() -> Result<()> {
    let raise = || {
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
    };
    raise().context(|| "Could not raise the capabilities")
}

/// The sets that the program starts with. What the agent itself lacks can't be given; a set is cut to what the others allow.
pub(super) fn settle(wanted: &Capabilities) -> Result<()> {
    let settle = || {
        let have = capabilities(None)?;
        let permitted = have.permitted & CapabilitySet::from_bits_retain(wanted.permitted);
        let effective = permitted & CapabilitySet::from_bits_retain(wanted.effective);
        let bounding = CapabilitySet::from_bits_retain(wanted.bounding);
        let inheritable = bounding & have.permitted & CapabilitySet::from_bits_retain(wanted.inheritable);
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
        let ambient = permitted & inheritable & CapabilitySet::from_bits_retain(wanted.ambient);
        (0..u64::BITS)
            .map(one)
            .filter(|&one| ambient.contains(one))
            .try_for_each(|one| configure_capability_in_ambient_set(one, true))
    };
    settle().context(|| "Could not set the capabilities")
}

fn one(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}
