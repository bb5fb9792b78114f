//! Places at which a test can kill the process, as a loss of power would: nothing is cleaned up, nothing is said.
//!
//! `COUPLET_CRASH=store.after` kills at the first point of that name, `COUPLET_CRASH=store.after:3` at the third. A
//! release build has no such points.

/// Dies here, if a test asked for it.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(asked) = std::env::var("COUPLET_CRASH") else { return };
    let (point, times) = asked.split_once(':').unwrap_or((&asked, "1"));
    if point == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == times.parse().unwrap_or(1) {
        #[cfg(unix)]
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline]
pub fn point(_: &str) {}
