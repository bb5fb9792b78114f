//! An encoder with the head of an objective.

use candle_core::Tensor;
use couplet_encoder::model::{Encoder, Head, LoadError, Loader, MaskedWordsHead, PackedBatch};
use couplet_encoder::ops::Noise;

use super::example::Example;
use super::loss::Objective;

/// An encoder with the head of an objective.
#[derive(Debug)]
pub(super) struct Network {
    encoder: Encoder,
    head: AnyHead,
}

#[derive(Debug)]
enum AnyHead {
    Classifier(Head),
    MaskedWords(MaskedWordsHead),
}

impl Network {
    pub(super) fn load(loader: &Loader, objective: &Objective) -> Result<Self, LoadError> {
        let head = match objective {
            Objective::Classification { labels, .. } | Objective::MultiLabel { labels } => {
                AnyHead::Classifier(Head::load(loader, *labels)?)
            }
            Objective::Regression => AnyHead::Classifier(Head::load(loader, 1)?),
            Objective::MaskedWords => AnyHead::MaskedWords(MaskedWordsHead::load(loader)?),
        };
        Ok(Self { encoder: Encoder::load(loader)?, head })
    }

    /// Computes the logits of each example, or of each masked token.
    pub(super) fn forward(&self, examples: &[&Example], noise: Option<&Noise>) -> candle_core::Result<Tensor> {
        let mut batch = PackedBatch::default();
        for example in examples {
            batch.push(&example.input_ids, &example.token_type_ids);
        }
        let mut rows = Vec::new();
        let mut cu_rows = vec![0];
        for (example, start) in examples.iter().zip(&batch.cu_seqlens) {
            match self.head {
                AnyHead::MaskedWords(_) => rows.extend(example.words().iter().map(|(at, _)| start + at)),
                AnyHead::Classifier(_) => rows.push(*start),
            }
            cu_rows.push(rows.len() as u32);
        }
        let hidden_states = match (&self.head, noise) {
            (AnyHead::Classifier(_), None) => self.encoder.forward_first(&batch)?,
            _ => self.encoder.forward_at(&batch, &rows, &cu_rows, noise)?,
        };
        match &self.head {
            AnyHead::Classifier(head) => head.forward(&hidden_states, noise),
            AnyHead::MaskedWords(head) => head.forward(&hidden_states),
        }
    }
}
