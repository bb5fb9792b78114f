//! Errors that stop a training job before its first step or later.

use std::io;
use std::path::{Path, PathBuf};

use couplet_encoder::model::LoadError;
use thiserror::Error;

use crate::TrainError;
use crate::masking::MaskingError;
use crate::sampling::SamplingError;
use crate::statistics::calibration::CalibrationError;
use crate::statistics::labels::LabelError;
use crate::statistics::metrics::MetricError;

/// An error that stops a training job before its first step or later. The last saved state and the previous model are
/// kept.
#[derive(Debug, Error)]
pub enum JobError {
    /// A setting is outside its allowed values.
    #[error("`{setting}`: expected {expected}, found {found}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// The allowed values, or what the setting requires.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// There are no training rows.
    #[error("there are no {what} rows; look at the query that selects them")]
    NoRows {
        /// The kind of rows.
        what: &'static str,
    },
    /// The held-out share takes every row, so none is left for training.
    #[error(
        "{} held out, and none is left to train on; select more {what}s, or set a smaller `validation`",
        if *.rows == 1 { format!("the only {what} is") } else { format!("all {rows} {what}s are") }
    )]
    AllHeldOut {
        /// The number of rows.
        rows: usize,
        /// `row` or `text`.
        what: &'static str,
    },
    /// No token is masked, so there is nothing to predict.
    #[error(
        "`mask_probability` = {mask_probability} masks no word of the {sequences} training sequences in the first epoch; \
         raise it, or select longer texts"
    )]
    NothingMasked {
        /// The share of tokens that is masked.
        mask_probability: f64,
        /// The number of sequences.
        sequences: usize,
    },
    /// The labels cannot be used.
    #[error("{what} rows: {source}")]
    Labels {
        /// The kind of rows.
        what: &'static str,
        /// The underlying error.
        source: LabelError,
    },
    /// The tokenizer rejects a text.
    #[error("{row}: cannot tokenize its text: {problem}")]
    Text {
        /// The row's name in messages.
        row: String,
        /// The tokenizer's message.
        problem: String,
    },
    /// The base checkpoint cannot be used.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// A training step failed.
    #[error(transparent)]
    Train(Box<TrainError>),
    /// Invalid class weights, or an invalid fraction.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Invalid masking settings.
    #[error(transparent)]
    Masking(#[from] MaskingError),
    /// The metrics of the validation rows cannot be computed.
    #[error("validation rows: {0}")]
    Metric(#[from] MetricError),
    /// The model cannot be calibrated.
    #[error("cannot calibrate: {0}")]
    Calibration(#[from] CalibrationError),
    /// Another process trains for the same output.
    #[error("{} is in use by another run that trains the same model; wait for it, or end it", folder.display())]
    Busy {
        /// The state folder.
        folder: PathBuf,
    },
    /// The state folder contains files that couplet did not write.
    #[error("{} {problem}", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// The file, and how to fix it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `publish`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
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
    /// Returns true if the settings, the rows or the base checkpoint are invalid, so that a retry cannot succeed.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Load(error) => error.is_mistake(),
            Self::Train(error) => matches!(&**error, TrainError::Load(error) if error.is_mistake()),
            Self::File { .. } | Self::Busy { .. } => false,
            _ => true,
        }
    }

    /// Builds a file error, for `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
