//! A held lock on an object store: renewed in the background, with detection of its loss.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutResult, UpdateVersion};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;

use super::conditional::put_if;
use super::holder::{Content, State};
use super::{Explain, Explained, Holder, LockError};

/// A lock that this process holds.
#[derive(Debug)]
pub(super) struct Lease {
    inner: Arc<Inner>,
    left_behind: Vec<Holder>,
    /// Stops the renewals. If it is dropped without a message, the lock is also marked as abandoned.
    renewals: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Inner {
    object: Object,
    lease: Duration,
    /// The content last written and the version that the server gave it.
    written: Mutex<(Content, UpdateVersion)>,
    /// The time at which the last successful write was sent.
    renewed: StdMutex<Instant>,
    /// The reason why the lock is lost; none while it is held.
    lost: watch::Sender<Option<String>>,
}

impl Lease {
    /// Starts renewing a lock that was just taken by a write sent at `sent`.
    pub(super) fn begin(
        object: Object,
        lease: Duration,
        content: Content,
        version: UpdateVersion,
        sent: Instant,
    ) -> Self {
        let left_behind = content.left_behind.clone();
        let inner = Arc::new(Inner {
            object,
            lease,
            written: Mutex::new((content, version)),
            renewed: StdMutex::new(sent),
            lost: watch::Sender::new(None),
        });
        let (renewals, stop) = oneshot::channel();
        tokio::spawn(renew_until_stopped(Arc::clone(&inner), stop));
        Self { inner, left_behind, renewals: Some(renewals) }
    }

    pub(super) fn left_behind(&self) -> &[Holder] {
        &self.left_behind
    }

    pub(super) async fn settle(&mut self) -> Result<(), LockError> {
        self.inner.write_with_retries(|content| content.left_behind.clear()).await?;
        self.left_behind.clear();
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), LockError> {
        let inner = &self.inner;
        if let Some(why) = inner.lost.borrow().clone() {
            return Err(inner.lost_error(why));
        }
        let age = inner.age();
        if age > inner.lease {
            return Err(inner.lost_error(inner.too_old(age)));
        }
        Ok(())
    }

    pub(super) async fn confirm(&self) -> Result<(), LockError> {
        self.inner.write_with_retries(|_| ()).await
    }

    pub(super) async fn lost(&self) -> LockError {
        let mut lost = self.inner.lost.subscribe();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => self.inner.lost_error(why),
            // The sender lives in `inner`, so this is not reached.
            None => std::future::pending().await,
        }
    }

    pub(super) async fn release(mut self) -> Result<(), LockError> {
        self.inner.write_with_retries(|content| content.state = State::Released).await?;
        if let Some(renewals) = self.renewals.take() {
            let _ = renewals.send(());
        }
        Ok(())
    }
}

/// The reason why a write did not succeed.
enum WriteError {
    /// Another run has the lock.
    Lost(String),
    /// The outcome of the write is unknown.
    Unclear(Explained),
}

impl Inner {
    /// Changes the content of the lock. Retries a write whose outcome is unknown.
    async fn write_with_retries(&self, change: impl Fn(&mut Content)) -> Result<(), LockError> {
        let mut attempts = 1;
        loop {
            match self.write(&change).await {
                Ok(()) => return Ok(()),
                Err(WriteError::Unclear(_)) if attempts < 3 && self.age() <= self.lease => attempts += 1,
                Err(WriteError::Unclear(problem)) => {
                    return Err(LockError::Store { place: self.object.place.clone(), problem });
                }
                Err(WriteError::Lost(why)) => return Err(self.lost_error(why)),
            }
            tokio::time::sleep(self.lease / 20).await;
        }
    }

    /// Changes the content of the lock, if it is still held. The written text differs each time, even if `change` does
    /// nothing.
    async fn write(&self, change: impl Fn(&mut Content)) -> Result<(), WriteError> {
        let mut written = self.written.lock().await;
        if let Some(why) = self.lost.borrow().clone() {
            return Err(WriteError::Lost(why));
        }
        // A write of our own whose response was lost has changed the version: read the new one and try again.
        for _ in 0..3 {
            let mut content = written.0.clone();
            content.renewals += 1;
            change(&mut content);
            let sent = Instant::now();
            // The client would retry for minutes, during which the state of the lock would be unknown.
            let limit = (self.lease / 3).max(Duration::from_millis(50));
            match timeout(limit, self.object.replace(&content, written.1.clone())).await {
                Ok(Ok(version)) => {
                    *written = (content, version);
                    *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = sent;
                    return Ok(());
                }
                Ok(Err(e)) if is_refusal(&e) => match timeout(limit, self.object.read()).await {
                    Ok(Ok(Some((Some(found), version)))) if found.holder == content.holder => {
                        written.1 = version;
                        written.0.renewals = found.renewals.max(content.renewals);
                    }
                    Ok(Ok(found)) => {
                        return Err(WriteError::Lost(self.lose(&taken_by(found.and_then(|(found, _)| found)))));
                    }
                    Ok(Err(e)) => return Err(WriteError::Unclear(self.object.explain.explain(&e))),
                    Err(_) => return Err(WriteError::Unclear(no_response(limit).into())),
                },
                Ok(Err(e)) => {
                    // This write may have taken place, so the next one must have a different text.
                    written.0.renewals = content.renewals;
                    return Err(WriteError::Unclear(self.object.explain.explain(&e)));
                }
                Err(_) => {
                    written.0.renewals = content.renewals;
                    return Err(WriteError::Unclear(no_response(limit).into()));
                }
            }
        }
        Err(WriteError::Unclear("it changes faster than it can be written".into()))
    }

