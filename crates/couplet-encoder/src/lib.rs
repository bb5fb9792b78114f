//! Scores texts and sentence pairs with encoders of the BERT family.
//!
//! | Module | Content |
//! |---|---|
//! | [`scorer`] | windows of texts to predictions: tokenize, pack without padding, forward, read the head |
//! | [`model`] | a Hugging Face folder to logits: configuration, tokenizer, weights, families of encoders, head |
//! | [`ops`] | the operators of an encoder: for any device, fused for CPUs, fused with a backward pass |

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests open files that they created"))]

pub mod model;
pub mod ops;
pub mod scorer;
