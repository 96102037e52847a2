//! Calls about one container in the guest, by its guest id (a carrier's or a workload's). Called by `container`.

use agent_proto::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    StartContainerRequest, StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest,
};
use agent_proto::oci;

use super::Agent;
use crate::error::Result;

impl Agent {
    /// Mounts what the container needs and forks its first process, which stops before the exec.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_container(&self, request: &CreateContainerRequest) -> Result<()> {
        let what = format!("create container {:?}", request.container_id);
        self.ask(&what, self.rpc.create_container(self.context(), request)).await.map(drop)
    }

    /// Lets the container's first process exec.
    ///
    /// # Errors
    /// As every call; `NotFound` or `InvalidArgument` for a missing binary, as the agent sees it.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        let what = format!("start container {id:?}");
        self.ask(&what, self.rpc.start_container(self.context(), &request)).await.map(drop)
    }

    /// Kills what still runs in the container, unmounts all of it and forgets it.
    ///
    /// # Errors
    /// As every call; `NotFound` if it is gone already.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        // 0 means without limit to the agent; our own deadline holds.
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        let what = format!("remove container {id:?}");
        self.ask(&what, self.rpc.remove_container(self.context(), &request)).await.map(drop)
    }

    /// Sets the limits of the container's cgroup.
    ///
    /// # Errors
    /// As every call.
    pub async fn update_container(&self, id: &str, resources: oci::LinuxResources) -> Result<()> {
        let request = UpdateContainerRequest {
            container_id: id.into(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let what = format!("update the resources of container {id:?}");
        self.ask(&what, self.rpc.update_container(self.context(), &request)).await.map(drop)
    }

    /// Reads the container's counters. The numbers are the guest's word.
    ///
    /// # Errors
    /// As every call.
    pub async fn stats(&self, id: &str) -> Result<StatsContainerResponse> {
        let request = StatsContainerRequest { container_id: id.into(), ..Default::default() };
        let what = format!("read the statistics of container {id:?}");
        self.ask(&what, self.rpc.stats_container(self.context(), &request)).await
    }

    /// Freezes the container's processes.
    ///
    /// # Errors
    /// As every call.
    pub async fn pause_container(&self, id: &str) -> Result<()> {
        let request = PauseContainerRequest { container_id: id.into(), ..Default::default() };
        let what = format!("pause container {id:?}");
        self.ask(&what, self.rpc.pause_container(self.context(), &request)).await.map(drop)
    }

    /// Thaws the container's processes.
    ///
    /// # Errors
    /// As every call.
    pub async fn resume_container(&self, id: &str) -> Result<()> {
        let request = ResumeContainerRequest { container_id: id.into(), ..Default::default() };
        let what = format!("resume container {id:?}");
        self.ask(&what, self.rpc.resume_container(self.context(), &request)).await.map(drop)
    }
}
