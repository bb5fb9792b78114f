//! The lock of a store, which admits one run at a time, in a local folder or on an object store.
//!
//! `<store>/lock.json` names the holder. In a local folder the file has an operating-system lock, which is released
//! when the process ends. On an object store the lock is a lease:
//!
//! ```text
//!  nothing ──create if absent──▶ held ──renew if unchanged, every third of the lease──▶ held ──▶ released
//!                                 │                                                               │
//!                                 └── unchanged for longer than a lease, as watched ──▶ replaced ◀─┘
//!                                     or its process is known to be dead                if unchanged
//! ```
//!
//! - Every write is conditional on the version that was read before. Of several runs that want the lock exactly one
//!   gets it, and a late write of a run that has lost it does nothing. The object is never deleted, because no
//!   conditional delete works on all servers.
//! - Clocks of different machines are never compared. A run that wants the lock watches it for changes over 1.25 times
//!   its lease, by its own monotonic clock.
//! - A holder that could not renew within its lease has lost the lock, even if no other run took it.
//! - A write whose response was lost is retried and then refused, so the object is read after each refusal.
//!
//! The lock saves work; it does not decide what is published. Between [`Held::confirm`] and the commit that follows it,
//! a process can be stopped for longer than its lease. On a network file system whose locks are local to each client,
//! two processes can hold the lock. So every commit to a sink is conditional on the state of the sink that the run read
//! before its last [`Held::confirm`]: if another run has published since, the commit is refused.

mod conditional;
mod error;
mod file;
mod holder;
mod lease;
mod probe;
mod process;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt;

pub use conditional::put_if;
pub use error::LockError;
use file::FileLock;
pub use holder::Holder;
use holder::{Content, State};
use lease::{Lease, Object};
pub use probe::{probe, probe_and_delete};
pub use process::{Process, host};

use crate::files::{self, MAX_JSON};
pub use crate::objects::{Explain, LockPlace as Place};
pub use crate::trouble::Explained;

/// The name of the lock within a store.
pub const LOCK: &str = "lock.json";

/// The default lease: how long a lock on an object store stays valid after its last renewal.
pub const DEFAULT_LEASE: Duration = Duration::from_mins(1);

/// A request for a lock.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The id of the run.
    pub run_id: String,
    /// The name of its pipeline.
    pub pipeline: String,
    /// The maximum time to wait for a live run. If `None`, the claim fails as soon as the holder is known to be alive.
    pub wait: Option<Duration>,
    /// The lease: how long the lock on an object store stays valid after its last renewal.
    pub lease: Duration,
}

/// The lock, held until it is released. Dropping it without [`Held::release`] also frees it, but then
/// [`Held::left_behind`] of the next run lists this one.
#[derive(Debug)]
pub struct Held(Kind);

#[derive(Debug)]
enum Kind {
    File(Box<FileLock>),
    Lease(Lease),
}

/// Takes the lock of a store, waiting for at most the time in the claim.
///
/// A holder on an object store that does not renew is watched for 1.25 times its lease, even if the claim allows less
/// time: only then is it known to be dead. A holder whose process is known to have ended is replaced at once.
///
/// # Errors
/// [`LockError::Busy`] if another run is alive, the others if the store cannot be used.
pub async fn acquire(place: &Place, claim: &Claim) -> Result<Held, LockError> {
    Ok(Held(match place {
        Place::Folder(path) => Kind::File(Box::new(FileLock::acquire(path, claim).await?)),
        Place::Objects { store, root, name, explain } => {
            let (store, path) = (Arc::clone(store), root.clone().join(LOCK));
            let object = Object { store, path, place: name.clone(), explain: explain.clone() };
            Kind::Lease(watch::acquire(object, claim).await?)
        }
    }))
}

/// A run that a lock names as its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderStatus {
    /// The run.
    pub holder: Holder,
    /// True if its process is alive; none if this machine cannot tell.
    pub is_alive: Option<bool>,
}

/// Reads the holder of a store's lock without taking it; none if nobody holds it or the holder is known to be dead.
///
/// # Errors
/// A store that cannot be read.
pub async fn current_holder(place: &Place) -> Result<Option<HolderStatus>, LockError> {
    let failed = |problem: Explained| LockError::Store { place: place.to_string(), problem };
    let json = match place {
        Place::Folder(path) => match files::read(&path.join(LOCK), MAX_JSON) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let named = |e: &str| format!("{}: {e}", path.join(LOCK).display());
                return Err(failed(Explained::of(&e).in_words(named)));
            }
        },
        Place::Objects { store, root, .. } => {
            let found = match store.get(&root.clone().join(LOCK)).await {
                Ok(found) => found.bytes().await,
                Err(e) => Err(e),
            };
            match found {
                Ok(json) => json.into(),
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(failed(place.explain(&e))),
            }
        }
    };
    let held = Content::from_json(&json).filter(|content| content.state == State::Held);
    let seen = held.map(|Content { holder, .. }| HolderStatus { is_alive: holder.process.is_alive(), holder });
    Ok(seen.filter(|seen| seen.is_alive != Some(false)))
}

impl Held {
    /// Returns the runs that were killed while holding the lock and that no later run has recorded yet.
    #[must_use]
    pub fn left_behind(&self) -> &[Holder] {
        match &self.0 {
            Kind::File(lock) => lock.left_behind(),
            Kind::Lease(lease) => lease.left_behind(),
        }
    }

    /// Clears the list of killed runs after they have been recorded.
    ///
    /// # Errors
    /// A lock that is lost, a store that cannot be written.
    pub async fn settle(&mut self) -> Result<(), LockError> {
        match &mut self.0 {
            Kind::File(lock) => lock.settle(),
            Kind::Lease(lease) => lease.settle().await,
        }
    }

    /// Checks that the lock is still held, without a request to the server.
    ///
    /// # Errors
    /// [`LockError::Lost`].
    pub fn check(&self) -> Result<(), LockError> {
        match &self.0 {
            Kind::File(lock) => lock.check(),
            Kind::Lease(lease) => lease.check(),
        }
    }

    /// Renews the lock now, which proves that it is held and extends it by a full lease. Call it right before a commit.
    ///
    /// # Errors
    /// [`LockError::Lost`]; [`LockError::Store`] if the server cannot be reached.
    pub async fn confirm(&self) -> Result<(), LockError> {
        match &self.0 {
            Kind::File(lock) => lock.check(),
            Kind::Lease(lease) => lease.confirm().await,
        }
    }

    /// Resolves with the reason when the lock is lost; never resolves otherwise.
    pub async fn lost(&self) -> LockError {
        match &self.0 {
            Kind::File(_) => std::future::pending().await,
            Kind::Lease(lease) => lease.lost().await,
        }
    }

    /// Records that the run has finished and releases the lock.
    ///
    /// # Errors
    /// A lock that is lost, a store that cannot be written. The next run then treats this one as killed.
    pub async fn release(self) -> Result<(), LockError> {
        match self.0 {
            Kind::File(lock) => lock.release(),
            Kind::Lease(lease) => lease.release().await,
        }
    }
}
