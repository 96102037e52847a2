//! Tests of queues that go on, on real events.

use std::os::fd::AsRawFd;

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::*;

fn file(event: &EventFd) -> Option<File> {
    // SAFETY: the copy is made for the file, which alone owns it.
    Some(unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::dup(event.as_raw_fd())) })
}

/// What the protocol's stop of a queue does to it.
fn stop(queue: &Queue<Memory<()>>) {
    queue.set_enabled(false);
    queue.set_queue_ready(false);
    queue.set_kick(None);
    queue.set_call(None);
}

/// A queue that was started with these.
fn started(kick: &EventFd, call: &EventFd) -> Queue<Memory<()>> {
    let queue = Queue::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 8).unwrap();
    queue.set_call(file(call));
    queue.set_kick(file(kick));
    queue.set_queue_ready(true);
    queue.set_enabled(true);
    queue
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

fn runs(queue: &Queue<Memory<()>>) -> bool {
    let state = queue.get_ref();
    state.get_queue().ready() && state.is_enabled()
}

#[test]
fn a_stopped_queue_goes_on_when_it_is_kicked_and_stops_and_goes_on_again() {
    let (kick, call) = (event(), event());
    let queue = started(&kick, &call);
    assert!(!queue.goes_on(), "it is the front end's");
    for _ in 0..2 {
        stop(&queue);
        assert!(!queue.goes_on() && !runs(&queue), "nobody has kicked it");
        kick.write(1).unwrap();
        assert!(queue.goes_on() && runs(&queue));
        queue.signal_used_queue().unwrap();
        assert_eq!(call.read().unwrap(), 1);
        kick.write(1).unwrap();
        assert!(queue.goes_on(), "and with every kick from then on");
    }
}

#[test]
fn what_was_said_before_the_stop_waits_until_the_guest_runs() {
    let (kick, call) = (event(), event());
    let queue = started(&kick, &call);
    kick.write(1).unwrap();
    stop(&queue);
    assert!(!queue.goes_on(), "while it stands still nothing may change its memory");
    // The front end starts it anew: then it is heard.
    queue.set_kick(file(&kick));
    assert_eq!(kick.read().unwrap(), 1);
}

#[test]
fn a_queue_that_is_started_anew_has_what_it_is_given() {
    let (old, new, call) = (event(), event(), event());
    let queue = started(&old, &call);
    stop(&queue);
    queue.set_kick(file(&new));
    old.write(1).unwrap();
    assert!(!queue.goes_on(), "the old one is nothing to it");
    new.write(1).unwrap();
    queue.get_ref().get_kick().as_ref().unwrap().consume().unwrap();
}

#[test]
fn a_queue_that_never_had_anything_does_not_start() {
    let queue: Queue<Memory<()>> = Queue::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 8).unwrap();
    stop(&queue);
    assert!(!queue.goes_on() && !runs(&queue));
}
