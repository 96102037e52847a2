//! The command line. Parsed by `main`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Looks after the micro-VM runtime of this node
#[derive(Debug, Parser)]
#[command(name = "microvmctl", version)]
pub(crate) struct Cli {
    /// Config to use instead of the node's own
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Answer as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// containerd's gRPC socket
    #[arg(
        long,
        short,
        global = true,
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) address: PathBuf,
    /// containerd's namespace
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Say whether pods can start on this node, and if not, why
    Doctor,
    /// Print a config with every key, its default and what it does
    Config,
    /// Work with this node's snapshots
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Work with this node's templates, from which pods start instead of booting
    #[command(subcommand)]
    Template(TemplateVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateVerb {
    /// List them, those used last first
    Ls,
    /// Make one ahead of the first pod of its kind
    Make(Make),
    /// Remove one; the next pod of its kind has it made again
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Make {
    /// Guest RAM in MiB, overhead included; the config's `default_memory` if not given. It becomes the next size that
    /// templates have
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(128..=1024 * 1024))]
    pub(crate) memory: Option<u64>,
    /// Virtual CPUs; the config's `default_vcpus` if not given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) vcpus: Option<u32>,
    /// Network interfaces: one for a pod, none for a container of `ctr` or nerdctl without a network
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) interfaces: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// List them
    Ls,
    /// Checkpoint a running pod into the store
    Create(Create),
    /// Check and copy one into the store
    Import(Import),
    /// Read every byte of one and check it
    Verify {
        /// Its name
        name: String,
    },
    /// Remove one
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// A pod's name, its namespace/name, or the id of its sandbox or of any container of it (or how the id begins)
    #[arg(value_name = "POD-or-ID")]
    pub(crate) pod: String,
    /// Its name in the store, for `io.containerd.microvm.v1/restore-from`
    pub(crate) name: String,
    /// End the pod once it is captured
    #[arg(long)]
    pub(crate) exit: bool,
    /// How to keep guest RAM; the config's `snapshot_ram` if not given
    #[arg(long)]
    pub(crate) ram: Option<RamForm>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A snapshot's directory, a tar or OCI archive with one, or a checkpoint image in containerd
    #[arg(value_name = "PATH-or-IMAGE")]
    pub(crate) source: String,
    /// Its name in the store, for `io.containerd.microvm.v1/restore-from`
    pub(crate) name: String,
    /// How to keep guest RAM; the config's `snapshot_ram` if not given
    #[arg(long)]
    pub(crate) ram: Option<RamForm>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RamForm {
    /// A sparse file: restores fastest
    Plain,
    /// Compressed: takes least disk
    Packed,
}
