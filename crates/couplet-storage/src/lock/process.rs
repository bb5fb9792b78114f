//! The identity of the process that holds the lock, by which its death is detected at once where that is possible.
//!
//! A process id alone is not enough: ids are reused, also after a reboot, and mean nothing in another container. So ids
//! are compared only within one boot and one PID namespace, together with the start time of the process. If any of
//! these is unavailable, the result is "unknown" and the lease decides.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{self, MAX_TEXT};

/// A process, identified so that other processes on the same machine can recognize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// The start time, in clock ticks since boot.
    started: Option<u64>,
    /// The boot id of the kernel.
    boot_id: Option<String>,
    /// The PID namespace of the id: containers have their own.
    pid_namespace: Option<String>,
}

impl Process {
    /// Returns the current process.
    pub(super) fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).map(|stat| stat.started),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid").ok().map(|link| link.to_string_lossy().into_owned()),
        }
    }

    /// Returns true if the process is alive; none if this process cannot tell.
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
            // Some systems hide the processes of other users. These systems also hide process 1.
            None => stat(1).map(|_| false),
        }
    }
}

struct Stat {
    started: u64,
    /// True if the process has ended but its parent has not waited for it yet (a zombie).
    dead: bool,
}

/// Reads the state of a process from Linux's `/proc`.
fn stat(pid: u32) -> Option<Stat> {
    let text = read(&format!("/proc/{pid}/stat"))?;
    // The name of the program is in parentheses, and may contain parentheses and spaces.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let dead = matches!(*fields.first()?, "Z" | "X" | "x");
    // The state is field 3 and the start is field 22, in proc_pid_stat(5).
    Some(Stat { started: fields.get(19)?.parse().ok()?, dead })
}

/// Returns the host name of this machine.
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
