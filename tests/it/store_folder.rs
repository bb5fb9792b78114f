//! A store is a folder that couplet created, and only couplet's files are removed from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use couplet::delta;
use couplet::objects::Objects;
use couplet::place::Place;
use futures::TryStreamExt;
use object_store::multipart::MultipartStore;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::nights::{counts, pairs, score_files};
use crate::seaweed::{Bucket, block_on};
use crate::support::{Job, rows_of, stderr_of, stdout_of, write};

/// The store's id, from its marker.
fn id_in(marker: &[u8]) -> String {
    let marker: Value = serde_json::from_slice(marker).unwrap();
    marker["id"].as_str().unwrap().to_owned()
}

/// Names of user files in a store, most of them similar to couplet's own.
pub fn user_file_names() -> Vec<String> {
    let (uuid, run, other) = ("05493cfe-fd2f-4010-81bd-9092a42365fe", "0".repeat(32), "f".repeat(16));
    let digest = "1".repeat(32);
    vec![
        "pairs.csv".into(),
        "notes#1".into(),
        ".couplet-probe-mine".into(),
        "uploads/letters.parquet".into(),
        "uploads/note.json".into(),
        format!("uploads/{uuid}.json"),
        format!("uploads/{other}-{uuid}.json"),
        "uploads/deep/letters.parquet".into(),
        "cluster/data.parquet".into(),
        format!("cluster/{run}/000001.parquet"),
        format!("cluster/{run}/{other}-000001.parquet"),
        format!("cluster/{run}/mine.parquet"),
        "scores/a#1".into(),
        "scores/part-00000-left.parquet".into(),
        "scores/model=mine/a.parquet".into(),
        format!("scores/model=mine/{other}-7-{digest}.parquet"),
        "scores/model=mine/b.parquet#12".into(),
        "runs/b.parquet#2".into(),
        "runs/part-00000-mine.parquet".into(),
        "runs/_delta_log/mine.json#7".into(),
        "mine/data.parquet".into(),
    ]
}

/// The contents of such a file.
pub fn text_of(name: &str) -> String {
    format!("what the user keeps in {name}")
}

fn assert_there(folder: &Path, names: &[String], after: &str) {
    for name in names {
        assert_eq!(fs::read_to_string(folder.join(name)).ok(), Some(text_of(name)), "{name} after {after}");
    }
}

