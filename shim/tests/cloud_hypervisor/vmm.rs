//! A shim whose config names the scripted Cloud Hypervisor, and what that one was asked.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use shim::task::Tasks;
use shim::testing::cloud_hypervisor::{Fault, Script};

use crate::host::{Host, process};

/// A shim that serves the sandbox `id` on a VMM with this fault.
pub(crate) fn host(id: &str, fault: Option<(&str, Fault)>) -> Host {
    Host::with(id, None, |dir| {
        write_script(dir, "53.0.0", fault);
        let program = dir.join("cloud-hypervisor");
        let own = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nexec {} --script {} \"$@\"\n",
            own.display(),
            dir.join("script.json").display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        // There is no KVM to be tried, and the kernel may have no Landlock.
        format!(
            "vmm = \"cloud-hypervisor\"\naccelerator = \"kvm\"\nlandlock = false\nboot_timeout = \"5s\"\n\
             cloud_hypervisor_path = {program:?}\n"
        )
    })
}

/// Has VMMs that are started from now on do this wrong.
pub(crate) fn fail(host: &Host, fault: Option<(&str, Fault)>) {
    write_script(host.dir.path(), "53.0.0", fault);
}

pub(crate) fn write_script(dir: &Path, version: &str, fault: Option<(&str, Fault)>) {
    let fault = fault.map(|(verb, fault)| (verb.to_owned(), fault));
    let script = Script { version: version.into(), fault, log: dir.join("asked") };
    std::fs::write(dir.join("script.json"), serde_json::to_vec(&script).unwrap()).unwrap();
}

/// The verbs that were asked, in order, and forgets them.
pub(crate) fn asked(host: &Host) -> Vec<String> {
    requests(host).into_iter().map(|(verb, _)| verb).collect()
}

/// The verbs with their bodies.
pub(crate) fn requests(host: &Host) -> Vec<(String, String)> {
    let log = host.dir.path().join("asked");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    let split = |line: &str| match line.split_once(' ') {
        Some((verb, body)) => (verb.to_owned(), body.to_owned()),
        None => (line.to_owned(), String::new()),
    };
    text.lines().map(split).collect()
}

/// A running pod of one container, which is the sandbox itself.
pub(crate) async fn running(id: &str) -> Host {
    let host = host(id, None);
    host.tasks.create(host.create(id, &["run"])).await.unwrap();
    host.tasks.start(process(id, "")).await.unwrap();
    host
}

/// Ends the pod and looks whether anything is left.
pub(crate) async fn end(host: &Host) {
    // It may have ended on its own.
    let _ = host.tasks.kill(process(&host.id, ""), 9, false).await;
    host.ended(&host.id, "").await;
    host.tasks.delete(process(&host.id, "")).await.unwrap();
    host.assert_clean().await;
}
