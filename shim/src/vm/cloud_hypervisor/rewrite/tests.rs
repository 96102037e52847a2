//! Tests of the rewriting, on what a real Cloud Hypervisor 53.0 has saved.

use proptest::prelude::*;

use super::*;
use crate::vm::cloud_hypervisor::tests::machine;

/// `config.json` of a pod like [`machine`]'s, with the paths of another host.
const SAVED: &str = include_str!("saved-v53.json");

fn saved() -> Value {
    serde_json::from_str(SAVED).unwrap()
}

fn rewrite(saved: &Value) -> Result<Value> {
    let machine = machine();
    let text = serde_json::to_vec(saved).unwrap();
    let new = rewritten(&text, &machine, &Files::of(&machine.dir), true)?;
    Ok(serde_json::from_slice(&new).unwrap())
}

/// Why the saved machine is refused with `value` at the JSON pointer `at`.
fn refused(at: &str, value: Value) -> String {
    let mut saved = saved();
    put(&mut saved, at, value);
    let error = rewrite(&saved).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    error.chain()
}

fn put(saved: &mut Value, at: &str, value: Value) {
    let (parent, key) = at.rsplit_once('/').unwrap();
    match saved.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(list) => list.push(value),
        other => panic!("{other}"),
    }
}

#[test]
fn every_path_becomes_this_sandboxs_and_the_rest_stays() {
    let new = rewrite(&saved()).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&new).unwrap());
}

#[test]
fn a_machine_that_prints_into_files_prints_where_ours_do() {
    let mut saved = saved();
    put(&mut saved, "/serial", json!({ "mode": "File", "file": "/run/other/serial.log" }));
    put(
        &mut saved,
        "/console",
        json!({ "mode": "File", "file": "/run/other/console.log", "pci_segment": 0 }),
    );
    let new = rewrite(&saved).unwrap();
    assert_eq!(new["serial"], json!({ "mode": "Null" }));
    assert_eq!(new["console"], json!({ "mode": "Tty", "pci_segment": 0 }));
}

#[test]
fn confinement_is_this_hosts_choice() {
    let machine = machine();
    let new = rewritten(SAVED.as_bytes(), &machine, &Files::of(&machine.dir), false).unwrap();
    let new: Value = serde_json::from_slice(&new).unwrap();
    assert_eq!((&new["landlock_enable"], &new["landlock_rules"]), (&json!(false), &Value::Null));
}

#[test]
fn other_devices_are_refused_by_name() {
    for (key, value) in [
        ("disks", json!([{ "path": "/etc/shadow" }])),
        ("devices", json!([{ "path": "/sys/bus/pci/devices/0000:00:01.0" }])),
        ("tpm", json!({ "socket": "/run/tpm" })),
        ("watchdog", json!(true)),
        ("debug_console", json!({ "mode": "Pty" })),
        ("brand_new_devices", json!([{ "id": "x" }])),
    ] {
        let text = refused(&format!("/{key}"), value);
        assert!(text.contains(&format!(": {key} is a device that no pod has")), "{text}");
    }
}

#[test]
fn a_machine_of_another_shape_is_refused_with_both_numbers() {
    let is = |text: String, part: &str| assert!(text.contains(part), "{part} is not in {text}");
    is(refused("/cpus/boot_vcpus", json!(3)), "cpus.boot_vcpus is 3, its manifest says 2");
    is(refused("/cpus/max_vcpus", json!(-2)), "cpus.max_vcpus is -2, its manifest says 2");
    is(refused("/cpus/max_vcpus", json!(2.0)), "cpus.max_vcpus is 2.0, its manifest says 2");
    is(refused("/memory/zones/0/size", json!(u64::MAX)), "memory.zones[0].size is 18446744073709551615");
    is(refused("/memory/size", json!("0")), "memory.size is no number");
    is(refused("/memory/hotplug_size", json!(1)), "memory.hotplug_size is there");
    is(refused("/memory/zones/-", json!({ "size": 0 })), "memory.zones has 2 entries, the pod has 1");
    is(refused("/memory", json!([])), "memory is missing or no object");
    is(refused("/fs", Value::Null), "fs has 0 entries, the pod has 2");
    is(refused("/fs", json!({})), "fs is no list");
    is(refused("/fs/0/tag", json!("other")), "fs[0].tag has \"other\", which is no share of this pod");
    is(refused("/fs/0/tag", json!("volumes")), "fs[1].tag has \"volumes\", which is no share of this pod");
    is(
        refused("/net/0/mac", json!("02:00:00:00:00:08")),
        "net[0].mac has \"02:00:00:00:00:08\", its manifest",
    );
    is(refused("/net/0/fds", json!([3])), "net[0].fds is there");
    is(refused("/net/0/ip", json!("10.0.0.1")), "net[0].ip is there");
    is(refused("/net/-", json!("tap")), "net has 2 entries, the pod has 1");
}

