//! The integration tests: one binary, a module an area.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::too_many_lines,
    reason = "a test that panics has failed, and says where"
)]

mod checkpoints;
mod config;
mod interrupt;
mod mistakes;
mod ops;
mod parity;
mod predict_sql;
mod query;
mod readers;
mod robustness;
mod run;
mod scoring;
mod support;
mod tables;
mod tiny;
