//! Container images made here, as OCI archives: nothing is pulled from anywhere. Called by the demo and the end-to-end
//! tests, inside the test host.

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The static busybox that every image holds.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Counts in memory and in a file on its root filesystem, five times a second, and prints both.
const COUNTER: &str = r#"#!/bin/sh
memory=0
echo 0 > /count
while true; do
    memory=$((memory + 1))
    echo $(($(cat /count) + 1)) > /count.new && mv /count.new /count
    echo "memory=$memory file=$(cat /count)"
    sleep 0.2
done
"#;

/// Serves its page and a count of the requests, kept in the memory of one process and in a file.
const WEB: &str = r#"#!/bin/sh
mkdir -p /www/cgi-bin
echo "web is here" > /www/index.html
memory=0
echo 0 > /count
(
    while true; do
        memory=$((memory + 1))
        echo $(($(cat /count) + 1)) > /count.new && mv /count.new /count
        echo "memory=$memory file=$(cat /count)" > /www/state.new && mv /www/state.new /www/state
        echo "memory=$memory file=$(cat /count)"
        sleep 0.2
    done
) &
exec httpd -f -p 8080 -h /www
"#;

/// Waits until it is told to end.
const PAUSE: &str = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile true; do sleep 1000 & wait $!; done\n";

/// One image: layers, the lowest first, and a configuration.
#[derive(Debug)]
pub struct Image {
    name: String,
    layers: Vec<Vec<Entry>>,
    config: Value,
}

#[derive(Debug, Clone)]
struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Folder,
    File(Vec<u8>),
    Link(String),
}

impl Image {
    /// An image with busybox, its applets in `/bin`, and an empty `/etc`, `/proc`, `/sys`, `/dev` and `/tmp`.
    pub fn busybox(name: &str) -> Result<Image> {
        let mut image = Image::empty(name);
        for folder in ["bin", "etc", "proc", "sys", "dev", "root"] {
            image = image.folder(folder, 0o755);
        }
        let program = std::fs::read(BUSYBOX).with_context(|| format!("Could not read {BUSYBOX}"))?;
        image = image.folder("tmp", 0o1777).file("bin/busybox", 0o755, program);
        let list = Command::new(BUSYBOX).arg("--list").output().context("Could not list busybox' applets")?;
        for applet in String::from_utf8(list.stdout)?.lines().filter(|applet| *applet != "busybox") {
            image = image.link(&format!("bin/{applet}"), "busybox");
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
                     alice:x:1000:1000:alice:/tmp:/bin/sh\n";
        let groups = "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nextra:x:2000:alice\n";
        Ok(image.file("etc/passwd", 0o644, users).file("etc/group", 0o644, groups).layer())
    }

    /// An image without any file.
    pub fn empty(name: &str) -> Image {
        let config = json!({ "Env": ["PATH=/bin:/usr/bin"], "WorkingDir": "/" });
        Image { name: name.to_owned(), layers: vec![Vec::new()], config }
    }

    /// What runs unless the user says otherwise.
    pub fn command(mut self, words: &[&str]) -> Image {
        self.config["Cmd"] = json!(words);
        self
    }

    /// The user, or `user:group`, who runs it unless the caller says otherwise.
    pub fn user(mut self, user: &str) -> Image {
        self.config["User"] = json!(user);
        self
    }

    /// The same image under another name.
    pub fn named(&self, name: &str) -> Image {
        Image { name: name.to_owned(), layers: self.layers.clone(), config: self.config.clone() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a folder.
    pub fn folder(self, path: &str, mode: u32) -> Image {
        self.add(path, mode, Content::Folder)
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Image {
        self.add(path, mode, Content::File(content.into()))
    }

    /// Adds a symlink.
    pub fn link(self, path: &str, target: &str) -> Image {
        self.add(path, 0o777, Content::Link(target.to_owned()))
    }

    /// Begins another layer on top.
    pub fn layer(mut self) -> Image {
        self.layers.push(Vec::new());
        self
    }

    fn add(mut self, path: &str, mode: u32, content: Content) -> Image {
        if let Some(layer) = self.layers.last_mut() {
            layer.push(Entry { path: path.to_owned(), mode, content });
        }
        self
    }

    /// The blobs of the image, its manifest last, and the manifest's descriptor for an index.
    pub(crate) fn blobs(&self) -> Result<(Vec<Vec<u8>>, Value)> {
        let mut blobs = Vec::new();
        for layer in self.layers.iter().filter(|layer| !layer.is_empty()) {
            blobs.push(pack(layer)?);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": oci_architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": blobs.iter().map(|layer| digest(layer)).collect::<Vec<_>>() },
        }))?;
        let layer_kind = "application/vnd.oci.image.layer.v1.tar";
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": blobs.iter().map(|layer| descriptor(layer_kind, layer)).collect::<Vec<_>>(),
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": self.name });
        blobs.push(config);
        blobs.push(manifest);
        Ok((blobs, entry))
    }
}

/// Writes images as one OCI archive.
pub fn write(images: &[Image], archive: &mut impl Write) -> Result<()> {
    let mut tar = Builder::new(archive);
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut entries = Vec::new();
    let mut written = HashSet::new();
    for image in images {
        let (blobs, entry) = image.blobs()?;
        entries.push(entry);
        for blob in blobs {
            let name = digest(&blob);
            if written.insert(name.clone()) {
                append(&mut tar, &format!("blobs/{}", name.replace(':', "/")), 0o644, &blob)?;
            }
        }
    }
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries }))?;
    append(&mut tar, "index.json", 0o644, &index)?;
    tar.finish().context("Could not write the image archive")
}

/// Imports images into a containerd namespace, unpacked, under their names.
pub fn import(namespace: &str, images: &[Image]) -> Result<()> {
    let mut archive = Vec::new();
    write(images, &mut archive)?;
    let mut ctr = Command::new("ctr")
        .args(["--namespace", namespace, "images", "import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("Could not run ctr")?;
    if let Some(mut stdin) = ctr.stdin.take() {
        stdin.write_all(&archive).context("ctr did not take the image archive")?;
    }
    let end = ctr.wait_with_output()?;
    if !end.status.success() {
        bail!("Could not import images: {}", String::from_utf8_lossy(&end.stderr).trim());
    }
    Ok(())
}

fn pack(layer: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for entry in layer {
        match &entry.content {
            Content::File(content) => append(&mut tar, &entry.path, entry.mode, content)?,
            Content::Folder => {
                let mut header = header(EntryType::Directory, entry.mode, 0);
                tar.append_data(&mut header, &entry.path, std::io::empty())?;
            }
            Content::Link(target) => {
                let mut header = header(EntryType::Symlink, entry.mode, 0);
                tar.append_link(&mut header, &entry.path, target)?;
            }
        }
    }
    tar.into_inner().context("Could not write the image layer")
}

/// The images that demo and tests share.
pub fn shared() -> Result<Vec<Image>> {
    Ok(vec![
        Image::busybox("localhost/pause:1")?.file("pause", 0o755, PAUSE).command(&["/pause"]),
        Image::busybox("localhost/busybox:1")?.command(&["/bin/sh"]),
        Image::busybox("localhost/counter:1")?.file("bin/counter", 0o755, COUNTER).command(&["/bin/counter"]),
        Image::busybox("localhost/web:1")?.file("bin/web", 0o755, WEB).command(&["/bin/web"]),
    ])
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("Could not write {path} into the archive"))
}

/// A blob's digest, as manifests name it.
pub(crate) fn digest(content: &[u8]) -> String {
    let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(content), "size": content.len() })
}

/// This machine's architecture in OCI's words.
fn oci_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