    fn lose(&self, why: &str) -> String {
        tracing::error!("the lock on {} is lost: {why}", self.object.place);
        self.lost.send_replace(Some(why.to_owned()));
        why.to_owned()
    }

    /// Returns the time since the last successful write was sent.
    fn age(&self) -> Duration {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn too_old(&self, age: Duration) -> String {
        let (age, lease) = (age.as_secs_f64(), self.lease.as_secs_f64());
        format!("it could not be renewed for {age:.1} s, and expires after {lease:.1} s")
    }

    fn lost_error(&self, why: String) -> LockError {
        LockError::Lost { place: self.object.place.clone(), why }
    }
}

/// Returns true if a conditional write failed its condition, possibly because an earlier attempt had succeeded.
fn is_refusal(error: &StoreError) -> bool {
    // Servers differ in their response if the object was removed.
    matches!(error, StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } | StoreError::NotFound { .. })
}

fn taken_by(by: Option<Content>) -> String {
    match by {
        Some(content) => format!("another run took it: {}", content.holder),
        None => "somebody removed or overwrote it".into(),
    }
}

fn no_response(limit: Duration) -> String {
    format!("no answer within {:.1} s", limit.as_secs_f64())
}

/// Renews a lock until it is stopped or lost.
async fn renew_until_stopped(inner: Arc<Inner>, mut stop: oneshot::Receiver<()>) {
    let mut pause = inner.lease / 3;
    loop {
        tokio::select! {
            biased;
            stopped = &mut stop => {
                if stopped.is_err() {
                    // Dropped, not released. This is best effort: if the write fails, the lease expires.
                    let _ = inner.write(|content| content.state = State::Abandoned).await;
                }
                return;
            }
            () = tokio::time::sleep(pause) => {}
        }
        pause = match inner.write(|_| ()).await {
            Ok(()) => inner.lease / 3,
            Err(WriteError::Lost(_)) => return,
            Err(WriteError::Unclear(problem)) => {
                let age = inner.age();
                if age > inner.lease {
                    inner.lose(&format!("{} ({problem})", inner.too_old(age)));
                    return;
                }
                tracing::warn!("the lock on {} could not be renewed, trying again: {problem}", inner.object.place);
                inner.lease / 20
            }
        };
    }
}

/// The lock object in a bucket.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    /// The name of the store in messages.
    pub(super) place: String,
    pub(super) explain: Explain,
}

impl Object {
    /// Reads the lock and its version; none if there is no object. The content is none if it cannot be parsed.
    pub(super) async fn read(&self) -> object_store::Result<Option<(Option<Content>, UpdateVersion)>> {
        let result = match self.store.get(&self.path).await {
            Ok(result) => result,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        let version = UpdateVersion { e_tag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
        let json = result.bytes().await?;
        Ok(Some((Content::from_json(&json), version)))
    }

    pub(super) async fn create(&self, content: &Content) -> object_store::Result<UpdateVersion> {
        self.put(content, PutMode::Create).await
    }

    pub(super) async fn replace(&self, content: &Content, old: UpdateVersion) -> object_store::Result<UpdateVersion> {
        self.put(content, PutMode::Update(old)).await
    }

    async fn put(&self, content: &Content, mode: PutMode) -> object_store::Result<UpdateVersion> {
        let PutResult { e_tag, version, .. } = put_if(self.store.as_ref(), &self.path, content.to_json(), mode).await?;
        if e_tag.is_none() && version.is_none() {
            // Without either, no later write could be conditional.
            let meta = self.store.head(&self.path).await?;
            return Ok(UpdateVersion { e_tag: meta.e_tag, version: meta.version });
        }
        Ok(UpdateVersion { e_tag, version })
    }
}
