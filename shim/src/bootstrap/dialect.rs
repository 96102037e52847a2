//! The three dialects of `start`. Until containerd 2.2, stdin is a bare `Any` with the runtime's options and the reply
//! JSON; from 2.3 on both are protobuf messages of their own. No I/O here.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use log::LevelFilter;

use super::flags::Flags;
use crate::error::{Context, Kind, Result};

/// Version of the Task API that we announce. With 3, containers of a pod come to the pod's shim without another `start`.
const TASK_VERSION: i32 = 3;
/// What containerd 1.7 takes at most.
const OLD_TASK_VERSION: i32 = 2;
const PROTOCOL: &str = "ttrpc";
/// Packages of messages that carry a runtime's options; extensions hold other things as well.
const OPTION_TYPES: [&str; 2] = ["runtimeoptions.v1.Options", "containerd.runc.v1.Options"];

/// How this containerd talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// containerd 1.7. Its `start` is the same as that of [`Dialect::Json`]; only its binary's version tells.
    OldJson,
    /// containerd 2.0 to 2.2.
    Json,
    /// From containerd 2.3 on.
    Protobuf,
}

/// What containerd told on stdin.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) dialect: Dialect,
    /// Options of the runtime or the task.
    pub(super) options: Option<Any>,
    /// Directory for the socket, if not the usual one.
    pub(super) socket_dir: Option<String>,
    /// containerd's ttrpc socket, if told here.
    pub(super) ttrpc_address: Option<String>,
    /// containerd's own level, if it logs more than usual.
    pub(super) log_level: Option<LevelFilter>,
}

/// Understands `input`. The wire forms of both messages can be read as the other one: only the id and the namespace,
/// which the command line has too, tell them apart.
pub(super) fn parse(input: &[u8], flags: &Flags) -> Result<Params> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(input)
        && params.instance_id == flags.id
        && params.namespace == flags.namespace
    {
        return Ok(from_params(params));
    }
    let any = Any::parse_from_bytes(input)
        .kind(Kind::InvalidArgument, || "Could not understand containerd's parameters on stdin".into())?;
    let options = Some(any).filter(|any| !any.type_url.is_empty());
    Ok(Params { dialect: Dialect::Json, options, socket_dir: None, ttrpc_address: None, log_level: None })
}

fn from_params(params: BootstrapParams) -> Params {
    let level = params.log_level.value();
    let is_options =
        |any: &Any| any.type_url.rsplit('/').next().is_some_and(|name| OPTION_TYPES.contains(&name));
    let mut extensions = params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
    let named = |text: String| Some(text).filter(|text| !text.is_empty());
    Params {
        dialect: Dialect::Protobuf,
        options: extensions.find(is_options),
        socket_dir: params.socket_dir.and_then(named),
        ttrpc_address: named(params.containerd_ttrpc_address),
        log_level: (level < LogLevel::LOG_LEVEL_INFO as i32).then(|| nearest(level)),
    }
}

/// The enum is open: more negative is more verbose.
fn nearest(level: i32) -> LevelFilter {
    if level <= LogLevel::LOG_LEVEL_TRACE as i32 { LevelFilter::Trace } else { LevelFilter::Debug }
}

/// The reply that tells containerd where the shim listens: `unix://` and a path.
pub(super) fn reply(dialect: Dialect, address: &str) -> Result<Vec<u8>> {
    match dialect {
        Dialect::OldJson => Ok(json(OLD_TASK_VERSION, address)),
        Dialect::Json => Ok(json(TASK_VERSION, address)),
        Dialect::Protobuf => {
            let result = BootstrapResult {
                version: TASK_VERSION,
                address: address.into(),
                protocol: PROTOCOL.into(),
                ..Default::default()
            };
            result.write_to_bytes().context(|| "Could not encode the reply to containerd".into())
        }
    }
}

fn json(version: i32, address: &str) -> Vec<u8> {
    serde_json::json!({"version": version, "address": address, "protocol": PROTOCOL}).to_string().into_bytes()
}
