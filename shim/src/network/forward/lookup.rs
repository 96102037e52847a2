//! Gives every TCP connection to the loopback of a network namespace to two sockets of ours: a BPF program at the
//! kernel's lookup of listeners (Linux 5.9). No firewall rule, route or address of the namespace is touched, the
//! accepted socket keeps the port that was asked for, and all is gone with the descriptors.
//!
//! By hand, as the agent's device filter is: a library would bring libbpf and libelf into the static shim.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

/// The first byte of an IPv4 address, as it lies in memory.
const NET_8: i32 = i32::from_ne_bytes([0xff, 0, 0, 0]);
const NET_127: i32 = i32::from_ne_bytes([127, 0, 0, 0]);
/// The last word of `::1`; the others are zero.
const ONE: i32 = i32::from_ne_bytes([0, 0, 0, 1]);

/// Which families have a listener, by their place in the map.
const FAMILIES: u32 = 2;

/// The program at its place, while this lives.
#[derive(Debug)]
pub(super) struct Lookup {
    _map: OwnedFd,
    _link: OwnedFd,
}

impl Lookup {
    /// Sends connections of the namespace `netns` to `127.0.0.0/8` and `::1` to the listener of their family; a family
    /// without one stays as it is.
    pub(super) fn attach(netns: BorrowedFd<'_>, listeners: [Option<BorrowedFd<'_>>; 2]) -> io::Result<Self> {
        let map =
            bpf(BPF_MAP_CREATE, &Create { kind: BPF_MAP_TYPE_SOCKMAP, key: 4, value: 8, most: FAMILIES })?;
        // SAFETY: BPF_MAP_CREATE answered with a descriptor that is ours alone.
        let map = unsafe { OwnedFd::from_raw_fd(map) };
        for (key, listener) in (0u32..).zip(listeners) {
            let Some(listener) = listener else { continue };
            let value = u64::try_from(listener.as_raw_fd()).map_err(io::Error::other)?;
            let update = Update {
                map: map.as_raw_fd(),
                pad: 0,
                key: std::ptr::from_ref(&key) as u64,
                value: std::ptr::from_ref(&value) as u64,
                flags: 0,
            };
            bpf(BPF_MAP_UPDATE_ELEM, &update)?;
        }
        let program = load(&program(map.as_raw_fd()))?;
        let (program_fd, target) = (program.as_raw_fd(), netns.as_raw_fd());
        let link =
            bpf(BPF_LINK_CREATE, &Link { program: program_fd, target, kind: BPF_SK_LOOKUP, flags: 0 })?;
        // SAFETY: BPF_LINK_CREATE answered with a descriptor that is ours alone.
        Ok(Lookup { _map: map, _link: unsafe { OwnedFd::from_raw_fd(link) } })
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r6`: the context, `r7`: the family's place in the map and then its socket. Every skip leads to the end, which lets
/// the kernel go on with what was assigned or, without that, as if there were no program.
#[rustfmt::skip]
fn program(map: i32) -> Vec<Instruction> {
    let op = |code, to: u8, from: u8, offset, immediate| Instruction { code, registers: to | from << 4, offset, immediate };
    let (load, set, skip) = (0x61, 0xb7, 0x55);
    vec![
        op(0xbf, 6, 1, 0, 0),                           //  0 r6 = context
        op(load, 2, 6, PROTOCOL, 0),                    //  1
        op(skip, 2, 0, 30, libc::IPPROTO_TCP),          //  2 unless TCP
        op(set, 7, 0, 0, 0),                            //  3 place 0
        op(load, 2, 6, FAMILY, 0),                      //  4
        op(skip, 2, 0, 4, libc::AF_INET),               //  5 unless IPv4: to 10
        op(load, 2, 6, LOCAL_IP4, 0),                   //  6
        op(0x54, 2, 0, 0, NET_8),                       //  7
        op(0x56, 2, 0, 24, NET_127),                    //  8 unless 127.0.0.0/8
        op(0x05, 0, 0, 9, 0),                           //  9 to 19
        op(load, 2, 6, LOCAL_IP6, 0),                   // 10
        op(skip, 2, 0, 21, 0),                          // 11
        op(load, 2, 6, LOCAL_IP6 + 4, 0),               // 12
        op(skip, 2, 0, 19, 0),                          // 13
        op(load, 2, 6, LOCAL_IP6 + 8, 0),               // 14
        op(skip, 2, 0, 17, 0),                          // 15
        op(load, 2, 6, LOCAL_IP6 + 12, 0),              // 16
        op(0x56, 2, 0, 15, ONE),                        // 17 unless ::1
        op(set, 7, 0, 0, 1),                            // 18 place 1
        op(0x63, 10, 7, -4, 0),                         // 19 the key on the stack
        op(0x18, 1, 1, 0, map),                         // 20 r1 = the map, two slots
        op(0, 0, 0, 0, 0),                              // 21
        op(0xbf, 2, 10, 0, 0),                          // 22
        op(0x07, 2, 0, 0, -4),                          // 23 r2 = the key's address
        op(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),             // 24
        op(0x15, 0, 0, 7, 0),                           // 25 unless there is a listener
        op(0xbf, 7, 0, 0, 0),                           // 26
        op(0xbf, 1, 6, 0, 0),                           // 27
        op(0xbf, 2, 7, 0, 0),                           // 28
        op(set, 3, 0, 0, 0),                            // 29
        op(0x85, 0, 0, 0, SK_ASSIGN),                   // 30
        op(0xbf, 1, 7, 0, 0),                           // 31
        op(0x85, 0, 0, 0, SK_RELEASE),                  // 32
        op(set, 0, 0, 0, 1),                            // 33 SK_PASS
        op(0x95, 0, 0, 0, 0),                           // 34
    ]
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        attach: BPF_SK_LOOKUP,
        ..Load::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: BPF_PROG_LOAD answered with a descriptor that is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// The parts of `union bpf_attr` that are needed; the kernel takes shorter ones than its own.
#[repr(C)]
struct Create {
    kind: u32,
    key: u32,
    value: u32,
    most: u32,
}

#[repr(C)]
struct Update {
    map: i32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

#[repr(C)]
struct Link {
    program: i32,
    target: i32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` has the layout that `command` reads, and what it points to outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(answer).map_err(io::Error::other) }
}
