//! Everything that the shim and the agent read from outside, each as one function of bytes that answers whether
//! they were taken, and panics when a rule is broken. `cargo test -p fuzz` runs them on mutated seeds with the stable toolchain, `libfuzzer/` for as long as you like.

mod snapshot;
mod text;
mod vm;
mod wire;

pub use snapshot::{archive, manifest, manifest_body, ram_index};
pub use text::{config, guest_name, oci_spec};
pub use vm::machine;
pub use wire::serial;

/// A kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, as `libfuzzer/fuzz_targets` has it.
    pub name: &'static str,
    /// Whether an input is taken; panics when a rule is broken.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are right, to be mutated.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All kinds of input.
pub const TARGETS: &[Target] = &[
    Target { name: "manifest", run: manifest, seeds: snapshot::manifest_seeds },
    Target { name: "manifest_body", run: manifest_body, seeds: snapshot::manifest_body_seeds },
    Target { name: "ram_index", run: ram_index, seeds: snapshot::ram_index_seeds },
    Target { name: "archive", run: archive, seeds: snapshot::archive_seeds },
    Target { name: "machine", run: machine, seeds: vm::machine_seeds },
    Target { name: "config", run: config, seeds: text::config_seeds },
    Target { name: "guest_name", run: guest_name, seeds: text::guest_name_seeds },
    Target { name: "oci_spec", run: oci_spec, seeds: text::oci_spec_seeds },
    Target { name: "serial", run: serial, seeds: wire::serial_seeds },
];
