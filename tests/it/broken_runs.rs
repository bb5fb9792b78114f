//! Runs that die, are aborted or get no response: readers never see their files, and later runs remove them.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use couplet::lock::Place;
use couplet::sink::Origin;
use couplet::sink::runs::{Limits, Run, RunFolder, RunsError, all, latest};
use object_store::memory::InMemory;

use crate::faulty::{Fault, Faulty};
use crate::runs::{batch, begin, ids, names, objects, origin, places, publish, read, remote, run, schema, wide_batch};

/// Runs as a child process of the next test.
#[test]
#[ignore = "it is the child of `a_run_killed_anywhere_is_invisible_to_readers`"]
fn child_that_publishes() {
    let sink = std::env::var("COUPLET_TEST_SINK").unwrap();
    let id = std::env::var("COUPLET_TEST_RUN").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let place = Place::Folder(sink.into());
        let begun = RunFolder::begin(&place, &schema(), &[("couplet.model", "b1c3".into())], run(&id, Some(2))).await;
        let mut folder = begun.unwrap().with_limits(Limits { bytes: u64::MAX, rows: 5000 });
        for _ in 0..40 {
            folder.write(&batch(&id, 1000)).await.unwrap();
        }
        folder.commit().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_anywhere_is_invisible_to_readers() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    publish(&place, "first", 40, None).await.unwrap();
    let (mut kills, mut unfinished, mut last) = (0, 0, 1);
    for attempt in 0..60 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "broken_runs::child_that_publishes"])
            .env("COUPLET_TEST_SINK", folder.path())
            .env("COUPLET_TEST_RUN", format!("run{attempt}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Kills at a different point each time, from before the run begins until after it is done.
        tokio::time::sleep(Duration::from_millis(10 + 7 * attempt % 200)).await;
        let done = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        kills += u32::from(!done);
        unfinished += u32::from(names(folder.path()).iter().any(|name| name.starts_with('.')));
        let runs = all(&place).await.unwrap();
        assert!(!runs.is_empty());
        for manifest in &runs {
            assert_eq!(read(&place, manifest).await, Ok(40_000));
        }
        let newest = runs.last().unwrap().sequence;
        assert!(newest == last || newest == last + 1, "{last} then {newest}");
        last = newest;
    }
    println!("{kills} kills, {unfinished} of them while something was written, {last} runs published");
    assert!(kills > 10);
    publish(&place, "last", 1, Some(1)).await.unwrap();
    assert_eq!(names(folder.path()), [latest(&place).await.unwrap().unwrap().folder()]);
}

#[tokio::test]
async fn an_aborted_run_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        let mut given_up = begin(&place, "up").await.with_limits(Limits { bytes: u64::MAX, rows: 1000 });
        for _ in 0..3 {
            given_up.write(&batch("up", 1000)).await.unwrap();
        }
        given_up.abort().await;
        assert!(latest(&place).await.unwrap().is_none());
        publish(&place, "next", 1, None).await.unwrap();
        publish(&place, "after", 1, None).await.unwrap();
        match &place {
            Place::Folder(sink) => assert_eq!(names(sink), ["run=000001-next", "run=000002-after"]),
            Place::Objects { store, .. } => {
                assert!(objects(store.as_ref()).await.iter().all(|name| !name.contains("-up")))
            }
        }
    }
}

/// The object store is left as a kill would leave it, after every single write.
#[tokio::test]
async fn a_killed_remote_run_is_invisible_and_removed_by_the_next() {
    let mut died = 0;
    for step in 0.. {
        let memory = InMemory::new();
        let place = remote(&memory);
        publish(&place, "first", 2, None).await.unwrap();
        let faulty = Faulty::new(Arc::new(memory.clone()));
        faulty.fail_after(step);
        let ended = dying(&remote(&faulty)).await;
        let killed = faulty.log.lock().unwrap().iter().any(|line| line == "killed");
        let runs = all(&place).await.unwrap();
        for manifest in &runs {
            read(&place, manifest).await.unwrap();
        }
        if !killed {
            ended.unwrap();
            assert_eq!(ids(&place).await, ["second"]);
            break;
        }
        died += 1;
        assert!(matches!(runs.len(), 1 | 2), "{runs:?}");
        let before = runs.last().unwrap().clone();
        // Another pipeline does not touch it.
        let objects_before = objects(&memory).await.len();
        let other = Run { origin: origin("other", "other"), ..run("other", None) };
        RunFolder::begin(&place, &schema(), &[], other).await.unwrap();
        assert_eq!(objects(&memory).await.len(), objects_before + 1);

        let third = publish(&place, "third", 1, None).await.unwrap();
        assert_eq!(third.sequence, before.sequence + 1);
        publish(&place, "fourth", 1, Some(1)).await.unwrap();
        publish(&place, "fifth", 1, Some(1)).await.unwrap();
        let left: Vec<String> = objects(&memory).await.into_iter().filter(|name| !name.contains("-other")).collect();
        let (fifth, noted): (Vec<_>, Vec<_>) = left.iter().partition(|name| name.contains("-fifth/"));
        assert_eq!(fifth.len(), 3, "{left:?}");
        // The note of a removed run may stay.
        assert!(noted.iter().all(|name| name.ends_with("/_SUCCESS")), "{left:?}");
    }
    assert!(died > 7, "{died}");
}

