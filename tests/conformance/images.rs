//! The images that critest pulls, made here under its names: same commands, same observable behaviour. Called by
//! `critest.rs`.

use std::process::Command;

use anyhow::{Context, Result};
use tests::images::Image;
use tests::programs;

/// A web server whose first process is called, and has a pid file, as nginx's: the specs look for both.
const NGINX: &str =
    "#!/bin/sh\nmkdir -p /var/run\necho $$ > /var/run/nginx.pid\nhttpd -f -p ${PORT:-80} -h /www &\nwait\n";
/// Says its name in its log.
const HTTPD: &str = "#!/bin/sh\necho 'httpd: ready'\nexec httpd -f -p 80 -h /www\n";
/// Prints the user that a program with the set-user-id bit runs as.
const EUID: &str = "#!/bin/sh\necho \"Effective uid: $(/bin/euid -u)\"\n";
/// Debian's: prints the effective user id, unlike that of busybox, which gives the bit's rights up first.
const ID: &str = "/usr/bin/id";
/// What the suite's busybox has and Debian's has not.
const IPCS: &str = "/usr/bin/ipcs";
const PGREP: &str = "#!/bin/sh\nexec pidof \"$1\"\n";
/// Small images that differ, for the specs about pulling.
const DIFFERENT: [&str; 6] = [
    "test-image-latest:latest",
    "test-image-tag:test",
    "test-image-tag:all",
    "test-image-1:latest",
    "test-image-2:latest",
    "test-image-3:latest",
];

/// All of them, by repository and tag; the registry's host is the mirror's business.
pub(crate) fn all() -> Result<Vec<Image>> {
    let busybox = Image::busybox("e2e-test-images/busybox:1.29-2")?.command(&["/bin/sh"]);
    let busybox = program(busybox, IPCS, IPCS, 0o755)?.file("bin/pgrep", 0o755, PGREP);
    let page = |name: &str| {
        let image = busybox.named(name).folder("www", 0o755);
        image.file("www/index.html", 0o644, "<title>Welcome</title>\n")
    };
    let mut images = vec![
        nginx(page("e2e-test-images/nginx:1.14-2"), NGINX),
        nginx(page(&host_network()), &NGINX.replace("${PORT:-80}", "12003")),
        page("e2e-test-images/httpd:2.4.39-4").file("bin/serve", 0o755, HTTPD).command(&["/bin/serve"]),
        no_new_privileges(&busybox)?,
        busybox
            .named(&staging("test-image-predefined-group:latest"))
            .file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n")
            .file("etc/group", 0o644, "root:x:0:\ndefault-user:x:1000:\nin-image:x:50000:default-user\n")
            .user("1000"),
        busybox.named("pause:3.9").command(&["/bin/sh", "-c", "sleep 1000000"]),
    ];
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:users"),
        ("username-group", "www-data:www-data"),
    ] {
        images.push(busybox.named(&staging(&format!("test-image-user-{name}:latest"))).user(user));
    }
    images.extend(DIFFERENT.iter().map(|name| marked(&busybox, name, name)));
    images.extend(["1", "2", "3"].map(|tag| marked(&busybox, &format!("test-image-tags:{tag}"), "tags")));
    images.push(busybox);
    Ok(images)
}

fn staging(name: &str) -> String {
    format!("k8s-staging-cri-tools/{name}")
}

/// An image that differs from all others by one file.
fn marked(base: &Image, name: &str, mark: &str) -> Image {
    base.named(&staging(name)).file("mark", 0o644, mark)
}

fn nginx(base: Image, script: &str) -> Image {
    base.file("bin/nginx", 0o755, script).command(&["/bin/nginx", "master process"])
}

/// The web server of the pods in the host's network, one name for each architecture.
fn host_network() -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    staging(&format!("hostnet-nginx-{architecture}:latest"))
}

fn no_new_privileges(base: &Image) -> Result<Image> {
    let image = base.named("e2e-test-images/nonewprivs:1.3").file("bin/report", 0o755, EUID);
    Ok(program(image, ID, "bin/euid", 0o4755)?.command(&["/bin/report"]))
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("Could not read {path}"))
}

/// Adds a program of the test host, and the libraries that it needs.
fn program(image: Image, path: &str, to: &str, mode: u32) -> Result<Image> {
    let mut image = image.file(to.trim_start_matches('/'), mode, read(path)?);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and, for the loader, its path alone.
    let libraries = programs::output(Command::new("ldd").arg(path))?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        image = image.file(path.trim_start_matches('/'), 0o755, read(path)?);
    }
    Ok(image)
}
