//! `grpc.AgentService`: every method of kata's agent, carried out by the parts or refused by name. What changes
//! something runs in a task of its own (`detached`); reads and waits end with their caller.

use std::sync::Arc;

use agent_proto::agent::*;
use agent_proto::types::Interface;
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Result;
use ttrpc::r#async::TtrpcContext;

use super::container::{self, Output};
use super::status::{detached, refuse, status};
use super::{Parts, pod};
use crate::storage::{blocking, share};
use crate::{files, machine};

#[derive(Debug)]
pub(super) struct Service(pub(super) Arc<Parts>);

/// The answer of a call that only succeeds or fails.
fn done(result: crate::error::Result<()>) -> Result<Empty> {
    answer(result).map(|()| Empty::new())
}

fn answer<T>(result: crate::error::Result<T>) -> Result<T> {
    result.map_err(|error| status(&error))
}

async fn change(
    what: &'static str,
    work: impl Future<Output = crate::error::Result<()>> + Send + 'static,
) -> Result<Empty> {
    detached(what, work).await.map(|()| Empty::new())
}

/// Why some methods are refused.
const NO_PROGRAMS: &str =
    "the guest holds no programs but the agent, and its network is the pod's, filtered on the host";
const NO_RECLAIM: &str = "it has no memory agent";
const NO_DISKS: &str = "the guest has no disks";

type Context = TtrpcContext;

#[async_trait]
impl agent_proto::agent_ttrpc::AgentService for Service {
    async fn create_container(&self, _: &Context, request: CreateContainerRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change("CreateContainer", async move { parts.sandbox.create(request).await }).await
    }

    async fn start_container(&self, _: &Context, request: StartContainerRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change("StartContainer", async move { parts.sandbox.container(&request.container_id)?.start().await })
            .await
    }

    async fn remove_container(&self, _: &Context, request: RemoveContainerRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change("RemoveContainer", async move { parts.sandbox.remove(&request.container_id).await }).await
    }

    async fn exec_process(&self, _: &Context, request: ExecProcessRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change("ExecProcess", async move { container::exec(&parts, request).await }).await
    }

    async fn signal_process(&self, _: &Context, request: SignalProcessRequest) -> Result<Empty> {
        done(container::signal(&self.0, &request.container_id, &request.exec_id, request.signal))
    }

