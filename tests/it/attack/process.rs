//! Processes of couplet that are killed or stopped at chosen system calls by an `LD_PRELOAD` library, which `cc`
//! compiles.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The time after which a run counts as stuck, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// System calls that change files.
pub const FILE_CALLS: [&str; 8] = ["create", "write", "sync", "truncate", "rename", "link", "unlink", "mkdir"];

/// Requests that change objects on a server. `post` includes the removal of objects.
pub const REQUESTS: [&str; 2] = ["put", "post"];

/// The compiled library, or why there is none.
pub fn shim() -> Result<&'static Path, String> {
    static SHIM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    SHIM.get_or_init(compile).as_deref().map_err(Clone::clone)
}

fn compile() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (made, library) = (folder.join(format!("attack-{}.so", std::process::id())), folder.join("attack.so"));
    let source = crate::support::root().join("tests/it/attack/shim.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made).arg(source).arg("-ldl");
    let output = cc.output().map_err(|e| format!("cc: {e}"))?;
    // If there is a compiler, a compile error is a bug in the library.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(made, &library).map_err(|e| e.to_string())?;
    Ok(library)
}

/// What the library does to a process.
#[derive(Debug, Clone, Default)]
pub struct Shim {
    /// Only calls below these folders count.
    pub roots: Vec<PathBuf>,
    /// The call and the action: `("rename:3", "before")`.
    pub at: Option<(String, &'static str)>,
    /// Seconds to add to the clock, one offset after the other.
    pub clock: Vec<i64>,
}

impl Shim {
    fn apply(&self, command: &mut Command, log: &Path) {
        let roots = std::env::join_paths(&self.roots).unwrap();
        command.env("LD_PRELOAD", shim().unwrap()).env("ATTACK_ROOTS", roots).env("ATTACK_LOG", log);
        if let Some((call, what)) = &self.at {
            command.env("ATTACK_AT", call).env("ATTACK_DO", what);
        }
        if !self.clock.is_empty() {
            let clock: Vec<String> = self.clock.iter().map(ToString::to_string).collect();
            command.env("ATTACK_CLOCK", clock.join(","));
        }
    }
}

/// A running process.
pub struct Running {
    child: Child,
    log: PathBuf,
    stderr: PathBuf,
    began: Instant,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stderr: String,
    /// The counted calls, one per line, as logged by the library.
    pub calls: String,
    pub took: Duration,
}

impl Running {
    /// Starts a command. Its messages and the library's log go to files named `name` in `folder`.
    pub fn start(mut command: Command, shim: &Shim, folder: &Path, name: &str) -> Self {
        let (log, stderr) = (folder.join(format!("{name}.calls")), folder.join(format!("{name}.stderr")));
        let _ = std::fs::remove_file(&log);
        shim.apply(&mut command, &log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        Self { child: command.spawn().unwrap(), log, stderr, began: Instant::now() }
    }

    /// Sends a signal; does nothing if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// Waits until the process is stopped. Returns false if it ended instead.
    pub fn wait_until_stopped(&mut self) -> Result<bool, String> {
        let stat = format!("/proc/{}/stat", self.child.id());
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return Ok(false);
            }
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
                return Ok(true);
            }
            self.check_patience()?;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end up to a timeout. Returns true if the process ended.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if began.elapsed() > time {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits for the end.
    pub fn end(mut self) -> Result<Ended, String> {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            self.check_patience()?;
            std::thread::sleep(Duration::from_millis(2));
        };
        let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Ok(Ended { status, stderr: read(&self.stderr), calls: read(&self.log), took: self.began.elapsed() })
    }

    fn check_patience(&mut self) -> Result<(), String> {
        if self.began.elapsed() < PATIENCE {
            return Ok(());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        Err(format!("a run is stuck; it printed: {}", std::fs::read_to_string(&self.stderr).unwrap_or_default()))
    }
}

impl Ended {
    pub fn is_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Counts the calls of each kind.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for line in self.calls.lines() {
            *counts.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        counts
    }

    /// The call at which the process was killed or stopped.
    pub fn disturbed_at(&self) -> &str {
        self.calls.lines().find(|line| line.contains(" <- ")).unwrap_or("no call")
    }
}
