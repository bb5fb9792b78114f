//! Variants of the tiny golden checkpoints, each in a folder of its own; and the archives that PyTorch writes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use couplet::model::{LoadError, Model, PackedBatch};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::golden;

pub const WEIGHTS: &str = "model.safetensors";
pub const ARCHIVE: &str = "pytorch_model.bin";

/// A copy of a golden checkpoint that a test may spoil.
pub struct Variant(TempDir);

impl Variant {
    pub fn of(name: &str) -> Self {
        Self::of_folder(&golden(name))
    }

    pub fn of_folder(original: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(original).unwrap() {
            let entry = entry.unwrap();
            // Not `copy`, which takes a read-only file's permissions with it.
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

    /// Cuts a file off after `length` bytes.
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

    /// Replaces all tensors by what `edit` makes of each; none drops one.
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

    /// Gives the classifier so many outputs, with weights that tell them apart.
    pub fn with_outputs(self, outputs: usize) -> Self {
        let weight: Vec<f32> = (0..outputs * 32).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        let weight = Tensor::from_vec(weight, (outputs, 32), &Device::Cpu).unwrap();
        let bias = Tensor::arange(0f32, outputs as f32, &Device::Cpu).unwrap();
        self.with_tensor("classifier.weight", weight).with_tensor("classifier.bias", (bias * 0.01).unwrap())
    }

    pub fn load(&self) -> Result<Model, LoadError> {
        Model::load(self.folder(), &Device::Cpu)
    }

    /// Why it cannot be loaded, with `MODEL` for its folder.
    pub fn error(&self) -> String {
        let Err(error) = self.load() else { panic!("the model was loaded") };
        error.to_string().replace(self.folder().to_str().unwrap(), "MODEL")
    }
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

/// The members of an archive without compression, as PyTorch writes them.
pub fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(archive[at..at + 2].try_into().unwrap()));
    let u32_at = |at: usize| u32::from_le_bytes(archive[at..at + 4].try_into().unwrap()) as usize;
    let end = archive.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").unwrap();
    let mut at = u32_at(end + 16);
    let mut members = Vec::new();
    for _ in 0..u16_at(end + 10) {
        let (size, local) = (u32_at(at + 24), u32_at(at + 42));
        let name = String::from_utf8(archive[at + 46..at + 46 + u16_at(at + 28)].to_vec()).unwrap();
        let data = local + 30 + u16_at(local + 26) + u16_at(local + 28);
        members.push((name, archive[data..data + size].to_vec()));
        at += 46 + u16_at(at + 28) + u16_at(at + 30) + u16_at(at + 32);
    }
    members
}

/// An archive of the given members, with checksums that are right.
pub fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::<u8>::new(), Vec::<u8>::new());
    for (name, data) in members {
        let (local, size) = (file.len() as u32, data.len() as u32);
        // Version 2.0, no flags, stored, 1980-01-01.
        let mut header = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        for number in [crc32(data), size, size] {
            header.extend(number.to_le_bytes());
        }
        header.extend((name.len() as u16).to_le_bytes());
        header.extend([0, 0]);
        file.extend(b"PK\x03\x04".iter().chain(&header).chain(name.as_bytes()).chain(data));
        directory.extend(b"PK\x01\x02\x14\x00".iter().chain(&header).chain(&[0; 10]));
        directory.extend(local.to_le_bytes().iter().chain(name.as_bytes()));
    }
    let (start, size, count) = (file.len() as u32, directory.len() as u32, (members.len() as u16).to_le_bytes());
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0".iter().chain(&count).chain(&count));
    file.extend(size.to_le_bytes().iter().chain(&start.to_le_bytes()).chain(&[0, 0]));
    file
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
