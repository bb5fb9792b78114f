//! Locks and folders of runs on a real S3 server, behind a proxy that drops responses.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, StringArray};
use couplet::lock::{Claim, Explain, LockError, Place, acquire, probe_and_delete};
use couplet::sink::runs::{Run, RunFolder, latest};
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::proxy::{Fault, Kind, Proxy, Rule};
use crate::runs::origin;
use crate::seaweed::{Bucket, client_with_retries};

const LEASE: Duration = Duration::from_secs(2);

/// A bucket with a proxy in front of it; `None` if there is no server.
fn setup(test: &str, bucket: &str) -> Option<(Bucket, Proxy)> {
    let bucket = Bucket::new(test, bucket)?;
    let proxy = bucket.proxy(11);
    Some((bucket, proxy))
}

/// The place as each process opens it: with a separate client that retries three times.
fn place(bucket: &Bucket, proxy: &Proxy) -> Place {
    let store = client_with_retries(&proxy.endpoint(), &bucket.name, 3);
    let name = format!("s3://{}/store", bucket.name);
    Place::Objects { store: Arc::new(store), root: Path::from("store"), name, explain: Explain::default() }
}

fn claim(run: &str) -> Claim {
    Claim { run_id: run.into(), pipeline: "nightly".into(), wait: None, lease: LEASE }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

#[test]
fn a_probe_detects_servers_without_conditional_writes() {
    let Some((bucket, proxy)) = setup("a_probe_tells_servers_that_keep_conditions", "alone-probe") else { return };
    runtime().block_on(async {
        probe_and_delete(&place(&bucket, &proxy), "probe").await.unwrap();
        assert_eq!((proxy.requests(Kind::PutIf), proxy.requests(Kind::Delete)), (3, 1));
        // The client retries a create whose response was lost, and the retry is refused.
        proxy.fail(Rule::new(Fault::DropAnswer).on(&[Kind::PutIf]).times(1));
        probe_and_delete(&place(&bucket, &proxy), "probe").await.unwrap();
        proxy.fail(Rule::new(Fault::IgnoreCondition).on(&[Kind::PutIf]));
        let refused = probe_and_delete(&place(&bucket, &proxy), "probe").await.unwrap_err();
        assert!(matches!(&refused, LockError::Unsafe { .. }), "{refused}");
        proxy.heal();
        proxy.fail(Rule::new(Fault::Status(501)).on(&[Kind::PutIf]));
        let refused = probe_and_delete(&place(&bucket, &proxy), "probe").await.unwrap_err();
        assert!(refused.to_string().contains("does not support conditional writes with If-None-Match"), "{refused}");
        assert!(bucket.client.list_with_delimiter(None).await.unwrap().objects.is_empty());
    });
}

#[test]
fn one_of_many_gets_the_lock_despite_lost_responses() {
    let Some((bucket, proxy)) = setup("one_of_many_gets_the_lock_despite_lost_responses", "alone-race") else { return };
    proxy.fail(Rule::new(Fault::DropAnswer).on(&[Kind::PutIf]).rate(0.3));
    runtime().block_on(async {
        for round in 0..5 {
            let claims: Vec<Claim> = (0..8).map(|n| claim(&format!("{round}-{n}"))).collect();
            let places: Vec<Place> = claims.iter().map(|_| place(&bucket, &proxy)).collect();
            let results = join_all(claims.iter().zip(&places).map(|(claim, place)| acquire(place, claim))).await;
            let mut held = Vec::new();
            for result in results {
                match result {
                    Ok(lock) => held.push(lock),
                    Err(e) => assert!(matches!(e, LockError::Busy { .. }), "{e}"),
                }
            }
            assert_eq!(held.len(), 1);
            // Lasts a few renewals, some of which get no response.
            tokio::time::sleep(LEASE).await;
            let held = held.remove(0);
            held.check().unwrap();
            held.confirm().await.unwrap();
            held.release().await.unwrap();
        }
    });
    assert!(proxy.faults(Fault::DropAnswer) > 3);
}

#[test]
fn a_holder_that_is_cut_off_knows_before_a_takeover() {
    let Some((bucket, proxy)) = setup("a_holder_that_is_cut_off_knows_it", "alone-cut") else { return };
    let other = bucket.proxy(12);
    runtime().block_on(async {
        let first = acquire(&place(&bucket, &proxy), &claim("first")).await.unwrap();
        proxy.fail(Rule::new(Fault::Reset));
        // It waits because the other process, which is this one, is alive.
        let waiting = Claim { wait: Some(LEASE * 10), ..claim("second") };
        let second = acquire(&place(&bucket, &other), &waiting).await.unwrap();
        assert!(matches!(first.check(), Err(LockError::Lost { .. })));
        assert!(matches!(first.lost().await, LockError::Lost { .. }));
        assert_eq!(second.left_behind()[0].run_id, "first");
        proxy.heal();
        assert!(matches!(first.confirm().await, Err(LockError::Lost { .. })));
        second.confirm().await.unwrap();
    });
}

/// Rows that fill more than one part of an upload.
fn rows() -> RecordBatch {
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 33))
    };
    let texts = (0..128 * 1024).map(|_| (0..8).map(|_| noise()).collect::<String>());
    RecordBatch::try_from_iter([("text", Arc::new(StringArray::from_iter_values(texts)) as _)]).unwrap()
}

