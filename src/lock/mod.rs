//! One run at a time: the lock of a store, in a local folder or on an object store.
//!
//! `<store>/lock.json` says who holds it. In a local folder the file is locked with the system, which ends the lock
//! with its process. On an object store it is a lease:
//!
//! ```text
//!  nothing ──create if absent──▶ held ──renew if unchanged, every third of the lease──▶ held ──▶ released
//!                                 │                                                               │
//!                                 └── unchanged for longer than a lease, as watched ──▶ replaced ◀─┘
//!                                     or its process is known to be dead                if unchanged
//! ```
//!
//! - Every write is conditional on what was read before, so of several runs that want the lock exactly one gets it,
//!   and a late write of a run that has lost it does nothing. The object is never deleted: there is no condition on
//!   deletes that all servers keep.
//! - No clock is compared with another. Whoever wants the lock watches whether it changes, for the length of its lease
//!   and a quarter, by a clock of its own that only goes forward.
//! - A holder that could not renew for the length of its lease has lost it, whether somebody took it or not.
//! - A write whose answer was lost is made again, and refused; so what is there is read after a refusal.
//!
//! The lock saves work; it does not decide what is published. Between [`Held::confirm`] and the commit that follows it, a
//! process can be stopped for longer than its lease; on a network file system whose locks are local to each client, two
//! processes can hold it. So every commit to a sink is conditional on what was there when the run looked at the sink,
//! which it does before its last [`Held::confirm`]: if another run has published since, the commit is refused.

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

pub(crate) use conditional::put_if;
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
pub(crate) const LOCK: &str = "lock.json";

/// For how long a lock on an object store outlives the last sign of life of its holder, if nothing else is asked for.
pub const DEFAULT_LEASE: Duration = Duration::from_mins(1);

/// Who wants a lock, and how much.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The run.
    pub run_id: String,
    /// The name of its pipeline.
    pub pipeline: String,
    /// For how long to wait for a run that is alive; none refuses as soon as it is known to be alive.
    pub wait: Option<Duration>,
    /// How long the lock outlives the last sign of life, on an object store.
    pub lease: Duration,
}

/// The lock, held until it is released. Dropped without [`Held::release`], it is free too, but the next run finds this
/// one among those that were left behind.
#[derive(Debug)]
pub struct Held(Kind);

#[derive(Debug)]
enum Kind {
    File(Box<FileLock>),
    Lease(Lease),
}

/// Takes the lock of a store, waiting as long as the claim says.
///
/// A holder on an object store that shows no life is watched for the length of its lease and a quarter, whatever the
/// claim says: only then it is known whether it is dead. One whose process is known to have ended is replaced at once.
///
/// # Errors
/// [`LockError::Busy`] where another run is alive, the others where the store cannot be used.
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

/// A run that says of itself that it holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The run.
    pub holder: Holder,
    /// Whether its process is alive, if that can be known from here.
    pub is_alive: Option<bool>,
}

/// Looks who holds the lock of a store, and takes nothing; none if nobody does, or who did is known to be dead.
///
/// # Errors
/// A store that cannot be read.
pub async fn look(place: &Place) -> Result<Option<Seen>, LockError> {
    let failed = |problem: Explained| LockError::Store { place: place.to_string(), problem };
    let json = match place {
        Place::Folder(path) => match files::read(&path.join(LOCK), MAX_JSON) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(format!("{}: {e}", path.join(LOCK).display()).into())),
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
    let seen = held.map(|Content { holder, .. }| Seen { is_alive: holder.process.is_alive(), holder });
    Ok(seen.filter(|seen| seen.is_alive != Some(false)))
}

impl Held {
    /// The runs that ended without releasing the lock, and of which nobody has taken note yet: they were killed.
    #[must_use]
    pub fn left_behind(&self) -> &[Holder] {
        match &self.0 {
            Kind::File(lock) => lock.left_behind(),
            Kind::Lease(lease) => lease.left_behind(),
        }
    }

    /// Forgets the runs that were left behind, when note has been taken of them.
    ///
    /// # Errors
    /// A lock that is lost, a store that cannot be written.
    pub async fn settle(&mut self) -> Result<(), LockError> {
        match &mut self.0 {
            Kind::File(lock) => lock.settle(),
            Kind::Lease(lease) => lease.settle().await,
        }
    }

    /// Whether the lock is still held, as far as is known without asking the server.
    ///
    /// # Errors
    /// [`LockError::Lost`].
    pub fn check(&self) -> Result<(), LockError> {
        match &self.0 {
            Kind::File(lock) => lock.check(),
            Kind::Lease(lease) => lease.check(),
        }
    }

    /// Renews the lock now: proves that it is held, and makes it so for a whole lease more. For right before a commit.
    ///
    /// # Errors
    /// [`LockError::Lost`]; [`LockError::Store`] where the server cannot be asked.
    pub async fn confirm(&self) -> Result<(), LockError> {
        match &self.0 {
            Kind::File(lock) => lock.check(),
            Kind::Lease(lease) => lease.confirm().await,
        }
    }

    /// Resolves when the lock is lost, with the reason; never, if it is not.
    pub async fn lost(&self) -> LockError {
        match &self.0 {
            Kind::File(_) => std::future::pending().await,
            Kind::Lease(lease) => lease.lost().await,
        }
    }

    /// Says that the run came to its end, and lets the next one have the lock.
    ///
    /// # Errors
    /// A lock that is lost, a store that cannot be written: the next run then takes this one for killed.
    pub async fn release(self) -> Result<(), LockError> {
        match self.0 {
            Kind::File(lock) => lock.release(),
            Kind::Lease(lease) => lease.release().await,
        }
    }
}
