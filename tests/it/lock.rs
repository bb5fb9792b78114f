//! The run lock: only one run holds it, and a holder learns when it has lost it.

use std::path::Path as FilePath;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use couplet::lock::{Claim, Explain, Held, LockError, Place, acquire, probe, probe_and_delete};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::faulty::{Fault, Faulty};

/// Short, to keep tests fast; long compared with the pauses of a busy machine.
const LEASE: Duration = Duration::from_secs(2);

fn claim(run: &str, wait: Option<Duration>) -> Claim {
    Claim { run_id: run.into(), pipeline: "nightly".into(), wait, lease: LEASE }
}

fn objects(store: &(impl ObjectStore + Clone)) -> Place {
    Place::Objects {
        store: Arc::new(store.clone()),
        root: Path::from("a/store"),
        name: "s3://bucket/a/store".into(),
        explain: Explain::default(),
    }
}

/// An in-memory store with scripted faults.
fn faulty() -> Faulty {
    Faulty::new(Arc::new(InMemory::new()))
}

async fn take(place: &Place, run: &str) -> Held {
    acquire(place, &claim(run, None)).await.unwrap()
}

fn left(held: &Held) -> Vec<&str> {
    held.left_behind().iter().map(|holder| holder.run_id.as_str()).collect()
}

