//! Tests of `bootstrap` that need no VM.

use super::dialect::{self, Dialect};
use super::flags::Flags;
use super::socket::{self, Bound};
use super::*;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message;
use log::LevelFilter;

fn flags() -> Flags {
    Flags { namespace: "k8s.io".into(), id: "abc".into(), ..Flags::default() }
}

/// A protobuf field with a length: number, bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    field.extend_from_slice(bytes);
    field
}

/// `google.protobuf.Any` as containerd up to 2.2 writes it to stdin.
fn any(type_url: &str, value: &[u8]) -> Vec<u8> {
    [field(1, type_url.as_bytes()), field(2, value)].concat()
}

#[test]
fn old_containerds_send_a_bare_any_or_nothing() {
    let params = dialect::parse(b"", &flags()).unwrap();
    assert!(params.dialect == Dialect::Json && params.options.is_none());
    let params = dialect::parse(&any("runtimeoptions.v1.Options", b"\x12\x02/c"), &flags()).unwrap();
    assert_eq!(params.dialect, Dialect::Json);
    assert_eq!(params.options.unwrap().value, b"\x12\x02/c");
    assert_eq!(dialect::parse(b"\xff", &flags()).unwrap_err().kind(), Kind::InvalidArgument);
}

#[test]
fn new_containerds_send_parameters_of_their_own() {
    let mut input = [field(1, b"abc"), field(2, b"k8s.io")].concat();
    // -4 as a varint: log level debug.
    input.extend([3 << 3, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    input.extend(field(5, b"/run/c.sock.ttrpc"));
    input.extend(field(8, &field(1, &any("containerd.io/cri.v1.PodSandboxConfig", b"x"))));
    input.extend(field(8, &field(1, &any("types/runtimeoptions.v1.Options", b"y"))));
    input.extend(field(9, b"/run/s"));
    let params = dialect::parse(&input, &flags()).unwrap();
    assert_eq!((params.dialect, params.log_level), (Dialect::Protobuf, Some(LevelFilter::Debug)));
    assert_eq!(params.ttrpc_address.unwrap(), "/run/c.sock.ttrpc");
    assert_eq!((params.options.unwrap().value, params.socket_dir.unwrap()), (b"y".to_vec(), "/run/s".into()));

    // The same bytes for another container would be an Any whose type is called "abc".
    let other = Flags { id: "other".into(), ..flags() };
    assert_eq!(dialect::parse(&input, &other).unwrap().dialect, Dialect::Json);
}

#[test]
fn replies_are_what_each_containerd_parses() {
    let json = dialect::reply(Dialect::Json, "unix:///s").unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}));
    let result =
        BootstrapResult::parse_from_bytes(&dialect::reply(Dialect::Protobuf, "unix:///s").unwrap()).unwrap();
    assert_eq!(
        (result.version, result.address.as_str(), result.protocol.as_str()),
        (3, "unix:///s", "ttrpc")
    );
}

#[test]
fn one_name_for_one_sandbox() {
    let path = |group| socket::path(Some("/run/s"), Path::new("/run/c.sock"), "k8s.io", group).unwrap();
    assert_eq!(path("a"), path("a"));
    assert_ne!(path("a"), path("b"));
    assert_eq!(path("a").file_name().unwrap().len(), 64);
    let long = "x".repeat(60);
    let error = socket::path(Some(&long), Path::new("/c"), "n", "a").unwrap_err();
    assert!(error.to_string().contains("socket_dir"), "{error}");
}

#[test]
fn a_dead_socket_is_replaced_and_a_living_one_respected() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("s/x");
    let Bound::Ours(first) = socket::bind(&path).unwrap() else { panic!("nobody else is there") };
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(socket::bind(&path).unwrap(), Bound::Theirs));
    drop(first);
    assert!(matches!(socket::bind(&path).unwrap(), Bound::Ours(_)));
    socket::unlink(&path).unwrap();
    socket::unlink(&path).unwrap();
}
