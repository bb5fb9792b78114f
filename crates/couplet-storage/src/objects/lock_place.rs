//! The folder or the prefix of a store that a lock is for.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use super::error::{explain_local, explain_without_place};
use crate::trouble::Explained;

/// The location of a store.
#[derive(Debug, Clone)]
pub enum LockPlace {
    /// A local or mounted folder.
    Folder(PathBuf),
    /// Objects under a prefix.
    Objects {
        /// The server, and a bucket on it.
        store: Arc<dyn ObjectStore>,
        /// The prefix within the bucket.
        root: Path,
        /// The name in messages: the URL without secrets.
        name: String,
        /// Explains errors of the server.
        explain: Explain,
    },
}

impl std::fmt::Display for LockPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Objects { name, .. } => f.write_str(name),
        }
    }
}

impl LockPlace {
    /// Explains an error of the store and how to fix it.
    #[must_use]
    pub fn explain(&self, error: &object_store::Error) -> Explained {
        match self {
            Self::Folder(_) => explain_local(error),
            Self::Objects { explain, .. } => explain.explain(error),
        }
    }
}

/// Explains errors of a server to the user, without repeating secrets.
#[derive(Clone)]
pub struct Explain(Arc<dyn Fn(&object_store::Error) -> Explained + Send + Sync>);

impl Explain {
    /// Wraps a function that explains errors of one service with its settings.
    pub fn new(explain: impl Fn(&object_store::Error) -> Explained + Send + Sync + 'static) -> Self {
        Self(Arc::new(explain))
    }

    pub(crate) fn explain(&self, error: &object_store::Error) -> Explained {
        (self.0)(error)
    }
}

/// Summarizes the response of the server.
impl Default for Explain {
    fn default() -> Self {
        Self::new(|error| explain_without_place(error).map_or_else(|| explain_local(error), Into::into))
    }
}

impl std::fmt::Debug for Explain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Explain")
    }
}
