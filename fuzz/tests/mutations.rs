//! Every target on its seeds and on mutations of them, with the stable toolchain. `MICROVM_FUZZ_CASES` says how many of
//! each, 400 if it is not set; a failure prints the input, which proptest has made small.

use fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One change of an input.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
    /// Eight bytes that lengths and counts dislike.
    Number(prop::sample::Index, u64),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let edge = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 63),
        any::<u64>()
    ];
    prop_oneof![
        (at(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        at().prop_map(Mutation::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (at(), at()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        (at(), edge).prop_map(|(at, number)| Mutation::Number(at, number)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            return bytes;
        }
        let length = bytes.len();
        match mutation {
            Mutation::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Mutation::Set(at, byte) => bytes[at.index(length)] = *byte,
            Mutation::Cut(at) => bytes.truncate(at.index(length)),
            Mutation::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Mutation::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let piece = bytes[from.min(to)..from.max(to).min(from.min(to) + 2000)].to_vec();
                bytes.extend(piece);
            }
            Mutation::Number(at, number) => {
                let at = at.index(length);
                let room = (length - at).min(8);
                bytes[at..at + room].copy_from_slice(&number.to_le_bytes()[..room]);
            }
        }
    }
    bytes
}

fn try_target(target: &Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for (number, seed) in seeds.iter().enumerate() {
        assert!(
            (target.run)(seed),
            "{}: seed {number} is refused, so mutations of it get nowhere",
            target.name
        );
    }
    (target.run)(b"");
    let cases = std::env::var("MICROVM_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let input = (0..seeds.len(), prop::collection::vec(mutation(), 1..8));
    let result = runner.run(&input, |(seed, mutations)| {
        (target.run)(&mutate(seeds[seed].clone(), &mutations));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{}: {error}", target.name));
}

/// One test for each target, so that they run side by side and fail by name.
macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let target = TARGETS.iter().find(|target| target.name == stringify!($name));
            try_target(target.expect("TARGETS has it"));
        })*

        #[test]
        fn every_target_is_tried() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets!(manifest manifest_body ram_index archive machine config guest_name oci_spec serial);
