#![doc = include_str!("../README.md")]
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests open files that they created"))]

pub mod model;
pub mod ops;
pub mod scorer;
