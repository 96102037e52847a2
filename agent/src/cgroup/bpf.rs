//! BPF by hand for `devices`: the few instructions a device program needs, and bpf(2) to load and attach it.
//! A library would bring libbpf and libelf into the static agent.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

const MOST_TRIES: usize = 64;

// Registers: R1 comes in with the context, R0 goes out with the answer.
const R0: u8 = 0;
const R1: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    /// Spreads `struct bpf_cgroup_dev_ctx { u32 access_type /* kind | access << 16 */, major, minor }` over registers.
    pub(super) fn load_device_context() -> Vec<Self> {
        vec![
            Self::new(0x61, KIND, R1, 0, 0),     // kind = *(u32 *)(R1 + 0)
            Self::new(0xbc, ACCESS, KIND, 0, 0), // access = kind
            Self::new(0x54, KIND, 0, 0, 0xffff), // kind &= 0xffff
            Self::new(0x74, ACCESS, 0, 0, 16),   // access >>= 16
            Self::new(0x61, MAJOR, R1, 4, 0),    // major = *(u32 *)(R1 + 4)
            Self::new(0x61, MINOR, R1, 8, 0),    // minor = *(u32 *)(R1 + 8)
        ]
    }

    pub(super) fn answer(allow: bool) -> [Self; 2] {
        [Self::new(0xb7, R0, 0, 0, i32::from(allow)), Self::new(0x95, 0, 0, 0, 0)]
    }

    pub(super) fn skip_unless_kind(kind: u8, over: i16) -> Self {
        Self::skip_unless_equal(KIND, u32::from(kind), over)
    }

    pub(super) fn skip_unless_major(major: u32, over: i16) -> Self {
        Self::skip_unless_equal(MAJOR, major, over)
    }

    pub(super) fn skip_unless_minor(minor: u32, over: i16) -> Self {
        Self::skip_unless_equal(MINOR, minor, over)
    }

    /// Goes on if nothing but `access` is asked for.
    pub(super) fn skip_unless_access_within(access: u8, over: i16) -> [Self; 3] {
        [
            Self::new(0xbc, R1, ACCESS, 0, 0),             // R1 = access
            Self::new(0x54, R1, 0, 0, !i32::from(access)), // R1 &= ~mask
            Self::new(0x56, R1, 0, over, 0),               // if R1 != 0 skip
        ]
    }

    /// Goes on if any of `access` is asked for.
    pub(super) fn skip_unless_access_meets(access: u8, over: i16) -> [Self; 3] {
        [
            Self::new(0xbc, R1, ACCESS, 0, 0),
            Self::new(0x54, R1, 0, 0, i32::from(access)),
            Self::new(0x16, R1, 0, over, 0), // if R1 == 0 skip
        ]
    }

    fn skip_unless_equal(register: u8, value: u32, over: i16) -> Self {
        Self::new(0x56, register, 0, over, value.cast_signed())
    }
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs; the kernel takes shorter structs of older headers.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The part that BPF_PROG_ATTACH needs.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program and makes it the only one of this cgroup; those of its parents hold as well.
pub(super) fn attach_device_program(group: &Path, program: &[Instruction]) -> io::Result<()> {
    let group = File::open(group)?;
    let loaded = load(program)?;
    let attach = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

/// The program lives as long as it is attached; the descriptor is needed until then.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = CString::from(c"Apache-2.0");
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        ..Load::default()
    };
    let mut tries = 0;
    let fd = loop {
        match bpf(BPF_PROG_LOAD, &load) {
            // The kernel's check of a program stops at any signal, and a reaper gets many.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < MOST_TRIES => tries += 1,
            result => break result?,
        }
    };
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is a prefix of bpf_attr of the given size, and what its addresses point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    let fd = Errno::result(result)?;
    RawFd::try_from(fd).map_err(io::Error::other)
}
