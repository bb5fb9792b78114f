//! Files that are replaced or removed while `couplet query` reads them: a result is of one version of each file.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use couplet::delta;
use couplet::objects::Objects;
use couplet::place::Place;
use deltalake_core::operations::vacuum::VacuumMode;
use deltalake_core::protocol::SaveMode;
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::runs;
use crate::seaweed::{Bucket, block_on};
use crate::support::{couplet, stdout_of};

/// Detects whether all rows are of one version: its number and its row count.
const SQL: &str = "SELECT min(v) AS low, max(v) AS high, count(*) AS rows, sum(n) AS total FROM t";

const EVERY: Duration = Duration::from_millis(20);

/// Versions differ in their rows, and so in their size.
fn rows_of_version(version: i64) -> i64 {
    30_000 + version % 7 * 1_000
}

fn batch(version: i64) -> RecordBatch {
    let rows = rows_of_version(version);
    let v = Int64Array::from_iter_values((0..rows).map(|_| version));
    let n = Int64Array::from_iter_values(0..rows);
    let text = StringArray::from_iter_values((0..rows).map(|n| format!("row {} of {version}", n * 7919 % 30_011)));
    RecordBatch::try_from_iter([("v", Arc::new(v) as _), ("n", Arc::new(n) as _), ("text", Arc::new(text) as _)])
        .unwrap()
}

fn contents(format: &str, version: i64) -> Vec<u8> {
    let (batch, mut bytes) = (batch(version), Vec::new());
    match format {
        "parquet" => {
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(5_000)).build();
            let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        }
        "csv" => arrow::csv::Writer::new(&mut bytes).write(&batch).unwrap(),
        "jsonl" => {
            let mut writer = arrow::json::LineDelimitedWriter::new(&mut bytes);
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
        }
        "arrow" => {
            let mut writer = arrow::ipc::writer::FileWriter::try_new(&mut bytes, &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
        }
        other => panic!("{other}"),
    }
    bytes
}

/// Repeats an action, which gets the number of the repetition, while something else runs.
fn meanwhile<T>(every: Duration, mut again: impl FnMut(i64) + Send, once: impl FnOnce() -> T) -> T {
    let (done, times) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                again(times.fetch_add(1, Ordering::Relaxed) + 1);
                std::thread::sleep(every);
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(once));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn replace(file: &Path, contents: &[u8]) {
    let new = file.with_file_name("new.tmp");
    fs::write(&new, contents).unwrap();
    fs::rename(&new, file).unwrap();
}

#[track_caller]
fn assert_one_version(output: &str, files: i64) {
    let rows: Vec<Value> = serde_json::from_str(output).unwrap();
    let number = |name: &str| rows[0][name].as_i64().unwrap();
    let (low, high) = (number("low"), number("high"));
    if files == 1 {
        assert_eq!(low, high, "{output}");
    }
    let expected = [low, high].into_iter().take(files as usize).map(rows_of_version);
    assert_eq!(number("rows"), expected.clone().sum::<i64>(), "{output}");
    assert_eq!(number("total"), expected.map(|rows| rows * (rows - 1) / 2).sum::<i64>(), "{output}");
}

fn stderr_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_file_replaced_during_a_query_is_read_in_one_version() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["parquet", "csv", "jsonl", "arrow"] {
        let file = folder.path().join(format!("t.{format}"));
        let versions: Vec<_> = (0..7).map(|version| contents(format, version)).collect();
        replace(&file, &versions[0]);
        let again = |time: i64| replace(&file, &versions[time as usize % 7]);
        meanwhile(EVERY, again, || {
            for by_name in [true, false].repeat(3) {
                let mut query = couplet();
                query.current_dir(folder.path()).args(["query", "--format", "json"]);
                if by_name {
                    query.args(["-t", &format!("t=t.{format}"), SQL]);
                } else {
                    query.arg(SQL.replace("FROM t", &format!("FROM 't.{format}'")));
                }
                assert_one_version(&stdout_of(&mut query), 1);
            }
        });
    }
}

#[test]
fn a_folder_with_a_replaced_file_is_read_in_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let versions: Vec<_> = (0..7).map(|version| contents("parquet", version)).collect();
    fs::write(folder.path().join("a.parquet"), contents("parquet", 100)).unwrap();
    let again = |time: i64| replace(&folder.path().join("b.parquet"), &versions[time as usize % 7]);
    again(0);
    meanwhile(EVERY, again, || {
        for _ in 0..5 {
            let mut query = couplet();
            query.args(["query", "--format", "json", "-t", &format!("t={}", folder.path().display()), SQL]);
            assert_one_version(&stdout_of(&mut query), 2);
        }
    });
}

