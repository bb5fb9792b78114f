//! Which process on which computer holds the lock, so that its death can be told at once where it can be told at all.
//!
//! A process id alone says little: ids are used again, also after a restart of the computer, and mean nothing to
//! another container. So it is compared only within one start of the kernel and one space of process ids, and
//! together with the time at which the process began. Where any of that cannot be had, the answer is "unknown", and
//! the lease decides.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{self, MAX_TEXT};

/// A process, as far as others on the same computer can recognize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it began, in ticks since the kernel started.
    started: Option<u64>,
    /// Which start of which kernel it belongs to.
    boot_id: Option<String>,
    /// Within which space of ids the id is meant: containers have their own.
    pid_namespace: Option<String>,
}

impl Process {
    /// The process that asks.
    pub(super) fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).map(|stat| stat.started),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid").ok().map(|link| link.to_string_lossy().into_owned()),
        }
    }

    /// Whether the process is alive, if that can be known from here.
    pub(super) fn is_alive(&self) -> Option<bool> {
        let this = Self::this();
        let comparable = self.boot_id.is_some()
            && self.boot_id == this.boot_id
            && self.pid_namespace.is_some()
            && self.pid_namespace == this.pid_namespace;
        let started = self.started.filter(|_| comparable)?;
        match stat(self.pid) {
            Some(stat) => Some(stat.started == started && !stat.dead),
            None if fs::exists(format!("/proc/{}", self.pid)).unwrap_or(true) => None,
            // Some systems hide the processes of other users, and then the first one too.
            None => stat(1).map(|_| false),
        }
    }
}

struct Stat {
    started: u64,
    /// Ended, and not yet buried by its parent.
    dead: bool,
}

/// What Linux tells of a process.
fn stat(pid: u32) -> Option<Stat> {
    let text = read(&format!("/proc/{pid}/stat"))?;
    // The name of the program is in brackets, and may have brackets and spaces in it.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let dead = matches!(*fields.first()?, "Z" | "X" | "x");
    // The state is field 3 and the start is field 22, in proc_pid_stat(5).
    Some(Stat { started: fields.get(19)?.parse().ok()?, dead })
}

/// The name of this computer.
#[must_use]
pub fn host() -> String {
    read("/proc/sys/kernel/hostname")
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "an unnamed computer".into())
}

fn read(path: &str) -> Option<String> {
    files::read_string(Path::new(path), MAX_TEXT).ok().map(|text| text.trim().to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_killed_child_is_dead_before_and_after_it_is_reaped() {
        assert_eq!(Process::this().is_alive(), Some(true));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process =
            Process { pid: child.id(), started: stat(child.id()).map(|stat| stat.started), ..Process::this() };
        assert_eq!(process.is_alive(), Some(true));
        child.kill().unwrap();
        while process.is_alive() == Some(true) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(process.is_alive(), Some(false));
        child.wait().unwrap();
        assert_eq!(process.is_alive(), Some(false));
    }

    #[test]
    fn an_id_that_is_used_again_is_another_process() {
        let other = Process { started: Some(1), ..Process::this() };
        assert_eq!(other.is_alive(), Some(false));
    }

    #[test]
    fn processes_of_other_hosts_and_containers_are_unknown() {
        let other = Some("another".to_owned());
        for process in [
            Process { boot_id: other.clone(), ..Process::this() },
            Process { pid_namespace: other, ..Process::this() },
            Process { boot_id: None, ..Process::this() },
            Process { started: None, ..Process::this() },
        ] {
            assert_eq!(process.is_alive(), None);
        }
    }
}
