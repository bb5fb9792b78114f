//! The small files of a model's folder: the first byte chooses which of them the others are.
#![no_main]

use std::cell::OnceCell;
use std::path::Path;

use couplet_fuzz::ModelFolder;

thread_local! {
    static WORD_PIECES: OnceCell<ModelFolder> = const { OnceCell::new() };
    static JSON: OnceCell<ModelFolder> = const { OnceCell::new() };
}

fn golden(name: &str) -> ModelFolder {
    ModelFolder::copy_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/it/goldens").join(name))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let (model, name, file) = match which {
        b'c' => (&WORD_PIECES, "tiny-bert", "config.json"),
        b'v' => (&WORD_PIECES, "tiny-bert", "vocab.txt"),
        b's' => (&WORD_PIECES, "tiny-bert", "tokenizer_config.json"),
        b't' => (&JSON, "tiny-distilbert", "tokenizer.json"),
        b'd' => (&JSON, "tiny-distilbert", "config.json"),
        _ => (&JSON, "tiny-distilbert", "calibration.json"),
    };
    model.with(|model| model.get_or_init(|| golden(name)).runs_with(file, bytes));
});
