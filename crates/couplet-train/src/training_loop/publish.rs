//! The published folder of a training: an ordinary Hugging Face checkpoint with a `training.json`.

use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use couplet_encoder::model::{CHART, MODEL_FOLDER, ModelFiles, copy_tokenizer, write_json, write_weights};
use couplet_storage::files::{self, AtomicFolder, MAX_JSON, MAX_TEXT};
use serde_json::{Map, Value};

use super::JobError;
use crate::Trainer;

/// The file name of the training report.
pub(crate) const REPORT: &str = "training.json";

/// The contents of the folder besides the weights.
pub(crate) struct Publication<'a> {
    /// The contents of `config.json`.
    pub(crate) config: Map<String, Value>,
    /// The model files, the tokenizer's among them.
    pub(crate) tokenizer: &'a ModelFiles,
    /// Further JSON files, with their names.
    pub(crate) documents: Vec<(&'a str, Value)>,
    /// The training chart.
    pub(crate) chart: Option<String>,
}

impl Publication<'_> {
    /// Writes the checkpoint to a temporary folder next to `target` and then publishes it atomically. See
    /// [`AtomicFolder`] for the guarantees.
    pub(crate) fn publish(&self, trainer: &Trainer, target: &Path) -> Result<(), JobError> {
        let write = || -> io::Result<()> {
            let folder = AtomicFolder::create(target, &MODEL_FOLDER)?;
            let path = folder.path();
            write_json(&path.join("config.json"), &Value::Object(self.config.clone()))?;
            copy_tokenizer(self.tokenizer, path, trainer.config().family)?;
            for (name, document) in &self.documents {
                write_json(&path.join(name), document)?;
            }
            if let Some(chart) = &self.chart {
                files::write(&path.join(CHART), chart)?;
            }
            let mut file = BufWriter::new(files::create(&path.join("model.safetensors"))?);
            write_weights(trainer.weight_entries(), &mut file)?;
            file.flush()?;
            folder.publish()
        };
        write().map_err(JobError::file("publish", target))
    }
}

/// Returns the report of the model in a folder, if a job with this key wrote it.
pub(crate) fn report_of(folder: &Path, key: blake3::Hash) -> Option<Value> {
    let report: Value = serde_json::from_slice(&files::read(&folder.join(REPORT), MAX_JSON).ok()?).ok()?;
    (report["job"].as_str() == Some(key.to_hex().as_str())).then_some(report)
}

/// Removes the extra model that an earlier job wrote next to its output; a folder without a report is kept.
pub(crate) fn remove_model(folder: &Path) -> Result<(), JobError> {
    if !folder.join(REPORT).exists() {
        return Ok(());
    }
    MODEL_FOLDER.remove(folder).map_err(JobError::file("remove", folder))
}

/// Returns the peak memory of this process in bytes, if the operating system reports it.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = files::read_string(Path::new("/proc/self/status"), MAX_TEXT).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
