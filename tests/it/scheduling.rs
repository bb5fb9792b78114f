//! The catch-up script of `docs/scheduling.md`, executed as printed there.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Job, root, stdout_of, write};

/// The first block of `sh` on the page.
fn script() -> String {
    let page = std::fs::read_to_string(root().join("docs/scheduling.md")).unwrap();
    let (_, rest) = page.split_once("```sh\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// The date this many days ago.
fn day(back: u32) -> String {
    let date = Command::new("date").args(["-d", &format!("{back} days ago"), "+%F"]).output().unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

fn start(job: &Job) -> Output {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_couplet")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    Command::new("sh").arg(job.path("nightly.sh")).env("PATH", path).output().unwrap()
}

#[test]
fn missed_days_are_scored_in_order() {
    let job = Job::new("")
        .change("\"pairs.csv\"", "\"pairs/{date}.csv\"")
        .change("SELECT id, a, b FROM pairs", "SELECT id, '{date}' AS day, a, b FROM pairs")
        .change("uri = \"out/scores.parquet\"", "uri = \"out\"\nformat = \"delta\"\nmode = \"merge\"");
    std::fs::rename(job.path("pipeline.toml"), job.path("nightly.toml")).unwrap();
    write(&job.path("nightly.sh"), script());
    let put = |back: u32| write(&job.path(&format!("pairs/{}.csv", day(back))), format!("id,a,b\n{back},x,y\n"));
    // A new job starts with today by default.
    put(0);
    let output = start(&job);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(job.path("last-day")).unwrap().trim(), day(0));
    // The job was off for two nights, and the rows of one arrive late.
    write(&job.path("last-day"), day(3));
    put(2);
    assert_eq!(start(&job).status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(job.path("last-day")).unwrap().trim(), day(2));
    put(1);
    assert!(start(&job).status.success());
    // No days are left.
    assert!(start(&job).status.success());
    let sql = "SELECT id, day FROM t ORDER BY id DESC";
    let rows = stdout_of(&mut job.couplet(&["query", "-t", "t=out", "--format", "json", sql]));
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let days: Vec<&str> = rows.iter().map(|row| row["day"].as_str().unwrap()).collect();
    assert_eq!(days, [2, 1, 0].map(day));
}

#[test]
fn a_signal_to_the_script_ends_the_run_and_its_day_stays_open() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("nightly.sh"), script());
    write(&path("last-day"), day(1));
    // The script ends with couplet's exit code.
    write(&path("couplet"), "#!/bin/sh\ntrap 'kill $!; exit 130' TERM\nsleep 60 &\ntouch started\nwait\n");
    std::fs::set_permissions(path("couplet"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let programs = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut child = Command::new("sh").arg(path("nightly.sh")).env("PATH", programs).spawn().unwrap();
    while !path("started").exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_to_string(path("last-day")).unwrap().trim(), day(1));
}
