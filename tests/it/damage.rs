//! Damaged input files of every kind: reading them causes no panic and no hang. The fuzz targets in `fuzz/` run the
//! same functions for longer.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::fuzz_targets::{ModelFolder, lock, manifest, pipeline};
use crate::support::{golden, root};

/// Mutations of bytes.
#[derive(Debug, Clone)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Word(prop::sample::Index, &'static str),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

/// Fragments that are hard for parsers of TOML, JSON, SQL and numbers.
const WORDS: [&str; 28] = [
    "{",
    "}",
    "[[",
    "]",
    "\"\"\"",
    "'",
    "\\",
    "\n",
    "\u{0}",
    "\u{feff}",
    "=",
    "{date}",
    "{{",
    "#",
    "null",
    "-1",
    "1e999",
    "99999999999999999999",
    "0x",
    "nan",
    "../",
    "s3://",
    "name = ",
    "[run]\n",
    ",",
    "true",
    "\u{202e}",
    "é",
];

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let place = any::<prop::sample::Index>;
    let one = prop_oneof![
        1 => place().prop_map(Damage::Cut),
        3 => (place(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (place(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        4 => (place(), prop::sample::select(&WORDS[..])).prop_map(|(at, word)| Damage::Word(at, word)),
        2 => (place(), 1usize..60).prop_map(|(at, length)| Damage::Remove(at, length)),
        1 => (place(), 1usize..60).prop_map(|(at, length)| Damage::Repeat(at, length)),
    ];
    vec(one, 1..5)
}

fn damaged(seed: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for damage in damages {
        let end = bytes.len();
        let place = |at: &prop::sample::Index| at.index(end + 1);
        match damage {
            Damage::Cut(at) => bytes.truncate(place(at)),
            Damage::Flip(at, bit) if end > 0 => bytes[at.index(end)] ^= 1 << bit,
            Damage::Flip(..) => {}
            Damage::Insert(at, more) => drop(bytes.splice(place(at)..place(at), more.iter().copied())),
            Damage::Word(at, word) => drop(bytes.splice(place(at)..place(at), word.bytes())),
            Damage::Remove(at, length) => drop(bytes.drain(place(at)..(place(at) + length).min(end))),
            Damage::Repeat(at, length) => {
                let again = bytes[place(at)..(place(at) + length).min(end)].to_vec();
                bytes.splice(place(at)..place(at), again);
            }
        }
    }
    bytes
}

/// Damages a seed in `cases` deterministic ways; `COUPLET_DAMAGE=100` multiplies their number by a hundred.
fn survives(cases: u32, seeds: &[Vec<u8>], test: impl Fn(&[u8])) {
    let times = std::env::var("COUPLET_DAMAGE").map_or(1, |times| times.parse().expect("COUPLET_DAMAGE is a number"));
    let config = ProptestConfig { cases: cases * times, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let strategy = (prop::sample::select(seeds.to_vec()), damage());
    runner
        .run(&strategy, |(seed, damages)| {
            test(&damaged(&seed, &damages));
            Ok(())
        })
        .unwrap();
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_damaged_pipeline_file_is_refused_or_read() {
    let folder = root().join("tests/it/config");
    let mut seeds: Vec<_> = ["valid_full", "valid_learning", "valid_minimal"]
        .map(|name| read(&folder.join(name).with_extension("toml")))
        .into();
    for name in ["quickstart/pipeline.toml", "mrpc.toml", "pretrain.toml", "nightly.toml"] {
        seeds.push(read(&root().join("pipelines").join(name)));
    }
    for seed in &seeds {
        assert!(pipeline(seed), "{}", String::from_utf8_lossy(seed));
    }
    survives(3000, &seeds, |bytes| _ = pipeline(bytes));
}

#[test]
fn a_damaged_lock_can_still_be_acquired() {
    let holder = r#"{"run_id":"a","pipeline":"demo","host":"h","process":{"pid":1,"started":2,"boot_id":"b","pid_namespace":"n"},"started_at":"2026-01-01T00:00:00Z","token":"t"}"#;
    let seed =
        format!(r#"{{"state":"held","holder":{holder},"lease_seconds":60.0,"renewals":3,"left_behind":[{holder}]}}"#);
    assert_eq!(lock(seed.as_bytes()), 2);
    survives(300, &[seed.into_bytes()], |bytes| _ = lock(bytes));
}

#[test]
fn a_damaged_manifest_is_refused_or_read() {
    let seed = br#"{"format":1,"run_id":"a","sequence":1,"pipeline":"demo","model":"m","rows":3,"files":[{"name":"part-0.parquet","rows":3,"bytes":18446744073709551615},{"name":"part-1.parquet","rows":3,"bytes":18446744073709551615}],"schema":[{"name":"id","type":"Int64","nullable":true}],"created_at":"2026-01-01T00:00:00Z"}"#;
    assert!(manifest(seed));
    survives(600, &[seed.to_vec()], |bytes| _ = manifest(bytes));
}

#[test]
fn damaged_small_files_of_a_model_cause_no_panic() {
    let calibration = br#"{"version":1,"problem_type":"single_label_classification","temperature":1.5,"threshold":{"value":0.4,"objective":"f1"},"fitted_on":200}"#;
    for (name, file, cases) in [
        ("tiny-bert", "config.json", 150),
        ("tiny-bert", "vocab.txt", 100),
        ("tiny-bert", "tokenizer_config.json", 100),
        ("tiny-distilbert", "tokenizer.json", 100),
        ("tiny-distilbert", "calibration.json", 200),
    ] {
        let model = ModelFolder::copy_of(&golden(name));
        let path = golden(name).join(file);
        let seed = if path.exists() { read(&path) } else { calibration.to_vec() };
        assert!(model.runs_with(file, &seed), "{name}/{file}");
        survives(cases, &[seed], |bytes| _ = model.runs_with(file, bytes));
    }
}

/// Text that normalization expands greatly, and long runs of one kind of character.
#[test]
fn repetitive_texts_respect_the_token_limit() {
    let model = couplet::model::Model::load(&golden("tiny-distilbert"), &candle_core::Device::Cpu).unwrap();
    let tokenizer = model.tokenizer.with_max_length(16).unwrap();
    for piece in
        ["a", " ", "\u{fdfa}", "e\u{301}\u{301}", "中", "\u{0}", "[MASK]", "##", "\u{1f468}\u{200d}", "\u{202e}"]
    {
        let text = piece.repeat((64 << 10) / piece.len());
        let encoding = tokenizer.encode(&text, Some(&text)).unwrap();
        assert!(encoding.input_ids.len() <= 16, "{piece:?}");
    }
}
