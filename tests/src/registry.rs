//! A registry of images on the loopback device, read-only and in memory: containerd pulls from it whatever name it is
//! asked for. Called by the conformance suites, inside the test host.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::images::{Image, digest};

/// Where containerd looks for the mirror of a registry that has no folder of its own.
const MIRROR: &str = "/etc/containerd/certs.d/_default";
/// containerd reads at once what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOB: &str = "application/octet-stream";

/// What is served.
#[derive(Debug, Default)]
struct Content {
    blobs: HashMap<String, Vec<u8>>,
    /// Manifests' digests, by `<repository>:<tag>`.
    tags: HashMap<String, String>,
}

/// Serves `images`, whose names are `<repository>:<tag>` without a host, for as long as the program runs, and makes
/// containerd pull every image of every registry from here.
pub fn serve(images: &[Image]) -> Result<()> {
    let mut content = Content::default();
    for image in images {
        let (blobs, _) = image.blobs()?;
        let manifest = blobs.last().context("An image has no manifest")?;
        content.tags.insert(image.name().to_owned(), digest(manifest));
        content.blobs.extend(blobs.into_iter().map(|blob| (digest(&blob), blob)));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Could not listen for pulls")?;
    let address = listener.local_addr()?;
    fs::create_dir_all(MIRROR)?;
    let mirror = format!(
        "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    fs::write(Path::new(MIRROR).join("hosts.toml"), mirror)?;
    let content = Arc::new(content);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = Arc::clone(&content);
            std::thread::spawn(move || {
                // A pull that was given up is containerd's to report.
                if let Err(error) = answer(&stream, &content) {
                    eprintln!("registry: {error:#}");
                }
            });
        }
    });
    Ok(())
}

/// Answers one request and closes the connection.
fn answer(stream: &TcpStream, content: &Content) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let Some(request) = lines.next().transpose()? else { return Ok(()) };
    // The headers say nothing that matters here.
    for line in lines.by_ref() {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        bail!("{request:?} is no HTTP request");
    };
    let path = target.split('?').next().unwrap_or_default();
    let mut stream = stream;
    match content.find(path) {
        Some((kind, name, bytes)) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {name}\r\n\
                 Connection: close\r\n\r\n",
                bytes.len()
            )?;
            if method == "GET" {
                stream.write_all(bytes)?;
            }
        }
        None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?,
    }
    Ok(())
}

impl Content {
    /// `/v2/<repository>/manifests/<tag or digest>` and `/v2/<repository>/blobs/<digest>`: type, digest and bytes.
    fn find(&self, path: &str) -> Option<(&'static str, &str, &[u8])> {
        let path = path.strip_prefix("/v2/")?;
        let (kind, wanted) = match path.rsplit_once("/manifests/") {
            Some((repository, reference)) => {
                let tagged = self.tags.get(&format!("{repository}:{reference}"));
                (MANIFEST, tagged.map_or(reference, String::as_str))
            }
            None => (BLOB, path.rsplit_once("/blobs/")?.1),
        };
        let (name, bytes) = self.blobs.get_key_value(wanted)?;
        Some((kind, name, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_leads_to_its_manifest_and_a_digest_to_its_blob() {
        let name = digest(b"{}");
        let content = Content {
            blobs: HashMap::from([(name.clone(), b"{}".to_vec())]),
            tags: HashMap::from([("some/image:1".to_owned(), name.clone())]),
        };
        let manifest = content.find("/v2/some/image/manifests/1").unwrap();
        assert_eq!(manifest, (MANIFEST, name.as_str(), b"{}".as_slice()));
        assert_eq!(content.find(&format!("/v2/some/image/manifests/{name}")), Some(manifest));
        assert_eq!(content.find(&format!("/v2/any/blobs/{name}")).unwrap().0, BLOB);
        assert_eq!(content.find("/v2/some/image/manifests/2"), None);
        assert_eq!(content.find("/v2/"), None);
    }
}
