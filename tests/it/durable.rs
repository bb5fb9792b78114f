//! Data is synced before its commit, and the commit is synced after it: checks the order of `fsync` and `rename` calls
//! with `strace`. Without `strace` the test is skipped.

use std::path::Path;
use std::process::Command;

use crate::nights::pairs;
use crate::support::{Job, skip};

/// The relevant calls in order: `sync PATH` or `name FROM TO`, with paths relative to the job's folder.
fn calls(job: &Job) -> Option<Vec<String>> {
    let trace = job.path("trace.txt");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "4096", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_couplet"))
        .args(["run", "pipeline.toml", "--quiet"])
        .current_dir(job.path(""))
        .output()
        .ok()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.to_lowercase().contains("ptrace") {
        return None;
    }
    assert!(output.status.success(), "{stderr}");
    let root = job.path("").canonicalize().unwrap();
    let relative = |path: &str| {
        let path = Path::new(path);
        path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned()
    };
    let text = std::fs::read_to_string(trace).unwrap();
    let calls = text.lines().filter_map(|line| {
        let (name, arguments) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        if arguments.contains(" = -1 ") || name.starts_with('<') {
            return None;
        }
        if name.contains("sync") {
            return Some(format!("sync {}", relative(arguments.split_once('<')?.1.split_once('>')?.0)));
        }
        let paths: Vec<_> = arguments.split('"').skip(1).step_by(2).take(2).map(relative).collect();
        (paths.len() == 2).then(|| format!("name {}", paths.join(" ")))
    });
    Some(calls.collect())
}

#[test]
fn data_is_synced_before_its_commit_and_the_commit_after_it() {
    let name = "data_is_synced_before_its_commit_and_the_commit_after_it";
    let sinks = [
        ("uri = \"out/scores.parquet\"", "out/scores.parquet"),
        ("uri = \"out\"\nformat = \"delta\"", "out/_delta_log/00000000000000000000.json"),
        ("uri = \"out\"", " out/run="),
    ];
    for (sink, commit) in sinks {
        let job = Job::new(pairs(0, 30)).change("uri = \"out/scores.parquet\"", sink);
        let Some(calls) = calls(&job) else { return skip(name, "strace is not installed, or may not trace") };
        let named = |call: &str, name: &str| {
            call.starts_with("name ") && (call.ends_with(name) || name.ends_with('=') && call.contains(name))
        };
        let last = |name: &str| calls.iter().rposition(|call| named(call, name));
        let synced = |calls: &[String], path: &str| calls.iter().any(|call| *call == format!("sync {path}"));
        for commit in [commit, "runs/_delta_log/00000000000000000001.json", ".parquet"] {
            let Some(at) = last(commit) else { panic!("{commit} gets no name in {calls:#?}") };
            let paths: Vec<_> = calls[at].split(' ').collect();
            assert!(synced(&calls[..at], paths[1]), "not durable before {}: {calls:#?}", calls[at]);
            let folder = paths[2].rsplit_once('/').unwrap().0;
            assert!(synced(&calls[at..], folder), "{folder} is not durable after {}: {calls:#?}", calls[at]);
        }
        let at = last(commit).unwrap();
        if commit.ends_with('=') {
            let folder = calls[at].split(' ').nth(1).unwrap();
            for file in ["part-00000.parquet", "_SUCCESS"] {
                assert!(synced(&calls[..at], &format!("{folder}/{file}")), "{file} is not durable: {calls:#?}");
            }
        } else {
            let data =
                |call: &String| call.starts_with("name ") && call.contains(" out/") && call.ends_with(".parquet");
            assert!(calls.iter().rposition(data).unwrap() <= at, "the rows come before their commit: {calls:#?}");
        }
    }
}
