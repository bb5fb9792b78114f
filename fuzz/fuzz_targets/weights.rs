//! The headers of weights: the first byte chooses whether the others begin a file of safetensors, or are the pickle in
//! an archive of PyTorch's.
#![no_main]

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use couplet_fuzz::{ModelFolder, archive, members};

thread_local! {
    static SAFETENSORS: OnceCell<(ModelFolder, Vec<u8>)> = const { OnceCell::new() };
    static PICKLE: OnceCell<(ModelFolder, Vec<u8>)> = const { OnceCell::new() };
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/it/goldens").join(name)
}

fn open(name: &str, file: &str) -> (ModelFolder, Vec<u8>) {
    (ModelFolder::copy_of(&golden(name)), std::fs::read(golden(name).join(file)).unwrap())
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((b's', bytes)) => SAFETENSORS.with(|opened| {
            let file = "model.safetensors";
            let (model, original) = opened.get_or_init(|| open("tiny-distilbert", file));
            let mut content = bytes.to_vec();
            content.extend_from_slice(original.get(bytes.len()..).unwrap_or_default());
            model.runs_with(file, &content);
        }),
        Some((_, bytes)) => PICKLE.with(|opened| {
            let file = "pytorch_model.bin";
            let (model, original) = opened.get_or_init(|| open("tiny-bert-bin", file));
            let mut members = members(original);
            if let Some((_, pickle)) = members.iter_mut().find(|(name, _)| name.ends_with("data.pkl")) {
                *pickle = bytes.to_vec();
            }
            model.runs_with(file, &archive(&members));
        }),
        None => {}
    }
});
