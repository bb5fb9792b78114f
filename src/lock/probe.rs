//! Asks a server, before anything is trusted to it, whether it keeps the conditions under which it is written to.
//!
//! A server that ignores them lets two writers overwrite each other's commits without a word.

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _, PutMode, UpdateVersion};
use uuid::Uuid;

use super::conditional::{is_not_implemented, put_if};
use super::{Explain, LockError, Place};
use crate::files;

/// Tries conditional writes on an object of its own, which it deletes: four requests. A folder of this computer is
/// tried by its hard links, by which files are made only where there are none.
///
/// # Errors
/// [`LockError::Unsafe`] where a condition is ignored or not supported, [`LockError::Store`] where the store cannot be
/// written at all.
pub async fn probe(place: &Place) -> Result<(), LockError> {
    match place {
        Place::Folder(folder) => probe_folder(folder),
        Place::Objects { store, root, name, explain } => {
            let path = root.clone().join(format!(".couplet-probe-{}", Uuid::new_v4()));
            let tried = try_conditions(store.as_ref(), &path, name, explain).await;
            let deleted = store.delete(&path).await;
            tried?;
            match deleted {
                // Nobody else knows its name; a retry of the delete finds nothing.
                Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
                Err(e) => Err(LockError::Store {
                    place: name.clone(),
                    problem: explain.explain(&e).in_words(|problem| format!("cannot delete {path}: {problem}")),
                }),
            }
        }
    }
}

async fn try_conditions(
    store: &dyn object_store::ObjectStore,
    path: &Path,
    name: &str,
    explain: &Explain,
) -> Result<(), LockError> {
    let not_safe = |problem: String| LockError::Unsafe { place: name.to_owned(), problem };
    let cannot_write = |e: &StoreError| LockError::Store {
        place: name.to_owned(),
        problem: explain.explain(e).in_words(|problem| {
            format!("writing is refused ({problem}). The credentials need the right to read, write and delete there")
        }),
    };
    let refused = |what: &str, e: &StoreError| {
        not_safe(format!(
            "it does not support writing only {what} ({}); use a server that does, or a local folder",
            explain.explain(e)
        ))
    };
    match put_if(store, path, "1", PutMode::Create).await {
        // The name is new, so this is a write of our own whose answer was lost.
        Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
        Err(
            e
            @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } | StoreError::NotFound { .. }),
        ) => {
            return Err(cannot_write(&e));
        }
        Err(e) if is_not_implemented(&e) => return Err(refused("where nothing is (If-None-Match)", &e)),
        Err(e) => return Err(LockError::Store { place: name.to_owned(), problem: explain.explain(&e) }),
    }
    match put_if(store, path, "2", PutMode::Create).await {
        Err(StoreError::AlreadyExists { .. }) => {}
        Ok(_) => {
            return Err(not_safe(
                "it ignores If-None-Match, so that two writers overwrite each other without noticing; use a server that keeps it, or a local folder"
                    .into(),
            ));
        }
        Err(e) => return Err(refused("where nothing is (If-None-Match)", &e)),
    }
    // A version that it never had: a hash on most servers, a number on Google's.
    let wrong = UpdateVersion { e_tag: Some("\"00000000000000000000000000000000\"".into()), version: Some("1".into()) };
    match put_if(store, path, "3", PutMode::Update(wrong)).await {
        Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } | StoreError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(not_safe(
            "it ignores If-Match, so that two runs cannot be kept apart; use a server that keeps it, or a local folder"
                .into(),
        )),
        Err(e) => Err(refused("over a known version (If-Match)", &e)),
    }
}

fn probe_folder(folder: &std::path::Path) -> Result<(), LockError> {
    use std::fs;
    let place = || folder.display().to_string();
    let name = format!(".couplet-probe-{}", Uuid::new_v4());
    let (file, link) = (folder.join(&name), folder.join(format!("{name}-link")));
    let written = fs::create_dir_all(folder).and_then(|()| files::write(&file, "1"));
    let linked =
        written.map_err(|e| LockError::Store { place: place(), problem: e.to_string().into() }).and_then(|()| {
            let twice = (fs::hard_link(&file, &link), fs::hard_link(&file, &link));
            let problem = match twice {
                (Ok(()), Err(e)) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
                (Err(e), _) => format!("its file system has no hard links ({e})"),
                (_, Ok(())) => "its file system lets a new file take the place of another without noticing".into(),
                (_, Err(e)) => {
                    format!("its file system refuses a second file of one name in another way than others ({e})")
                }
            };
            let problem = format!("{problem}; use a folder on another disk, or an object store");
            Err(LockError::Unsafe { place: place(), problem })
        });
    let _ = fs::remove_file(&link);
    let _ = fs::remove_file(&file);
    linked
}
