//! The operators that encoders of the BERT family are made of.

pub mod ops;
