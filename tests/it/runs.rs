//! A sink with one folder per run: readers see a run completely or not at all, despite any fault of the run or the
//! server.

use std::fs;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use couplet::lock::{Explain, Place};
use couplet::sink::Origin;
use couplet::sink::runs::{Limits, Manifest, Run, RunFolder, RunsError, all, latest, remove_older};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("run", DataType::Utf8, true)]))
}

/// Rows that contain the name of their run.
pub fn batch(run: &str, rows: usize) -> RecordBatch {
    wide_batch(run, rows, 1)
}

/// Rows of this many times 16 characters, which cannot be compressed to less than half.
pub fn wide_batch(run: &str, rows: usize, times: usize) -> RecordBatch {
    static STATE: AtomicU64 = AtomicU64::new(1);
    let noise = || {
        let mut z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        format!("{:016x}", z ^ (z >> 31))
    };
    let texts = (0..rows).map(|_| format!("{run} {}", (0..times).map(|_| noise()).collect::<String>()));
    let ids = Int64Array::from_iter_values(0..rows as i64);
    RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(StringArray::from_iter_values(texts))]).unwrap()
}

pub fn run(id: &str, keep: Option<usize>) -> Run {
    Run { origin: origin("nightly", id), model: "17881bc937bbf80d".into(), keep }
}

/// A run of a pipeline, with a separate store.
pub fn origin(pipeline: &str, id: &str) -> Origin {
    Origin { run: id.into(), pipeline: pipeline.into(), store: format!("store of {pipeline}"), key: None }
}

pub fn remote(store: &(impl ObjectStore + Clone)) -> Place {
    Place::Objects {
        store: Arc::new(store.clone()),
        root: Path::from("out/scores"),
        name: "s3://bucket/out/scores".into(),
        explain: Explain::default(),
    }
}

pub async fn begin(place: &Place, id: &str) -> RunFolder {
    RunFolder::begin(place, &schema(), &[("couplet.model", "b1c3".into())], run(id, None)).await.unwrap()
}

/// Publishes a run of this many batches of 1,000 rows.
pub async fn publish(place: &Place, id: &str, batches: usize, keep: Option<usize>) -> Result<Manifest, RunsError> {
    let mut folder = RunFolder::begin(place, &schema(), &[("couplet.model", "b1c3".into())], run(id, keep)).await?;
    for _ in 0..batches {
        folder.write(&batch(id, 1000)).await?;
    }
    assert_eq!(folder.rows(), 1000 * batches as u64);
    folder.commit().await
}

/// What a reader sees of a run: all of its rows, or the first error.
pub async fn read(place: &Place, manifest: &Manifest) -> Result<u64, String> {
    let mut rows = 0;
    for file in &manifest.files {
        let bytes = match place {
            Place::Folder(sink) => {
                fs::read(sink.join(manifest.folder()).join(&file.name)).map_err(|e| e.to_string())?.into()
            }
            Place::Objects { store, root, .. } => {
                let path = root.clone().join(manifest.folder()).join(file.name.as_str());
                store.get(&path).await.map_err(|e| e.to_string())?.bytes().await.unwrap()
            }
        };
        assert_eq!(bytes.len() as u64, file.bytes);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        assert!(
            reader.metadata().file_metadata().key_value_metadata().unwrap().iter().any(|kv| kv.key == "couplet.model")
        );
        let count: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(count as u64, file.rows);
        rows += file.rows;
    }
    assert_eq!(rows, manifest.rows);
    Ok(rows)
}

pub async fn ids(place: &Place) -> Vec<String> {
    all(place).await.unwrap().into_iter().map(|manifest| manifest.run_id).collect()
}

pub async fn objects(store: &dyn ObjectStore) -> Vec<String> {
    let mut names: Vec<String> =
        store.list(None).map_ok(|object| object.location.to_string()).try_collect().await.unwrap();
    names.sort();
    names
}