async fn content(store: &dyn ObjectStore) -> serde_json::Value {
    let bytes = store.get(&Path::from("a/store/lock.json")).await.unwrap().bytes().await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Makes the lock look as if it were held by a run on another computer, of which only its writes are visible.
async fn held_elsewhere(store: &dyn ObjectStore) {
    let mut json = content(store).await;
    json["state"] = "held".into();
    json["holder"]["process"]["boot_id"] = "another".into();
    json["holder"]["run_id"] = "elsewhere".into();
    let path = Path::from("a/store/lock.json");
    store.put(&path, serde_json::to_vec(&json).unwrap().into()).await.unwrap();
}

/// Runs as a child process of tests that kill it.
#[test]
#[ignore = "it is the child of other tests"]
fn child_that_holds_the_lock() {
    let folder = std::env::var("COUPLET_TEST_STORE").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(acquire(&Place::Folder(folder.clone().into()), &claim("killed", None))).unwrap();
    std::fs::write(FilePath::new(&folder).join("ready"), "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
    drop(held);
}

fn child(folder: &FilePath) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "lock::child_that_holds_the_lock"])
        .env("COUPLET_TEST_STORE", folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !folder.join("ready").exists() {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[tokio::test]
async fn a_folder_lock_lasts_until_its_run_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    let mut holder = child(folder.path());
    let busy = acquire(&place, &claim("second", None)).await.unwrap_err();
    let message = busy.to_string().replace(&folder.path().display().to_string(), "state");
    let pid = holder.id();
    assert!(
        message.starts_with("state is in use by another run: pipeline `nightly`, run killed, process "),
        "{message}"
    );
    assert!(message.contains(&format!("process {pid} on ")), "{message}");
    assert!(message.ends_with("Z. Wait for it with --wait 10m, or look at that process"), "{message}");
    let began = Instant::now();
    let busy = acquire(&place, &claim("second", Some(Duration::from_millis(300)))).await;
    assert!(matches!(busy, Err(LockError::Busy { .. })));
    assert!(began.elapsed() >= Duration::from_millis(300));

    holder.kill().unwrap();
    holder.wait().unwrap();
    let second = take(&place, "second").await;
    assert_eq!(left(&second), ["killed"]);
    // Nobody has recorded the first death when the next holder is killed.
    drop(second);
    let mut third = take(&place, "third").await;
    assert_eq!(left(&third), ["killed", "second"]);
    third.settle().await.unwrap();
    third.check().unwrap();
    third.release().await.unwrap();
    assert!(left(&take(&place, "fourth").await).is_empty());
}

#[tokio::test]
async fn a_waiting_run_gets_a_folder_as_soon_as_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().join("new/store"));
    let first = take(&place, "first").await;
    let waiting = tokio::spawn({
        let place = place.clone();
        async move { acquire(&place, &claim("second", Some(Duration::from_secs(30)))).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    first.release().await.unwrap();
    assert!(left(&waiting.await.unwrap().unwrap()).is_empty());
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_whose_lock_file_was_removed_is_not_held() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    let first = take(&place, "first").await;
    std::fs::remove_file(folder.path().join("lock.json")).unwrap();
    assert!(matches!(first.check(), Err(LockError::Lost { .. })));
    let second = take(&place, "second").await;
    assert!(matches!(first.confirm().await, Err(LockError::Lost { .. })));
    assert!(matches!(first.release().await, Err(LockError::Lost { .. })));
    second.check().unwrap();
}

#[tokio::test]
async fn a_truncated_or_foreign_lock_file_is_rewritten() {
    for text in ["", "{\"state\": \"he", "not ours"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lock.json"), text).unwrap();
        let held = take(&Place::Folder(folder.path().into()), "first").await;
        assert!(left(&held).is_empty());
        held.release().await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("lock.json")).unwrap();
        assert!(text.contains("\"state\": \"released\""), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_object_is_renewed_until_released() {
    let store = InMemory::new();
    let place = objects(&store);
    let first = take(&place, "first").await;
    tokio::time::sleep(LEASE * 3).await;
    first.check().unwrap();
    assert!(content(&store).await["renewals"].as_u64().unwrap() >= 5);
    // Its process is known to be alive: refused at once.
    let began = Instant::now();
    let busy = acquire(&place, &claim("second", None)).await.unwrap_err();
    assert!(matches!(&busy, LockError::Busy { holder: Some(holder), .. } if holder.run_id == "first"), "{busy}");
    assert!(began.elapsed() < LEASE);
    first.release().await.unwrap();
    let second = take(&place, "second").await;
    assert!(left(&second).is_empty());
    drop(second);
    while content(&store).await["state"] != "abandoned" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left(&take(&place, "third").await), ["second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_waiter_takes_over_after_the_lease_of_a_dead_holder() {
    let store = InMemory::new();
    let place = objects(&store);
    take(&place, "first").await.release().await.unwrap();
    held_elsewhere(&store).await;
    let began = Instant::now();
    let racers: Vec<_> = (0..8)
        .map(|n| {
            let place = place.clone();
            tokio::spawn(async move {
                let held = acquire(&place, &claim(&format!("racer {n}"), Some(Duration::from_millis(1)))).await;
                (held, began.elapsed())
            })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            (Ok(held), after) => winners.push((held, after)),
            (Err(e), _) => assert!(matches!(e, LockError::Busy { .. }), "{e}"),
        }
    }
    let [(winner, after)] = &winners[..] else { panic!("{} winners", winners.len()) };
    assert!(*after > LEASE, "taken over after {after:?}");
    assert_eq!(left(winner), ["elsewhere"]);
    winner.check().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_holder_that_renews_is_not_replaced() {
    let store = InMemory::new();
    let place = objects(&store);
    take(&place, "first").await.release().await.unwrap();
    held_elsewhere(&store).await;
    let beats = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                held_elsewhere(&store).await;
            }
        }
    });
    let began = Instant::now();
    let busy = acquire(&place, &claim("second", None)).await.unwrap_err();
    assert!(matches!(&busy, LockError::Busy { holder: Some(holder), .. } if holder.run_id == "elsewhere"), "{busy}");
    let busy = acquire(&place, &claim("second", Some(LEASE * 3))).await.unwrap_err();
    assert!(busy.to_string().contains("This run waited 6 s for it"), "{busy}");
    assert!(began.elapsed() > LEASE * 3);
    beats.abort();
    assert_eq!(left(&take(&place, "third").await), ["elsewhere"]);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_process_has_ended_is_replaced_at_once() {
    let store = InMemory::new();
    let place = objects(&store);
    take(&place, "first").await.release().await.unwrap();
    let mut json = content(&store).await;
    json["state"] = "held".into();
    json["lease_seconds"] = 3600.into();
    // A pid that is in use by a process with another start time.
    json["holder"]["process"]["started"] = 1.into();
    store.put(&Path::from("a/store/lock.json"), serde_json::to_vec(&json).unwrap().into()).await.unwrap();
    let began = Instant::now();
    assert_eq!(left(&take(&place, "second").await), ["first"]);
    assert!(began.elapsed() < LEASE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_lock_is_held_for_the_default_lease() {
    let store = InMemory::new();
    store.put(&Path::from("a/store/lock.json"), "gibberish".into()).await.unwrap();
    let (place, claim) = (objects(&store), claim("first", None));
    let waiting = acquire(&place, &claim);
    // It names no lease, so the default one applies, which is longer than this test.
    assert!(tokio::time::timeout(LEASE, waiting).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_recognizes_its_writes_after_lost_responses() {
    for fault in [Fault::Repeated, Fault::AnswerLost] {
        let store = faulty();
        let place = objects(&store);
        store.script(&[Some(fault)]);
        let first = take(&place, "first").await;
        // Renewals, a takeover request, a note and the release.
        store.script(&[Some(fault), None, Some(fault), Some(fault), None, Some(fault)]);
        tokio::time::sleep(LEASE).await;
        for _ in 0..3 {
            store.script(&[Some(fault)]);
            first.confirm().await.unwrap();
        }
        first.check().unwrap();
        store.script(&[Some(fault), Some(fault)]);
        first.release().await.unwrap();
        assert_eq!(content(&store).await["state"], "released");

        // Also on takeover.
        held_elsewhere(&store).await;
        let second = tokio::spawn({
            let place = place.clone();
            async move { take(&place, "second").await }
        });
        tokio::time::sleep(LEASE / 2).await;
        store.script(&[Some(fault)]);
        let second = second.await.unwrap();
        assert_eq!(left(&second), ["elsewhere"]);
        second.confirm().await.unwrap();
        assert_eq!(content(&store).await["holder"]["run_id"], "second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_server_loses_the_lock_when_the_lease_ends() {
    let store = faulty();
    let held = take(&objects(&store), "first").await;
    store.script(&[Some(Fault::Stalls), None]);
    // One renewal stalls; the next one sees that it was written.
    tokio::time::sleep(LEASE * 2).await;
    held.check().unwrap();
    store.script(&[Some(Fault::Stalls); 20]);
    let lost = tokio::time::timeout(LEASE * 3, held.lost()).await.unwrap();
    assert!(lost.to_string().contains("no answer within"), "{lost}");
    assert!(matches!(held.check(), Err(LockError::Lost { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_cannot_renew_knows_before_a_takeover() {
    let store = faulty();
    let first = take(&objects(&store), "first").await;
    store.down.store(true, Ordering::Relaxed);
    // The check detects it before the background task does; others wait a quarter longer.
    tokio::time::sleep(LEASE).await;
    assert!(matches!(first.check(), Err(LockError::Lost { .. })));
    let lost = first.lost().await;
    let message = lost.to_string();
    assert!(message.starts_with("the lock on s3://bucket/a/store is lost: it could not be renewed for "), "{message}");
    assert!(matches!(first.check(), Err(LockError::Lost { .. })));
    // The loss is permanent, even if the server becomes reachable again.
    store.down.store(false, Ordering::Relaxed);
    assert!(matches!(first.confirm().await, Err(LockError::Lost { .. })));
    assert!(matches!(first.release().await, Err(LockError::Lost { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_outage_does_not_lose_the_lock() {
    let store = faulty();
    let first = take(&objects(&store), "first").await;
    for _ in 0..4 {
        store.down.store(true, Ordering::Relaxed);
        tokio::time::sleep(LEASE / 3).await;
        first.check().unwrap();
        store.down.store(false, Ordering::Relaxed);
        tokio::time::sleep(LEASE / 3).await;
        first.check().unwrap();
    }
    first.release().await.unwrap();
}

/// Single-threaded, so that the sleep also stops the renewals, as in a stopped process or computer.
#[tokio::test]
async fn a_stopped_holder_notices_that_it_was_replaced() {
    let store = InMemory::new();
    let place = objects(&store);
    let first = take(&place, "first").await;
    std::thread::sleep(LEASE * 2);
    // It does not know whether another run has taken over, and must not write.
    assert!(matches!(first.check(), Err(LockError::Lost { .. })));
    // No other run did, as the server confirms.
    first.confirm().await.unwrap();
    first.check().unwrap();

    held_elsewhere(&store).await;
    let lost = first.lost().await.to_string();
    assert!(lost.contains("another run took it: pipeline `nightly`, run elsewhere"), "{lost}");
    assert!(matches!(first.confirm().await, Err(LockError::Lost { .. })));
    // Its late release does not touch the other run's lock.
    assert!(first.release().await.is_err());
    assert_eq!(content(&store).await["holder"]["run_id"], "elsewhere");
    assert_eq!(content(&store).await["state"], "held");
}

#[tokio::test]
async fn a_holder_of_a_removed_lock_has_lost_it() {
    let store = InMemory::new();
    let first = take(&objects(&store), "first").await;
    store.delete(&Path::from("a/store/lock.json")).await.unwrap();
    let lost = first.confirm().await.unwrap_err();
    assert!(lost.to_string().contains("somebody removed or overwrote it"), "{lost}");
}

#[tokio::test]
async fn a_probe_costs_four_requests_and_leaves_nothing() {
    let store = faulty();
    probe_and_delete(&objects(&store), ".couplet-probe").await.unwrap();
    let log = store.log.lock().unwrap().clone();
    assert_eq!(log.len(), 4, "{log:?}");
    assert_eq!(log[3], "delete a/store/.couplet-probe", "{log:?}");
    // A repeated first write is recognized as the own one.
    store.script(&[Some(Fault::Repeated)]);
    probe_and_delete(&objects(&store), ".couplet-probe").await.unwrap();
    assert!(store.list_with_delimiter(None).await.unwrap().objects.is_empty());

    // An existing object stays, whatever is tried on it.
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        probe(&Place::Folder(folder.path().join("new")), "marker", b"store").await.unwrap();
        assert_eq!(std::fs::read(folder.path().join("new/marker")).unwrap(), b"store");
        assert_eq!(folder.path().join("new").read_dir().unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused() {
    let mut store = faulty();
    store.ignores_conditions = true;
    let refused = probe_and_delete(&objects(&store), "probe").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "s3://bucket/a/store cannot hold a store or a table safely: it ignores If-None-Match, so that two writers overwrite each other without noticing; use a server that supports it, or a local folder"
    );
    assert!(store.list_with_delimiter(None).await.unwrap().objects.is_empty());
    // A local folder used as an object store cannot do conditional updates.
    let folder = tempfile::tempdir().unwrap();
    let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let place = Place::Objects {
        store: Arc::new(local),
        root: Path::default(),
        name: "odd".into(),
        explain: Explain::default(),
    };
    let refused = probe(&place, "probe", b"1").await.unwrap_err().to_string();
    assert!(refused.contains("does not support conditional writes with If-Match"), "{refused}");
}