#[cfg(unix)]
#[test]
fn user_files_in_a_store_survive_every_command() {
    let job = Job::new(pairs(0, 30)).add("[score]\nstore = \"state\"");
    job.report();
    let store = job.path("state");
    let names = user_file_names();
    let long_ago = SystemTime::now() - Duration::from_hours(72);
    for name in &names {
        write(&store.join(name), text_of(name));
        fs::File::options().write(true).open(store.join(name)).unwrap().set_modified(long_ago).unwrap();
    }
    // Symlinks to folders outside, and a pipe, which blocks anyone who opens it.
    let id = id_in(&fs::read(store.join("couplet-store.json")).unwrap());
    let outside = job.path("outside");
    write(&outside.join(format!("{id}-1.json")), text_of("outside"));
    write(&outside.join(format!("{id}-000001.parquet")), text_of("outside"));
    let scores = format!("{id}-7-{}.parquet", "1".repeat(32));
    write(&outside.join(&scores), text_of("outside"));
    write(&outside.join(format!("{scores}#1")), text_of("outside"));
    for link in ["uploads/link", "cluster/11111111111111111111111111111111", "scores/model=link"] {
        std::os::unix::fs::symlink(&outside, store.join(link)).unwrap();
    }
    let link = store.join(format!("uploads/{id}-link.json"));
    std::os::unix::fs::symlink(outside.join(format!("{id}-1.json")), &link).unwrap();
    let pipe = store.join(format!("uploads/{id}-pipe.json"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let large = store.join(format!("uploads/{id}-large.json"));
    fs::File::create(&large).unwrap().set_len(1 << 32).unwrap();
    // A file of a killed run does not conflict with any of them.
    let left = store.join(format!("scores/model=x/{scores}#17046467313378935449"));
    write(&left, "half");

    for arguments in [
        &["plan", "pipeline.toml"][..],
        &["run", "pipeline.toml"],
        &["run", "pipeline.toml", "--retry-errors"],
        &["run", "pipeline.toml", "--fresh"],
        &["runs", "pipeline.toml"],
        &["store", "gc", "pipeline.toml", "--dry-run"],
        &["store", "gc", "pipeline.toml"],
        &["run", "pipeline.toml"],
    ] {
        stdout_of(job.couplet(arguments).timeout(Duration::from_mins(1)));
        assert_there(&store, &names, &arguments.join(" "));
        assert_eq!(outside.read_dir().unwrap().count(), 4, "{arguments:?}");
        assert!(link.is_symlink() && pipe.exists() && large.exists(), "{arguments:?}");
    }
    assert!(!left.exists(), "leftovers of the killed run are removed");
    assert_eq!(counts(&job.report()), [30, 0, 30, 0, 0]);
}

#[test]
fn user_objects_in_a_store_survive_every_command() {
    let test = "user_objects_in_a_store_survive_every_command";
    let Some(bucket) = Bucket::new(test, "folder-objects") else { return };
    let job = Job::new(pairs(0, 30)).add("[score]\nstore = \"s3://folder-objects/state\"");
    let couplet = |arguments: &[&str]| stdout_of(bucket.couplet(arguments).current_dir(job.path("")));
    couplet(&["run", "pipeline.toml"]);
    let names: Vec<_> = user_file_names().into_iter().filter(|name| !name.contains('#')).collect();
    for name in &names {
        bucket.put(&format!("state/{name}"), text_of(name));
    }
    for arguments in [
        &["plan", "pipeline.toml"][..],
        &["run", "pipeline.toml", "--fresh"],
        &["store", "gc", "pipeline.toml"],
        &["run", "pipeline.toml"],
    ] {
        couplet(arguments);
        for name in &names {
            let path = object_store::path::Path::parse(format!("state/{name}")).unwrap();
            let found = block_on(async { bucket.client.get(&path).await?.bytes().await });
            assert_eq!(found.unwrap(), text_of(name), "{name} after {arguments:?}");
        }
    }
}

#[test]
fn a_folder_that_couplet_did_not_create_is_refused_as_a_store() {
    let job = Job::new(pairs(0, 3)).add("[score]\nstore = \"mine\"");
    for name in ["mine/data.csv", "mine/runs/events.out", "mine/scores/model=x/a.parquet", "mine/photos/a.png"] {
        write(&job.path(name), text_of(name));
        let first = name.split('/').nth(1).unwrap();
        for command in [&["run"][..], &["plan"], &["runs"], &["store", "gc"]] {
            let arguments = [command, &["pipeline.toml"]].concat();
            let message = job.error_of(&mut job.couplet(&arguments), 2);
            let expected = "is not empty and was not made by couplet: it has ";
            assert!(message.contains("score.store: ") && message.contains(expected), "{arguments:?}: {message}");
            assert!(message.split(expected).nth(1).unwrap().starts_with(first), "{arguments:?}: {message}");
        }
        let tree = files_below(&job.path("mine"));
        assert_eq!(tree.len(), 1, "{tree:?}");
        assert!(job.output_files().is_empty());
        fs::remove_dir_all(job.path("mine")).unwrap();
    }
    fs::create_dir(job.path("mine")).unwrap();
    assert_eq!(counts(&job.report()), [3, 2, 0, 1, 0]);
}

#[test]
fn a_prefix_that_couplet_did_not_create_is_refused_as_a_store() {
    let Some(bucket) = Bucket::new("a_prefix_that_couplet_did_not_create_is_refused_as_a_store", "folder-refused")
    else {
        return;
    };
    let job = Job::new(pairs(0, 3)).add("[score]\nstore = \"s3://folder-refused\"");
    bucket.put("data/pairs.csv", "id");
    for command in ["run", "plan", "runs"] {
        let message = stderr_of(bucket.couplet(&[command, "pipeline.toml"]).current_dir(job.path("")), 2);
        assert!(
            message.contains("s3://folder-refused/ is not empty and was not made by couplet: it has data/pairs.csv"),
            "{message}"
        );
    }
    let objects: Vec<_> = block_on(bucket.client.list(None).try_collect()).unwrap();
    assert_eq!(objects.len(), 1, "{objects:?}");
}

/// All files below a folder, with their contents.
pub fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn add(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    add(folder, folder, &mut files);
    files
}

#[test]
fn a_lost_store_marker_is_restored() {
    let job = Job::new(pairs(0, 30)).add("[score]\nstore = \"state\"");
    job.report();
    let marker = job.path("state/couplet-store.json");
    let before = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    assert_eq!(stdout_of(&mut job.couplet(&["runs", "pipeline.toml"])).lines().count(), 2);
    assert_eq!(counts(&job.report()), [30, 0, 30, 0, 0]);
    assert_eq!(fs::read(&marker).unwrap(), before);
    // A damaged marker is not replaced by a guess.
    let mut damaged = before.clone();
    damaged[30] ^= 1;
    for damaged in [&damaged[..], b"", &[b'x'; 5000]] {
        fs::write(&marker, damaged).unwrap();
        let message = job.error(2);
        assert!(message.contains("has a damaged couplet-store.json; remove that file"), "{message}");
        assert_eq!(fs::read(&marker).unwrap(), damaged);
    }
    let newer = String::from_utf8(before).unwrap().replace("\"couplet_store\":1", "\"couplet_store\":2");
    fs::write(&marker, newer).unwrap();
    let message = job.error(2);
    assert!(message.contains("has format 2 and this version of couplet knows 1; update couplet"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_store_with_links_or_pipes_is_refused_at_once() {
    let job = Job::new(pairs(0, 3)).add("[score]\nstore = \"state\"");
    job.report();
    for (name, expected) in [
        ("lock.json", "lock.json, which is not a regular file"),
        ("couplet-store.json", "couplet-store.json, which is not a regular file"),
        ("scores", "scores, which is not a folder"),
        ("runs", "runs, which is not a folder"),
    ] {
        let (place, aside) = (job.path("state").join(name), job.path("aside"));
        fs::rename(&place, &aside).unwrap();
        let refused = || {
            for command in ["run", "plan", "runs"] {
                let mut command = job.couplet(&[command, "pipeline.toml"]);
                let message = stderr_of(command.timeout(Duration::from_secs(20)), 2);
                assert!(message.contains(expected), "{name}: {message}");
            }
        };
        std::os::unix::fs::symlink(&aside, &place).unwrap();
        refused();
        fs::remove_file(&place).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&place).status().unwrap().success());
        refused();
        fs::remove_file(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
    }
    // The store itself may be a symlink.
    fs::rename(job.path("state"), job.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(job.path("elsewhere"), job.path("state")).unwrap();
    assert_eq!(counts(&job.report()), [3, 0, 3, 0, 0]);
}

#[test]
fn tables_and_sinks_inside_a_store_are_refused() {
    let job = Job::new(pairs(0, 3)).add("[score]\nstore = \"state\"");
    job.report();
    write(&job.path("state/uploads/pairs.csv"), pairs(0, 3));
    let job = job.change("\"pairs.csv\"", "\"state/uploads/*.csv\"");
    for command in ["run", "plan"] {
        let message = job.error_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
        let expected =
            "tables.pairs: state/uploads/*.csv is inside the store state, which may contain only couplet's own files";
        assert!(message.contains(expected), "{message}");
    }
    assert!(job.path("state/uploads/pairs.csv").exists());
    let job = Job::new(pairs(0, 3)).add("[score]\nstore = \"out/scores_rejected.parquet\"\nerrors = \"quarantine\"");
    let message = job.error(2);
    assert!(message.contains("the place of rejected rows") && message.contains("is inside the store"), "{message}");
}

#[test]
fn an_upload_note_aborts_only_uploads_of_its_pipeline() {
    let Some(bucket) = Bucket::new("an_upload_note_aborts_only_uploads_of_its_pipeline", "folder-notes") else {
        return;
    };
    let job = Job::new(pairs(0, 3))
        .change("uri = \"out/scores.parquet\"", "uri = \"s3://folder-notes/out\"")
        .add("[score]\nstore = \"s3://folder-notes/state\"");
    let run = || stdout_of(bucket.couplet(&["run", "pipeline.toml"]).current_dir(job.path("")));
    run();
    let path = |key: &str| object_store::path::Path::parse(key).unwrap();
    let marker = block_on(async { bucket.client.get(&path("state/couplet-store.json")).await?.bytes().await }).unwrap();
    let id = id_in(&marker);
    let begin = |key: &str, note: &str| {
        let upload = block_on(bucket.client.create_multipart(&path(key))).unwrap();
        let text = json!({ "bucket": "s3://folder-notes", "path": key, "upload": upload }).to_string();
        bucket.put(&format!("state/uploads/{note}.json"), text);
        upload
    };
    let own = begin("out/run=1/part", &format!("{id}-1"));
    let sibling = begin("out-of-others/part", &format!("{id}-2"));
    let not_couplets = begin("out/run=2/part", "mine");
    run();
    let is_open =
        |key: &str, upload: &String| block_on(bucket.client.put_part(&path(key), upload, 0, "part".into())).is_ok();
    assert!(!is_open("out/run=1/part", &own), "the killed run's upload is aborted");
    assert!(is_open("out-of-others/part", &sibling) && is_open("out/run=2/part", &not_couplets));
    let notes = block_on(bucket.client.list_with_delimiter(Some(&path("state/uploads")))).unwrap().objects;
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn leftovers_of_a_killed_probe_are_used_and_removed() {
    let Some(bucket) = Bucket::new("leftovers_of_a_killed_probe_are_used_and_removed", "folder-probes") else { return };
    let job = Job::new(pairs(0, 3))
        .change("uri = \"out/scores.parquet\"", "uri = \"s3://folder-probes/out\"")
        .add("[score]\nstore = \"s3://folder-probes/state\"");
    let run = || stdout_of(bucket.couplet(&["run", "pipeline.toml"]).current_dir(job.path("")));
    run();
    let keys = || -> Vec<String> {
        let objects: Vec<_> = block_on(bucket.client.list(None).try_collect()).unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    };
    assert!(!keys().iter().any(|key| key.contains("probe")), "{:?}", keys());
    let marker = object_store::path::Path::from("state/couplet-store.json");
    let id = id_in(&block_on(async { bucket.client.get(&marker).await?.bytes().await }).unwrap());
    bucket.put(&format!("out/.couplet-probe-{id}"), "1");
    run();
    assert!(!keys().iter().any(|key| key.contains("probe")), "{:?}", keys());
}

/// Turns the scores of a job into those of the previous version: a Delta table with a partition per model.
async fn downgrade_scores(store: &Path) {
    let scores = store.join("scores");
    let model = scores.read_dir().unwrap().next().unwrap().unwrap().path();
    let class = model.file_name().unwrap().to_str().unwrap().strip_prefix("model=").unwrap().to_owned();
    let mut batches = Vec::new();
    for file in model.read_dir().unwrap() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file.unwrap().path()).unwrap()).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let models: ArrayRef = Arc::new(StringArray::from(vec![class.as_str(); batch.num_rows()]));
            let fields = batch.schema().fields().iter().cloned().collect::<Vec<_>>();
            let fields = [vec![Arc::new(Field::new("model", DataType::Utf8, false))], fields].concat();
            let columns = [vec![models], batch.columns().to_vec()].concat();
            batches.push(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap());
        }
    }
    fs::remove_dir_all(&scores).unwrap();
    fs::remove_file(store.join("couplet-store.json")).unwrap();
    let objects = Objects::open(&Place::Local(scores)).unwrap();
    let schema = batches[0].schema();
    let table = delta::open_or_create(&objects, &schema, &["model"], "score", "couplet: scores by text").await.unwrap();
    for batch in batches {
        table.clone().write(vec![batch]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_of_the_previous_version_are_migrated() {
    let job = Job::new(pairs(0, 30)).add("[score]\nstore = \"state\"");
    let expected = job.rows();
    downgrade_scores(&job.path("state")).await;
    stdout_of(&mut job.couplet(&["plan", "pipeline.toml"]));
    assert!(!job.path("state/couplet-store.json").exists(), "a plan writes nothing");
    for _ in 0..2 {
        let report = job.report();
        assert_eq!((counts(&report)[1], &report["rows"]["damaged_scores"]), (0, &0.into()), "{report:#}");
        assert_eq!(rows_of(&job.output()), expected);
    }
    assert_eq!(score_files(&job).len(), 1, "{:?}", score_files(&job));
    assert!(!job.path("state/scores/_delta_log").exists());
    // A Delta table of another program stays, and so do files with similar names.
    let mine = Objects::open(&Place::Local(job.path("state/scores"))).unwrap();
    let schema = Schema::new(vec![Field::new("x", DataType::Int64, false)]);
    delta::open_or_create(&mine, &schema, &[], "x", "mine").await.unwrap();
    let part = job.path("state/scores/mine/part-00000-05493cfe-fd2f-4010-81bd-9092a42365fe-c000.snappy.parquet");
    write(&part, "mine");
    assert_eq!(job.rows(), expected);
    assert!(part.exists() && job.path("state/scores/_delta_log/00000000000000000000.json").exists());
    fs::remove_dir_all(job.path("state/scores/_delta_log")).unwrap();
    fs::remove_dir_all(job.path("state/scores/mine")).unwrap();
    // Nothing is migrated if a user's file is in the folder.
    downgrade_scores(&job.path("state")).await;
    write(&job.path("state/scores/mine.parquet"), "mine");
    let message = job.error(2);
    assert!(message.contains("it has scores/mine.parquet"), "{message}");
}
