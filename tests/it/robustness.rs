//! Damaged checkpoints: for any bits changed on a disk or in a download, loading gives a model or an error.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use couplet::model::PackedBatch;

use crate::fuzz_targets::{archive, members};
use crate::tiny::{ARCHIVE, TEXTS, Variant, WEIGHTS};

/// Records the largest single allocation of a thread.
///
/// Zeroed memory costs nothing until it is written to, and is not counted: candle allocates the claimed length of a
/// pickled string, then finds the end of the file.
struct Watch;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller upholds the contract of the method of the same name, to which the call is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of the method of the same name, to which the call is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller upholds the contract of the method of the same name, to which the call is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of the method of the same name, to which the call is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static WATCH: Watch = Watch;

/// The largest allowed allocation while a tiny model loads: the files have a quarter of a megabyte, the fingerprint's
/// buffer one megabyte.
const MEMORY: usize = 16 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Damages a file between two offsets.
fn damage(content: &mut Vec<u8>, places: std::ops::Range<usize>, random: &mut Random) -> String {
    let mut place = || places.start + random.below(places.len());
    let at = place();
    let until = (at + 1 + random.below(40)).min(places.end);
    match random.below(6) {
        0 => {
            let bit = 1 << random.below(8);
            content[at] ^= bit;
            format!("bit {bit:#x} of byte {at}")
        }
        1 => {
            let others: Vec<usize> = (0..8).map(|_| places.start + random.below(places.len())).collect();
            others.iter().for_each(|&at| content[at] ^= 1 << random.below(8));
            format!("one bit each of bytes {others:?}")
        }
        2 => {
            content.truncate(at);
            format!("cut at {at}")
        }
        3 => {
            content.drain(at..until);
            format!("bytes {at}..{until} gone")
        }
        4 => {
            let again = content[at..until].to_vec();
            content.splice(at..at, again);
            format!("bytes {at}..{until} twice")
        }
        _ => {
            // The result is still text, and a number is still a number.
            let digits: Vec<usize> = places.filter(|&at| content[at].is_ascii_digit()).collect();
            let at = if digits.is_empty() { at } else { digits[random.below(digits.len())] };
            content[at] = b'0' + random.below(10) as u8;
            format!("another digit at {at}")
        }
    }
}

/// Loads and runs a model. Returns true if that succeeded.
fn load_and_run(variant: &Variant) -> bool {
    let Ok(model) = variant.load() else { return false };
    let Ok(tokenizer) = model.tokenizer.with_max_length(model.max_length().min(24)) else { return false };
    let mut batch = PackedBatch::default();
    for (text, text_pair) in TEXTS {
        let Ok(encoding) = tokenizer.encode(text, text_pair) else { return false };
        batch.push(&encoding.input_ids, &encoding.token_type_ids);
    }
    model.forward(&batch).is_ok()
}

/// Damages a file of a golden checkpoint in `cases` ways. Returns the number of variants that still run.
fn survives(
    name: &str,
    file: &str,
    seed: u64,
    cases: usize,
    damage: impl Fn(&mut Vec<u8>, &mut Random) -> String,
) -> usize {
    // With RUST_BACKTRACE, errors of candle include a backtrace, whose symbol table is loaded once. That allocation is
    // not counted here.
    drop(std::backtrace::Backtrace::force_capture().to_string());
    let original = Variant::of(name).read(file);
    let mut random = Random(seed);
    let mut running = 0;
    for case in 0..cases {
        let mut content = original.clone();
        let what = damage(&mut content, &mut random);
        let variant = Variant::of(name).with(file, content);
        LARGEST.set(0);
        let result = catch_unwind(AssertUnwindSafe(|| load_and_run(&variant)));
        let largest = LARGEST.get();
        let runs = result.unwrap_or_else(|_| panic!("{name}/{file}, case {case}, {what}: a panic"));
        assert!(largest <= MEMORY, "{name}/{file}, case {case}, {what}: {largest} bytes at once");
        running += usize::from(runs);
    }
    running
}

fn anywhere(content: &mut Vec<u8>, random: &mut Random) -> String {
    let places = 0..content.len();
    damage(content, places, random)
}

#[test]
fn a_damaged_config_causes_no_panic() {
    for (name, seed) in [("tiny-bert", 1), ("tiny-distilbert", 2)] {
        let running = survives(name, "config.json", seed, 60, anywhere);
        assert!((1..60).contains(&running), "{running}");
    }
    survives("tiny-bert", "tokenizer_config.json", 3, 40, anywhere);
}

#[test]
fn a_damaged_tokenizer_causes_no_panic() {
    survives("tiny-bert", "vocab.txt", 4, 40, anywhere);
    survives("tiny-distilbert", "tokenizer.json", 5, 80, anywhere);
}

#[test]
fn damaged_safetensors_cause_no_panic() {
    for (name, seed) in [("tiny-bert", 6), ("tiny-distilbert", 7)] {
        survives(name, WEIGHTS, seed, 60, |content, random| {
            // The header and its length.
            damage(content, 0..4500, random)
        });
    }
}

#[test]
fn a_damaged_archive_causes_no_panic() {
    survives("tiny-bert-bin", ARCHIVE, 8, 30, anywhere);
    survives("tiny-bert-bin", ARCHIVE, 9, 60, |content, random| {
        // The directory at the end.
        let places = content.len() - 5000..content.len();
        damage(content, places, random)
    });
}

#[test]
fn a_damaged_pickle_causes_no_panic() {
    // In an archive with valid checksums, so that the pickle is read.
    survives("tiny-bert-bin", ARCHIVE, 10, 150, |content, random| {
        let mut members = members(content);
        let (_, pickle) = members.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
        let places = 0..pickle.len();
        let what = damage(pickle, places, random);
        *content = archive(&members);
        what
    });
}
