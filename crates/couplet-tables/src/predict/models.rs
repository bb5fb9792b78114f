//! The models of a session. Each model is loaded once, when the first window needs it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use couplet_encoder::scorer::{Counts, Pool, Precision, PrecisionSetting, Scorer, ScorerError, ScorerOptions};
use couplet_storage::place::{self, Place};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The precision setting that lets each process choose the precision.
const AUTO: &str = "auto";

/// Options for running models, used for every model that has no options of its own.
pub type ModelOptions = ScorerOptions;

/// Loads models by their SQL name and caches them for the session.
#[derive(Debug)]
pub struct Models {
    pool: Pool,
    base: PathBuf,
    default_options: ModelOptions,
    options: HashMap<Place, ModelOptions>,
    /// Loaded models in order of use, the most recent last.
    loaded: Mutex<Vec<(String, Arc<OnceCell<Scorer>>)>>,
    max_loaded: usize,
    /// The session id, which distinguishes this session's models in other processes.
    session: Uuid,
}

/// The JSON form of a model name in a plan for another process, with the options to run the model.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableModel {
    model: String,
    max_length: Option<usize>,
    batch_tokens: Option<usize>,
    /// `auto`, or the name of a precision.
    precision: String,
    /// The requesting session. A process loads a model once per session, because the model at a location may change
    /// between queries.
    session: Uuid,
}

impl Models {
    /// Creates an empty set whose models run on `pool`. Relative paths are resolved against `base`.
    #[must_use]
    pub fn new(pool: Pool, base: PathBuf) -> Self {
        let (default_options, options) = (ModelOptions::default(), HashMap::new());
        Self {
            pool,
            base,
            default_options,
            options,
            loaded: Mutex::default(),
            max_loaded: usize::MAX,
            session: Uuid::new_v4(),
        }
    }

    /// Sets the options for all models.
    #[must_use]
    pub fn with_options(mut self, options: ModelOptions) -> Self {
        self.default_options = options;
        self
    }

    /// Sets the options of one model, replacing the defaults.
    #[must_use]
    pub fn with_model_options(mut self, name: &str, options: ModelOptions) -> Self {
        if let Ok(place) = place::model_place(name) {
            self.options.insert(canonical(place), options);
        }
        self
    }

    /// Limits the number of cached models. The least recently used model is dropped first.
    #[must_use]
    pub fn with_max_loaded(mut self, max_loaded: usize) -> Self {
        self.max_loaded = max_loaded;
        self
    }

    /// Returns the thread pool that the models run on.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the model with that name, loading it on first use.
    ///
    /// # Errors
    /// A model that cannot be loaded. The next call retries.
    pub async fn get(&self, name: &str) -> Result<Scorer, ScorerError> {
        let cell = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let known = loaded.iter().position(|(known, _)| known == name).map(|place| loaded.remove(place).1);
            let cell = known.unwrap_or_default();
            loaded.push((name.to_owned(), Arc::clone(&cell)));
            if loaded.len() > self.max_loaded {
                loaded.remove(0);
            }
            cell
        };
        let load = || async {
            let (place, options) = self.resolve(name)?;
            Scorer::open(&place, options, &self.pool).await
        };
        cell.get_or_try_init(load).await.cloned()
    }

    /// Resolves a model name to its location and options.
    fn resolve(&self, name: &str) -> Result<(Place, ModelOptions), ScorerError> {
        let wrong = |problem: String| ScorerError::Name { name: name.into(), problem };
        if name.starts_with('{') {
            let portable: PortableModel = serde_json::from_str(name).map_err(|e| wrong(e.to_string()))?;
            let precision = match portable.precision.as_str() {
                AUTO => PrecisionSetting::Auto,
                other => {
                    let known = Precision::ALL.into_iter().find(|known| known.to_string() == other);
                    PrecisionSetting::Of(known.ok_or_else(|| wrong(format!("precision {other} is unknown here")))?)
                }
            };
            let options = ModelOptions {
                max_length: portable.max_length,
                batch_tokens: portable.batch_tokens,
                precision,
                device: self.default_options.device,
            };
            return Ok((place::model_place(&portable.model).map_err(wrong)?, options));
        }
        let place = match place::model_place(name).map_err(wrong)? {
            Place::Local(path) => Place::Local(self.base.join(path)),
            other => other,
        };
        let options = self.options.get(&canonical(place.clone())).unwrap_or(&self.default_options);
        Ok((place, *options))
    }

    /// Returns the name under which the `Models` of another process load the model and run it with the same options.
    ///
    /// # Panics
    /// Never: strings and numbers have a JSON form.
    #[must_use]
    pub fn portable_name(&self, name: &str) -> String {
        // The other process reports a name without a model.
        let Ok((place, options)) = self.resolve(name) else { return name.to_owned() };
        let model = match place {
            Place::Local(path) => std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned(),
            other => other.to_string(),
        };
        let precision = match options.precision {
            PrecisionSetting::Auto => AUTO.to_owned(),
            PrecisionSetting::Of(precision) => precision.to_string(),
        };
        let ModelOptions { max_length, batch_tokens, .. } = options;
        let portable = PortableModel { model, max_length, batch_tokens, precision, session: self.session };
        serde_json::to_string(&portable).expect("strings and numbers are JSON")
    }

    /// Returns the counts of each loaded model, by name.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, Counts)> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().filter_map(|(name, cell)| Some((name.clone(), cell.get()?.tally().counts()))).collect()
    }
}

/// Canonicalizes the path of a local folder, so that different spellings compare equal.
fn canonical(place: Place) -> Place {
    match place {
        Place::Local(folder) => Place::Local(folder.canonicalize().unwrap_or(folder)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sent_model_is_shared_within_a_session_only() {
        let models = || Models::new(Pool::new(Some(1)).unwrap(), PathBuf::from("/models"));
        let (one, next) = (models(), models());
        assert_eq!(one.portable_name("mrpc"), one.portable_name("mrpc"));
        assert_ne!(one.portable_name("mrpc"), next.portable_name("mrpc"));
        let (place, options) = next.resolve(&one.portable_name("mrpc")).unwrap();
        assert_eq!(place, Place::Local(PathBuf::from("/models/mrpc")));
        assert_eq!(options.max_length, None);
    }
}
