//! Why a training job could not begin or go on.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::model::LoadError;
use crate::train::TrainError;
use crate::train::calibration::CalibrationError;
use crate::train::labels::LabelError;
use crate::train::masking::MaskingError;
use crate::train::metrics::MetricError;
use crate::train::sampling::SamplingError;

/// A training job that cannot begin or go on. Its last saved state stays, and so does the model it was to replace.
#[derive(Debug, Error)]
pub enum JobError {
    /// A setting that makes no sense.
    #[error("`{setting}`: expected {expected}, found {found}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// The values that would do, or what it needs.
        expected: String,
        /// The value that is there.
        found: String,
    },
    /// There is nothing to learn from.
    #[error("there are no {what} rows; look at the query that selects them")]
    NoRows {
        /// Which rows.
        what: &'static str,
    },
    /// There are rows, and the share that is held out has taken them all.
    #[error(
        "{} held out to measure on, and none is left to learn from; select more {what}s, or set a smaller `validation`",
        if *.rows == 1 { format!("the only {what} is") } else { format!("all {rows} {what}s are") }
    )]
    AllHeldOut {
        /// How many there are.
        rows: usize,
        /// `row` or `text`.
        what: &'static str,
    },
    /// No word is hidden, so that there is nothing to fill in.
    #[error(
        "`mask_probability` = {mask_probability} hides no word of the {sequences} sequences to learn from in the first \
         epoch; raise it, or select longer texts"
    )]
    NothingHidden {
        /// The share of tokens that is hidden.
        mask_probability: f64,
        /// How many sequences there are.
        sequences: usize,
    },
    /// Labels that cannot be used.
    #[error("{what} rows: {source}")]
    Labels {
        /// Which rows.
        what: &'static str,
        /// What is wrong.
        source: LabelError,
    },
    /// A text that the tokenizer refuses.
    #[error("{row}: cannot tokenize its text: {problem}")]
    Text {
        /// What the row is called.
        row: String,
        /// What the tokenizer says.
        problem: String,
    },
    /// The checkpoint to start from cannot be used.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// A step failed.
    #[error(transparent)]
    Train(Box<TrainError>),
    /// Class weights, or a fraction.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Masks that cannot be made.
    #[error(transparent)]
    Masking(#[from] MaskingError),
    /// The validation rows cannot be measured.
    #[error("validation rows: {0}")]
    Metric(#[from] MetricError),
    /// The model cannot be calibrated.
    #[error("cannot calibrate: {0}")]
    Calibration(#[from] CalibrationError),
    /// Another process trains for the same output.
    #[error("{} is in use by another run that trains the same model; wait for it, or end it", folder.display())]
    Busy {
        /// The folder of the state.
        folder: PathBuf,
    },
    /// The folder of the state has files of others.
    #[error("{} {problem}", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Which, and what to do.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `publish`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl From<LoadError> for JobError {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<TrainError> for JobError {
    fn from(error: TrainError) -> Self {
        Self::Train(Box::new(error))
    }
}

impl JobError {
    /// Whether settings, rows or the base are wrong, rather than the training having failed.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Load(error) => error.is_mistake(),
            Self::Train(error) => matches!(&**error, TrainError::Load(error) if error.is_mistake()),
            Self::File { .. } | Self::Busy { .. } => false,
            _ => true,
        }
    }

    /// An error about a file, for `map_err`.
    pub(in crate::train) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
