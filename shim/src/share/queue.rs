//! Queues that go on after a checkpoint. Cloud Hypervisor 52 and 53 stop the queues of a virtio-fs device when they
//! save its state, and never start them again when the guest runs on: it would wait for its files for ever. So a queue
//! here keeps copies of its descriptors, and when it is kicked after it was stopped, which only a guest that runs can do,
//! it goes on with them. A front end that starts the queue anew, as the protocol has it, hands new ones over, and the
//! kept ones are dropped. Called by the daemon in `virtiofsd`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, EventSet};
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// What the daemon's event loop calls a kick of a queue that was stopped. The lowest numbers are queues and the end.
const KICKED: u16 = 1000;

/// The event loop of this process' only daemon, which the queues can't be told of otherwise.
static EVENT_LOOP: OnceLock<RawFd> = OnceLock::new();

/// Guest memory, as daemons see it.
type Memory<B> = GuestMemoryAtomic<GuestMemoryMmap<B>>;

/// A backend whose queues go on.
pub(super) struct GoesOn<B>(pub(super) B);

/// Tells the queues of this process' daemon about its event loop, which lives as long as the process.
pub(super) fn watch(event_loop: RawFd) {
    // There is one daemon in a process.
    let _ = EVENT_LOOP.set(event_loop);
}

/// A queue that goes on.
#[derive(Clone)]
pub(super) struct Queue<M: GuestAddressSpace> {
    queue: VringMutex<M>,
    kept: Arc<Mutex<Kept>>,
}

/// Copies of the descriptors that the queue has been given.
#[derive(Debug, Default)]
struct Kept {
    kick: Option<File>,
    call: Option<File>,
    state: State,
    /// A kick had come before the queue was stopped, and nobody had heard it.
    unheard: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The front end has it as it wants it.
    #[default]
    FrontEnd,
    /// It was stopped, and its kicks are watched.
    Stopped,
    /// It was kicked since and goes on with what was kept.
    GoesOn,
}

impl Kept {
    /// Takes a kick that is there. Front ends make their events nonblocking.
    fn kicked(&self) -> bool {
        self.kick.as_ref().is_some_and(|mut kick| kick.read_exact(&mut [0; 8]).is_ok())
    }

    /// Has the event loop tell of kicks, or no more.
    fn listen(&self, operation: ControlOperation) {
        let (Some(kick), Some(events)) = (&self.kick, EVENT_LOOP.get()) else { return };
        let mut event = libc::epoll_event { events: EventSet::IN.bits(), u64: KICKED.into() };
        // SAFETY: both descriptors are open, the one by `kept`, the other for the process' life; the event outlives the call.
        let done = unsafe { libc::epoll_ctl(*events, operation as i32, kick.as_raw_fd(), &raw mut event) };
        if done != 0 {
            log::error!("virtiofsd can't watch a stopped queue: {}", io::Error::last_os_error());
        }
    }
}

impl<M: GuestAddressSpace + 'static> Queue<M> {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest stands still now: what it had said before is for later.
    fn stop(&self) {
        let mut kept = self.kept();
        if kept.kick.is_none() || kept.state == State::Stopped {
            return;
        }
        kept.unheard |= kept.kicked();
        if kept.state == State::FrontEnd {
            kept.listen(ControlOperation::Add);
        }
        kept.state = State::Stopped;
    }

    /// Whether the guest has kicked the queue since it was stopped; then it has what it needs to go on.
    fn goes_on(&self) -> bool {
        let mut kept = self.kept();
        if kept.state == State::FrontEnd || !kept.kicked() {
            return false;
        }
        if kept.state == State::Stopped {
            self.queue.set_call(kept.call.as_ref().and_then(|call| call.try_clone().ok()));
            self.queue.set_queue_ready(true);
            self.queue.set_enabled(true);
            kept.state = State::GoesOn;
            kept.unheard = false;
        }
        true
    }

    /// The front end has started the queue anew with this `kick`.
    fn started(&self, kick: &File) {
        let mut kept = self.kept();
        if kept.state != State::FrontEnd {
            kept.listen(ControlOperation::Delete);
        }
        if std::mem::take(&mut kept.unheard) {
            // It is heard again. An event can't be full of one.
            let _ = (&*kick).write_all(&1_u64.to_ne_bytes());
        }
        kept.state = State::FrontEnd;
        kept.kick = kick.try_clone().ok();
    }
}

impl<'a, M: GuestAddressSpace + 'a> VringStateGuard<'a, M> for Queue<M> {
    type G = <VringMutex<M> as VringStateGuard<'a, M>>::G;
}

impl<'a, M: GuestAddressSpace + 'a> VringStateMutGuard<'a, M> for Queue<M> {
    type G = <VringMutex<M> as VringStateMutGuard<'a, M>>::G;
}

impl<M: GuestAddressSpace + 'static> VringT<M> for Queue<M> {
    fn new(memory: M, size: u16) -> Result<Self, QueueError> {
        Ok(Self { queue: VringMutex::new(memory, size)?, kept: Arc::default() })
    }

    fn set_kick(&self, file: Option<File>) {
        if let Some(file) = &file {
            self.started(file);
        }
        self.queue.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        if let Some(file) = &file {
            self.kept().call = file.try_clone().ok();
        }
        self.queue.set_call(file);
    }

    fn set_queue_ready(&self, ready: bool) {
        if !ready {
            self.stop();
        }
        self.queue.set_queue_ready(ready);
    }

    fn set_enabled(&self, enabled: bool) {
        self.queue.set_enabled(enabled);
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        self.queue.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, M>>::G {
        self.queue.get_mut()
    }

    fn add_used(&self, index: u16, length: u32) -> Result<(), QueueError> {
        self.queue.add_used(index, length)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.queue.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.queue.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.queue.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.queue.needs_notification()
    }

    fn set_queue_info(&self, descriptors: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.queue.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.queue.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.queue.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.queue.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.queue.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.queue.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.queue.set_queue_event_idx(enabled);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.queue.read_kick()
    }

    fn set_err(&self, file: Option<File>) {
        self.queue.set_err(file);
    }
}

impl<B> VhostUserBackend for GoesOn<B>
where
    B: VhostUserBackend<Vring = VringMutex<Memory<<B as VhostUserBackend>::Bitmap>>>,
{
    type Bitmap = B::Bitmap;
    type Vring = Queue<Memory<B::Bitmap>>;

    fn handle_event(
        &self,
        event: u16,
        set: EventSet,
        queues: &[Self::Vring],
        thread: usize,
    ) -> io::Result<()> {
        let inner: Vec<_> = queues.iter().map(|queue| queue.queue.clone()).collect();
        if event != KICKED {
            return self.0.handle_event(event, set, &inner, thread);
        }
        for (number, queue) in (0..).zip(queues) {
            if queue.goes_on() {
                self.0.handle_event(number, set, &inner, thread)?;
            }
        }
        Ok(())
    }

    fn num_queues(&self) -> usize {
        self.0.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.0.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn acked_features(&self, features: u64) {
        self.0.acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.0.protocol_features()
    }

    fn reset_device(&self) {
        self.0.reset_device();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_idx(enabled);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.0.get_config(offset, size)
    }

    fn update_memory(&self, memory: Memory<B::Bitmap>) -> io::Result<()> {
        self.0.update_memory(memory)
    }

    fn set_backend_req_fd(&self, front_end: Backend) {
        self.0.set_backend_req_fd(front_end);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        self.0.queues_per_thread()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.0.exit_event(thread)
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        self.0.set_device_state_fd(direction, phase, file)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.0.check_device_state()
    }
}

#[cfg(test)]
mod tests;
