//! Takes a lock on an object store: creates it, or watches its holder until that run ends or is known to be dead.

use std::time::{Duration, Instant};

use object_store::{Error as StoreError, UpdateVersion};

use super::conditional::is_unclear;
use super::error::who;
use super::holder::{Content, State};
use super::lease::{Lease, Object};
use super::{Claim, DEFAULT_LEASE, Holder, LockError};

/// Takes the lock; see [`super::acquire`].
pub(super) async fn acquire(object: Object, claim: &Claim) -> Result<Lease, LockError> {
    let this = Holder::this(&claim.run_id, &claim.pipeline);
    let name = object.place.clone();
    let explain = object.explain.clone();
    let failed = |e: StoreError| LockError::Store { place: name.clone(), problem: explain.explain(&e) };
    let began = Instant::now();
    let mut observation: Option<Observation> = None;
    // The content that this run tried to write, and when: a refusal can mean that this write succeeded and only its
    // response was lost.
    let mut tried: Option<(Content, Instant)> = None;
    let mut unclear = 0;
    loop {
        let sent = Instant::now();
        let (content, attempt) = match object.read().await.map_err(failed)? {
            None => {
                let content = Content::after(None, this.clone(), Some(claim.lease));
                (content.clone(), object.create(&content).await)
            }
            Some((Some(found), version)) if found.holder == this => {
                let (content, sent) = tried.unwrap_or((found, sent));
                return Ok(Lease::begin(object, claim.lease, content, version, sent));
            }
            Some((found, version)) => {
                let observation = Observation::update(&mut observation, version);
                match judge(found.as_ref(), observation) {
                    Verdict::Free => {
                        if let Some(found) = found.as_ref().filter(|found| found.state != State::Released) {
                            tracing::info!(
                                "taking {name} over from a run that ended without releasing it: {}",
                                found.holder
                            );
                        }
                        let content = Content::after(found, this.clone(), Some(claim.lease));
                        (content.clone(), object.replace(&content, observation.version.clone()).await)
                    }
                    verdict => {
                        let known_alive = matches!(verdict, Verdict::Alive);
                        let wait = claim.wait.unwrap_or_default();
                        if known_alive && began.elapsed() >= wait {
                            let holder = found.map(|found| Box::new(found.holder));
                            return Err(LockError::Busy { place: name.clone(), holder, waited: claim.wait });
                        }
                        observation.log_wait(&name, found.as_ref(), known_alive);
                        let left = wait.saturating_sub(began.elapsed()).max(Duration::from_millis(20));
                        let poll = takeover_delay(found.as_ref()) / 15;
                        let poll = poll.clamp(Duration::from_millis(20), Duration::from_secs(5));
                        tokio::time::sleep(if known_alive { poll.min(left) } else { poll }).await;
                        continue;
                    }
                }
            }
        };
        match attempt {
            Ok(version) => return Ok(Lease::begin(object, claim.lease, content, version, sent)),
            // Another run was faster, or an earlier write of our own succeeded: the next read tells which.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => tried = Some((content, sent)),
            // The outcome is unknown, so read again, but not forever if the server never answers.
            Err(e) if is_unclear(&e) && unclear < 3 => {
                unclear += 1;
                tried = Some((content, sent));
            }
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Returns the time for which a lock must stay unchanged before its holder counts as dead. It is 1.25 times the lease,
/// because clocks drift and a write that the holder sent in time can finish a little later.
fn takeover_delay(content: Option<&Content>) -> Duration {
    content.and_then(Content::lease).unwrap_or(DEFAULT_LEASE) * 5 / 4
}

enum Verdict {
    /// The lock can be taken.
    Free,
    /// Its holder is alive.
    Alive,
    /// It is not known yet whether its holder is alive.
    Unknown,
}

fn judge(content: Option<&Content>, observation: &Observation) -> Verdict {
    if observation.since.elapsed() > takeover_delay(content) {
        return Verdict::Free;
    }
    let Some(content) = content else { return Verdict::Unknown };
    match (content.state, content.holder.process.is_alive()) {
        (State::Released | State::Abandoned, _) | (State::Held, Some(false)) => Verdict::Free,
        (State::Held, Some(true)) => Verdict::Alive,
        (State::Held, None) if observation.changed => Verdict::Alive,
        (State::Held, None) => Verdict::Unknown,
    }
}

/// The observations of the lock so far.
struct Observation {
    version: UpdateVersion,
    /// The time at which this version was first seen, by the clock of this process, taken after the read.
    since: Instant,
    /// True if another version was seen before.
    changed: bool,
    /// The messages already logged: "waiting" and "watching".
    logged: (bool, bool),
}

impl Observation {
    fn update(observation: &mut Option<Self>, version: UpdateVersion) -> &mut Self {
        let now = Instant::now();
        let observation = observation.get_or_insert_with(|| Self {
            version: version.clone(),
            since: now,
            changed: false,
            logged: (false, false),
        });
        if observation.version != version {
            (observation.version, observation.since, observation.changed) = (version, now, true);
        }
        observation
    }

    /// Logs once per reason why the lock has not been taken yet.
    fn log_wait(&mut self, name: &str, content: Option<&Content>, known_alive: bool) {
        let holder = who(content.map(|content| &content.holder));
        if known_alive && !self.logged.0 {
            tracing::info!("waiting for {name}, in use by another run: {holder}");
            self.logged.0 = true;
        } else if !known_alive && !self.logged.1 {
            let seconds = takeover_delay(content).as_secs_f64();
            tracing::info!(
                "watching for up to {seconds:.0} s whether the run that has locked {name} is alive: {holder}"
            );
            self.logged.1 = true;
        }
    }
}
