//! The state folder of a training run: `<output>.training/`.
//!
//! | File | Content |
//! |---|---|
//! | `lock` | the lock, held by the training process |
//! | `state.safetensors` | everything that the next step depends on: weights, moments, [`Progress`], the job's key |
//! | `best-N-KEY.safetensors` | the weights after epoch N of the job, as long as no later epoch is better |
//!
//! A folder with other files is refused, and only these files are ever removed.
//!
//! Each file is written atomically. The best weights are written before the state that refers to them, and removed
//! after a state that refers to others. A process killed at any moment therefore leaves a state whose files all exist.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use couplet_encoder::model::{Data, Entry, write_weights};
use couplet_storage::backtrace::message;
use couplet_storage::files::{self, AtomicFile, FolderKind};

use super::JobError;
use super::progress::Progress;
use crate::Trainer;
use crate::state::STEPS;

const STATE: &str = "state.safetensors";
const LOCK: &str = "lock";
const KEY: &str = "job.key";
/// The [`Progress`] as JSON. Earlier versions had `progress.counts` and others: their states count as incomplete.
const PROGRESS: &str = "progress";

/// The number of hexadecimal digits of the job's key in the name of a weights file.
const KEY_DIGITS: usize = 16;

/// The kind of this folder, with the names that it may contain.
const FOLDER: FolderKind =
    FolderKind { name: "a training", marker: STATE, has: |name| name == STATE || name == LOCK || is_best(name) };

