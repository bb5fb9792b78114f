//! The integration tests: one binary, a module an area.

mod config;
mod parity;
mod predict_sql;
mod support;
