//! What couplet reads from and writes to: local files, object stores, locks and model hubs.
//!
//! | Module | Content |
//! |---|---|
//! | [`place`] | a local path, a key in a bucket, or a model of a hub, parsed from text |
//! | [`files`] | opens and reads local files, only regular ones; files and folders that are replaced atomically |
//! | [`objects`] | local disks and buckets as object stores: settings, downloads, errors |
//! | [`lock`] | one run at a time on a store, local or remote |
//! | [`hub`] | models of a Hugging Face hub, in the cache of `huggingface_hub` |
//!
//! Below them are the words of messages: [`words`], [`escape`], [`redact`], [`backtrace`], [`trouble`].

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests open files that they created"))]

pub mod backtrace;
pub mod crash;
pub mod escape;
pub mod files;
pub mod hub;
pub mod lock;
pub mod objects;
pub mod place;
pub mod redact;
pub mod trouble;
pub mod words;
