//! Tests of the translation: whole specs as containerd writes them, and what must hold for every spec.

use oci_spec::runtime::Spec;
use proptest::prelude::*;
use protobuf::text_format::print_to_string_pretty;
use serde_json::{Value, json};

use super::*;
use crate::error::Kind;

const MIB: u64 = 1 << 20;

fn layout() -> Layout<'static> {
    let backing = |path: &Path| match path.file_name().and_then(|name| name.to_str()) {
        Some("cache") => Backing::Memory(Tmpfs { size: 16 * MIB, mode: 0o2777, uid: 0, gid: 2000 }),
        Some("scratch") => Backing::Disk,
        _ => Backing::Absent,
    };
    Layout { bundle: Path::new("/run/containerd/bundle"), upper_size: 512 * MIB, backing }
}

fn fixture(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn ctr() -> Value {
    fixture(include_str!("testdata/ctr.json"))
}

fn translate(spec: &Value) -> Result<Workload> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    workload(&spec, &GuestName::from_cri("web"), 3, &layout())
}

fn refusal(spec: &Value) -> String {
    translate(spec).unwrap_err().chain()
}

/// Everything about a workload, for a person to read.
fn whole(workload: &Workload) -> String {
    let mut text = print_to_string_pretty(&workload.request(&GuestPids::Own));
    for volume in &workload.volumes {
        text.push_str(&format!("{volume:?}\n"));
    }
    text.push_str(&format!("{:?}\n{:?}\n", workload.pid_namespace, workload.dropped_devices));
    text
}

#[test]
fn spec_of_ctr_run() {
    insta::assert_snapshot!(whole(&translate(&ctr()).unwrap()));
}

#[test]
fn spec_of_a_kubernetes_container() {
    let cri = fixture(include_str!("testdata/cri.json"));
    insta::assert_snapshot!(whole(&translate(&cri).unwrap()));
}

#[test]
fn carrier_has_an_image_and_nothing_else() {
    let request = carrier(&GuestName::from_id("one"), 7);
    insta::assert_snapshot!(print_to_string_pretty(&request));
}

#[test]
fn sandbox_shares_both_trees_and_shm() {
    let points: Vec<_> = sandbox_storages().into_iter().map(|storage| storage.mount_point).collect();
    assert_eq!(points, [paths::IMAGES, paths::VOLUMES, paths::SHM]);
}

