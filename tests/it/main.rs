//! The integration tests: one binary, a module an area.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::too_many_lines,
    reason = "a test that panics has failed, and says where"
)]

mod config;
mod interrupt;
mod mistakes;
mod parity;
mod predict_sql;
mod query;
mod readers;
mod run;
mod support;
mod tables;
