//! Resolves a revision to a commit once per process. A branch may move during a run, and two stages or two calls of
//! `predict` that name the same model must use the same commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::api::{Hub, Listing};
use super::cache::Snapshot;
use super::settings::Settings;
use crate::objects::{ObjectsError, Trouble};
use crate::place::{HubModel, Place};

/// The commit of a revision when this process first resolved it.
pub(super) struct Resolved {
    pub(super) commit: String,
    /// The hub's listing of the commit; `None` if no request was sent or the hub did not answer.
    pub(super) listing: Option<Listing>,
    /// The error if the hub did not answer.
    pub(super) unreachable: Option<ObjectsError>,
}

/// The endpoint of a hub, the folder of its cache, a repository and a revision.
type Key = (String, PathBuf, String, String);

/// The revisions that are resolved or being resolved.
static KNOWN: Mutex<BTreeMap<Key, Arc<OnceCell<Arc<Resolved>>>>> = Mutex::new(BTreeMap::new());

/// Resolves a model's revision to a commit. Errors are not cached: the next call tries again.
pub(super) async fn resolve(settings: &Settings, model: &HubModel) -> Result<Arc<Resolved>, ObjectsError> {
    let key = (
        settings.endpoint.clone(),
        settings.cache.path().clone(),
        model.repository().to_owned(),
        model.revision().to_owned(),
    );
    let cell = Arc::clone(KNOWN.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
    cell.get_or_try_init(|| async { resolve_uncached(settings, model).await.map(Arc::new) }).await.cloned()
}

async fn resolve_uncached(settings: &Settings, model: &HubModel) -> Result<Resolved, ObjectsError> {
    let cached = || {
        let pinned = Some(model.revision().to_owned()).filter(|_| model.is_pinned());
        pinned.or_else(|| Snapshot::commit_of(settings, model))
    };
    if settings.offline {
        let Some(commit) = cached() else {
            let problem = super::not_cached(settings, model);
            return Err(ObjectsError::new(&Place::Hub(model.clone()), Trouble::Missing, problem));
        };
        return Ok(Resolved { commit, listing: None, unreachable: None });
    }
    let hub = Hub::new(settings, model)?;
    match hub.listing().await {
        // A pinned commit must be that very commit.
        Ok(listing) if model.is_pinned() && listing.commit != model.revision() => {
            Err(hub.unsupported(&format!("it returned another commit than the requested one, {}", listing.commit)))
        }
        Ok(listing) => Ok(Resolved { commit: listing.commit.clone(), listing: Some(listing), unreachable: None }),
        Err(error) if error.trouble == Trouble::Unreachable => match cached() {
            Some(commit) => Ok(Resolved { commit, listing: None, unreachable: Some(error) }),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}
