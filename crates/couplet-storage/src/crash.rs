//! Crash points, at which a test can kill the process without any cleanup, as a power failure would, or stop it until
//! the test sends SIGCONT.
//!
//! `COUPLET_CRASH=store.after` kills the process at the first point of that name, `COUPLET_CRASH=store.after:3` at the
//! third. `COUPLET_STOP` stops it in the same way. A release build has no crash points.

/// Kills or stops the process if a test has set a crash point of this name.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
    let is_reached = |variable: &str, passed: &AtomicU32| {
        let Ok(setting) = std::env::var(variable) else { return false };
        let (point, times) = setting.split_once(':').unwrap_or((&setting, "1"));
        point == name && passed.fetch_add(1, Ordering::Relaxed) + 1 == times.parse().unwrap_or(1)
    };
    if is_reached("COUPLET_CRASH", &PASSED[0]) {
        #[cfg(unix)]
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
    #[cfg(unix)]
    if is_reached("COUPLET_STOP", &PASSED[1]) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        // Another thread may receive the signal, in which case this one keeps running for a moment.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Does nothing: release builds have no crash points.
#[cfg(not(debug_assertions))]
#[inline]
pub fn point(_: &str) {}
