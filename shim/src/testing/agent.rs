//! The scripted guest. What the first argument of a process says, it does:
//!
//! | arguments | what it does |
//! |---|---|
//! | `exit N` | ends with status N as soon as it runs |
//! | `cat` | copies its input to its output until the input is closed, then ends with 0 |
//! | `say TEXT` | writes TEXT, then runs until it gets a signal |
//! | `flood` | writes without end until it gets a signal |
//! | `run` | runs until it gets a signal |
//! | `deaf` | ends at SIGKILL only |
//! | `hang` | takes no signal at all: the guest does not answer |
//! | `missing` | can't be started |

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::{agent, agent_ttrpc, health, health_ttrpc, microvm, microvm_ttrpc, oci};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;

use super::process::Process;
use crate::error::{Context, Result as ShimResult};

/// A signal that always ends a process.
pub(super) const SIGKILL: u32 = 9;

pub(super) type Answer<T> = ttrpc::Result<T>;

/// The scripted guest: its containers by id, each with its processes by exec id.
#[derive(Debug, Default)]
pub struct Guest {
    containers: Mutex<BTreeMap<String, BTreeMap<String, Process>>>,
    changed: watch::Sender<u64>,
    dead: watch::Sender<bool>,
    log: Mutex<Vec<String>>,
}

impl Guest {
    pub(super) fn render(&self) -> ShimResult<Vec<u8>> {
        serde_json::to_vec(&*lock(&self.containers)).context(|| "Could not render the scripted guest".into())
    }

    pub(super) fn parse(text: &[u8]) -> ShimResult<Self> {
        let containers =
            serde_json::from_slice(text).context(|| "Could not parse the scripted guest".into())?;
        Ok(Guest { containers: Mutex::new(containers), ..Guest::default() })
    }

    pub(super) fn die(&self) {
        self.dead.send_replace(true);
    }

    /// Requests so far, one line each.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    /// Ids of all containers.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        lock(&self.containers).keys().cloned().collect()
    }

    fn note(&self, line: String) {
        lock(&self.log).push(line);
    }

    fn change<T>(
        &self,
        container: &str,
        exec: &str,
        change: impl FnOnce(&mut Process) -> Answer<T>,
    ) -> Answer<T> {
        let answer = {
            let mut containers = lock(&self.containers);
            let process = containers.get_mut(container).and_then(|processes| processes.get_mut(exec));
            change(process.ok_or_else(|| not_found(format!("no process {exec} in {container}")))?)
        };
        self.changed.send_modify(|count| *count += 1);
        answer
    }

    /// Waits until `look` finds something in the process, or the guest dies.
    async fn until<T>(
        &self,
        container: &str,
        exec: &str,
        look: impl Fn(&mut Process) -> Option<T>,
    ) -> Answer<T> {
        let (mut changed, mut dead) = (self.changed.subscribe(), self.dead.subscribe());
        loop {
            if let Some(found) = self.change_quietly(container, exec, &look)? {
                return Ok(found);
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = dead.wait_for(|dead| *dead) => return Err(ttrpc::Error::RpcStatus(
                    ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "the guest is gone"))),
            }
        }
    }

    fn change_quietly<T>(
        &self,
        container: &str,
        exec: &str,
        look: &impl Fn(&mut Process) -> Option<T>,
    ) -> Answer<Option<T>> {
        let mut containers = lock(&self.containers);
        let process = containers.get_mut(container).and_then(|processes| processes.get_mut(exec));
        Ok(look(process.ok_or_else(|| not_found(format!("no process {exec} in {container}")))?))
    }
}

