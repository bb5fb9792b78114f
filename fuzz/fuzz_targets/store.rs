//! What lies in a store or sink: the first byte chooses what the others are.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((b'l', bytes)) => drop(couplet_fuzz::lock(bytes)),
        Some((_, bytes)) => drop(couplet_fuzz::manifest(bytes)),
        None => {}
    }
});