/// Writes a run in three files; the process ends at the first error without any cleanup.
async fn dying(place: &Place) -> Result<(), RunsError> {
    let begun = RunFolder::begin(place, &schema(), &[("couplet.model", "b1c3".into())], run("second", Some(1))).await;
    let mut folder = begun?.with_limits(Limits { bytes: u64::MAX, rows: 1000 });
    for _ in 0..3 {
        folder.write(&batch("second", 1000)).await?;
    }
    folder.finish().await?;
    folder.commit().await.map(|_| ())
}

#[tokio::test]
async fn a_removed_run_cannot_become_complete_later() {
    let store = InMemory::new();
    let place = remote(&store);
    let mut slow = begin(&place, "slow").await;
    slow.write(&batch("slow", 1000)).await.unwrap();
    slow.finish().await.unwrap();
    publish(&place, "next", 1, None).await.unwrap();
    let error = slow.commit().await.unwrap_err().to_string();
    let fenced = "another run of this pipeline has begun since, and has removed what this one wrote";
    assert_eq!(error, format!("cannot write s3://bucket/out/scores: {fenced}"));
    assert_eq!(ids(&place).await, ["next"]);
    publish(&place, "after", 1, None).await.unwrap();
    publish(&place, "last", 1, None).await.unwrap();
    // The note stays: a write of the slow run may still be in flight.
    let left: Vec<String> = objects(&store).await.into_iter().filter(|name| name.contains("slow")).collect();
    assert_eq!(left, ["out/scores/run=000001-slow/_SUCCESS"]);
}

#[tokio::test]
async fn of_two_runs_of_a_store_or_key_only_the_later_is_published() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        let with = |run: &str, store: &str, key: &str| Run {
            origin: Origin { store: store.into(), key: Some(key.into()), ..origin("nightly", run) },
            ..self::run(run, None)
        };
        let begin = async |run: Run| RunFolder::begin(&place, &schema(), &[], run).await.unwrap();
        for (older, newer) in [(("a", "1"), ("a", "2")), (("a", "3"), ("b", "3"))] {
            let mut slow = begin(with("slow", older.0, older.1)).await;
            slow.write(&batch("slow", 1000)).await.unwrap();
            slow.finish().await.unwrap();
            let next = begin(with(&format!("next{}", newer.1), newer.0, newer.1)).await;
            assert!(!next.has_key());
            next.commit().await.unwrap();
            let error = slow.commit().await.unwrap_err().to_string();
            assert!(error.contains("another run of this pipeline has begun since"), "{error}");
            assert!(begin(with("again", newer.0, newer.1)).await.has_key());
        }
        assert_eq!(ids(&place).await, ["next2", "next3"]);
        // Store and key both differ, so both runs may be in progress.
        let first = begin(with("first", "a", "4")).await;
        begin(with("second", "b", "5")).await.commit().await.unwrap();
        first.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_run_recognizes_its_manifest_after_a_lost_response() {
    for fault in [Fault::Repeated, Fault::AnswerLost] {
        let store = Faulty::new(Arc::new(InMemory::new()));
        let place = remote(&store);
        let mut folder = begin(&place, "a").await;
        folder.write(&batch("a", 1000)).await.unwrap();
        folder.finish().await.unwrap();
        store.script(&[Some(fault)]);
        let manifest = folder.commit().await.unwrap();
        assert_eq!(latest(&place).await.unwrap(), Some(manifest));
    }
    // The outcome is unknown: the files stay, because the manifest may still arrive.
    let store = Faulty::new(Arc::new(InMemory::new()));
    let place = remote(&store);
    let mut folder = begin(&place, "a").await;
    folder.finish().await.unwrap();
    store.script(&[Some(Fault::Refused); 3]);
    let error = folder.commit().await.unwrap_err().to_string();
    assert!(error.contains("whether this run's output was published is not known"), "{error}");
    assert_eq!(objects(&store).await.len(), 2);
}

#[tokio::test]
async fn failed_and_abandoned_uploads_are_aborted() {
    // One row group, which is sent at once, is larger than a part.
    let full = wide_batch("full", 128 * 1024, 8);
    for case in ["fails", "drops", "aborts", "finishes"] {
        let store = Faulty::new(Arc::new(InMemory::new()));
        let place = remote(&store);
        let mut folder = begin(&place, case).await;
        folder.write(&full).await.unwrap();
        assert_eq!(store.open_uploads.load(Ordering::SeqCst), 1, "{case}");
        match case {
            "fails" => {
                store.script(&[Some(Fault::Refused); 3]);
                let failed = folder.write(&full).await;
                let failed = failed.and(folder.finish().await).unwrap_err().to_string();
                assert!(failed.starts_with("cannot write s3://bucket/out/scores: 500 Internal"), "{failed}");
                folder.abort().await;
            }
            "drops" => {
                drop(folder);
                while store.open_uploads.load(Ordering::SeqCst) > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            "aborts" => folder.abort().await,
            _ => {
                let manifest = folder.commit().await.unwrap();
                assert_eq!(read(&place, &manifest).await, Ok(128 * 1024));
            }
        }
        assert_eq!(store.open_uploads.load(Ordering::SeqCst), 0, "{case}");
    }
}