async fn begin(place: &Place, id: &str) -> RunFolder {
    let run = Run { origin: origin("nightly", id), model: "b1c3".into(), keep: Some(1) };
    RunFolder::begin(place, &rows().schema(), &[], run).await.unwrap()
}

#[test]
fn runs_are_published_despite_lost_responses() {
    let Some((bucket, proxy)) = setup("runs_are_published_while_answers_are_lost", "alone-runs") else { return };
    let place = place(&bucket, &proxy);
    let rows = rows();
    runtime().block_on(async {
        for id in ["kept", "dropped", "aborted", "failed"] {
            let mut folder = begin(&place, id).await;
            folder.write(&rows).await.unwrap();
            match id {
                "kept" => {
                    // The parts, the end of the upload and the manifest: each is written, and its first response is
                    // lost.
                    for kind in [Kind::UploadPart, Kind::UploadComplete, Kind::PutIf] {
                        proxy.fail(Rule::new(Fault::DropAnswer).on(&[kind]).times(1));
                    }
                    let manifest = folder.commit().await.unwrap();
                    assert_eq!(proxy.faults(Fault::DropAnswer), 3);
                    assert_eq!((manifest.rows, manifest.sequence), (128 * 1024, 1));
                    let file = bucket.client.head(&manifest.paths(&Path::from("store"))[0]).await.unwrap();
                    assert_eq!((file.size, &file.e_tag), (manifest.files[0].bytes, &manifest.files[0].etag));
                    continue;
                }
                "dropped" => {
                    drop(folder);
                    while proxy.requests(Kind::UploadAbort) == 0 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                "aborted" => folder.abort().await,
                _ => {
                    proxy.fail(Rule::new(Fault::Status(403)).on(&[Kind::UploadPart, Kind::UploadComplete]));
                    folder.commit().await.unwrap_err();
                    proxy.heal();
                }
            }
            assert_eq!(latest(&place).await.unwrap().unwrap().run_id, "kept");
        }
        let ended = proxy.requests(Kind::UploadAbort) + 1;
        assert_eq!((proxy.requests(Kind::UploadStart), ended), (4, 4));
        // Two runs later, no files of the abandoned ones are left.
        for id in ["next", "last"] {
            begin(&place, id).await.commit().await.unwrap();
        }
        let Place::Objects { store, root, .. } = &place else { return };
        let objects: Vec<_> = store.list(Some(root)).try_collect().await.unwrap();
        let names = objects.iter().map(|object| object.location.as_ref());
        let (last, noted): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("store/run=000003-last/"));
        assert_eq!(last.len(), 3);
        // The removal of the abandoned run.
        assert!(noted.len() == 1 && noted.iter().all(|name| name.ends_with("/_SUCCESS")), "{noted:?}");
    });
}