#[test]
fn a_file_overwritten_in_place_is_never_read_as_a_mixture() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["csv", "jsonl"] {
        let file = folder.path().join(format!("t.{format}"));
        let versions: Vec<_> = (0..7).map(|version| contents(format, version)).collect();
        fs::write(&file, &versions[0]).unwrap();
        let again = |time: i64| {
            let mut open = fs::File::create(&file).unwrap();
            for part in versions[time as usize % 7].chunks(100_000) {
                open.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let answers = meanwhile(Duration::from_millis(200), again, || {
            let query = |_| {
                let mut query = couplet();
                let table = format!("t={}", file.display());
                query.args(["query", "--format", "json", "-t", &table, SQL]).output().unwrap()
            };
            (0..8).map(query).collect::<Vec<_>>()
        });
        for output in &answers {
            match output.status.code() {
                Some(0) => assert_one_version(&String::from_utf8_lossy(&output.stdout), 1),
                // The file is empty for a moment, as it may be for good: when it is opened, or when its columns are read.
                Some(2) if ["is empty", "no column `v`"].iter().any(|text| stderr_text(output).contains(text)) => {}
                code => assert_eq!(code, Some(1), "{}", stderr_text(output)),
            }
        }
    }
}

#[test]
fn removing_an_old_run_does_not_fail_a_query() {
    let folder = tempfile::tempdir().unwrap();
    let sink = folder.path().join("scores");
    let place = couplet::lock::Place::Folder(sink.clone());
    block_on(runs::publish(&place, "first", 2, Some(1))).unwrap();
    let again = |time: i64| drop(block_on(runs::publish(&place, &format!("r{time}"), 2, Some(1))).unwrap());
    meanwhile(EVERY, again, || {
        let sql = "SELECT count(*) AS rows, count(DISTINCT split_part(run, ' ', 1)) AS runs FROM t";
        for _ in 0..6 {
            let mut query = couplet();
            query.args(["query", "--format", "csv", "-t", &format!("t={}", sink.display()), sql]);
            assert_eq!(stdout_of(&mut query), "rows,runs\n2000,1\n");
        }
    });
}

#[test]
fn a_delta_table_vacuumed_during_a_query_is_read_in_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    let objects = Objects::open(&Place::Local(path.clone())).unwrap();
    let overwrite = |version: i64| {
        block_on(async {
            let batch = batch(version);
            let table = delta::open_or_create(&objects, &batch.schema(), &[], "v", "").await.unwrap();
            let table = table.write([batch]).with_save_mode(SaveMode::Overwrite).await.unwrap();
            let vacuum = table.vacuum().with_mode(VacuumMode::Full).with_retention_period(chrono::Duration::zero());
            vacuum.with_enforce_retention_duration(false).await.unwrap();
        });
    };
    overwrite(0);
    meanwhile(EVERY, overwrite, || {
        for _ in 0..6 {
            let mut query = couplet();
            query.args(["query", "--format", "json", "-t", &format!("t={}", path.display()), SQL]);
            assert_one_version(&stdout_of(&mut query), 1);
        }
    });
}

#[test]
fn an_object_replaced_during_a_query_is_read_in_one_version() {
    let Some(bucket) = Bucket::new("an_object_that_is_replaced_meanwhile", "replaced") else { return };
    for format in ["parquet", "csv"] {
        let versions: Vec<_> = (0..7).map(|version| contents(format, version)).collect();
        let key = format!("t.{format}");
        let table = format!("t={}", bucket.put(&key, &versions[0]));
        let path = object_store::path::Path::from(key.as_str());
        let again = |time: i64| {
            let bytes = versions[time as usize % 7].clone();
            block_on(bucket.client.put(&path, bytes.into())).unwrap();
        };
        let answers = meanwhile(Duration::from_millis(50), again, || {
            let query = |_| bucket.couplet(&["query", "--format", "json", "-t", &table, SQL]).output().unwrap();
            (0..8).map(query).collect::<Vec<_>>()
        });
        for output in &answers {
            if output.status.success() {
                assert_one_version(&String::from_utf8_lossy(&output.stdout), 1);
            } else {
                assert_eq!(output.status.code(), Some(1), "{}", stderr_text(output));
                assert!(stderr_text(output).contains("was replaced while it was read; "), "{}", stderr_text(output));
            }
        }
        // If it stays, it is read.
        let read = stdout_of(&mut bucket.couplet(&["query", "--format", "json", "-t", &table, SQL]));
        assert_one_version(&read, 1);
    }
}

#[test]
fn a_version_that_is_gone_from_the_log_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    let objects = Objects::open(&Place::Local(path.clone())).unwrap();
    let properties = [("delta.checkpointInterval", "2"), ("delta.logRetentionDuration", "interval 0 days")];
    let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let append = |version: i64, properties: &[(String, String)]| {
        block_on(async {
            let batch = batch(version);
            let table = delta::open_or_create(&objects, &batch.schema(), &[], "v", "").await.unwrap();
            let table = table.write([batch]).with_save_mode(SaveMode::Append).await.unwrap();
            if !properties.is_empty() {
                let set = table.set_tbl_properties().with_raise_if_not_exists(false);
                set.with_properties(properties.iter().cloned().collect()).await.unwrap();
            }
        });
    };
    let query = |version: u64, code: i32| {
        let mut query = couplet();
        let table = format!("t={}@{version}", path.display());
        let output = query.args(["query", "-t", &table, "SELECT count(*) FROM t"]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr_text(&output));
        stderr_text(&output)
    };
    // By default, log entries are kept for 30 days.
    (1..5).for_each(|version| append(version, &[]));
    query(1, 0);
    append(5, &properties);
    (6..10).for_each(|version| append(version, &[]));
    let message = query(1, 2);
    assert!(
        message.contains("there is no version 1 any more") && message.contains("delta.logRetentionDuration"),
        "{message}"
    );
    query(10, 0);
    assert!(query(99, 2).contains("there is no version 99; the newest is "));
}
