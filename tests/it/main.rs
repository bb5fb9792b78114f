//! The integration tests: one binary, a module an area.

#![allow(clippy::pedantic, clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod broken_runs;
mod checkpoints;
mod config;
mod evaluating;
mod faults;
mod faulty;
mod gradients;
mod interrupt;
mod jobs;
mod labels;
mod learning;
mod lock;
mod masking;
mod metrics;
mod metrics_file;
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
mod report_page;
mod resume;
mod robustness;
mod run;
mod runs;
mod scoring;
mod seaweed;
mod sql_library;
mod support;
mod tables;
mod tiny;
mod training;
mod venv;
