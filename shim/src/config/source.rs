//! Where the config comes from: containerd's runtime options, an environment variable, or the default path.
//! Called by `sandbox` when containerd asks for a pod, and by `microvmctl doctor`.

use std::fs::File as HostFile;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use containerd_shim_protos::protobuf::{CodedInputStream, well_known_types::any::Any};

use super::file::{File, MAX_BYTES};
use super::{DEFAULT_PATH, Origin, PATH_VARIABLE};
use crate::error::{Context, Error, Kind, Result};

/// What names the config. The node's own file unless containerd's options name another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// [`PATH_VARIABLE`] if set, else [`DEFAULT_PATH`], which may be missing.
    #[default]
    Node,
    /// This file, which must exist.
    Path(PathBuf),
    /// The node's file with these TOML keys on top.
    Body(String),
}

impl Source {
    /// Reads the options of a create or start request: `runtimeoptions.v1.Options` names a file or carries keys;
    /// options of another runtime, which clients send without asking, and none at all mean the node's file.
    ///
    /// # Errors
    /// `InvalidArgument` when the options are damaged or name a relative path.
    pub fn from_options(options: Option<&Any>) -> Result<Self> {
        let Some(options) = options else { return Ok(Source::Node) };
        let name = options.type_url.rsplit('/').next().unwrap_or_default();
        if name != "runtimeoptions.v1.Options" {
            log::debug!("Ignoring runtime options of the type {:?}", options.type_url);
            return Ok(Source::Node);
        }
        let (path, body) = decode(&options.value).kind(Kind::InvalidArgument, || {
            "Could not read the runtime options of type runtimeoptions.v1".into()
        })?;
        if !path.is_empty() {
            return Self::path(&path);
        }
        let body = String::from_utf8(body)
            .kind(Kind::InvalidArgument, || "Could not read the config_body of the runtime options".into())?;
        Ok(if body.trim().is_empty() { Source::Node } else { Source::Body(body) })
    }

    fn path(path: &str) -> Result<Self> {
        if Path::new(path).is_absolute() {
            return Ok(Source::Path(path.into()));
        }
        let text =
            format!("The config path {path:?} in the runtime options is relative; give an absolute one");
        Err(Error::new(Kind::InvalidArgument, text))
    }

    /// The sources' keys, lowest rank first.
    pub(super) fn read(&self) -> Result<Vec<File>> {
        match self {
            Source::Node => Ok(node_file()?.into_iter().collect()),
            Source::Path(path) => Ok(vec![named_file(path)?]),
            Source::Body(body) => {
                let mut files: Vec<_> = node_file()?.into_iter().collect();
                let mut file = File::parse(Origin::Options, body);
                // The table in containerd's config is ours but for this key, which tells containerd our type.
                file.entries.retain(|entry| entry.key != "TypeUrl");
                files.push(file);
                Ok(files)
            }
        }
    }
}

/// The node's own file; none if it is missing and nobody named it.
fn node_file() -> Result<Option<File>> {
    if let Some(path) = std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()) {
        return named_file(Path::new(&path)).map(Some);
    }
    let path = Path::new(DEFAULT_PATH);
    match read(path) {
        Ok(text) => Ok(Some(File::parse(Origin::File(path.into()), &text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn named_file(path: &Path) -> Result<File> {
    let text = read(path).map_err(|error| unreadable(path, error))?;
    Ok(File::parse(Origin::File(path.into()), &text))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::InvalidData => Kind::InvalidArgument,
        _ => Kind::Internal,
    };
    Error::caused(kind, format!("Could not read the config {}", path.display()), error)
}

fn read(path: &Path) -> io::Result<String> {
    let file = HostFile::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Fields 2 (`config_path`) and 3 (`config_body`) of `runtimeoptions.v1.Options`, whose type our crates lack.
fn decode(bytes: &[u8]) -> containerd_shim_protos::protobuf::Result<(String, Vec<u8>)> {
    const STRING: u32 = 2;
    let mut stream = CodedInputStream::from_bytes(bytes);
    let (mut path, mut body) = (String::new(), Vec::new());
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match (tag >> 3, tag & 7) {
            (2, STRING) => path = stream.read_string()?,
            (3, STRING) => body = stream.read_bytes()?,
            _ => containerd_shim_protos::protobuf::rt::skip_field_for_tag(tag, &mut stream)?,
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: &str, body: &str) -> Any {
        let mut value = vec![0x0a, 1, b'x'];
        for (tag, text) in [(0x12, path), (0x1a, body)] {
            value.push(tag);
            value.push(u8::try_from(text.len()).unwrap());
            value.extend_from_slice(text.as_bytes());
        }
        let type_url = "type.googleapis.com/runtimeoptions.v1.Options".into();
        Any { type_url, value, ..Any::default() }
    }

    #[test]
    fn options_name_a_file_or_carry_keys() {
        let source = |any: &Any| Source::from_options(Some(any)).unwrap();
        assert_eq!(source(&options("/a/b.toml", "x = 1")), Source::Path("/a/b.toml".into()));
        assert_eq!(source(&options("", "vmm = \"qemu\"")), Source::Body("vmm = \"qemu\"".into()));
        assert_eq!(source(&options("", " ")), Source::Node);
        let runc = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![255], ..Any::default() };
        assert_eq!(source(&runc), Source::Node);
        assert_eq!(Source::from_options(None).unwrap(), Source::Node);
    }

    #[test]
    fn damaged_options_are_refused_at_every_length() {
        let whole = options("/a/b.toml", "vmm = \"qemu\"");
        for length in 0..whole.value.len() {
            let any = Any { value: whole.value[..length].to_vec(), ..whole.clone() };
            if let Err(error) = Source::from_options(Some(&any)) {
                assert_eq!(error.kind(), Kind::InvalidArgument);
            }
        }
        assert!(Source::from_options(Some(&options("b.toml", ""))).is_err());
    }

    #[test]
    fn named_file_must_exist_be_a_file_and_be_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let load = |path: &Path| crate::Config::load(&Source::Path(path.into()), []);
        assert_eq!(load(&path).unwrap_err().kind(), Kind::NotFound);
        std::fs::write(&path, "log_level = \"debug\"\n").unwrap();
        assert_eq!(load(&path).unwrap().log_level(), log::LevelFilter::Debug);
        assert_eq!(load(dir.path()).unwrap_err().kind(), Kind::InvalidArgument);
        std::fs::write(&path, vec![b'#'; 300 * 1024]).unwrap();
        assert!(load(&path).unwrap_err().chain().contains("larger than 262144 bytes"));
    }
}