#[test]
fn namespaces_of_the_host_are_refused_by_their_kubernetes_names() {
    let refusal = |spec: &Value| {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        refuse_host_namespaces(&spec).map_err(|error| error.to_string())
    };
    let mut pause = fixture(include_str!("testdata/pause.json"));
    assert_eq!(refusal(&pause), Ok(()));
    assert_eq!(refusal(&ctr()), Ok(()));
    pause["linux"]["namespaces"][4]["path"] = json!("/proc/self/ns/net");
    assert!(refusal(&pause).unwrap_err().contains("asks for hostNetwork, which"));
    pause["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    assert!(refusal(&pause).unwrap_err().contains("asks for hostNetwork, hostPID, hostIPC, which"));
    pause["linux"] = json!({});
    assert!(refusal(&pause).is_err());
}

#[test]
fn pid_namespace_of_another_task_is_interpreted() {
    let mut spec = ctr();
    spec["linux"]["namespaces"][0]["path"] = json!("/proc/4711/ns/pid");
    let found = translate(&spec).unwrap();
    assert_eq!(found.pid_namespace, PidNamespace::Of("/proc/4711/ns/pid".into()));
    assert_eq!(PidNamespace::task(Path::new("/proc/4711/ns/pid")), Some(4711));
    assert_eq!(PidNamespace::task(Path::new("/proc/self/ns/pid")), None);
    assert_eq!(PidNamespace::task(Path::new("/run/ns/pid")), None);
    let pids_of = |pids: &GuestPids| {
        let request = found.request(pids);
        (request.sandbox_pidns, request.OCI.Annotations.get(PIDS_OF).cloned())
    };
    assert_eq!(pids_of(&GuestPids::Own), (false, None));
    assert_eq!(pids_of(&GuestPids::Pod), (true, None));
    assert_eq!(pids_of(&GuestPids::Of("web_ovl".into())), (false, Some("web_ovl".into())));
}

#[test]
fn privileged_containers_do_without_devices_of_the_host_and_others_are_refused() {
    let mut spec = ctr();
    let disk = json!({ "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 });
    spec["linux"]["devices"] = json!([disk, { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]);
    assert!(refusal(&spec).ends_with("does not get: /dev/sda; remove them"), "{}", refusal(&spec));
    spec["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    let found = translate(&spec).unwrap();
    assert_eq!(found.dropped_devices, ["/dev/sda"]);
    assert_eq!(found.spec.Linux.Devices.len(), 1);
}

#[test]
fn what_a_vm_can_not_give_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = ctr();
        change(&mut spec);
        refusal(&spec)
    };
    let mount = |source: &'static str, typ: &'static str, option: &'static str| {
        with(&move |spec| {
            spec["mounts"] =
                json!([{ "destination": "/m", "source": source, "type": typ, "options": [option] }]);
        })
    };
    let cases = [
        (with(&|spec| spec["linux"]["namespaces"] = json!([{ "type": "user" }])), "a user namespace"),
        (
            with(&|spec| spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" })),
            "SCMP_ACT_NOTIFY",
        ),
        (with(&|spec| spec["process"]["args"] = json!([])), "process.args is empty"),
        (with(&|spec| spec["process"]["cwd"] = json!("srv")), r#"process.cwd is "srv""#),
        (with(&|spec| spec["process"] = Value::Null), "it has no process"),
        (mount("/dev/sda1", "ext4", "ro"), r#"at "/m" has type "ext4""#),
        (mount("/srv", "bind", "rshared"), "Bidirectional mount propagation"),
        (mount("/srv", "bind", "idmap"), "mapped user ids"),
        (mount("/proc/1/root", "bind", "rbind"), r#"the source "/proc/1/root""#),
        (mount("/dev/fd0", "", "bind"), "devices and kernel interfaces"),
        (mount("/srv/../proc", "bind", "bind"), "with `..` in it"),
        (mount("", "bind", "bind"), "no source"),
        (mount("tmpfs", "tmpfs", "lowerdir=/etc"), r#"the option "lowerdir=/etc""#),
        (
            mount("/var/lib/kubelet/pods/u/volume-subpaths/cache/web/0", "bind", "rbind"),
            "subPath of the memory volume",
        ),
    ];
    for (text, want) in cases {
        assert!(text.contains(want), "{text} should name {want}");
    }
}

#[test]
fn exec_needs_arguments() {
    let process: oci_spec::runtime::Process =
        serde_json::from_value(json!({ "user": { "uid": 0, "gid": 0 }, "args": [], "cwd": "/" })).unwrap();
    assert_eq!(super::process(&process).unwrap_err().kind(), Kind::InvalidArgument);
}

/// A source as hostile or odd as a path gets; `hostpath` marks what must not leave the host.
fn source() -> impl Strategy<Value = String> {
    prop_oneof![
        "/hostpath(/[a-zé. ]{1,6}){0,3}",
        "/hostpath/pods/u/volumes/kubernetes.io~[a-z-]{1,9}/[a-z./]{1,5}",
        "/hostpath/pods/u/volumes/kubernetes.io~empty-dir/(cache|scratch|x)",
        "/hostpath/pods/u/volume-subpaths/[a-z]{1,3}/c/[0-9]",
        "hostpath/[a-z./]{0,6}",
        "(?s).{0,12}",
    ]
}

fn mount() -> impl Strategy<Value = Value> {
    let typ = prop::sample::select(vec!["bind", "", "none", "tmpfs", "proc", "overlay", "cgroup", "rbind"]);
    let option = prop_oneof![
        prop::sample::select(vec!["bind", "rbind", "ro", "rw", "rslave", "shared", "idmap", "size=1"])
            .prop_map(String::from),
        Just("upperdir=/hostpath".to_owned()),
    ];
    let destination = prop_oneof![Just("/dev/shm".to_owned()), "/[a-z/.]{0,9}", "[a-z]{0,3}"];
    (typ, source(), destination, prop::collection::vec(option, 0..4)).prop_map(
        |(typ, source, destination, options)| {
            json!({ "type": typ, "source": source, "destination": destination, "options": options })
        },
    )
}

proptest! {
    /// No panic whatever the spec, and if it is taken, nothing that the guest gets names the host.
    #[test]
    fn no_path_of_the_host_reaches_the_guest(
        mounts in prop::collection::vec(mount(), 0..5),
        types in prop::collection::vec("(pid|ipc|uts|mount|network|cgroup|time)", 0..5),
    ) {
        let mut spec = ctr();
        let binds = mounts.len();
        spec["mounts"] = mounts.into();
        spec["root"]["path"] = json!("/hostpath/rootfs");
        spec["hooks"] = json!({ "prestart": [{ "path": "/hostpath/hook" }], "poststop": [{ "path": "/hostpath/hook" }] });
        spec["annotations"] = json!({ "log": "/hostpath/log" });
        spec["process"]["apparmorProfile"] = json!("/hostpath/profile");
        spec["linux"]["cgroupsPath"] = json!("/hostpath/cgroup");
        spec["linux"]["resources"]["devices"] = json!([{ "allow": true }]);
        spec["linux"]["devices"] = json!([{ "path": "/hostpath/sda", "type": "b", "major": 8, "minor": 0 }]);
        spec["linux"]["namespaces"] =
            types.iter().map(|typ| json!({ "type": typ, "path": "/hostpath/ns" })).collect::<Vec<_>>().into();
        let Ok(found) = translate(&spec) else { return Ok(()) };
        let text = print_to_string_pretty(&found.request(&GuestPids::Own));
        prop_assert!(!text.contains("hostpath"), "{text}");
        prop_assert!(found.volumes.len() <= binds);
        for volume in &found.volumes {
            prop_assert!(volume.source.is_absolute());
            let guest = paths::volume(&GuestName::from_cri("web"), 3, volume.index);
            prop_assert_eq!(found.spec.Mounts.iter().filter(|mount| mount.source == guest).count(), 1);
        }
        for storage in &found.storages {
            prop_assert!(storage.mount_point.starts_with("/run/kata-containers/"));
            prop_assert!(!storage.mount_point.contains(".."));
        }
    }
}
