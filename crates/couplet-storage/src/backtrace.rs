//! Removes the stack frames that libraries add to their messages if `RUST_BACKTRACE` is set.

use std::fmt::Display;

/// Returns a message without the stack frames that a library has added to it.
#[must_use]
pub fn without_frames(message: &str) -> &str {
    message.split("\n   0: ").next().unwrap_or(message).trim_end()
}

/// Converts an error to text without stack frames. Every error of candle is converted here.
pub fn message(error: &(impl Display + ?Sized)) -> String {
    without_frames(&error.to_string()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_candle_is_told_without_its_frames() {
        let inner = Box::new(candle_core::Error::Msg("out of memory".into()));
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        let error = candle_core::Error::WithBacktrace { inner, backtrace };
        assert!(error.to_string().lines().count() > 2);
        assert_eq!(message(&error), "out of memory");
        assert_eq!(message(&error.context("while loading")), "while loading\nout of memory");
    }
}
