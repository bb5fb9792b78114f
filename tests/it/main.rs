//! The integration tests: one binary, with one module per area.

#![allow(
    clippy::disallowed_methods,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "a test that panics has failed, and says where"
)]

mod archives;
#[cfg(target_os = "linux")]
mod attack;
mod bases;
mod broken_runs;
mod card;
mod cases;
mod cases_models;
mod checkpoints;
#[cfg(feature = "cluster")]
mod clusters;
mod config;
mod credentials;
mod cross_encoders;
mod damage;
mod disk_full;
mod durable;
mod evaluating;
mod faults;
mod faulty;
mod fencing;
mod floors;
#[path = "../../fuzz/src/lib.rs"]
mod fuzz_targets;
mod gradients;
mod help;
mod hub;
mod hub_cache;
mod hub_faults;
mod hub_server;
mod init;
mod interrupt;
mod jobs;
mod labels;
mod learning;
mod lock;
mod masking;
mod messages;
mod metrics;
mod metrics_file;
mod mistakes;
mod newcomers;
mod nights;
mod nights_in_buckets;
mod one_at_a_time;
mod ops;
mod outputs;
mod parity;
#[cfg(target_os = "linux")]
mod pipes;
mod plan;
mod predict_sql;
mod pretraining;
mod promises;
mod proxy;
mod query;
mod query_files;
mod query_limits;
mod readers;
mod reference;
mod remote;
mod replaced;
#[cfg(target_os = "linux")]
mod replaced_models;
mod report_page;
mod resume;
mod robustness;
mod run;
mod runs;
mod safety;
mod scheduling;
mod scoring;
mod seaweed;
mod shell;
mod sql_library;
mod store_damage;
mod store_folder;
mod stores;
mod support;
mod tables;
mod terminal;
mod text_tables;
mod tiny;
mod tokenizers;
#[cfg(feature = "otel")]
mod traces;
mod trained_models;
mod training;
mod types;
mod venv;
