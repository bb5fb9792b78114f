//! The integration tests: one binary, a module an area.

#![allow(clippy::pedantic, clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod broken_runs;
mod card;
mod checkpoints;
mod config;
mod evaluating;
mod faults;
mod faulty;
mod gradients;
mod hub;
mod hub_server;
mod interrupt;
mod jobs;
mod labels;
mod learning;
mod lock;
mod masking;
mod metrics;
mod mistakes;
mod nights;
mod nights_in_buckets;
mod one_at_a_time;
mod ops;
mod parity;
mod predict_sql;
mod pretraining;
mod proxy;
mod query;
mod readers;
mod remote;
mod resume;
mod robustness;
mod run;
mod runs;
mod scoring;
mod seaweed;
mod shell;
mod support;
mod tables;
mod tiny;
mod training;
mod venv;