#[async_trait]
impl health_ttrpc::Health for Guest {
    async fn check(&self, _: &TtrpcContext, _: health::CheckRequest) -> Answer<health::HealthCheckResponse> {
        let status = health::health_check_response::ServingStatus::SERVING.into();
        Ok(health::HealthCheckResponse { status, ..Default::default() })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Guest {
    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: agent::GuestDetailsRequest,
    ) -> Answer<agent::GuestDetailsResponse> {
        let details = agent::AgentDetails { extra_features: vec!["microvm.v1".into()], ..Default::default() };
        Ok(agent::GuestDetailsResponse { agent_details: Some(details).into(), ..Default::default() })
    }

    async fn create_sandbox(&self, _: &TtrpcContext, request: agent::CreateSandboxRequest) -> Answer<Empty> {
        self.note(format!("sandbox {}", request.hostname));
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: agent::CreateContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("create {}", request.container_id));
        let id = request.container_id;
        let process = Process::new(&request.OCI.Process.Args);
        let mut containers = lock(&self.containers);
        if containers.contains_key(&id) {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::ALREADY_EXISTS, id)));
        }
        containers.insert(id.clone(), [(id, process)].into());
        Ok(Empty::new())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: agent::StartContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("start {}", request.container_id));
        self.change(&request.container_id, &request.container_id, Process::start)?;
        Ok(Empty::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: agent::RemoveContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("remove {}", request.container_id));
        let removed = lock(&self.containers).remove(&request.container_id);
        removed
            .map(|_| Empty::new())
            .ok_or_else(|| not_found(format!("no container {}", request.container_id)))
    }

    async fn exec_process(&self, _: &TtrpcContext, request: agent::ExecProcessRequest) -> Answer<Empty> {
        self.note(format!("exec {} {}", request.container_id, request.exec_id));
        let process: &oci::Process = &request.process;
        let mut process = Process::new(&process.Args);
        process.start()?;
        let mut containers = lock(&self.containers);
        let container = containers.get_mut(&request.container_id);
        let container =
            container.ok_or_else(|| not_found(format!("no container {}", request.container_id)))?;
        container.insert(request.exec_id, process);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: agent::SignalProcessRequest) -> Answer<Empty> {
        self.note(format!("signal {} {} {}", request.container_id, request.exec_id, request.signal));
        let exec = if request.exec_id.is_empty() { &request.container_id } else { &request.exec_id };
        let hangs = self.change(&request.container_id, exec, |process| {
            if !process.hangs() {
                process.signal(request.signal);
            }
            Ok(process.hangs())
        })?;
        if hangs {
            let mut dead = self.dead.subscribe();
            // A test's guest hangs until its VM is ended.
            let _ = tokio::time::timeout(Duration::from_secs(60), dead.wait_for(|dead| *dead)).await;
        }
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> Answer<agent::WaitProcessResponse> {
        let status = self.until(&request.container_id, &request.exec_id, |process| process.exit).await?;
        Ok(agent::WaitProcessResponse { status, ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> Answer<agent::WriteStreamResponse> {
        let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        self.change(&request.container_id, &request.exec_id, |process| {
            process.input.extend(&request.data);
            process.proceed();
            Ok(())
        })?;
        Ok(agent::WriteStreamResponse { len, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: agent::CloseStdinRequest) -> Answer<Empty> {
        self.change(&request.container_id, &request.exec_id, |process| {
            process.input_closed = true;
            process.proceed();
            Ok(Empty::new())
        })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> Answer<agent::ReadStreamResponse> {
        let most = usize::try_from(request.len).unwrap_or(usize::MAX);
        let look = |process: &mut Process| process.take_output(most);
        let data = self.until(&request.container_id, &request.exec_id, look).await?;
        Ok(agent::ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> Answer<agent::ReadStreamResponse> {
        let ended = |process: &mut Process| process.exit.map(|_| Vec::new());
        let data = self.until(&request.container_id, &request.exec_id, ended).await?;
        Ok(agent::ReadStreamResponse { data, ..Default::default() })
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: agent::PauseContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("pause {}", request.container_id));
        self.change(&request.container_id, &request.container_id, |process| {
            process.frozen = true;
            Ok(Empty::new())
        })
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: agent::ResumeContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("resume {}", request.container_id));
        self.change(&request.container_id, &request.container_id, |process| {
            process.frozen = false;
            process.proceed();
            Ok(Empty::new())
        })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateContainerRequest,
    ) -> Answer<Empty> {
        self.note(format!("update {} {}", request.container_id, request.resources.Memory.Limit));
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: agent::StatsContainerRequest,
    ) -> Answer<agent::StatsContainerResponse> {
        self.change(&request.container_id, &request.container_id, |_| Ok(()))?;
        let mut answer = agent::StatsContainerResponse::new();
        let cgroup = answer.cgroup_stats.mut_or_insert_default();
        cgroup.memory_stats.mut_or_insert_default().usage.mut_or_insert_default().usage = 4096;
        Ok(answer)
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: agent::TtyWinResizeRequest) -> Answer<Empty> {
        self.note(format!("resize {} {}x{}", request.exec_id, request.column, request.row));
        Ok(Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: agent::GetOOMEventRequest) -> Answer<agent::OOMEvent> {
        let mut dead = self.dead.subscribe();
        // The scripted guest has memory enough: the answer never comes while it lives.
        let _ = dead.wait_for(|dead| *dead).await;
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "the guest is gone")))
    }
}

#[async_trait]
impl microvm_ttrpc::Guest for Guest {
    async fn renew(&self, _: &TtrpcContext, request: microvm::RenewRequest) -> Answer<Empty> {
        self.note(format!("renew {} entropy {}", request.hostname, request.entropy.len()));
        Ok(Empty::new())
    }

    async fn rebind(&self, _: &TtrpcContext, request: microvm::RebindRequest) -> Answer<Empty> {
        let places: Vec<_> = request.mounts.iter().map(|mount| mount.destination.as_str()).collect();
        self.note(format!("rebind {} {}", request.container_id, places.join(" ")));
        Ok(Empty::new())
    }

    async fn freeze_all(&self, _: &TtrpcContext, _: Empty) -> Answer<microvm::FrozenContainers> {
        let mut ids = Vec::new();
        for (id, processes) in lock(&self.containers).iter_mut() {
            let first =
                processes.get_mut(id).filter(|first| first.running && !first.frozen && first.exit.is_none());
            if let Some(first) = first {
                first.frozen = true;
                ids.push(id.clone());
            }
        }
        self.note(format!("freeze {}", ids.join(" ")));
        Ok(microvm::FrozenContainers { ids, ..Default::default() })
    }

    async fn thaw_all(&self, _: &TtrpcContext, request: microvm::FrozenContainers) -> Answer<Empty> {
        self.note(format!("thaw {}", request.ids.join(" ")));
        for id in &request.ids {
            self.change(id, id, |process| {
                process.frozen = false;
                process.proceed();
                Ok(())
            })?;
        }
        Ok(Empty::new())
    }
}

pub(super) fn not_found(text: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::NOT_FOUND, text))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