#[test]
fn files_of_another_machine_are_refused_wherever_they_stand() {
    for (at, place) in [
        ("/payload/firmware", "payload.firmware"),
        ("/fs/1/log", "fs[1].log"),
        ("/novelty", "novelty"),
        ("/platform/oem_strings", "platform.oem_strings[1]"),
        ("/cpus/novelty", "cpus.novelty.a.b[0]"),
    ] {
        let value = match at {
            "/platform/oem_strings" => json!(["fine", "../../etc/passwd"]),
            "/cpus/novelty" => json!({ "a": { "b": ["/etc/passwd"] } }),
            _ => json!("/etc/passwd"),
        };
        let text = refused(at, value);
        assert!(text.contains(&format!("{place} names a file of another machine")), "{text}");
    }
}

#[test]
fn what_is_no_description_is_refused() {
    let machine = machine();
    for text in ["", "[]", "{", "null", &"[".repeat(200), &" ".repeat(MOST + 1)] {
        let error = rewritten(text.as_bytes(), &machine, &Files::of(&machine.dir), true).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
    }
}

/// Whatever a later version may write that is no device and no path.
fn novelty() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        Just(json!(false)),
        any::<u64>().prop_map(|number| json!(number)),
        any::<i64>().prop_map(|number| json!(number)),
        "[^/]{0,8}".prop_map(Value::from),
    ];
    scalar
}

/// Objects of the description that may get a new key, as JSON pointers.
const PLACES: &[&str] =
    &["", "/cpus", "/memory", "/memory/zones/0", "/net/0", "/fs/1", "/vsock", "/rng", "/platform"];

/// The same text with every object's keys in another order.
fn shuffled(value: &Value, seed: u64) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            let places = entries.len().max(1);
            entries.rotate_left(usize::try_from(seed).unwrap_or_default() % places);
            if seed % 2 == 1 {
                entries.reverse();
            }
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), shuffled(value, seed / 2)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(|item| shuffled(item, seed / 2)).collect();
            format!("[{}]", items.join(","))
        }
        scalar => scalar.to_string(),
    }
}

proptest! {
    #[test]
    fn unknown_keys_survive_exactly_in_any_order(
        news in prop::collection::vec((prop::sample::select(PLACES), "[a-z]{1,6}_new", novelty()), 0..8),
        seed: u64,
    ) {
        let mut saved = saved();
        for (place, key, value) in &news {
            put(&mut saved, &format!("{place}/{key}"), value.clone());
        }
        let machine = machine();
        let text = shuffled(&saved, seed);
        let new = rewritten(text.as_bytes(), &machine, &Files::of(&machine.dir), true).unwrap();
        let new: Value = serde_json::from_slice(&new).unwrap();
        // What was there is there, and all else is as without it.
        let mut want = rewrite(&self::saved()).unwrap();
        for (place, key, _) in &news {
            let at = format!("{place}/{key}");
            put(&mut want, &at, saved.pointer(&at).unwrap().clone());
        }
        prop_assert_eq!(new, want);
    }

    #[test]
    fn no_path_of_another_machine_survives_anywhere(
        place in prop::sample::select(PLACES),
        key in "[a-z]{1,6}_new",
        path in "[a-z.]{0,4}/[a-z./]{0,8}",
        depth in 0_usize..4,
    ) {
        let mut saved = saved();
        let value = (0..depth).fold(json!(path), |inner, level| {
            if level % 2 == 0 { json!({ "inner": inner }) } else { json!([0, inner]) }
        });
        put(&mut saved, &format!("{place}/{key}"), value);
        prop_assert!(rewrite(&saved).is_err());
    }
}
