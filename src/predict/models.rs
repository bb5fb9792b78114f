//! The models of a session: each is loaded once, when the first window needs it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::config::{self, Place};
use crate::scorer::{Counts, Pool, Scorer, ScorerError, ScorerOptions};

/// How the models of a session are run, unless a model has options of its own.
pub type ModelOptions = ScorerOptions;

/// Loads models by the name that SQL gives them and keeps them for the session.
#[derive(Debug)]
pub struct Models {
    pool: Pool,
    base: PathBuf,
    default_options: ModelOptions,
    options: HashMap<Place, ModelOptions>,
    loaded: Mutex<HashMap<String, Arc<OnceCell<Scorer>>>>,
}

impl Models {
    /// Makes an empty set whose models run on `pool`; relative paths start at `base`.
    #[must_use]
    pub fn new(pool: Pool, base: PathBuf) -> Self {
        Self { pool, base, default_options: ModelOptions::default(), options: HashMap::new(), loaded: Mutex::default() }
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
            Arc::clone(loaded.entry(name.to_owned()).or_default())
        };
        let load = || async {
            let place =
                match config::model_place(name).map_err(|problem| ScorerError::Name { name: name.into(), problem })? {
                    Place::Local(path) => Place::Local(self.base.join(path)),
                    elsewhere => elsewhere,
                };
            let options = self.options.get(&canonical(place.clone())).unwrap_or(&self.default_options);
            Scorer::open(&place, *options, &self.pool).await
        };
        cell.get_or_try_init(load).await.cloned()
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
