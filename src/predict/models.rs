//! The models of a session: each is loaded once, when the first window needs it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::config::{self, Place};
use crate::scorer::{Counts, Pool, Precision, PrecisionSetting, Scorer, ScorerError, ScorerOptions};

/// A precision that each process decides on itself.
const AUTO: &str = "auto";

/// How the models of a session are run, unless a model has options of its own.
pub type ModelOptions = ScorerOptions;

/// Loads models by the name that SQL gives them and keeps them for the session.
#[derive(Debug)]
pub struct Models {
    pool: Pool,
    base: PathBuf,
    default_options: ModelOptions,
    options: HashMap<Place, ModelOptions>,
    /// Those that were asked for last come last.
    loaded: Mutex<Vec<(String, Arc<OnceCell<Scorer>>)>>,
    most: usize,
    /// Sets the models that are sent from here apart from those of others.
    #[cfg(feature = "cluster")]
    session: Uuid,
}

/// A model as a plan names it on its way to another process: with how it is to be run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    model: String,
    max_length: Option<usize>,
    batch_tokens: Option<usize>,
    /// `auto`, or the name of a precision.
    precision: String,
    /// Who asks: a model is loaded once for each, as what is at a place may be another model at the next query.
    session: Uuid,
}

impl Models {
    /// Makes an empty set whose models run on `pool`; relative paths start at `base`.
    #[must_use]
    pub fn new(pool: Pool, base: PathBuf) -> Self {
        let (default_options, options) = (ModelOptions::default(), HashMap::new());
        Self {
            pool,
            base,
            default_options,
            options,
            loaded: Mutex::default(),
            most: usize::MAX,
            #[cfg(feature = "cluster")]
            session: Uuid::new_v4(),
        }
    }

    /// Runs every model with these options.
    #[must_use]
    pub fn with_options(mut self, options: ModelOptions) -> Self {
        self.default_options = options;
        self
    }

    /// Runs the model of that name with options of its own.
    #[must_use]
    pub fn with_model_options(mut self, name: &str, options: ModelOptions) -> Self {
        if let Ok(place) = config::model_place(name) {
            self.options.insert(canonical(place), options);
        }
        self
    }

    /// Keeps only so many models: those that were asked for last.
    #[must_use]
    pub fn keeping(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The threads that the models run on.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the model of that name, loading it if this is the first call for it.
    ///
    /// # Errors
    /// A model that cannot be loaded; the next call tries again.
    pub async fn get(&self, name: &str) -> Result<Scorer, ScorerError> {
        let cell = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let known = loaded.iter().position(|(known, _)| known == name).map(|place| loaded.remove(place).1);
            let cell = known.unwrap_or_default();
            loaded.push((name.to_owned(), Arc::clone(&cell)));
            if loaded.len() > self.most {
                loaded.remove(0);
            }
            cell
        };
        let load = || async {
            let (place, options) = self.asked(name)?;
            Scorer::open(&place, options, &self.pool).await
        };
        cell.get_or_try_init(load).await.cloned()
    }

    /// Where the model of that name is, and how it is to be run.
    fn asked(&self, name: &str) -> Result<(Place, ModelOptions), ScorerError> {
        let wrong = |problem: String| ScorerError::Name { name: name.into(), problem };
        if name.starts_with('{') {
            let sent: Sent = serde_json::from_str(name).map_err(|e| wrong(e.to_string()))?;
            let precision = match sent.precision.as_str() {
                AUTO => PrecisionSetting::Auto,
                other => {
                    let known = Precision::ALL.into_iter().find(|known| known.to_string() == other);
                    PrecisionSetting::Of(known.ok_or_else(|| wrong(format!("precision {other} is unknown here")))?)
                }
            };
            let options = ModelOptions {
                max_length: sent.max_length,
                batch_tokens: sent.batch_tokens,
                precision,
                device: self.default_options.device,
            };
            return Ok((config::model_place(&sent.model).map_err(wrong)?, options));
        }
        let place = match config::model_place(name).map_err(wrong)? {
            Place::Local(path) => Place::Local(self.base.join(path)),
            elsewhere => elsewhere,
        };
        let options = self.options.get(&canonical(place.clone())).unwrap_or(&self.default_options);
        Ok((place, *options))
    }

    /// The name by which the `Models` of another process know the model of that name, and run it as these do.
    #[cfg(feature = "cluster")]
    pub(crate) fn sent(&self, name: &str) -> String {
        // What names nothing is for the other process to say.
        let Ok((place, options)) = self.asked(name) else { return name.to_owned() };
        let model = match place {
            Place::Local(path) => std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned(),
            elsewhere => elsewhere.to_string(),
        };
        let precision = match options.precision {
            PrecisionSetting::Auto => AUTO.to_owned(),
            PrecisionSetting::Of(precision) => precision.to_string(),
        };
        let ModelOptions { max_length, batch_tokens, .. } = options;
        let sent = Sent { model, max_length, batch_tokens, precision, session: self.session };
        serde_json::to_string(&sent).expect("strings and numbers are JSON")
    }

    /// What each loaded model has done so far, by name.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, Counts)> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().filter_map(|(name, cell)| Some((name.clone(), cell.get()?.tally().counts()))).collect()
    }
}

/// One spelling for a folder that can be reached by several.
fn canonical(place: Place) -> Place {
    match place {
        Place::Local(folder) => Place::Local(folder.canonicalize().unwrap_or(folder)),
        elsewhere => elsewhere,
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::*;

    #[test]
    fn a_sent_model_is_shared_within_a_session_only() {
        let models = || Models::new(Pool::new(Some(1)).unwrap(), PathBuf::from("/models"));
        let (one, next) = (models(), models());
        assert_eq!(one.sent("mrpc"), one.sent("mrpc"));
        assert_ne!(one.sent("mrpc"), next.sent("mrpc"));
        let (place, options) = next.asked(&one.sent("mrpc")).unwrap();
        assert_eq!(place, Place::Local(PathBuf::from("/models/mrpc")));
        assert_eq!(options.max_length, None);
    }
}
