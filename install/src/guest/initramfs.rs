//! The guest's initramfs: our agent as `/init`, the modules with the order to load them in, and the few names that the
//! kernel wants before anything is mounted. The same input gives the same bytes. Called by the builder.

use std::io::Write;

use anyhow::{Context, Result};

use super::modules::Module;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE_TYPE: u32 = 0o170_000;
/// Major and minor number of the console, the only device here.
const CONSOLE: (u32, u32) = (5, 1);

/// Packs the archive. Compression gains nothing (docs/decisions/0002-guest-kernel.md).
pub(super) fn pack(agent: &[u8], modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), entries: 0 };
    for directory in ["dev", "modules", "proc", "run", "sys", "tmp"] {
        archive.add(directory, DIRECTORY | 0o755, &[])?;
    }
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, &[])?;
    archive.add("init", FILE | 0o755, agent)?;
    let mut order = String::new();
    for module in modules {
        archive.add(&format!("modules/{}.ko", module.name), FILE | 0o644, &module.bytes)?;
        order.push_str(&format!("{}\n", module.name));
    }
    archive.add("modules/order", FILE | 0o644, order.as_bytes())?;
    cpio::newc::trailer(archive.bytes).context("Could not end the initramfs")
}

/// An archive under construction, in the "newc" format. Inode numbers count up; owner is root and every time is 0.
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let mut entry = cpio::NewcBuilder::new(name).ino(self.entries).mode(mode);
        if mode & FILE_TYPE == CHARACTER_DEVICE {
            let (major, minor) = CONSOLE;
            entry = entry.rdev_major(major).rdev_minor(minor);
        }
        let size =
            u32::try_from(content.len()).with_context(|| format!("{name} is too large for an initramfs"))?;
        let mut writer = entry.write(&mut self.bytes, size);
        writer
            .write_all(content)
            .and_then(|()| writer.finish())
            .with_context(|| format!("Could not pack {name}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn modules() -> Vec<Module> {
        ["failover", "virtio_net"].map(|name| Module { name: name.into(), bytes: name.into() }).into()
    }

    #[test]
    fn the_archive_holds_what_the_agent_expects() {
        let archive = pack(b"the agent", &modules()).unwrap();
        let mut rest = &archive[..];
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime(), entry.nlink()), (0, 0, 0, 1));
            let head = (entry.name().to_owned(), entry.mode(), (entry.rdev_major(), entry.rdev_minor()));
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            found.push((head, content));
            rest = reader.finish().unwrap();
        }
        let entry =
            |name: &str, mode, device, content: &str| ((name.to_owned(), mode, device), content.to_owned());
        let mut wanted: Vec<_> = ["dev", "modules", "proc", "run", "sys", "tmp"]
            .map(|name| entry(name, 0o40755, (0, 0), ""))
            .into();
        wanted.push(entry("dev/console", 0o20600, (5, 1), ""));
        wanted.push(entry("init", 0o100_755, (0, 0), "the agent"));
        wanted.push(entry("modules/failover.ko", 0o100_644, (0, 0), "failover"));
        wanted.push(entry("modules/virtio_net.ko", 0o100_644, (0, 0), "virtio_net"));
        wanted.push(entry("modules/order", 0o100_644, (0, 0), "failover\nvirtio_net\n"));
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(pack(b"the agent", &modules()).unwrap(), pack(b"the agent", &modules()).unwrap());
    }
}
