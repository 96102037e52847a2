//! The calls of `grpc.AgentService` that are about the whole guest.

use std::sync::Arc;

use agent_proto::agent::{
    AgentDetails, CreateSandboxRequest, GetDiagnosticDataRequest, GetDiagnosticDataResponse,
    GuestDetailsResponse, Storage,
};
use protobuf::MessageField;

use super::Parts;
use crate::error::{Error, Kind, Result};
use crate::storage::{self, DRIVERS, blocking};
use crate::{machine, storage::Storages};

/// Announces `microvm.Guest`.
const FEATURE: &str = "microvm.v1";
/// Most that is answered of the kernel's log.
const LOG_BYTES: usize = 64 * 1024;

pub(super) fn details(with_memory: bool) -> GuestDetailsResponse {
    let agent = AgentDetails {
        version: env!("CARGO_PKG_VERSION").into(),
        init_daemon: true,
        storage_handlers: DRIVERS.map(Into::into).into(),
        supports_seccomp: true,
        extra_features: vec![FEATURE.into()],
        ..Default::default()
    };
    GuestDetailsResponse {
        mem_block_size_bytes: if with_memory { machine::memory_block_size() } else { 0 },
        agent_details: MessageField::some(agent),
        ..Default::default()
    }
}

pub(super) async fn create(parts: Arc<Parts>, request: CreateSandboxRequest) -> Result<()> {
    if !request.guest_hook_path.is_empty() {
        let text = format!("Hooks of the guest ({}) are not supported", request.guest_hook_path);
        return Err(Error::new(Kind::Unimplemented, text));
    }
    // The modules that a guest can have are loaded at boot.
    if let Some(module) = request.kernel_modules.first() {
        let text =
            format!("Kernel module {:?} cannot be loaded: modules come with the initramfs", module.name);
        return Err(Error::new(Kind::Unimplemented, text));
    }
    parts.sandbox.set_up(request).await
}

/// Removes everything and ends the guest, whether or not all could be removed.
pub(super) async fn destroy(parts: Arc<Parts>) -> Result<()> {
    let result = parts.sandbox.tear_down().await;
    parts.end.notify_one();
    result
}

pub(super) async fn remount(parts: Arc<Parts>, storages: Vec<Storage>) -> Result<()> {
    let own: &Storages = parts.sandbox.storages();
    for request in storages {
        storage::remount(own, request).await?;
    }
    Ok(())
}

pub(super) async fn diagnostics(
    parts: &Parts,
    request: GetDiagnosticDataRequest,
) -> Result<GetDiagnosticDataResponse> {
    let data = match request.log_type.as_str() {
        "termination_log" => parts.sandbox.termination_message(&request.container_id).await?,
        "kernel_log" => blocking(|| machine::kernel_log(LOG_BYTES)).await?,
        other => {
            let text = format!("Log type {other:?} is neither termination_log nor kernel_log");
            return Err(Error::new(Kind::InvalidArgument, text));
        }
    };
    Ok(GetDiagnosticDataResponse { data, ..Default::default() })
}
