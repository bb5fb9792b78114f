//! Probes whether a server honours conditional writes, before any data is written to it.
//!
//! A server that ignores the conditions lets two writers silently overwrite each other's commits.

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};

use super::conditional::{is_not_implemented, put_if};
use super::{Explain, LockError, Place};
use crate::objects::{DurableLocal, NoLinks, explain_local};
use crate::trouble::{Explained, causes};

/// Tests conditional writes with three requests on an object of this name, which has this content or does not exist.
/// Each request writes that content, so a server that ignores conditions changes nothing. The object stays.
///
/// In a local folder the probe tests hard links, which create a file only if there is none of that name.
///
/// # Errors
/// [`LockError::Unsafe`] if a condition is ignored or not supported, [`LockError::Store`] if the store cannot be
/// written at all.
pub async fn probe(place: &Place, name: &str, content: &[u8]) -> Result<(), LockError> {
    match place {
        Place::Folder(folder) => probe_folder(folder, name, content).await,
        Place::Objects { store, root, name: shown, explain } => {
            try_conditions(store.as_ref(), &root.clone().join(name), content, shown, explain).await
        }
    }
}

/// Runs [`probe`] on an object of a bucket and deletes the object afterwards. Concurrent processes must use different
/// names.
///
/// # Errors
/// As [`probe`]; an object that cannot be deleted.
pub async fn probe_and_delete(place: &Place, name: &str) -> Result<(), LockError> {
    let Place::Objects { store, root, name: shown, explain } = place else { return Ok(()) };
    let path = root.clone().join(name);
    let tried = try_conditions(store.as_ref(), &path, b"1", shown, explain).await;
    let deleted = store.delete(&path).await;
    tried?;
    match deleted {
        // A retry of the delete finds nothing.
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(LockError::Store {
            place: shown.clone(),
            problem: explain.explain(&e).in_words(|problem| format!("cannot delete {path}: {problem}")),
        }),
    }
}

async fn try_conditions(
    store: &dyn object_store::ObjectStore,
    path: &Path,
    content: &[u8],
    name: &str,
    explain: &Explain,
) -> Result<(), LockError> {
    let payload = || PutPayload::from(content.to_vec());
    let not_safe = |problem: String| LockError::Unsafe { place: name.to_owned(), problem };
    let cannot_write = |e: &StoreError| LockError::Store {
        place: name.to_owned(),
        problem: explain.explain(e).in_words(|problem| {
            format!("writing is refused ({problem}). The credentials need the right to read, write and delete there")
        }),
    };
    let refused = |what: &str, e: &StoreError| {
        not_safe(format!(
            "it does not support conditional writes with {what} ({}); use a server that does, or a local folder",
            explain.explain(e)
        ))
    };
    match put_if(store, path, payload(), PutMode::Create).await {
        // The object may have existed before, or be a write of our own whose response was lost.
        Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
        Err(
            e
            @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } | StoreError::NotFound { .. }),
        ) => {
            return Err(cannot_write(&e));
        }
        Err(e) if is_not_implemented(&e) => return Err(refused("If-None-Match", &e)),
        Err(e) => return Err(LockError::Store { place: name.to_owned(), problem: explain.explain(&e) }),
    }
    match put_if(store, path, payload(), PutMode::Create).await {
        Err(StoreError::AlreadyExists { .. }) => {}
        Ok(_) => {
            return Err(not_safe(
                "it ignores If-None-Match, so that two writers overwrite each other without noticing; use a \
                 server that supports it, or a local folder"
                    .into(),
            ));
        }
        Err(e) => return Err(refused("If-None-Match", &e)),
    }
    // A version that the object never had: a hash on most servers, a number on Google's.
    let wrong = UpdateVersion { e_tag: Some("\"00000000000000000000000000000000\"".into()), version: Some("1".into()) };
    match put_if(store, path, payload(), PutMode::Update(wrong)).await {
        Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } | StoreError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(not_safe(
            "it ignores If-Match, so that two runs cannot exclude each other; use a server that supports it, or a local folder"
                .into(),
        )),
        Err(e) => Err(refused("If-Match", &e)),
    }
}

async fn probe_folder(folder: &std::path::Path, name: &str, content: &[u8]) -> Result<(), LockError> {
    let place = || folder.display().to_string();
    let failed = |problem: Explained| LockError::Store { place: place(), problem };
    let absolute = std::path::absolute(folder).map_err(|e| failed((&e).into()))?;
    let path = Path::from_absolute_path(absolute).map_err(|e| failed(e.to_string().into()))?.join(name);
    let disk = DurableLocal::new();
    match put_if(&disk, &path, content.to_vec(), PutMode::Create).await {
        Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
        Err(e) if causes(&e).any(<dyn std::error::Error>::is::<NoLinks>) => {
            let problem = format!("{}; use a folder on another disk, or an object store", explain_local(&e));
            return Err(LockError::Unsafe { place: place(), problem });
        }
        Err(e) => return Err(failed(explain_local(&e))),
    }
    match put_if(&disk, &path, content.to_vec(), PutMode::Create).await {
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        Err(e) => Err(failed(explain_local(&e))),
        Ok(_) => Err(LockError::Unsafe {
            place: place(),
            problem: "its file system lets a new file silently replace another one; use a folder on another \
                      disk, or an object store"
                .into(),
        }),
    }
}
