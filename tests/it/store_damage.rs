//! One flipped bit in a store: the damage is detected, the texts are scored again, and the table is right.
//!
//! A few flips per kind of file; `COUPLET_FLIPS=1000 cargo test store_damage` for that many more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::nights::{counts, pairs};
use crate::store_folder::files_below;
use crate::support::{Job, rows_of, write};

/// A job of two windows of scores, each in a separate file, and a rejected row.
fn job() -> Job {
    let csv = format!("{}31,,Nothing\n", pairs(0, 30));
    Job::new(csv).add("[score]\nstore = \"state\"\ncheckpoint = \"1ms\"\n[run]\nwindow = 4")
}

fn restore(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    fs::remove_dir_all(folder).unwrap();
    files.iter().for_each(|(name, bytes)| write(&folder.join(name), bytes));
}

/// The number of scores in a file, parsed from its name.
fn scores_in(name: &str) -> Option<u64> {
    name.starts_with("scores/").then(|| name.split('-').rev().nth(1).unwrap().parse().unwrap())
}

#[test]
fn a_flipped_bit_in_a_store_publishes_no_wrong_row() {
    let flips: usize =
        std::env::var("COUPLET_FLIPS").map_or(0, |flips| flips.parse().expect("COUPLET_FLIPS is a number"));
    let job = job();
    job.report();
    let expected = rows_of(&job.output());
    let store = job.path("state");
    let files = files_below(&store);
    assert!(files.keys().filter(|name| scores_in(name).is_some()).count() >= 2, "{:?}", files.keys());
    let mut places = Vec::new();
    for (name, bytes) in &files {
        // The first and last bytes, and some in between.
        let some = [0, 1, 4, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(6), bytes.len() - 1];
        let few = if scores_in(name).is_some() { 7 } else { 3 };
        places.extend(some.into_iter().take(few).filter(|at| *at < bytes.len()).map(|at| (name, at, at % 8)));
    }
    let all: usize = files.values().map(Vec::len).sum();
    let mut state: u64 = 7;
    for _ in 0..flips {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut at = (state >> 20) as usize % all;
        for (name, bytes) in &files {
            if at < bytes.len() {
                places.push((name, at, (state >> 60) as usize % 8));
                break;
            }
            at -= bytes.len();
        }
    }
    let (mut wrong, mut noticed, mut refused) = (0, 0, 0);
    for (name, at, bit) in &places {
        restore(&store, &files);
        let mut bytes = files[*name].clone();
        bytes[*at] ^= 1 << bit;
        fs::write(store.join(name), bytes).unwrap();
        let _ = fs::remove_file(job.output());
        let output = job.run().args(["--json"]).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!message.contains("panicked"), "{name} {at} {bit}: {message}");
        if let Some(scores) = scores_in(name) {
            assert!(output.status.success(), "{name} {at} {bit}: {message}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["rows"]["damaged_scores"], scores, "{name} {at} {bit}: {report:#}");
            assert_eq!(report["rows"]["scored"], scores, "{name} {at} {bit}: {report:#}");
            assert!(message.contains("is damaged: its checksum is wrong"), "{name} {at} {bit}: {message}");
            noticed += 1;
        } else if !output.status.success() {
            assert!(message.starts_with("error: ") || message.contains("\nerror: "), "{name} {at} {bit}: {message}");
            assert!(!job.output().exists(), "{name} {at} {bit}: {message}");
            refused += 1;
            continue;
        }
        if rows_of(&job.output()) != expected {
            eprintln!("{name} {at} {bit}: wrong rows");
            wrong += 1;
        }
    }
    println!("{} flips: {noticed} noticed in scores, {refused} refused, {wrong} wrong tables", places.len());
    assert_eq!(wrong, 0);
    // The run has repaired the store, and the next one reports nothing.
    restore(&store, &files);
    let name = files.keys().find(|name| scores_in(name).is_some()).unwrap();
    let mut bytes = files[name].clone();
    bytes[100] ^= 4;
    fs::write(store.join(name), bytes).unwrap();
    let text = crate::support::stdout_of(&mut job.run());
    let scores = scores_in(name).unwrap();
    assert!(text.contains(&format!("{scores} scores damaged in the store, dropped")), "{text}");
    let report = job.report();
    assert_eq!((counts(&report)[1], &report["rows"]["damaged_scores"]), (0, &0.into()), "{report:#}");
    let runs: Value =
        serde_json::from_str(&crate::support::stdout_of(&mut job.couplet(&["runs", "pipeline.toml", "--json"])))
            .unwrap();
    assert_eq!((&runs[0]["scores_damaged"], &runs[1]["scores_damaged"]), (&0.into(), &scores.into()), "{runs:#}");
}
