//! Descriptions of machines that Cloud Hypervisor has saved.

use serde_json::Value;
use shim::error::Kind;
use shim::vm::{FsDevice, Machine, NetDevice, Placement, rewritten_description};

/// A saved description: it is made one of this machine, in which every path is ours, or refused as a bad argument.
///
/// # Panics
/// When that is not so.
#[must_use]
pub fn machine(bytes: &[u8]) -> bool {
    let machine = ours();
    match rewritten_description(bytes, &machine, true) {
        Ok(text) => {
            let Ok(new) = serde_json::from_slice::<Value>(&text) else {
                panic!("what is written is no JSON")
            };
            let strange = foreign(&new, "", &machine);
            assert_eq!(strange, None, "a path of another machine");
            assert_eq!(new["memory"]["zones"][0]["size"], machine.memory);
            assert_eq!(new["cpus"]["boot_vcpus"], machine.vcpus);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
            false
        }
    }
}

/// Where in `value` a text is that could be a path and lies neither in this sandbox nor among the guest's assets.
fn foreign(value: &Value, at: &str, machine: &Machine) -> Option<String> {
    match value {
        Value::String(text) if text.contains('/') && at != "/payload/cmdline" => {
            let dir = format!("{}/", machine.dir.display());
            let known = text.starts_with(&dir)
                || ["/guest/kernel", "/guest/initramfs", "/dev/urandom"].contains(&&**text);
            (!known || text.contains("..")).then(|| format!("{at}: {text}"))
        }
        Value::Array(list) => list.iter().find_map(|item| foreign(item, at, machine)),
        Value::Object(map) => {
            map.iter().find_map(|(key, item)| foreign(item, &format!("{at}/{key}"), machine))
        }
        _ => None,
    }
}

fn ours() -> Machine {
    Machine {
        dir: "/run/ours".into(),
        kernel: "/guest/kernel".into(),
        initramfs: "/guest/initramfs".into(),
        kernel_params: String::new(),
        vcpus: 2,
        memory: 256 << 20,
        ram: "/run/ours/ram/mem".into(),
        shares: vec![FsDevice { tag: "kataShared".into(), socket: "/run/ours/images.sock".into() }],
        nics: vec![NetDevice { tap: "tap0".into(), mac: "02:00:00:00:00:07".into() }],
        placement: Placement::default(),
    }
}

pub(crate) fn machine_seeds() -> Vec<Vec<u8>> {
    let saved = r#"{"cpus":{"boot_vcpus":2,"max_vcpus":2},"memory":{"size":0,"zones":[{"id":"ram","size":268435456,
        "file":"/run/theirs/ram/mem","shared":true}]},"payload":{"kernel":"/k","cmdline":"init=/init","initramfs":"/i"},
        "net":[{"id":"net0","tap":"old","mac":"02:00:00:00:00:07","host_mac":"02:00:00:00:00:08"}],
        "rng":{"src":"/dev/random"},"fs":[{"id":"fs0","tag":"kataShared","socket":"/s","num_queues":1}],
        "serial":{"mode":"File","file":"/log"},"console":{"mode":"Tty"},"debug_console":{"mode":"Off","iobase":233},
        "vsock":{"cid":3,"socket":"/v"},"iommu":false,"platform":{"num_pci_segments":2},"landlock_enable":false}"#;
    vec![saved.as_bytes().to_vec()]
}
