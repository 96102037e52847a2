//! What an event looks like to containerd. Called by the sending task only.

use std::time::SystemTime;

use containerd_shim_protos::events::task as message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;

use super::Event;
use crate::task::{Exit, Mount, Streams};

pub(super) fn envelope(namespace: &str, time: SystemTime, event: &Event) -> protobuf::Result<Envelope> {
    let (topic, event) = encode(event.clone())?;
    Ok(Envelope {
        timestamp: MessageField::some(time.into()),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    })
}

fn encode(event: Event) -> protobuf::Result<(&'static str, Any)> {
    Ok(match event {
        Event::Created { id, bundle, rootfs, streams, checkpoint, pid } => {
            let io = MessageField::some(io(streams));
            let rootfs = rootfs.into_iter().map(mount).collect();
            let create = message::TaskCreate {
                container_id: id,
                bundle,
                rootfs,
                io,
                checkpoint,
                pid,
                ..Default::default()
            };
            (topics::TASK_CREATE_EVENT_TOPIC, any(&create)?)
        }
        Event::Started { id, pid } => {
            let start = message::TaskStart { container_id: id, pid, ..Default::default() };
            (topics::TASK_START_EVENT_TOPIC, any(&start)?)
        }
        Event::Exited { id, exec, pid, exit: Exit { status, at } } => {
            // A container's first process goes by the container's id here.
            let process = if exec.is_empty() { id.clone() } else { exec };
            let exit = message::TaskExit {
                container_id: id,
                id: process,
                pid,
                exit_status: status,
                exited_at: MessageField::some(at.into()),
                ..Default::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, any(&exit)?)
        }
        Event::Deleted { id, pid, exit: Exit { status, at } } => {
            let delete = message::TaskDelete {
                container_id: id,
                pid,
                exit_status: status,
                exited_at: MessageField::some(at.into()),
                ..Default::default()
            };
            (topics::TASK_DELETE_EVENT_TOPIC, any(&delete)?)
        }
        Event::ExecAdded { id, exec } => {
            let added = message::TaskExecAdded { container_id: id, exec_id: exec, ..Default::default() };
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, any(&added)?)
        }
        Event::ExecStarted { id, exec, pid } => {
            let started =
                message::TaskExecStarted { container_id: id, exec_id: exec, pid, ..Default::default() };
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, any(&started)?)
        }
        Event::OutOfMemory { id } => {
            let oom = message::TaskOOM { container_id: id, ..Default::default() };
            (topics::TASK_OOM_EVENT_TOPIC, any(&oom)?)
        }
        Event::Paused { id } => {
            let paused = message::TaskPaused { container_id: id, ..Default::default() };
            (topics::TASK_PAUSED_EVENT_TOPIC, any(&paused)?)
        }
        Event::Resumed { id } => {
            let resumed = message::TaskResumed { container_id: id, ..Default::default() };
            (topics::TASK_RESUMED_EVENT_TOPIC, any(&resumed)?)
        }
        Event::Checkpointed { id, checkpoint } => {
            let checkpointed =
                message::TaskCheckpointed { container_id: id, checkpoint, ..Default::default() };
            (topics::TASK_CHECKPOINTED_EVENT_TOPIC, any(&checkpointed)?)
        }
    })
}

/// containerd knows its types by their bare names, without the usual `type.googleapis.com/`.
fn any<M: protobuf::MessageFull>(message: &M) -> protobuf::Result<Any> {
    let type_url = M::descriptor().full_name().to_owned();
    Ok(Any { type_url, value: message.write_to_bytes()?, ..Any::default() })
}

fn io(streams: Streams) -> message::TaskIO {
    let Streams { stdin, stdout, stderr, terminal } = streams;
    message::TaskIO { stdin, stdout, stderr, terminal, ..Default::default() }
}

fn mount(mount: Mount) -> containerd_shim_protos::types::mount::Mount {
    let Mount { kind, source, target, options } = mount;
    containerd_shim_protos::types::mount::Mount { type_: kind, source, target, options, ..Default::default() }
}