pub fn names(folder: &FilePath) -> Vec<String> {
    let mut names: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder, and an in-memory store.
pub fn places(folder: &tempfile::TempDir) -> [Place; 2] {
    [Place::Folder(folder.path().join("out")), remote(&InMemory::new())]
}

#[tokio::test]
async fn runs_are_ordered_and_the_newest_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        assert!(latest(&place).await.unwrap().is_none());
        assert!(all(&place).await.unwrap().is_empty());
        // The order does not come from the ids or the clock.
        for (id, sequence) in [("m", 1), ("z", 2), ("a", 3)] {
            let manifest = publish(&place, id, 3, None).await.unwrap();
            assert_eq!((manifest.sequence, manifest.rows, manifest.files.len()), (sequence, 3000, 1));
            assert_eq!(latest(&place).await.unwrap().unwrap(), manifest);
            assert_eq!(read(&place, &manifest).await, Ok(3000));
        }
        assert_eq!(ids(&place).await, ["m", "z", "a"]);
        let manifest = latest(&place).await.unwrap().unwrap();
        assert_eq!(manifest.folder(), "run=000003-a");
        assert_eq!((manifest.schema[1].name.as_str(), manifest.schema[1].r#type.as_str()), ("run", "Utf8"));
        assert!(publish(&place, "../a", 1, None).await.is_err());
    }
}

#[tokio::test]
async fn the_order_of_runs_holds_when_the_clock_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    for id in ["a", "b"] {
        publish(&place, id, 1, None).await.unwrap();
    }
    // Simulates a clock that is years ahead.
    for name in names(folder.path()) {
        let success = folder.path().join(&name).join("_SUCCESS");
        let text = fs::read_to_string(&success).unwrap();
        let (before, after) = text.split_once("\"created_at\": \"").unwrap();
        fs::write(&success, format!("{before}\"created_at\": \"2{}", &after[1..].replacen("026", "999", 1))).unwrap();
        let future = std::time::SystemTime::now() + Duration::from_secs(1 << 30);
        fs::File::open(&success).unwrap().set_modified(future).unwrap();
    }
    let manifest = publish(&place, "c", 1, None).await.unwrap();
    assert_eq!(manifest.sequence, 3);
    assert_eq!(latest(&place).await.unwrap().unwrap().run_id, "c");
}

#[tokio::test]
async fn files_have_a_size_limit_and_empty_runs_have_columns() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        let mut many = begin(&place, "many").await.with_limits(Limits { bytes: u64::MAX, rows: 2000 });
        for _ in 0..5 {
            many.write(&batch("many", 1000)).await.unwrap();
        }
        many.finish().await.unwrap();
        assert_eq!(many.rows(), 5000);
        assert!(latest(&place).await.unwrap().is_none());
        let manifest = many.commit().await.unwrap();
        assert_eq!(manifest.files.iter().map(|file| file.rows).collect::<Vec<_>>(), [2000, 2000, 1000]);
        assert_eq!(manifest.files[2].name, "part-00002.parquet");
        assert_eq!(read(&place, &manifest).await, Ok(5000));

        let mut large = begin(&place, "large").await.with_limits(Limits { bytes: 100_000, rows: u64::MAX });
        for _ in 0..20 {
            large.write(&batch("large", 1000)).await.unwrap();
        }
        let manifest = large.commit().await.unwrap();
        assert!(manifest.files.len() > 2 && manifest.files.iter().all(|file| file.bytes < 300_000), "{manifest:?}");
        assert_eq!(read(&place, &manifest).await, Ok(20_000));

        let manifest = publish(&place, "none", 0, None).await.unwrap();
        assert_eq!((manifest.rows, manifest.files.len()), (0, 1));
        assert_eq!(read(&place, &manifest).await, Ok(0));
    }
}

#[tokio::test]
async fn the_newest_runs_and_those_of_other_pipelines_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        let other = Run { origin: origin("other", "other"), ..run("other", None) };
        RunFolder::begin(&place, &schema(), &[], other).await.unwrap().commit().await.unwrap();
        for id in ["a", "b", "c", "d"] {
            publish(&place, id, 1, Some(2)).await.unwrap();
        }
        assert_eq!(ids(&place).await, ["other", "c", "d"]);
        // The last run is never removed.
        assert_eq!(remove_older(&place, "nightly", 0).await.unwrap(), 1);
        assert_eq!(ids(&place).await, ["other", "d"]);
        match &place {
            Place::Folder(sink) => assert_eq!(names(sink), ["run=000001-other", "run=000005-d"]),
            Place::Objects { store, .. } => assert_eq!(objects(store.as_ref()).await.len(), 6),
        }
    }
}

