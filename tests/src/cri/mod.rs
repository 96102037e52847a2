//! A small client of containerd's CRI, with what kubelet would send. Called by the demo and the end-to-end tests, inside
//! the test host. Calls block and every call has a deadline.

mod logs;
mod specs;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as wire};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

pub use k8s_cri::v1;
pub use logs::{Line, read_logs};
pub use specs::{Container, Pod};

use crate::host::containerd::SOCKET;

/// kubelet gives sandboxes four minutes; nothing here may take so long.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// A connection to the CRI of containerd.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
}

/// What a command in a container wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Cri {
    /// Connects to containerd.
    pub fn connect() -> Result<Cri> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::try_from(format!("unix://{SOCKET}"))?;
        let channel =
            runtime.block_on(endpoint.connect()).with_context(|| format!("Could not connect to {SOCKET}"))?;
        Ok(Cri { runtime, client: RuntimeServiceClient::new(channel) })
    }

    /// Waits for an answer, but not for ever, and says what failed.
    fn call<T>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(deadline, call).await });
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(anyhow!("{what}: {} ({:?})", status.message(), status.code())),
            Err(_) => bail!("{what}: no answer within {deadline:?}"),
        }
    }

    fn client(&self) -> RuntimeServiceClient<Channel> {
        self.client.clone()
    }

    /// RunPodSandbox with a runtime handler; the sandbox's id.
    pub fn run_pod(&self, pod: &Pod, handler: &str) -> Result<String> {
        let request =
            wire::RunPodSandboxRequest { config: Some(pod.config()), runtime_handler: handler.to_owned() };
        let what = format!("Could not run the pod {}", pod.name);
        Ok(self.call(&what, CALL_DEADLINE, self.client().run_pod_sandbox(request))?.pod_sandbox_id)
    }

    /// CreateContainer; the container's id.
    pub fn create(&self, pod_id: &str, pod: &Pod, container: &Container) -> Result<String> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(container.config()),
            sandbox_config: Some(pod.config()),
        };
        let what = format!("Could not create the container {}", container.name);
        Ok(self.call(&what, CALL_DEADLINE, self.client().create_container(request))?.container_id)
    }

    /// StartContainer.
    pub fn start(&self, id: &str) -> Result<()> {
        let request = wire::StartContainerRequest { container_id: id.to_owned() };
        let what = format!("Could not start the container {id}");
        self.call(&what, CALL_DEADLINE, self.client().start_container(request)).map(drop)
    }

    /// Creates and starts a container; its id.
    pub fn run(&self, pod_id: &str, pod: &Pod, container: &Container) -> Result<String> {
        let id = self.create(pod_id, pod, container)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Runs a command in a container to its end.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<Output> {
        self.exec_within(id, command, Duration::from_secs(30))
    }

    /// Runs a command which containerd ends, with an error, after `limit` (whole seconds).
    pub fn exec_within(&self, id: &str, command: &[&str], limit: Duration) -> Result<Output> {
        let request = wire::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: i64::try_from(limit.as_secs())?,
        };
        let what = format!("Could not run {command:?} in the container {id}");
        let answer = self.call(&what, limit + CALL_DEADLINE, self.client().exec_sync(request))?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// What a command prints that must end with 0.
    pub fn read(&self, id: &str, command: &[&str]) -> Result<String> {
        let output = self.exec(id, command)?;
        if output.code != 0 {
            bail!("{command:?} in the container {id} ended with {}: {}", output.code, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// StopContainer: SIGTERM, then SIGKILL after `grace` (whole seconds).
    pub fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs())?;
        let request = wire::StopContainerRequest { container_id: id.to_owned(), timeout };
        let what = format!("Could not stop the container {id}");
        self.call(&what, grace + CALL_DEADLINE, self.client().stop_container(request)).map(drop)
    }

    /// RemoveContainer.
    pub fn remove(&self, id: &str) -> Result<()> {
        let request = wire::RemoveContainerRequest { container_id: id.to_owned() };
        let what = format!("Could not remove the container {id}");
        self.call(&what, CALL_DEADLINE, self.client().remove_container(request)).map(drop)
    }

    /// StopPodSandbox.
    pub fn stop_pod(&self, id: &str) -> Result<()> {
        let request = wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let what = format!("Could not stop the pod {id}");
        self.call(&what, CALL_DEADLINE, self.client().stop_pod_sandbox(request)).map(drop)
    }

    /// Stops and removes a pod and its containers.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        self.stop_pod(id)?;
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let what = format!("Could not remove the pod {id}");
        self.call(&what, CALL_DEADLINE, self.client().remove_pod_sandbox(request)).map(drop)
    }

    /// Removes every pod there is.
    pub fn remove_all_pods(&self) -> Result<()> {
        let request = wire::ListPodSandboxRequest { filter: None };
        let pods =
            self.call("Could not list the pods", CALL_DEADLINE, self.client().list_pod_sandbox(request))?;
        pods.items.iter().try_for_each(|pod| self.remove_pod(&pod.id))
    }

    /// PodSandboxStatus.
    pub fn pod_status(&self, id: &str) -> Result<wire::PodSandboxStatus> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let what = format!("Could not get the status of the pod {id}");
        let answer = self.call(&what, CALL_DEADLINE, self.client().pod_sandbox_status(request))?;
        answer.status.with_context(|| format!("{what}: the answer is empty"))
    }

    /// The pod's address, as its status says.
    pub fn pod_ip(&self, id: &str) -> Result<String> {
        let network = self.pod_status(id)?.network.with_context(|| format!("The pod {id} has no network"))?;
        if network.ip.is_empty() {
            bail!("The pod {id} has no address");
        }
        Ok(network.ip)
    }

    /// ContainerStatus.
    pub fn status(&self, id: &str) -> Result<wire::ContainerStatus> {
        Ok(self.status_with_info(id)?.0)
    }

    /// ContainerStatus with containerd's own JSON about the container.
    pub fn status_with_info(&self, id: &str) -> Result<(wire::ContainerStatus, serde_json::Value)> {
        let request = wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let what = format!("Could not get the status of the container {id}");
        let answer = self.call(&what, CALL_DEADLINE, self.client().container_status(request))?;
        let info = answer.info.get("info").map_or("null", String::as_str);
        let status = answer.status.with_context(|| format!("{what}: the answer is empty"))?;
        Ok((status, serde_json::from_str(info).with_context(|| what.clone())?))
    }

    /// Waits until a container has exited; its status.
    pub fn wait_exited(&self, id: &str, limit: Duration) -> Result<wire::ContainerStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status(id)?;
            if status.state() == wire::ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("The container {id} did not exit within {limit:?}; its state is {:?}", status.state());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// ContainerStats.
    pub fn stats(&self, id: &str) -> Result<wire::ContainerStats> {
        let request = wire::ContainerStatsRequest { container_id: id.to_owned() };
        let what = format!("Could not get the stats of the container {id}");
        let answer = self.call(&what, CALL_DEADLINE, self.client().container_stats(request))?;
        answer.stats.with_context(|| format!("{what}: the answer is empty"))
    }

    /// PodSandboxStats.
    pub fn pod_stats(&self, id: &str) -> Result<wire::PodSandboxStats> {
        let request = wire::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        let what = format!("Could not get the stats of the pod {id}");
        let answer = self.call(&what, CALL_DEADLINE, self.client().pod_sandbox_stats(request))?;
        answer.stats.with_context(|| format!("{what}: the answer is empty"))
    }

    /// UpdateContainerResources.
    pub fn update(&self, id: &str, resources: wire::LinuxContainerResources) -> Result<()> {
        let request = wire::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        let what = format!("Could not update the container {id}");
        self.call(&what, CALL_DEADLINE, self.client().update_container_resources(request)).map(drop)
    }
}