/// Returns true if this is the name of a file with a job's best weights.
fn is_best(name: &str) -> bool {
    let parts = || name.strip_prefix("best-")?.strip_suffix(".safetensors")?.split_once('-');
    parts().is_some_and(|(epoch, key)| {
        epoch.parse::<u64>().is_ok() && key.len() == KEY_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Returns the reason why a folder cannot be used as a state folder, such as files that couplet did not write; none if
/// it can be used.
#[must_use]
pub fn foreign_state(folder: &Path) -> Option<String> {
    match FOLDER.foreign_in(folder) {
        Ok(name) => name.map(|name| {
            let name = name.display();
            format!(
                "has `{name}`, which couplet did not write, and is where a training saves its state; move it elsewhere, or \
                 give the model another name"
            )
        }),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

/// The result of looking for the state of an earlier run.
pub(super) enum Found {
    Nothing,
    /// A state that cannot be used, with the reason.
    Unusable(String),
    State(Progress),
}

/// The state folder of a running training, locked.
#[derive(Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    key: blake3::Hash,
    _lock: File,
}

impl StateFolder {
    /// Returns the state folder of an output.
    pub(super) fn path_for(output: &Path) -> PathBuf {
        with_suffix(output, ".training")
    }

    /// Returns the number of steps that an earlier run of the job completed and saved. Creates, locks and removes
    /// nothing.
    pub(super) fn steps_done(output: &Path, key: blake3::Hash) -> Option<u64> {
        let path = Self::path_for(output).join(STATE);
        if !path.exists() {
            return None;
        }
        let tensors = load(&path).ok()?;
        let same = bytes_of(&tensors, KEY)? == key.as_bytes() && tensors.contains_key(PROGRESS);
        let steps = tensors.get(STEPS)?.to_vec1::<i64>().ok()?;
        steps.first().filter(|_| same).map(|steps| steps.cast_unsigned())
    }

    /// Removes the state folder of an output if it belongs to this finished job and no other process uses it. A process
    /// that was killed right after publishing its model leaves such a folder.
    pub(super) fn discard_done(output: &Path, key: blake3::Hash) -> Result<(), JobError> {
        if Self::steps_done(output, key).is_none() {
            return Ok(());
        }
        match Self::open(output, key) {
            Err(JobError::Busy { .. }) => Ok(()),
            opened => opened?.discard(),
        }
    }

    /// Opens the state folder of an output for a job, and locks it.
    pub(super) fn open(output: &Path, key: blake3::Hash) -> Result<Self, JobError> {
        let path = Self::path_for(output);
        fs::create_dir_all(&path).map_err(JobError::file("make", &path))?;
        if let Some(problem) = foreign_state(&path) {
            return Err(JobError::Foreign { folder: path, problem });
        }
        let lock = path.join(LOCK);
        let file = files::open_with(File::options().create(true).write(true).truncate(false), &lock);
        let file = file.map_err(JobError::file("write", &lock))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(JobError::Busy { folder: path }),
            // The file system has no locks: the user must avoid two runs at a time.
            Err(TryLockError::Error(e)) => tracing::warn!("cannot lock {}: {e}", lock.display()),
            Ok(()) => {}
        }
        Ok(Self { path, key, _lock: file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn key(&self) -> String {
        self.key.to_hex().to_string()
    }

    /// Restores a trainer from the state that the last run of this job saved.
    pub(super) fn restore(&self, trainer: &mut Trainer) -> Result<Found, JobError> {
        let path = self.path.join(STATE);
        if !path.exists() {
            return Ok(Found::Nothing);
        }
        let unusable = |problem: String| Ok(Found::Unusable(problem));
        let tensors = match load(&path) {
            Ok(tensors) => tensors,
            Err(e) => return unusable(format!("it cannot be read: {e}")),
        };
        if bytes_of(&tensors, KEY).as_deref() != Some(self.key.as_bytes()) {
            return unusable("it belongs to a job with other settings, data or base model".into());
        }
        let Some(progress) = bytes_of(&tensors, PROGRESS).and_then(|json| Progress::from_json(&json)) else {
            return unusable("it is incomplete".into());
        };
        if let Some(best) = progress.best_epoch()
            && !self.best(best).exists()
        {
            return unusable(format!("the weights of epoch {best} are missing"));
        }
        match trainer.restore(&tensors) {
            Ok(()) => Ok(Found::State(progress)),
            Err(e) => unusable(e.to_string()),
        }
    }

    /// Saves the state of a training run.
    pub(super) fn save(&self, trainer: &Trainer, progress: &Progress) -> Result<(), JobError> {
        let mut entries = trainer.state_entries();
        let json = serde_json::to_vec(progress).map_err(|e| JobError::file("write", &self.path)(e.into()))?;
        entries.push(Entry::row(PROGRESS, Data::U8(json)));
        entries.push(Entry::row(KEY, Data::U8(self.key.as_bytes().to_vec())));
        write_file(&self.path.join(STATE), entries)?;
        // From now on, no saved state refers to an older best epoch.
        let best = progress.best_epoch().map(|epoch| self.best(epoch));
        for entry in self.path.read_dir().map_err(JobError::file("read", &self.path))?.flatten() {
            if is_best(&entry.file_name().to_string_lossy()) && Some(entry.path()) != best {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Saves the weights of an epoch that is better than all earlier ones.
    pub(super) fn save_best(&self, trainer: &Trainer, epoch: u64) -> Result<(), JobError> {
        write_file(&self.best(epoch), trainer.weight_entries())
    }

    /// Returns the path of an epoch's weights.
    pub(super) fn best(&self, epoch: u64) -> PathBuf {
        // The name has the job's key, as the folder may hold another job's state until this job's state is saved.
        self.path.join(format!("best-{epoch}-{}.safetensors", &self.key()[..KEY_DIGITS]))
    }

    /// Removes the folder, when the job is done.
    pub(super) fn discard(self) -> Result<(), JobError> {
        FOLDER.remove(&self.path).map_err(JobError::file("remove", &self.path))
    }
}

/// Reads the tensors of a file.
pub(super) fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>, JobError> {
    load(path).map_err(JobError::file("read", path))
}

fn load(path: &Path) -> io::Result<HashMap<String, Tensor>> {
    let mut bytes = Vec::new();
    files::open(path)?.read_to_end(&mut bytes)?;
    candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| io::Error::other(message(&e)))
}

fn bytes_of(tensors: &HashMap<String, Tensor>, name: &str) -> Option<Vec<u8>> {
    tensors.get(name)?.to_vec1::<u8>().ok()
}

/// Appends a suffix to the last component of a path.
#[must_use]
pub fn with_suffix(output: &Path, suffix: &str) -> PathBuf {
    let mut path = output.components().collect::<PathBuf>().into_os_string();
    path.push(suffix);
    path.into()
}

fn write_file(path: &Path, entries: Vec<Entry>) -> Result<(), JobError> {
    let write = || {
        let mut file = AtomicFile::create(path)?;
        write_weights(entries, &mut file)?;
        file.flush()?;
        file.publish()
    };
    write().map(|_| ()).map_err(JobError::file("write", path))
}
