//! A model's folder in which one file is something else.

use std::path::{Path, PathBuf};

use candle_core::Device;
use couplet::model::{Model, PackedBatch};
use tempfile::TempDir;

/// A copy of a small model.
pub struct ModelFolder {
    folder: TempDir,
    original: PathBuf,
}

impl ModelFolder {
    pub fn copy_of(original: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in original.read_dir().unwrap() {
            let entry = entry.unwrap();
            std::fs::write(folder.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
        }
        Self { folder, original: original.to_owned() }
    }

    /// Loads and runs the model with these bytes in the place of a file; whether that went well.
    pub fn runs_with(&self, file: &str, bytes: &[u8]) -> bool {
        let path = self.folder.path().join(file);
        std::fs::write(&path, bytes).unwrap();
        let runs = self.runs();
        match std::fs::read(self.original.join(file)) {
            Ok(original) => std::fs::write(path, original).unwrap(),
            Err(_) => std::fs::remove_file(path).unwrap(),
        }
        runs
    }

    fn runs(&self) -> bool {
        let Ok(model) = Model::load(self.folder.path(), &Device::Cpu) else { return false };
        let Ok(tokenizer) = model.tokenizer.with_max_length(model.max_length().min(24)) else { return false };
        let mut batch = PackedBatch::default();
        for (text, text_pair) in [("yes", None), ("Naïve CAFÉ 中文 😀", Some("ÉCOLE\u{0}\u{200b} ##s"))] {
            let Ok(encoding) = tokenizer.encode(text, text_pair) else { return false };
            batch.push(&encoding.input_ids, &encoding.token_type_ids);
        }
        let Ok(logits) = model.forward(&batch).and_then(|logits| logits.to_vec2::<f32>()) else { return false };
        if let Some(calibration) = &model.calibration {
            logits.iter().for_each(|logits| drop(calibration.probabilities(model.config.problem, logits)));
        }
        true
    }
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
