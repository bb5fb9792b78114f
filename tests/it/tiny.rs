//! Variants of the tiny golden checkpoints, each in a temporary folder, and a writer of PyTorch archives.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use couplet::model::{LoadError, Model, PackedBatch};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::golden;

pub const WEIGHTS: &str = "model.safetensors";
pub const ARCHIVE: &str = "pytorch_model.bin";

/// A copy of a golden checkpoint that a test may modify.
pub struct Variant(TempDir);

impl Variant {
    pub fn of(name: &str) -> Self {
        Self::of_folder(&golden(name))
    }

    pub fn of_folder(original: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(original).unwrap() {
            let entry = entry.unwrap();
            // Not `copy`, which also copies a read-only file's permissions.
            std::fs::write(folder.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
        }
        Self(folder)
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    pub fn with(self, file: &str, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path(file), content).unwrap();
        self
    }

    pub fn without(self, file: &str) -> Self {
        std::fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// Truncates a file to `length` bytes.
    pub fn with_only(self, file: &str, length: usize) -> Self {
        let content = self.read(file);
        self.with(file, &content[..length])
    }

    pub fn with_json(self, file: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let mut json = serde_json::from_slice(&self.read(file)).unwrap();
        edit(&mut json);
        self.with(file, json.to_string())
    }

    pub fn with_config(self, key: &str, value: Value) -> Self {
        self.with_json("config.json", |config| config[key] = value)
    }

    pub fn without_config(self, key: &str) -> Self {
        self.with_json("config.json", |config| drop(config.as_object_mut().unwrap().remove(key)))
    }

    pub fn tensors(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path(WEIGHTS), &Device::Cpu).unwrap()
    }

    /// Applies `edit` to all tensors; `None` drops one.
    pub fn with_tensors(self, edit: impl FnMut((String, Tensor)) -> Option<(String, Tensor)>) -> Self {
        let tensors: HashMap<String, Tensor> = self.tensors().into_iter().filter_map(edit).collect();
        candle_core::safetensors::save(&tensors, self.path(WEIGHTS)).unwrap();
        self
    }

    pub fn with_tensor(self, name: &str, tensor: Tensor) -> Self {
        let mut tensors = self.tensors();
        tensors.insert(name.to_owned(), tensor);
        candle_core::safetensors::save(&tensors, self.path(WEIGHTS)).unwrap();
        self
    }

    pub fn without_tensor(self, name: &str) -> Self {
        self.with_tensors(|(other, tensor)| (other != name).then_some((other, tensor)))
    }

    /// Gives the classifier this many outputs, with distinguishable weights.
    pub fn with_outputs(self, outputs: usize) -> Self {
        let weight: Vec<f32> = (0..outputs * 32).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        let weight = Tensor::from_vec(weight, (outputs, 32), &Device::Cpu).unwrap();
        let bias = Tensor::arange(0f32, outputs as f32, &Device::Cpu).unwrap();
        self.with_tensor("classifier.weight", weight).with_tensor("classifier.bias", (bias * 0.01).unwrap())
    }

    pub fn load(&self) -> Result<Model, LoadError> {
        Model::load(self.folder(), &Device::Cpu)
    }

    /// The load error, with `MODEL` for its folder.
    pub fn error(&self) -> String {
        let Err(error) = self.load() else { panic!("the model was loaded") };
        error.to_string().replace(self.folder().to_str().unwrap(), "MODEL")
    }
}

/// tiny-bert with room for two more tokens, after the 787 of its vocabulary.
pub fn with_room() -> Variant {
    let words = "bert.embeddings.word_embeddings.weight";
    let variant = Variant::of("tiny-bert");
    let more = Tensor::ones((2, 32), DType::F32, &Device::Cpu).unwrap();
    let table = Tensor::cat(&[&variant.tensors()[words], &more], 0).unwrap();
    variant.with_tensor(words, table).with_config("vocab_size", 789.into())
}

/// A few texts and pairs of every kind.
pub const TEXTS: [(&str, Option<&str>); 6] = [
    ("yes", None),
    ("The man went home.", Some("He was at home by then!")),
    ("x", Some("")),
    ("Naïve CAFÉ 中文 😀", Some("ÉCOLE\u{0}\u{200b} ##s")),
    ("a b c d e f g h i j k l m n o p q r s t u v w x y z", None),
    ("unbelievably long-winded", Some("12,345.67 of them")),
];

/// The logits of [`TEXTS`], in one batch.
pub fn logits(model: &Model) -> Vec<Vec<f32>> {
    let tokenizer = model.tokenizer.with_max_length(32).unwrap();
    let mut batch = PackedBatch::default();
    for (text, text_pair) in TEXTS {
        let encoding = tokenizer.encode(text, text_pair).unwrap();
        batch.push(&encoding.input_ids, &encoding.token_type_ids);
    }
    model.forward(&batch).unwrap().to_vec2().unwrap()
}
