//! The integration tests: one binary, a module an area.

#![allow(clippy::pedantic, clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod checkpoints;
mod config;
mod evaluating;
mod gradients;
mod interrupt;
mod jobs;
mod labels;
mod learning;
mod masking;
mod metrics;
mod mistakes;
mod ops;
mod parity;
mod predict_sql;
mod pretraining;
mod query;
mod readers;
mod resume;
mod robustness;
mod run;
mod scoring;
mod support;
mod tables;
mod tiny;
mod training;
