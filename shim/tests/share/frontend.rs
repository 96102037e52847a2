//! A guest's side of a virtio-fs device, with nobody's kernel between the test and the daemon: it can ask what no
//! honest guest asks. Speaks vhost-user, one virtqueue of two descriptors, and FUSE (linux/fuse.h).

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Deadline of one answer.
const DEADLINE_MS: u16 = 10_000;
/// Where the "guest's memory" claims to be mapped; only differences count.
const BASE: u64 = 0x1000_0000;
const MEMORY: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x4000;
const RESPONSE: u64 = 0x8000;
const RESPONSE_SIZE: u32 = 0x4000;
const QUEUE_SIZE: u16 = 16;
/// virtio-fs has a queue of high priority before those for requests.
const QUEUE: usize = 1;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Node of the tree's root.
pub(crate) const ROOT: u64 = 1;

/// Operations of FUSE.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Lookup = 1,
    Mkdir = 9,
    Unlink = 10,
    Open = 14,
    Read = 15,
    Init = 26,
    Create = 35,
}

/// A connected device.
pub(crate) struct Guest {
    _frontend: Frontend,
    memory: File,
    kick: EventFd,
    call: EventFd,
    sent: u16,
}

impl Guest {
    /// Connects to a daemon and says hello.
    pub(crate) fn connect(socket: &Path) -> Self {
        let memory = File::from(
            nix::sys::memfd::memfd_create("guest", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap(),
        );
        memory.set_len(MEMORY).unwrap();
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        let mut frontend = Frontend::from_stream(UnixStream::connect(socket).unwrap(), 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_eq!(features & (VERSION_1 | PROTOCOL_FEATURES), VERSION_1 | PROTOCOL_FEATURES);
        frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: BASE,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let rings = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: BASE + DESCRIPTORS,
            used_ring_addr: BASE + USED,
            avail_ring_addr: BASE + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_num(QUEUE, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(QUEUE, &rings).unwrap();
        frontend.set_vring_base(QUEUE, 0).unwrap();
        frontend.set_vring_call(QUEUE, &call).unwrap();
        frontend.set_vring_kick(QUEUE, &kick).unwrap();
        frontend.set_vring_enable(QUEUE, true).unwrap();
        let mut guest = Guest { _frontend: frontend, memory, kick, call, sent: 0 };
        // Version 7.38, no read-ahead, submounts.
        let hello = [7u32, 38, 0, 1 << 27]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain([0; 48])
            .collect::<Vec<_>>();
        guest.ask(Op::Init, 0, &hello).unwrap();
        guest
    }

    /// Sends one request and answers what the daemon does, or the errno.
    pub(crate) fn ask(&mut self, op: Op, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut request = Vec::new();
        request.extend(length.to_le_bytes());
        request.extend((op as u32).to_le_bytes());
        request.extend(u64::from(self.sent).to_le_bytes());
        request.extend(node.to_le_bytes());
        // User and group 0, process 0.
        request.extend([0; 16]);
        request.extend(body);
        self.memory.write_all_at(&request, REQUEST).unwrap();
        self.describe(0, REQUEST, length, (1, 1));
        self.describe(1, RESPONSE, RESPONSE_SIZE, (2, 0));
        let slot = u64::from(self.sent % QUEUE_SIZE);
        self.memory.write_all_at(&0u16.to_le_bytes(), AVAILABLE + 4 + 2 * slot).unwrap();
        self.sent += 1;
        self.memory.write_all_at(&self.sent.to_le_bytes(), AVAILABLE + 2).unwrap();
        self.kick.write(1).unwrap();
        while self.word(USED + 2) & 0xffff != u32::from(self.sent) {
            // SAFETY: `self` keeps the event's descriptor open.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [PollFd::new(call, PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(DEADLINE_MS)), Ok(1), "no answer to {op:?}");
            self.call.read().unwrap();
        }
        let error = self.word(RESPONSE + 4).cast_signed();
        let mut answer = vec![0; usize::try_from(self.word(RESPONSE)).unwrap() - 16];
        self.memory.read_exact_at(&mut answer, RESPONSE + 16).unwrap();
        if error == 0 { Ok(answer) } else { Err(-error) }
    }

    fn describe(&self, index: u64, address: u64, length: u32, (flags, next): (u16, u16)) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.memory.write_all_at(&descriptor, DESCRIPTORS + 16 * index).unwrap();
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// The node that a path leads to.
    pub(crate) fn walk(&mut self, path: &str) -> Result<u64, i32> {
        path.split('/').try_fold(ROOT, |node, name| Ok(number(&self.ask(Op::Lookup, node, &text(name))?)))
    }

    /// Opens with flags of open(2).
    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = [flags.cast_unsigned(), 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        self.ask(Op::Open, node, &body).map(|answer| number(&answer))
    }

    /// The first bytes of an open file.
    pub(crate) fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0u64.to_le_bytes());
        body.extend(100u32.to_le_bytes());
        body.extend([0; 20]);
        self.ask(Op::Read, node, &body)
    }

    /// Makes a file.
    pub(crate) fn create(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        let words = [nix::libc::O_RDWR.cast_unsigned(), 0o644, 0, 0];
        let body = words.iter().flat_map(|word| word.to_le_bytes()).chain(text(name)).collect::<Vec<_>>();
        self.ask(Op::Create, parent, &body).map(drop)
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        let words = [0o755u32, 0];
        let body = words.iter().flat_map(|word| word.to_le_bytes()).chain(text(name)).collect::<Vec<_>>();
        self.ask(Op::Mkdir, parent, &body).map(drop)
    }

    /// Removes a file.
    pub(crate) fn unlink(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        self.ask(Op::Unlink, parent, &text(name)).map(drop)
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(answer: &[u8]) -> u64 {
    u64::from_le_bytes(answer[..8].try_into().unwrap())
}