/// Writes a note into the folder of a run.
async fn put_note(place: &Place, run: &str) {
    match place {
        Place::Folder(sink) => fs::write(sink.join(run).join("notes.txt"), "mine").unwrap(),
        Place::Objects { store, root, .. } => {
            store.put(&root.clone().join(run).join("notes.txt"), "mine".into()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn foreign_files_stay_when_a_run_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        let manifest = publish(&place, "a", 2, None).await.unwrap();
        put_note(&place, &manifest.folder()).await;
        publish(&place, "b", 1, Some(1)).await.unwrap();
        assert_eq!(ids(&place).await, ["b"]);
        // A dead run leaves its folder, hidden or not.
        let dead = begin(&place, "dead").await;
        let dead_folder = match &place {
            Place::Folder(sink) => names(sink).into_iter().find(|name| name.starts_with(".run=")).unwrap(),
            Place::Objects { .. } => "run=000003-dead".into(),
        };
        put_note(&place, &dead_folder).await;
        std::mem::forget(dead);
        publish(&place, "c", 1, None).await.unwrap();
        publish(&place, "d", 1, Some(1)).await.unwrap();
        assert_eq!(ids(&place).await, ["d"]);
        match &place {
            Place::Folder(sink) => {
                let there = names(sink);
                assert_eq!(there.len(), 3, "{there:?}");
                for name in there.iter().filter(|name| !name.ends_with("-d")) {
                    assert_eq!(names(&sink.join(name)), ["notes.txt"], "{name}");
                }
                assert!(there.contains(&manifest.folder()), "{there:?}");
            }
            Place::Objects { store, root, .. } => {
                let there = objects(store.as_ref()).await;
                for run in [manifest.folder(), dead_folder] {
                    let of_run = there.iter().filter(|path| path.contains(&run) && path.ends_with(".parquet"));
                    assert_eq!(of_run.count(), 0, "{there:?}");
                    assert!(there.contains(&format!("{root}/{run}/notes.txt")), "{there:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_part_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(&folder) {
        publish(&place, "first", 3, None).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (place, done) = (place.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    let (mut last, mut reads) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let manifest = latest(&place).await.unwrap().unwrap();
                        assert!(manifest.sequence >= last);
                        last = manifest.sequence;
                        // Three are kept: this run may be removed only after two more exist, so it is complete or
                        // absent.
                        match read(&place, &manifest).await {
                            Ok(rows) => assert_eq!(rows, 3000),
                            Err(_) => assert!(latest(&place).await.unwrap().unwrap().sequence > last + 1),
                        }
                        let runs = all(&place).await.unwrap();
                        assert!(runs.len() <= 4 && runs.is_sorted_by_key(|run| run.sequence));
                        assert!(runs.last().unwrap().sequence >= last);
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for n in 0..60 {
            let mut folder = RunFolder::begin(
                &place,
                &schema(),
                &[("couplet.model", "b1c3".into())],
                run(&format!("r{n}"), Some(3)),
            )
            .await
            .unwrap()
            .with_limits(Limits { bytes: u64::MAX, rows: 1000 });
            for _ in 0..3 {
                folder.write(&batch("r", 1000)).await.unwrap();
                tokio::task::yield_now().await;
            }
            folder.commit().await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.unwrap() > 3);
        }
    }
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Folder(folder.path().into());
    let manifest = publish(&place, "a", 1, None).await.unwrap();
    let whole = fs::read(folder.path().join(manifest.folder()).join("_SUCCESS")).unwrap();
    fs::write(folder.path().join(manifest.folder()).join("_SUCCESS"), "{\"format\": 9}").unwrap();
    let error = latest(&place).await.unwrap_err().to_string();
    let error = error.replace(&folder.path().display().to_string(), "out");
    assert_eq!(
        error,
        "cannot read out/run=000001-a/_SUCCESS: it is of format 9, and this version of couplet knows formats up to 1; use a newer one"
    );
    fs::write(folder.path().join(manifest.folder()).join("_SUCCESS"), whole).unwrap();
    fs::rename(folder.path().join("run=000001-a"), folder.path().join("run=000007-copy")).unwrap();
    let error = all(&place).await.unwrap_err().to_string();
    assert!(error.ends_with("it is the manifest of run=000001-a; rename the folder to that, or remove it"), "{error}");
    fs::rename(folder.path().join("run=000007-copy"), folder.path().join("run=000001-a")).unwrap();
    // Folders without a manifest of couplet are ignored.
    fs::remove_file(folder.path().join(manifest.folder()).join("_SUCCESS")).unwrap();
    fs::create_dir(folder.path().join("dt=2026-11-24")).unwrap();
    assert!(latest(&place).await.unwrap().is_none());
    assert_eq!(publish(&place, "b", 1, None).await.unwrap().sequence, 1);
}
