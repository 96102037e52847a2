//! containerd's Task API, versions 2 and 3, over ttrpc. Called by `bootstrap`. It translates each request for
//! [`Tasks`] and the answer back, and decides nothing; it knows no sandbox and no VM.

mod translate;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Task, create_task};
use nix::libc;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use ttrpc::r#async::{Server, TtrpcContext};

use crate::error::{Context, Error, Kind, Result};
use crate::task::{ProcessRef, Tasks};

/// Older containerds ask for the same messages under this name.
const VERSION_2: &str = "containerd.task.v2.Task";

/// A running server.
pub struct Service {
    server: Server,
    ended: watch::Receiver<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("ended", &*self.ended.borrow()).finish_non_exhaustive()
    }
}

impl Service {
    /// Answers requests on `listener`, on as many connections as come, until [`Service::stop`]. `at_end` runs when
    /// containerd has asked for the end, before it gets its answer: then it may start another shim in this one's place.
    ///
    /// # Errors
    /// `Internal` if the server can't be started.
    pub async fn start(
        listener: UnixListener,
        tasks: Arc<dyn Tasks>,
        at_end: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let (end, ended) = watch::channel(false);
        let methods = Methods { tasks, end: Arc::new(end), at_end: Arc::new(at_end) };
        let mut server = Server::new().add_listener(listener.into());
        for services in both_versions(methods) {
            server = server.register_service(services);
        }
        server.start().await.context(|| "Could not serve the Task API".into())?;
        Ok(Service { server, ended })
    }

    /// Waits until containerd has asked for the end and nothing was left to serve.
    pub async fn ended(&self) {
        // An error means that the server is gone, which is an end too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Accepts nothing more and lets the answers under way go out, for some seconds at most.
    pub async fn stop(mut self) {
        if let Err(error) = self.server.shutdown().await {
            log::debug!("Could not end all connections: {error}");
        }
    }
}

fn both_versions(methods: Methods) -> [HashMap<String, ttrpc::r#async::Service>; 2] {
    let methods = Arc::new(methods);
    let version_2 = create_task(methods.clone()).into_values().map(|service| (VERSION_2.to_owned(), service));
    [version_2.collect(), create_task(methods)]
}

#[derive(Clone)]
struct Methods {
    tasks: Arc<dyn Tasks>,
    end: Arc<watch::Sender<bool>>,
    at_end: Arc<dyn Fn() + Send + Sync>,
}

impl Methods {
    /// Runs `work` to its end even if the connection breaks or the caller's deadline passes meanwhile: ttrpc then drops
    /// the handler, and half a change would be left.
    async fn run<T, F>(&self, what: &'static str, id: &str, work: F) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        log::debug!("{what} {id}");
        let done = tokio::spawn(work).await;
        let done =
            done.unwrap_or_else(|error| Err(Error::caused(Kind::Internal, format!("{what} failed"), error)));
        done.map_err(|error| refuse(what, id, &error))
    }
}

/// The one place where errors become codes and are logged.
fn refuse(what: &str, id: &str, error: &Error) -> ttrpc::Error {
    let text = error.chain();
    match error.kind() {
        // How containerd finds out what is there.
        Kind::NotFound | Kind::AlreadyExists => log::debug!("{what} {id}: {text}"),
        _ => log::error!("{what} {id}: {text}"),
    }
    ttrpc::Error::RpcStatus(ttrpc::get_status(error.kind().code(), text))
}

/// Undoes a create whose caller has given up: containerd does not know the container, so it would never end it.
async fn abandon(tasks: &dyn Tasks, id: &str) {
    log::warn!("Nobody waits for container {id} any more, deleting it");
    let process = ProcessRef { container: id, exec: "" };
    let killed = tasks.kill(process, libc::SIGKILL.unsigned_abs(), true).await;
    if let Err(error) = killed.and(tasks.delete(process).await) {
        log::error!("Could not delete container {id}: {}", error.chain());
    }
}

#[async_trait]
impl Task for Methods {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        log::debug!("create {id}");
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let id = request.id.clone();
            let created = async { tasks.create(translate::create(request)?).await }.await;
            if let Err(Ok(_)) = answer.send(created) {
                abandon(tasks.as_ref(), &id).await;
            }
        });
        let created = answered.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "create panicked")));
        let pid = created.map_err(|error| refuse("create", &id, &error))?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move { tasks.start(process(&request.id, &request.exec_id)).await };
        let pid = self.run("start", &id, work).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let state = self.tasks.state(process(&request.id, &request.exec_id)).await;
        state.map(translate::state).map_err(|error| refuse("state", &request.id, &error))
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move { tasks.delete(process(&request.id, &request.exec_id)).await };
        self.run("delete", &id, work).await.map(translate::deleted)
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let pids = self.tasks.pids(&request.id).await.and_then(translate::pids);
        pids.map_err(|error| refuse("pids", &request.id, &error))
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        self.run("pause", &id, async move { tasks.pause(&request.id).await }).await.map(nothing)
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        self.run("resume", &id, async move { tasks.resume(&request.id).await }).await.map(nothing)
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move {
            let (path, exit) = translate::checkpoint(&request)?;
            tasks.checkpoint(&request.id, path, exit).await
        };
        self.run("checkpoint", &id, work).await.map(nothing)
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move {
            tasks.kill(process(&request.id, &request.exec_id), request.signal, request.all).await
        };
        self.run("kill", &id, work).await.map(nothing)
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        self.run("exec", &id, async move { tasks.exec(translate::exec(request)?).await }).await.map(nothing)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move {
            let (width, height) = translate::size(&request)?;
            tasks.resize(process(&request.id, &request.exec_id), width, height).await
        };
        self.run("resize", &id, work).await.map(nothing)
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        if !request.stdin {
            return Ok(Empty::new());
        }
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move { tasks.close_stdin(process(&request.id, &request.exec_id)).await };
        self.run("close stdin", &id, work).await.map(nothing)
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let (tasks, id) = (self.tasks.clone(), request.id.clone());
        let work = async move { tasks.update(&request.id, translate::resources(&request)?).await };
        self.run("update", &id, work).await.map(nothing)
    }

    /// Not in a task of its own: a wait changes nothing, and containerd asks anew on each connection.
    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.tasks.wait(process(&request.id, &request.exec_id)).await;
        exit.map(translate::exit).map_err(|error| refuse("wait", &request.id, &error))
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let stats = self.tasks.stats(&request.id).await;
        stats.map(translate::stats).map_err(|error| refuse("stats", &request.id, &error))
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let connected = self.tasks.connect(&request.id).await;
        let connected = connected.map_err(|error| refuse("connect", &request.id, &error))?;
        Ok(api::ConnectResponse {
            shim_pid: connected.shim,
            task_pid: connected.task,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        let (tasks, end, at_end) = (self.tasks.clone(), self.end.clone(), self.at_end.clone());
        let work = async move {
            if tasks.shutdown().await? {
                at_end();
                end.send_replace(true);
            }
            Ok(())
        };
        self.run("shutdown", &request.id, work).await.map(nothing)
    }
}

fn process<'a>(container: &'a str, exec: &'a str) -> ProcessRef<'a> {
    ProcessRef { container, exec }
}

fn nothing((): ()) -> Empty {
    Empty::new()
}

#[cfg(test)]
mod tests;
