//! Templates: machines that have booted once and wait, saved, for pods of their kind to go on from them. The guest's agent
//! answers, its shares are mounted and empty, and nothing of any pod is in it yet. Called by `sandbox`, which makes and clones them, and by `microvmctl`.
//!
//! | file | what it does |
//! |---|---|
//! | `key.rs` | for which machines a template is good |
//! | `store.rs` | the node's templates on disk |
//! | `order.rs` | has a template made by a process that nobody waits for |

mod key;
mod order;
mod store;

pub use key::Key;
pub use order::Order;
pub use store::{Found, Listed, Lock, State, Store, Template};

/// `argv[1]` that has our binary make a template.
pub const MODE: &str = "template";

/// Most network devices of a machine with a template. Two interfaces could not be told apart in a clone, whose devices have
/// the template's addresses.
pub const MOST_NICS: usize = 1;

/// Guest RAM comes in steps of this size at least, in bytes: a huge page.
const STEP: u64 = 2 << 20;

/// The next size at or above `memory`, in bytes, for which templates are made: four between a power of two and the next, so
/// that pods of about one size share a template. A pod gets at most a quarter more than it asked for, and the host gives
/// only what the guest touches.
#[must_use]
pub fn size_class(memory: u64) -> u64 {
    let power = 1_u64 << memory.max(1).ilog2();
    memory.next_multiple_of((power / 4).max(STEP))
}

/// MAC address of a template's network device, until its clone gets its pod's.
pub const MAC: &str = "02:00:00:00:00:01";

/// Name of that device in the guest, which has nobody who would change it.
pub const INTERFACE: &str = "eth0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_guests_are_few_and_close_to_what_was_asked_for() {
        const MIB: u64 = 1 << 20;
        let classes =
            [(1, 2), (3, 4), (128, 128), (129, 160), (256, 256), (300, 320), (1000, 1024), (1025, 1280)];
        for (wanted, class) in classes {
            assert_eq!(size_class(wanted * MIB), class * MIB, "{wanted} MiB");
        }
        assert_eq!(size_class(0), 0);
    }
}
