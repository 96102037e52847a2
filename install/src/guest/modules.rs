//! The kernel's modules: found by name, unpacked, and put in an order in which each comes after what it needs. A
//! Debian package ships no modules.dep, so what a module needs is read from the module itself. Called by the builder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

/// The largest module of a Debian kernel has a few MB.
const LIMIT: u64 = 64 << 20;

/// A module, unpacked.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file as the kernel loads it.
    pub bytes: Vec<u8>,
}

/// The modules of one kernel.
pub(super) struct Tree {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    /// Finds the modules below `/usr/lib/modules/<release>`.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        find(&directory.join("kernel"), &mut files)?;
        let list = directory.join("modules.builtin");
        let list = fs::read_to_string(&list).with_context(|| format!("Could not read {}", list.display()))?;
        let built_in = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, built_in })
    }

    /// These modules and all that they need, each after what it needs. Those that the kernel has built in are left out.
    pub(super) fn with_dependencies(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut order = Order { tree: self, modules: Vec::new(), under_way: Vec::new() };
        for name in wanted {
            order.add(name)?;
        }
        Ok(order.modules)
    }

    fn load(&self, name: &str) -> Result<Option<Module>> {
        let Some(path) = self.files.get(name) else {
            ensure!(self.built_in.contains(name), "The kernel has no module {name}");
            return Ok(None);
        };
        let mut bytes =
            unpack(path).with_context(|| format!("Could not read the module {}", path.display()))?;
        cut_signature(&mut bytes).with_context(|| format!("The module {name} is damaged"))?;
        Ok(Some(Module { name: name.into(), bytes }))
    }
}

/// A walk through the dependencies, depth first.
struct Order<'a> {
    tree: &'a Tree,
    modules: Vec<Module>,
    under_way: Vec<String>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if self.modules.iter().any(|module| module.name == name) {
            return Ok(());
        }
        ensure!(
            !self.under_way.contains(&name),
            "The module {name} needs itself, by way of {:?}",
            self.under_way
        );
        let Some(module) = self.tree.load(&name)? else { return Ok(()) };
        self.under_way.push(name);
        for needed in dependencies(&module)? {
            match needed {
                Needed::Hard(name) => self.add(&name)?,
                // It may be the name of a service that something built in gives, like `crc32c`.
                Needed::Soft(name) if self.tree.files.contains_key(&name.replace('-', "_")) => {
                    self.add(&name)?;
                }
                Needed::Soft(_) => {}
            }
        }
        self.under_way.pop();
        self.modules.push(module);
        Ok(())
    }
}

/// Another module that one needs.
#[derive(Debug)]
enum Needed {
    /// Without it the module can't be loaded.
    Hard(String),
    /// It is loaded before, if there is one.
    Soft(String),
}

/// What a module says that it needs, in its section `.modinfo`: strings of the form `key=value`, each ended by a zero.
fn dependencies(module: &Module) -> Result<Vec<Needed>> {
    let damaged = || format!("The module {} is damaged", module.name);
    let file = object::File::parse(&*module.bytes).with_context(damaged)?;
    let Some(section) = file.section_by_name(".modinfo") else { bail!("{}: it has no .modinfo", damaged()) };
    let data = section.data().with_context(damaged)?;
    let mut needed = Vec::new();
    for entry in data.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
        if let Some(names) = entry.strip_prefix("depends=") {
            let names = names.split(',').filter(|name| !name.is_empty());
            needed.extend(names.map(|name| Needed::Hard(name.to_owned())));
        } else if let Some(names) = entry.strip_prefix("softdep=pre:") {
            let names = names.split_whitespace().take_while(|name| *name != "post:");
            needed.extend(names.map(|name| Needed::Soft(name.to_owned())));
        }
    }
    Ok(needed)
}

/// Takes off the signature that Debian's build has appended. The initramfs is vouched for as a whole, by its checksum on
/// the host, and an emulated CPU needs about 25 ms to check one signature.
fn cut_signature(module: &mut Vec<u8>) -> Result<()> {
    /// `struct module_signature` of the kernel's include/linux/module_signature.h: 12 bytes, the last four the length of
    /// the signature before it, in network order.
    const TRAILER: usize = 12;
    let Some(signed) = module.strip_suffix(b"~Module signature appended~\n") else { return Ok(()) };
    let length = signed.last_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    let end = length.and_then(|length| signed.len().checked_sub(TRAILER + length));
    module.truncate(end.context("Its signature is longer than itself")?);
    Ok(())
}

fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let what = || format!("Could not list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(what)? {
        let entry = entry.with_context(what)?;
        let path = entry.path();
        if entry.file_type().with_context(what)?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `virtio_rng` for `…/virtio-rng.ko.xz`: the kernel takes `-` and `_` for the same.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path)?;
    let mut bytes = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(packed),
        Some("xz") => liblzma::read::XzDecoder::new(&packed[..]).take(LIMIT).read_to_end(&mut bytes)?,
        Some("zst") => zstd::Decoder::new(&packed[..])?.take(LIMIT).read_to_end(&mut bytes)?,
        other => bail!("Its compression {other:?} is unknown"),
    };
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relocatable ELF file with nothing but `.modinfo`, as the kernel's build would write it.
    fn module(modinfo: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let body = 64 + modinfo.len() as u64 + names.len() as u64;
        for (value, size) in [
            (1, 2),
            (62, 2),
            (1, 4),
            (0, 8),
            (0, 8),
            (body, 8),
            (0, 4),
            (64, 2),
            (0, 2),
            (0, 2),
            (64, 2),
            (3, 2),
            (2, 2),
        ] {
            file.extend_from_slice(&u64::to_le_bytes(value)[..size]);
        }
        file.extend_from_slice(modinfo.as_bytes());
        file.extend_from_slice(names);
        let end = 64 + modinfo.len() as u64;
        for [name, kind, offset, size] in
            [[0, 0, 0, 0], [1, 1, 64, modinfo.len() as u64], [10, 3, end, names.len() as u64]]
        {
            for (value, size) in
                [(name, 4), (kind, 4), (0, 8), (0, 8), (offset, 8), (size, 8), (0, 4), (0, 4), (1, 8), (0, 8)]
            {
                file.extend_from_slice(&u64::to_le_bytes(value)[..size]);
            }
        }
        file
    }

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let root = tempfile::tempdir().unwrap();
        let drivers = root.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (file, modinfo) in modules {
            let mut xz = Vec::new();
            liblzma::read::XzEncoder::new(&module(modinfo)[..], 1).read_to_end(&mut xz).unwrap();
            fs::write(drivers.join(format!("{file}.ko.xz")), xz).unwrap();
        }
        fs::write(root.path().join("modules.builtin"), "kernel/fs/fuse/fuse.ko\n").unwrap();
        let tree = Tree::open(root.path()).unwrap();
        (root, tree)
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let (_root, tree) = tree(&[
            ("virtio-net", "license=GPL\0depends=net-failover,fuse\0name=virtio_net\0"),
            ("net_failover", "depends=failover\0"),
            ("failover", "depends=\0"),
            ("xfs", "softdep=pre: crc32c post: late\0depends=\0"),
            ("crc32c", "depends=failover\0"),
        ]);
        let modules = tree.with_dependencies(&["virtio_net", "xfs", "failover"]).unwrap();
        assert_eq!(names(&modules), ["failover", "net_failover", "virtio_net", "crc32c", "xfs"]);
        assert_eq!(modules[0].bytes, module("depends=\0"));
    }

    #[test]
    fn what_is_built_in_is_left_out_and_what_is_missing_is_named() {
        let (_root, tree) = tree(&[("overlay", "depends=gone\0")]);
        assert_eq!(names(&tree.with_dependencies(&["fuse"]).unwrap()), [""; 0]);
        let error = tree.with_dependencies(&["overlay"]).unwrap_err().to_string();
        assert!(error.contains("no module gone"), "{error}");
    }

    #[test]
    fn a_signature_is_cut_off_exactly() {
        let signed = |length: u32| {
            let mut bytes = b"a module".to_vec();
            bytes.extend_from_slice(b"its signature");
            bytes.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(b"~Module signature appended~\n");
            bytes
        };
        let mut module = signed(13);
        cut_signature(&mut module).unwrap();
        assert_eq!(module, b"a module");
        cut_signature(&mut module).unwrap();
        assert_eq!(module, b"a module", "an unsigned one stays as it is");
        for length in [22, u32::MAX] {
            let error = cut_signature(&mut signed(length)).unwrap_err().to_string();
            assert!(error.contains("longer than itself"), "{error}");
        }
    }

    #[test]
    fn a_circle_and_a_damaged_module_end_in_an_error() {
        let (_root, circle) = tree(&[("a", "depends=b\0"), ("b", "depends=a\0")]);
        let error = circle.with_dependencies(&["a"]).unwrap_err().to_string();
        assert!(error.contains("needs itself"), "{error}");
        let damaged = Module { name: "bad".into(), bytes: b"\x7fELF".to_vec() };
        assert!(dependencies(&damaged).unwrap_err().to_string().contains("bad"));
    }
}
