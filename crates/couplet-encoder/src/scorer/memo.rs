//! An in-memory cache of recent predictions, so that a repeated text is scored only once.
//!
//! Repeats are common: duplicate pairs in a corpus, a call that appears twice in a query, two branches of a plan that
//! score the same table. If a text is already being scored, later requests wait for that result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::prediction::{Prediction, Rejection};

/// The first 16 bytes of the BLAKE3 hash of a text or a pair.
pub(crate) type TextKey = [u8; 16];

/// Returns the cache key of a text or a pair. A pair never has the key of its concatenated texts.
pub(super) fn text_key(text: &str, text_pair: Option<&str>) -> TextKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes());
    if let Some(pair) = text_pair {
        hasher.update(&[0xFF]).update(&(text.len() as u64).to_le_bytes()).update(pair.as_bytes());
    }
    let mut key = TextKey::default();
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

/// The cell that receives the outcome of a text, shared by all tasks that wait for it.
pub(super) type Slot = Arc<OnceLock<Answer>>;

/// The outcome of a text.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Scored(Prediction),
    Rejected(Rejection),
    /// The task that claimed the text failed or was cancelled.
    Abandoned,
}

/// The use of the cache by a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheMode {
    /// Looks texts up and inserts new ones.
    ReadWrite,
    /// Looks texts up without inserting new ones.
    ReadOnly,
}

/// The most texts in a generation. The cache keeps two generations.
const MAX_GENERATION: usize = 1 << 17;

/// The approximate memory of a full generation, in bytes.
const GENERATION_BYTES: usize = 16 << 20;

/// The approximate memory of an entry without its probabilities, in bytes.
const ENTRY_BYTES: usize = 100;

/// The prediction cache.
#[derive(Debug)]
pub(super) struct Memo {
    /// The young and the old generation.
    generations: Mutex<[HashMap<TextKey, Slot>; 2]>,
    /// The most texts in a generation.
    capacity: usize,
    changed: Notify,
}

impl Memo {
    /// Creates a cache for predictions of `values` numbers each.
    pub(super) fn new(values: usize) -> Self {
        let capacity = (GENERATION_BYTES / (ENTRY_BYTES + size_of::<f32>() * values)).clamp(1024, MAX_GENERATION);
        Self { generations: Mutex::default(), capacity, changed: Notify::new() }
    }

    /// Returns the slot of each text, and `true` if the slot is new, in which case the caller must fill it.
    pub(super) fn claim(&self, keys: impl Iterator<Item = TextKey>, mode: CacheMode) -> Vec<(Slot, bool)> {
        // A panic cannot leave the maps inconsistent, so a poisoned lock is safe to use.
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        keys.map(|key| {
            let known =
                young.get(&key).or_else(|| old.get(&key)).filter(|s| !matches!(s.get(), Some(Answer::Abandoned)));
            let (slot, new) = match known {
                Some(slot) => (Arc::clone(slot), false),
                None => (Slot::default(), true),
            };
            if mode == CacheMode::ReadWrite {
                if young.len() >= self.capacity {
                    std::mem::swap(young, old);
                    young.clear();
                }
                young.insert(key, Arc::clone(&slot));
            }
            (slot, new)
        })
        .collect()
    }

    /// Wakes all tasks that wait for slots.
    pub(super) fn notify_waiters(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until all slots are filled.
    pub(super) async fn wait_for(&self, slots: impl Iterator<Item = &Slot> + Clone) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no notification is lost. Check the slots again before waiting.
            changed.as_mut().enable();
            if slots.clone().all(|slot| slot.get().is_some()) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_not_its_texts_joined() {
        let keys = [text_key("ab", None), text_key("a", Some("b")), text_key("", Some("ab")), text_key("ab", Some(""))];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[i + 1..].contains(key));
        }
    }

    #[test]
    fn the_second_claim_shares_the_slot_of_the_first() {
        let memo = Memo::new(2);
        let key = text_key("a", None);
        let claims = memo.claim([key, key].into_iter(), CacheMode::ReadWrite);
        assert_eq!(claims.iter().map(|(_, new)| *new).collect::<Vec<_>>(), [true, false]);
        assert!(Arc::ptr_eq(&claims[0].0, &claims[1].0));
    }

    #[test]
    fn long_predictions_reduce_the_capacity() {
        assert_eq!(Memo::new(2).capacity, MAX_GENERATION);
        assert_eq!(Memo::new(2000).capacity, (16 << 20) / 8100);
        assert_eq!(Memo::new(1 << 20).capacity, 1024);
    }

    #[test]
    fn an_abandoned_text_can_be_claimed_again() {
        let memo = Memo::new(2);
        let key = text_key("a", None);
        memo.claim([key].into_iter(), CacheMode::ReadWrite)[0].0.get_or_init(|| Answer::Abandoned);
        assert!(memo.claim([key].into_iter(), CacheMode::ReadWrite)[0].1);
    }

    #[test]
    fn read_only_claims_look_up_but_do_not_insert() {
        let memo = Memo::new(2);
        let [known, new] = [text_key("a", None), text_key("b", None)];
        let slot = memo.claim([known].into_iter(), CacheMode::ReadWrite).remove(0).0;
        for _ in 0..2 {
            let claims = memo.claim([known, new].into_iter(), CacheMode::ReadOnly);
            assert_eq!(claims.iter().map(|(_, new)| *new).collect::<Vec<_>>(), [false, true]);
            assert!(Arc::ptr_eq(&claims[0].0, &slot));
        }
    }
}
