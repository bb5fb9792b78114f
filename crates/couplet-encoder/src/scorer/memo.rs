//! Remembers the latest predictions, so that a text that comes again is not scored again.
//!
//! Repeated pairs in a corpus, a call that a query names twice, two branches of a plan that score the
//! same table: all meet here. A text that is being scored at this moment is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::prediction::{Prediction, Rejection};

/// The first half of BLAKE3 over a text or a pair.
pub(crate) type TextKey = [u8; 16];

/// Names a text or a pair; a pair differs from the two texts joined.
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

/// The place where a text's prediction appears.
pub(super) type Slot = Arc<OnceLock<Answer>>;

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Scored(Prediction),
    Rejected(Rejection),
    /// Whoever was to score the text failed or was stopped.
    Abandoned,
}

/// Whether new texts are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Kept,
    /// Only what is there already is looked up.
    Asked,
}

/// Texts in a generation at most; two generations are kept.
const GENERATION: usize = 1 << 17;

/// Memory of a generation, about.
const BYTES: usize = 16 << 20;

/// What a text takes besides its probabilities, about.
const BYTES_OF_A_TEXT: usize = 100;

#[derive(Debug)]
pub(super) struct Memo {
    generations: Mutex<[HashMap<TextKey, Slot>; 2]>,
    /// Texts in one of them.
    most: usize,
    changed: Notify,
}

impl Memo {
    /// Creates a memo for predictions with a given number of values each.
    pub(super) fn new(numbers: usize) -> Self {
        let most = (BYTES / (BYTES_OF_A_TEXT + size_of::<f32>() * numbers)).clamp(1024, GENERATION);
        Self { generations: Mutex::default(), most, changed: Notify::new() }
    }

    /// Finds the slot of each text; `true` where the slot is new and the caller is to fill it.
    pub(super) fn claim(&self, keys: impl Iterator<Item = TextKey>, memory: Memory) -> Vec<(Slot, bool)> {
        // The maps are whole between any two statements that can panic.
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        keys.map(|key| {
            let known =
                young.get(&key).or_else(|| old.get(&key)).filter(|s| !matches!(s.get(), Some(Answer::Abandoned)));
            let (slot, new) = match known {
                Some(slot) => (Arc::clone(slot), false),
                None => (Slot::default(), true),
            };
            if memory == Memory::Kept {
                if young.len() >= self.most {
                    std::mem::swap(young, old);
                    young.clear();
                }
                young.insert(key, Arc::clone(&slot));
            }
            (slot, new)
        })
        .collect()
    }

    /// Wakes the tasks that wait for slots.
    pub(super) fn announce(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until every slot has an answer.
    pub(super) async fn wait_for(&self, slots: impl Iterator<Item = &Slot> + Clone) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on an announcement is not missed, so look once more before waiting for one.
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
        let claims = memo.claim([key, key].into_iter(), Memory::Kept);
        assert_eq!(claims.iter().map(|(_, new)| *new).collect::<Vec<_>>(), [true, false]);
        assert!(Arc::ptr_eq(&claims[0].0, &claims[1].0));
    }

    #[test]
    fn long_predictions_are_fewer() {
        assert_eq!(Memo::new(2).most, GENERATION);
        assert_eq!(Memo::new(2000).most, (16 << 20) / 8100);
        assert_eq!(Memo::new(1 << 20).most, 1024);
    }

    #[test]
    fn an_abandoned_text_can_be_claimed_again() {
        let memo = Memo::new(2);
        let key = text_key("a", None);
        memo.claim([key].into_iter(), Memory::Kept)[0].0.get_or_init(|| Answer::Abandoned);
        assert!(memo.claim([key].into_iter(), Memory::Kept)[0].1);
    }

    #[test]
    fn a_text_that_will_not_come_again_is_looked_up_and_not_kept() {
        let memo = Memo::new(2);
        let [known, new] = [text_key("a", None), text_key("b", None)];
        let slot = memo.claim([known].into_iter(), Memory::Kept).remove(0).0;
        for _ in 0..2 {
            let claims = memo.claim([known, new].into_iter(), Memory::Asked);
            assert_eq!(claims.iter().map(|(_, new)| *new).collect::<Vec<_>>(), [false, true]);
            assert!(Arc::ptr_eq(&claims[0].0, &slot));
        }
    }
}
