//! A pipeline file from somebody else.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    couplet_fuzz::pipeline(bytes);
});
