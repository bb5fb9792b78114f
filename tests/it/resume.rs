//! Training that is stopped anywhere: it resumes to the same bytes, and its files are always complete.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::Device;
use couplet::train::pretrain;
use couplet::train::training_loop::{Event, JobError, Outcome, Watch};

use crate::jobs::{job, names, run, run_watched, weights};
use crate::pretraining::{pretrain_job, run_pretrain};
use crate::support::golden;

#[test]
fn resumes_to_the_same_bytes_after_a_cancel_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    let curve = run(&undisturbed).json["curve"].clone();
    let expected = weights(&undisturbed.output);
    for stop in [0, 1, 3, 4, 5, 7, 12, 14] {
        let job = job(&folder.path().join(stop.to_string()));
        let steps = AtomicU64::new(0);
        let count = |event: &Event| {
            if let Event::Step { step, .. } = event {
                steps.store(*step, Ordering::Relaxed);
            }
        };
        let outcome = run_watched(&job, count, || steps.load(Ordering::Relaxed) == stop).unwrap();
        assert!(matches!(outcome, Outcome::Interrupted { step, total_steps: 15, .. } if step == stop), "{outcome:?}");
        assert!(!job.output.exists());
        let mut resumed = None;
        let note = |event: &Event| {
            if let Event::Resumed { step, .. } = event {
                resumed = Some(*step);
            }
        };
        let Outcome::Finished(report) = run_watched(&job, note, || false).unwrap() else { panic!("interrupted") };
        assert_eq!(resumed, Some(stop));
        assert!(weights(&job.output) == expected, "after step {stop}");
        assert_eq!(report.json["curve"], curve);
        assert!(!folder.path().join(stop.to_string()).join("model.training").exists());
    }
}

#[test]
fn resumes_to_the_same_bytes_after_a_kill_at_any_event() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    let mut events = 0;
    run_watched(&undisturbed, |_| events += 1, || false).unwrap();
    let expected = weights(&undisturbed.output);
    let killed = job(&folder.path().join("killed"));
    // Every run gets one event further than the previous one: between two saves, right before one and right after one.
    let mut kills = 0;
    for stop in 1..=events {
        let mut seen = 0;
        let die = |_: &Event| {
            seen += 1;
            assert!(seen < stop, "killed");
        };
        // A panic leaves the same files as a kill.
        let ended = catch_unwind(AssertUnwindSafe(|| run_watched(&killed, die, || false)));
        kills += usize::from(ended.is_err());
        if ended.is_ok_and(|outcome| outcome.is_ok()) {
            break;
        }
    }
    run(&killed);
    assert!(kills > 5);
    assert!(weights(&killed.output) == expected);
}

/// Runs as a child process of the next test.
#[test]
#[ignore = "it is the child of `resumes_to_the_same_bytes_after_sigkill`"]
fn child_that_is_killed() {
    run(&job(Path::new(&std::env::var("COUPLET_TEST_JOB").unwrap())));
}

#[test]
fn resumes_to_the_same_bytes_after_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    run(&undisturbed);
    let killed = job(&folder.path().join("killed"));
    let mut kills = 0;
    for attempt in 0..60 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "resume::child_that_is_killed"])
            .env("COUPLET_TEST_JOB", folder.path().join("killed"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Kills later each time, so at different points, until a run completes.
        std::thread::sleep(std::time::Duration::from_millis(20 + 7 * attempt));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // All existing files are complete.
        if killed.output.exists() {
            assert!(weights(&killed.output) == weights(&undisturbed.output));
        }
    }
    run(&killed);
    println!("killed {kills} times");
    assert!(kills > 0);
    assert!(weights(&killed.output) == weights(&undisturbed.output));
    assert_eq!(names(&folder.path().join("killed")), names(&folder.path().join("undisturbed")));
}

#[test]
fn one_seed_gives_one_model_and_another_seed_another() {
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, seed: u64, threads: usize| {
        let mut job = job(&folder.path().join(name));
        job.hyper.seed = seed;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        job.run(&Device::Cpu, &pool, &mut Watch { event: &mut |_| (), cancelled: &|| false }).unwrap();
        weights(&job.output)
    };
    let one = model("one", 1, 1);
    assert!(one == model("again", 1, 3));
    assert!(one != model("two", 2, 1));
}

#[test]
fn ignores_the_state_of_another_job_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    run(&undisturbed);
    let mut other = job(folder.path());
    other.hyper.learning_rate = 1e-3;
    let stop = AtomicBool::new(false);
    let after_step = |event: &Event| {
        stop.fetch_or(matches!(event, Event::Step { .. }), Ordering::Relaxed);
    };
    run_watched(&other, after_step, || stop.load(Ordering::Relaxed)).unwrap();
    let mut message = String::new();
    let note = |event: &Event| {
        if let Event::StateIgnored { .. } = event {
            message = event.to_string();
        }
    };
    run_watched(&job(folder.path()), note, || false).unwrap();
    assert!(message.contains("other settings"), "{message}");
    assert!(weights(&folder.path().join("model")) == weights(&undisturbed.output));
}

#[test]
fn ignores_the_state_of_an_older_version() {
    let folder = tempfile::tempdir().unwrap();
    let (job, polls) = (job(folder.path()), AtomicU64::new(0));
    run_watched(&job, |_| (), || polls.fetch_add(1, Ordering::Relaxed) > 6).unwrap();
    let path = folder.path().join("model.training/state.safetensors");
    let mut state = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let progress = state.remove("progress").unwrap();
    state.insert("progress.counts".into(), progress);
    candle_core::safetensors::save(&state, &path).unwrap();
    let mut message = String::new();
    let note = |event: &Event| {
        if let Event::StateIgnored { .. } = event {
            message = event.to_string();
        }
    };
    run_watched(&job, note, || false).unwrap();
    assert!(message.ends_with("it is incomplete"), "{message}");
}

#[test]
fn refuses_two_concurrent_trainings_for_one_output() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let mut second = None;
    let inner = |event: &Event| {
        if second.is_none() && matches!(event, Event::Step { .. }) {
            second = Some(run_watched(&job, |_| (), || false));
        }
    };
    run_watched(&job, inner, || false).unwrap();
    let busy = second.unwrap();
    assert!(matches!(&busy, Err(JobError::Busy { .. })), "{busy:?}");
}

#[test]
fn pretraining_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let start = || pretrain::Start::Checkpoint(golden("tiny-bert"));
    let undisturbed = pretrain_job(&folder.path().join("undisturbed"), start());
    run_pretrain(&undisturbed, |_| (), || false);
    for stop in [0, 5, 25] {
        let job = pretrain_job(&folder.path().join(stop.to_string()), start());
        let steps = AtomicU64::new(0);
        let count = |event: &Event| {
            if let Event::Step { step, .. } = event {
                steps.store(*step, Ordering::Relaxed);
            }
        };
        let outcome = run_pretrain(&job, count, || steps.load(Ordering::Relaxed) == stop);
        assert!(matches!(outcome, Outcome::Interrupted { .. }), "{outcome:?}");
        run_pretrain(&job, |_| (), || false);
        assert!(weights(&job.output) == weights(&undisturbed.output), "after step {stop}");
    }
}
