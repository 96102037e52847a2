//! Tries every way of changing a folder and prints how each ended. Runs in a container of the end-to-end tests
//! (`e2e/share.rs`), so it is linked statically.
//!
//! The folder holds the files `file` and `other`, not empty, and the empty folder `folder`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::ptr;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags, copy_file_range,
    fallocate, makedev, mknodat, setxattr, utimensat,
};

type Attempt = fn(&Path) -> io::Result<()>;

/// In an order in which all of them work where writing is allowed.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("create", |at| File::create_new(at.join("new")).map(drop)),
    ("create unnamed", create_unnamed),
    ("write", |at| writable(&at.join("file"))?.write_all(b"intruded")),
    ("mkdir", |at| fs::create_dir(at.join("new-folder"))),
    ("chmod", |at| fs::set_permissions(at.join("file"), fs::Permissions::from_mode(0o4777))),
    ("chown", |at| chown(at.join("file"), Some(12), Some(34))),
    ("touch", touch),
    ("link", |at| fs::hard_link(at.join("file"), at.join("new-name"))),
    ("symlink", |at| symlink("file", at.join("new-link"))),
    ("mknod", mknod),
    ("truncate", |at| Ok(nix::unistd::truncate(&at.join("other"), 100)?)),
    ("fallocate", |at| Ok(fallocate(writable(&at.join("file"))?, FallocateFlags::empty(), 0, 10_000)?)),
    ("setxattr", |at| Ok(setxattr(at.join("file"), c"trusted.intruder", b"1", XattrFlags::empty())?)),
    ("copy_file_range", copy),
    ("mmap", map),
    ("rename", |at| fs::rename(at.join("file"), at.join("renamed"))),
    ("unlink", |at| fs::remove_file(at.join("other"))),
    ("rmdir", |at| fs::remove_dir(at.join("folder"))),
];

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("Name the folder to change");
        return ExitCode::from(2);
    };
    for (name, attempt) in ATTEMPTS {
        match attempt(&folder) {
            Ok(()) => println!("{name}: done"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    ExitCode::SUCCESS
}

fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn create_unnamed(folder: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(folder).map(drop)
}

fn touch(folder: &Path) -> io::Result<()> {
    let then = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: then, last_modification: then };
    Ok(utimensat(CWD, folder.join("file"), &times, AtFlags::empty())?)
}

fn mknod(folder: &Path) -> io::Result<()> {
    let null = makedev(1, 3);
    Ok(mknodat(CWD, folder.join("new-device"), FileType::CharacterDevice, Mode::from(0o666), null)?)
}

fn copy(folder: &Path) -> io::Result<()> {
    let (source, target) = (File::open(folder.join("file"))?, writable(&folder.join("other"))?);
    copy_file_range(source, Some(&mut 0), target, Some(&mut 0), 4).map(drop).map_err(io::Error::from)
}

/// Writes through a shared mapping.
fn map(folder: &Path) -> io::Result<()> {
    let file = writable(&folder.join("file"))?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; the file is open and not empty.
    let memory = unsafe { libc::mmap(ptr::null_mut(), 1, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping above has at least this one byte, and nobody else refers to it.
    unsafe { memory.cast::<u8>().write_volatile(b'I') };
    // SAFETY: the mapping above, which nothing refers to after this.
    let results = unsafe { [libc::msync(memory, 1, libc::MS_SYNC), libc::munmap(memory, 1)] };
    if results == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
}