    async fn wait_process(&self, _: &Context, request: WaitProcessRequest) -> Result<WaitProcessResponse> {
        let container = answer(self.0.sandbox.container(&request.container_id))?;
        let status = answer(container.wait(&request.exec_id).await)?;
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn update_container(&self, _: &Context, request: UpdateContainerRequest) -> Result<Empty> {
        let resources = request.resources.unwrap_or_default();
        let parts = self.0.clone();
        change("UpdateContainer", async move {
            parts.sandbox.container(&request.container_id)?.update(resources).await
        })
        .await
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &Context,
        request: UpdateEphemeralMountsRequest,
    ) -> Result<Empty> {
        change("UpdateEphemeralMounts", pod::remount(self.0.clone(), request.storages)).await
    }

    async fn stats_container(
        &self,
        _: &Context,
        request: StatsContainerRequest,
    ) -> Result<StatsContainerResponse> {
        answer(container::stats(&self.0, &request.container_id).await)
    }

    async fn pause_container(&self, _: &Context, request: PauseContainerRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change("PauseContainer", async move { parts.sandbox.container(&request.container_id)?.pause().await })
            .await
    }

    async fn resume_container(&self, _: &Context, request: ResumeContainerRequest) -> Result<Empty> {
        let parts = self.0.clone();
        change(
            "ResumeContainer",
            async move { parts.sandbox.container(&request.container_id)?.resume().await },
        )
        .await
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &Context,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Result<Empty> {
        change("RemoveStaleVirtiofsShareMounts", share::touch()).await
    }

    async fn get_diagnostic_data(
        &self,
        _: &Context,
        request: GetDiagnosticDataRequest,
    ) -> Result<GetDiagnosticDataResponse> {
        answer(pod::diagnostics(&self.0, request).await)
    }

    async fn write_stdin(&self, _: &Context, request: WriteStreamRequest) -> Result<WriteStreamResponse> {
        let parts = self.0.clone();
        detached("WriteStdin", async move { container::write(&parts, request).await }).await
    }

    async fn read_stdout(&self, _: &Context, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
        answer(container::read(&self.0, Output::Stdout, request).await)
    }

    async fn read_stderr(&self, _: &Context, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
        answer(container::read(&self.0, Output::Stderr, request).await)
    }

    async fn close_stdin(&self, _: &Context, request: CloseStdinRequest) -> Result<Empty> {
        let close = || self.0.sandbox.container(&request.container_id)?.close_stdin(&request.exec_id);
        done(close())
    }

    async fn tty_win_resize(&self, _: &Context, request: TtyWinResizeRequest) -> Result<Empty> {
        done(container::resize(&self.0, &request))
    }

    async fn update_interface(&self, _: &Context, request: UpdateInterfaceRequest) -> Result<Interface> {
        let parts = self.0.clone();
        let interface = request.interface.unwrap_or_default();
        detached("UpdateInterface", async move { parts.network.update_interface(&interface).await }).await
    }

    async fn update_routes(&self, _: &Context, request: UpdateRoutesRequest) -> Result<Routes> {
        let parts = self.0.clone();
        let routes = request.routes.unwrap_or_default().Routes;
        let all = detached("UpdateRoutes", async move { parts.network.update_routes(&routes).await }).await?;
        Ok(Routes { Routes: all, ..Default::default() })
    }

    async fn list_interfaces(&self, _: &Context, _: ListInterfacesRequest) -> Result<Interfaces> {
        let all = answer(self.0.network.interfaces().await)?;
        Ok(Interfaces { Interfaces: all, ..Default::default() })
    }

    async fn list_routes(&self, _: &Context, _: ListRoutesRequest) -> Result<Routes> {
        let all = answer(self.0.network.routes().await)?;
        Ok(Routes { Routes: all, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &Context, request: AddARPNeighborsRequest) -> Result<Empty> {
        let parts = self.0.clone();
        let neighbors = request.neighbors.unwrap_or_default().ARPNeighbors;
        change("AddARPNeighbors", async move { parts.network.add_neighbors(&neighbors).await }).await
    }

    async fn get_ip_tables(&self, _: &Context, _: GetIPTablesRequest) -> Result<GetIPTablesResponse> {
        refuse("GetIPTables", NO_PROGRAMS)
    }

    async fn set_ip_tables(&self, _: &Context, _: SetIPTablesRequest) -> Result<SetIPTablesResponse> {
        refuse("SetIPTables", NO_PROGRAMS)
    }

    async fn get_metrics(&self, _: &Context, _: GetMetricsRequest) -> Result<Metrics> {
        Ok(Metrics { metrics: machine::metrics(), ..Default::default() })
    }

    async fn mem_agent_memcg_set(&self, _: &Context, _: MemAgentMemcgConfig) -> Result<Empty> {
        refuse("MemAgentMemcgSet", NO_RECLAIM)
    }

    async fn mem_agent_compact_set(&self, _: &Context, _: MemAgentCompactConfig) -> Result<Empty> {
        refuse("MemAgentCompactSet", NO_RECLAIM)
    }

    async fn create_sandbox(&self, _: &Context, request: CreateSandboxRequest) -> Result<Empty> {
        change("CreateSandbox", pod::create(self.0.clone(), request)).await
    }

    async fn destroy_sandbox(&self, _: &Context, _: DestroySandboxRequest) -> Result<Empty> {
        change("DestroySandbox", pod::destroy(self.0.clone())).await
    }

    async fn online_cpu_mem(&self, _: &Context, request: OnlineCPUMemRequest) -> Result<Empty> {
        let online = move || machine::online(request.nb_cpus, request.cpu_only, request.wait);
        change("OnlineCPUMem", blocking(online)).await
    }

    async fn reseed_random_dev(&self, _: &Context, request: ReseedRandomDevRequest) -> Result<Empty> {
        change("ReseedRandomDev", blocking(move || machine::reseed(&request.data))).await
    }

    async fn get_guest_details(
        &self,
        _: &Context,
        request: GuestDetailsRequest,
    ) -> Result<GuestDetailsResponse> {
        Ok(pod::details(request.mem_block_size))
    }

    async fn mem_hotplug_by_probe(&self, _: &Context, _: MemHotplugByProbeRequest) -> Result<Empty> {
        refuse("MemHotplugByProbe", "its kernel announces added memory by itself")
    }

    async fn set_guest_date_time(&self, _: &Context, request: SetGuestDateTimeRequest) -> Result<Empty> {
        let set = move || machine::set_time(request.Sec, request.Usec.saturating_mul(1000));
        change("SetGuestDateTime", blocking(set)).await
    }

    async fn copy_file(&self, _: &Context, request: CopyFileRequest) -> Result<Empty> {
        change("CopyFile", blocking(move || files::copy(&request))).await
    }

    async fn get_oom_event(&self, _: &Context, _: GetOOMEventRequest) -> Result<OOMEvent> {
        let container_id = self.0.sandbox.oom().await;
        Ok(OOMEvent { container_id, ..Default::default() })
    }

    async fn add_swap(&self, _: &Context, _: AddSwapRequest) -> Result<Empty> {
        refuse("AddSwap", NO_DISKS)
    }

    async fn add_swap_path(&self, _: &Context, _: AddSwapPathRequest) -> Result<Empty> {
        refuse("AddSwapPath", NO_DISKS)
    }

    async fn get_volume_stats(
        &self,
        _: &Context,
        request: VolumeStatsRequest,
    ) -> Result<VolumeStatsResponse> {
        answer(blocking(move || files::volume_stats(&request.volume_guest_path)).await)
    }

    async fn resize_volume(&self, _: &Context, _: ResizeVolumeRequest) -> Result<Empty> {
        refuse("ResizeVolume", NO_DISKS)
    }

    async fn set_policy(&self, _: &Context, _: SetPolicyRequest) -> Result<Empty> {
        refuse("SetPolicy", "it has no policy engine")
    }
}
