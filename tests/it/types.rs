//! Types: files, runs and tables of many nights keep every value exactly, or the column is named in an error.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int32Array,
    Int64Array, ListArray, NullArray, RecordBatch, StringArray, StructArray, Time32SecondArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type, IntervalUnit, Schema, UnionFields, UnionMode};
use arrow::ipc::writer::FileWriter;
use parquet::arrow::ArrowWriter;
use parquet::data_type::{
    ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int64Type, Int96, Int96Type,
};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::support::{Job, golden, root, rows_of, skip, stderr_of, stdout_of, write};
use crate::venv;

/// 818565974.1 as DECIMAL(38, 10), which no 64-bit float represents exactly.
const PRICE: i128 = 8_185_659_741_000_000_000;

fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let fields = columns.iter().map(|(name, values)| Field::new(*name, values.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    RecordBatch::try_new(schema, columns.iter().map(|(_, values)| Arc::clone(values)).collect()).unwrap()
}

fn parquet(path: &Path, batch: &RecordBatch) {
    write(path, "");
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn arrow(path: &Path, batch: &RecordBatch) {
    write(path, "");
    let mut writer = FileWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

/// Rows of pairs with the ids from `first` and a column `v`.
fn pairs(first: i64, values: ArrayRef) -> RecordBatch {
    let ids: Vec<i64> = (first..).take(values.len()).collect();
    let texts = |word: &str| Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("{word} {id}")))) as _;
    batch(&[("id", Arc::new(Int64Array::from(ids.clone()))), ("a", texts("one")), ("b", texts("two")), ("v", values)])
}

fn decimals(values: &[i128]) -> ArrayRef {
    Arc::new(Decimal128Array::from(values.to_vec()).with_precision_and_scale(38, 10).unwrap())
}

/// A job over `data/`, whose columns are all in the output.
fn job() -> Job {
    Job::new("").change("\"pairs.csv\"", "\"data/\"").change("SELECT id, a, b FROM pairs", "SELECT * FROM pairs")
}

fn delta(job: Job, mode: &str) -> Job {
    job.change("uri = \"out/scores.parquet\"", &format!("uri = \"out\"\nformat = \"delta\"\nmode = \"{mode}\""))
}

fn runs(job: Job) -> Job {
    job.change("uri = \"out/scores.parquet\"", "uri = \"out\"\nformat = \"parquet\"\nmode = \"append\"")
}

/// The rows of a query over the pipeline's tables and output.
fn query(job: &Job, sql: &str) -> Value {
    let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
    serde_json::from_str(&stdout_of(&mut query)).unwrap()
}

/// The statistics of the files that the last commit of the table added.
fn statistics(job: &Job) -> Vec<Value> {
    let mut entries: Vec<_> =
        job.path("out/_delta_log").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let entry = entries.iter().rfind(|path| path.extension().is_some_and(|extension| extension == "json")).unwrap();
    let actions = std::fs::read_to_string(entry).unwrap();
    let adds = actions.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["add"]["stats"].clone());
    adds.filter_map(|stats| serde_json::from_str(stats.as_str()?).ok()).collect()
}

#[test]
fn the_log_of_a_delta_table_has_no_inexact_statistics() {
    let job = delta(job(), "append");
    let far = Date32Array::from(vec![0, i32::MAX]);
    let nan = Float64Array::from(vec![1.0, f64::NAN]);
    let nested =
        StructArray::from(batch(&[("price", decimals(&[PRICE, 0])), ("n", Arc::new(Int64Array::from(vec![1, 2])))]));
    let price = decimals(&[PRICE, 10_i128.pow(30)]);
    let values = batch(&[("price", price), ("far", Arc::new(far)), ("nan", Arc::new(nan)), ("s", Arc::new(nested))]);
    parquet(&job.path("data/a.parquet"), &pairs(i64::MAX - 2, Arc::new(StructArray::from(values))));
    let job = job.change(
        "SELECT * FROM pairs",
        "SELECT id, a, b, v['price'] AS price, v['far'] AS far, v['nan'] AS nan, v['s'] AS s FROM pairs",
    );
    job.report();
    let statistics = statistics(&job);
    assert_eq!(statistics[0]["maxValues"]["id"], i64::MAX - 1, "{statistics:?}");
    for name in ["price", "far", "nan", "s", "score"] {
        assert!(
            statistics[0]["minValues"].get(name).is_none() && statistics[0]["maxValues"].get(name).is_none(),
            "{name}: {statistics:?}"
        );
    }
    let count =
        |condition: &str| query(&job, &format!("SELECT count(*) AS n FROM demo WHERE {condition}"))[0]["n"].clone();
    for condition in [
        "price >= 818565974.1 AND price < 900000000",
        "price >= 1e20",
        "far > '2020-01-01'",
        "s['price'] >= 818565974.1",
    ] {
        assert_eq!(count(condition), 1, "{condition}");
    }
}

/// A table as deltalake writes it by default, with the inexact statistics of earlier versions of couplet.
async fn old_table(job: &Job, rows: RecordBatch) {
    std::fs::create_dir_all(job.path("out")).unwrap();
    let url = url::Url::from_directory_path(job.path("out")).unwrap();
    let table = deltalake_core::DeltaTable::try_from_url(url).await.unwrap();
    table.write(vec![rows]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_delta_tables_are_read_and_merged_exactly() {
    let times = TimestampMicrosecondArray::from(vec![1_700_000_000_123_456, 10]).with_timezone("UTC");
    for (ids, maximum, condition) in [
        (decimals(&[PRICE, 10]), "818565974.0999999", "id >= 818565974.1"),
        (Arc::new(times) as ArrayRef, "\"2023-11-14T22:13:20.123Z\"", "id >= '2023-11-14T22:13:20.123456Z'"),
    ] {
        old_table_is_read_and_merged_exactly(ids, maximum, condition).await;
    }
}

/// Two ids, the maximum that another writer has put into the log, and a condition for the greater one.
async fn old_table_is_read_and_merged_exactly(ids: ArrayRef, maximum: &str, condition: &str) {
    let job = delta(job(), "merge").change("SELECT * FROM pairs", "SELECT v AS id, a, b FROM pairs");
    parquet(&job.path("data/a.parquet"), &pairs(1, ids));
    job.report();
    assert!(statistics(&job)[0]["maxValues"].get("id").is_none());
    // The columns of the output, with the statistics of another writer.
    let path = job.path("out");
    let file = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_file()).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap());
    let rows: Vec<RecordBatch> = reader.unwrap().build().unwrap().map(Result::unwrap).collect();
    std::fs::remove_dir_all(&path).unwrap();
    old_table(&job, rows[0].clone()).await;
    assert_eq!(statistics(&job)[0]["maxValues"]["id"].to_string(), maximum);
    let found = query(&job, &format!("SELECT count(*) AS n, max(id) AS id FROM demo WHERE {condition}"));
    assert_eq!(found[0]["n"], 1, "{condition}");
    job.report();
    assert_eq!(query(&job, "SELECT count(*) AS n FROM demo")[0]["n"], 2);
    // Only exact statistics are in the log now, so none for this column.
    assert!(statistics(&job)[0]["maxValues"].get("id").is_none());
}

#[test]
fn decimals_are_compared_with_all_their_digits() {
    let job = job();
    parquet(&job.path("data/a.parquet"), &pairs(1, decimals(&[PRICE, 5_000_000_000, -5_000_000_000])));
    for condition in ["v >= 818565974.1", "818565974.1 = v", "v BETWEEN 818565974.1 AND 1e9", "v IN (818565974.1, 7.5)"]
    {
        let count = query(&job, &format!("SELECT count(*) AS n FROM pairs WHERE {condition}"));
        assert_eq!(count[0]["n"], 1, "{condition}");
    }
    let found = query(
        &job,
        "SELECT v > 0.4999999999 AS more, v = -0.5 AS negative, v < 1e20 AS all FROM pairs WHERE v < 1 ORDER BY v",
    );
    assert_eq!(
        found,
        json!([{"more": false, "negative": true, "all": true}, {"more": true, "negative": false, "all": true}])
    );
}

#[test]
fn decimal_ids_of_six_runs_are_merged() {
    let job = delta(job(), "merge").change("SELECT * FROM pairs", "SELECT v AS id, a, b FROM pairs");
    for night in 0..6 {
        parquet(&job.path("data/a.parquet"), &pairs(night, decimals(&[PRICE + i128::from(night % 3)])));
        job.report();
    }
    assert_eq!(query(&job, "SELECT count(*) AS n FROM demo")[0]["n"], 3);
}

#[test]
fn other_readers_of_a_delta_table_skip_no_decimals() {
    let packages = ["deltalake==1.6.6", "duckdb==2.0.0", "polars==2.1.0", "pyarrow==26.0.1"];
    let python = match venv::program("table-readers-venv", &packages, "python") {
        Ok(python) => python,
        Err(why) => return skip("other_readers_of_a_delta_table_skip_no_decimals", &why),
    };
    let job = delta(job(), "append");
    parquet(&job.path("data/a.parquet"), &pairs(1, decimals(&[PRICE, 10_i128.pow(30), 0])));
    job.report();
    let output =
        Command::new(python).arg(root().join("tests/it/decimal_readers.py")).arg(job.path("out")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found, json!({"delta-rs": 2, "polars": 2, "pyarrow": 2}));
}

#[test]
fn appended_runs_are_read_in_a_common_type() {
    let job = runs(job());
    let night = |first: i64, values: ArrayRef| {
        parquet(&job.path("data/a.parquet"), &pairs(first, values));
        job.report();
    };
    let values = || query(&job, "SELECT v FROM demo ORDER BY id");
    let tenths =
        |value| Arc::new(Decimal128Array::from(vec![value]).with_precision_and_scale(5, 1).unwrap()) as ArrayRef;
    night(1, Arc::new(NullArray::new(1)));
    night(2, Arc::new(Int32Array::from(vec![7])));
    night(3, decimals(&[PRICE]));
    night(4, tenths(15));
    night(5, Arc::new(NullArray::new(1)));
    let values = values();
    let expected = [json!(null), json!(7.0), json!(818_565_974.1), json!(1.5), json!(null)];
    let found: Vec<Value> = values.as_array().unwrap().iter().map(|row| row["v"].clone()).collect();
    assert_eq!(found, expected);
    // A column that is new or gone is NULL in the other runs.
    let job = job.change("SELECT * FROM pairs", "SELECT id + 10 AS id, a, b, 'x' AS w FROM pairs");
    job.report();
    let counts = query(&job, "SELECT count(*) AS n, count(v) AS v, count(w) AS w FROM demo");
    assert_eq!(counts[0], json!({"n": 6, "v": 3, "w": 1}));
}

#[test]
fn a_run_with_incompatible_types_is_refused() {
    let job = runs(job());
    parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(Int64Array::from(vec![(1 << 53) + 1]))));
    job.report();
    let refused = |values: ArrayRef, expected: &str| {
        parquet(&job.path("data/a.parquet"), &pairs(2, values));
        let message = job.error(2);
        assert!(message.contains(expected) && message.contains("out/run=000001-"), "{message}");
        assert!(message.contains("this run") && message.contains("column `v`"), "{message}");
    };
    refused(Arc::new(StringArray::from(vec!["x"])), "Utf8");
    refused(Arc::new(arrow::array::BooleanArray::from(vec![true])), "Boolean");
    // No float is equal to the integer of the first run.
    refused(Arc::new(Float64Array::from(vec![0.5])), "Float64 in this run");
    assert_eq!(query(&job, "SELECT v FROM demo")[0]["v"], 9_007_199_254_740_993_i64);
}

#[test]
fn values_that_a_table_cannot_hold_are_refused_before_scoring() {
    let refused = |job: &Job, value: u64, expected: &str| {
        let ids = UInt64Array::from(vec![1, value]);
        parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(ids)));
        let message = job.error(2);
        assert!(message.contains("column `v` does not fit the table") && message.contains(expected), "{message}");
        let scores = job.path("store/scores").read_dir().map_or(0, Iterator::count);
        assert_eq!(scores, 0, "{message}");
    };
    let store = |job: Job| job.add("[score]\nstore = \"store\"");
    // The table does not exist yet, and Delta has no unsigned integers.
    refused(&store(delta(job(), "append")), u64::MAX, "18446744073709551615 to type Int64");
    for job in [delta(job(), "append"), runs(job())] {
        parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(Float64Array::from(vec![0.5]))));
        job.report();
        refused(&store(job), (1 << 53) + 1, "does not hold every integer here exactly");
    }
    // Quarantined rows are not part of the table. Theirs does not exist yet, and takes the type of the rows.
    let job = delta(job(), "append");
    parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(Float64Array::from(vec![0.5]))));
    job.report();
    let job = job.add("[score]\nerrors = \"quarantine\"");
    let mut rows = pairs(2, Arc::new(Int64Array::from(vec![8, (1 << 53) + 1]))).columns().to_vec();
    rows[1] = Arc::new(StringArray::from(vec![Some("one"), None]));
    parquet(&job.path("data/a.parquet"), &batch(&["id", "a", "b", "v"].into_iter().zip(rows).collect::<Vec<_>>()));
    job.report();
    assert_eq!(query(&job, "SELECT count(*) AS n, max(v) AS v FROM demo")[0], json!({"n": 2, "v": 8.0}));
}

#[test]
fn an_all_null_column_of_a_delta_table_gets_a_type_later() {
    for mode in ["append", "merge"] {
        let job = delta(job(), mode);
        let night = |first: i64, values: ArrayRef| {
            parquet(&job.path("data/a.parquet"), &pairs(first, values));
            job.report();
        };
        night(1, Arc::new(NullArray::new(1)));
        night(2, Arc::new(NullArray::new(1)));
        night(3, Arc::new(Float64Array::from(vec![0.5])));
        night(4, Arc::new(NullArray::new(1)));
        night(5, Arc::new(Int64Array::from(vec![7])));
        let rows = query(&job, "SELECT v, arrow_typeof(v) AS type FROM demo ORDER BY id");
        let expected = [Value::Null, Value::Null, json!(0.5), Value::Null, json!(7.0)];
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!((&rows[row]["v"], &rows[row]["type"]), (expected, &json!("Float64")), "{mode} {rows}");
        }
        // An integer above 2^53 has no exact value in a column of floats.
        parquet(&job.path("data/a.parquet"), &pairs(6, Arc::new(Int64Array::from(vec![(1 << 53) + 1]))));
        assert!(job.error(2).contains("does not hold every integer here exactly"), "{mode}");
    }
}

#[test]
fn empty_lists_fit_a_delta_table_of_lists() {
    let job = delta(job(), "append");
    let lists = |values: ArrayRef| -> ArrayRef {
        let item = Arc::new(Field::new("item", values.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        Arc::new(ListArray::new(item, offsets, values, None))
    };
    let numbers = Arc::new(Int64Array::from(vec![7]));
    for (night, values) in (1..).zip([numbers as ArrayRef, Arc::new(NullArray::new(0)), Arc::new(NullArray::new(1))]) {
        parquet(&job.path("data/a.parquet"), &pairs(night, lists(values)));
        job.report();
    }
    let rows = query(&job, "SELECT v FROM demo ORDER BY id");
    assert_eq!(rows, json!([{"v": [7]}, {"v": []}, {"v": [null]}]));
}

#[test]
fn int96_timestamps_beyond_the_nanosecond_range_are_right() {
    let job = job();
    let path = job.path("data/a.parquet");
    let schema =
        "message m { optional int64 id; optional binary a (UTF8); optional binary b (UTF8); optional int96 v; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    write(&path, "");
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    let levels: &[i16] = &[1, 1];
    let mut column = rows.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 2], Some(levels), None).unwrap();
    column.close().unwrap();
    for _ in 0..2 {
        let mut column = rows.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("x"), ByteArray::from("y")];
        column.typed::<ByteArrayType>().write_batch(&texts, Some(levels), None).unwrap();
        column.close().unwrap();
    }
    // 9999-12-31T23:59:59.999999 and 0001-01-01, as Julian days and nanoseconds.
    let [mut last, mut first] = [Int96::new(), Int96::new()];
    let nanoseconds = 86_399_999_999_000_u64;
    last.set_data(
        u32::try_from(nanoseconds & 0xffff_ffff).unwrap(),
        u32::try_from(nanoseconds >> 32).unwrap(),
        5_373_484,
    );
    first.set_data(0, 0, 1_721_426);
    let mut column = rows.next_column().unwrap().unwrap();
    column.typed::<Int96Type>().write_batch(&[last, first], Some(levels), None).unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    writer.close().unwrap();
    job.report();
    for table in ["pairs", "demo"] {
        let rows = query(&job, &format!("SELECT v FROM {table} ORDER BY id"));
        assert_eq!(rows, json!([{"v": "9999-12-31T23:59:59.999999"}, {"v": "0001-01-01T00:00:00"}]), "{table}");
        let count = query(
            &job,
            &format!(
                "SELECT count(*) AS n, max(v) AS v FROM {table} WHERE v > arrow_cast('2300-01-01', 'Timestamp(Microsecond, None)')"
            ),
        );
        assert_eq!(count, json!([{"n": 1, "v": "9999-12-31T23:59:59.999999"}]), "{table}");
    }
}

#[test]
fn types_of_files_are_widened_or_both_files_are_named() {
    let both = |one: ArrayRef, two: ArrayRef| {
        let job = job();
        parquet(&job.path("data/1.parquet"), &pairs(1, one));
        parquet(&job.path("data/2.parquet"), &pairs(2, two));
        job
    };
    let values = |job: Job| {
        job.report();
        let rows =
            |sql: &str| query(&job, sql).as_array().unwrap().iter().map(|row| row["v"].clone()).collect::<Vec<_>>();
        let read = rows("SELECT v FROM pairs ORDER BY id");
        assert_eq!(read, rows("SELECT v FROM demo ORDER BY id"));
        // The statistics in the footers have the type of the column.
        let most = query(&job, "SELECT max(v) AS v FROM pairs")[0]["v"].clone();
        assert!(read.contains(&most), "{most} in {read:?}");
        Value::from(read)
    };
    let int64 = |value| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let float = || Arc::new(Float64Array::from(vec![0.5])) as ArrayRef;
    assert_eq!(values(both(int64(7), float())), json!([7.0, 0.5]));
    assert_eq!(values(both(Arc::new(Int32Array::from(vec![7])), int64(1 << 40))), json!([7, 1_i64 << 40]));
    let micro = |value| Arc::new(TimestampMicrosecondArray::from(vec![value])) as ArrayRef;
    let nano = || Arc::new(TimestampNanosecondArray::from(vec![1])) as ArrayRef;
    assert_eq!(values(both(nano(), micro(1))), json!(["1970-01-01T00:00:00.000000001", "1970-01-01T00:00:00.000001"]));
    assert_eq!(values(both(Arc::new(NullArray::new(1)), float())), json!([null, 0.5]));
    let text = Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    let categories: DictionaryArray<Int8Type> = ["c"].into_iter().collect();
    assert_eq!(values(both(Arc::new(categories), Arc::clone(&text))), json!(["c", "x"]));
    for (one, two) in [(int64((1 << 53) + 1), float()), (nano(), micro(i64::MAX)), (int64(1), text)] {
        let message = both(one, two).error(2);
        assert!(
            message.contains("column `v` is ") && message.contains("no type holds the values of both exactly"),
            "{message}"
        );
        assert!(message.contains("data/1.parquet") && message.contains("data/2.parquet"), "{message}");
    }
}

#[test]
fn categorical_columns_of_many_files_are_texts() {
    for write in [parquet as fn(&Path, &RecordBatch), arrow] {
        let mut job = job();
        let extension = if std::ptr::fn_addr_eq(write, arrow as fn(&Path, &RecordBatch)) { "arrow" } else { "parquet" };
        if extension == "arrow" {
            job = job.change("\"data/\"", "{ uri = \"data/\", format = \"arrow\" }");
        }
        for file in 0..3_i64 {
            let names: Vec<String> = (0..100).map(|value| format!("{file}-{value}")).collect();
            let categories: DictionaryArray<Int8Type> = names.iter().map(String::as_str).collect();
            write(&job.path(&format!("data/{file}.{extension}")), &pairs(file * 100, Arc::new(categories)));
        }
        job.report();
        let counts = query(&job, "SELECT count(DISTINCT v) AS n, max(v) AS v FROM demo");
        assert_eq!(counts[0], json!({"n": 300, "v": "2-99"}), "{extension}");
    }
}

#[test]
fn arrow_files_that_differ_are_named() {
    let job = job().change("\"data/\"", "{ uri = \"data/\", format = \"arrow\" }");
    let rows = pairs(1, Arc::new(Int64Array::from(vec![1])));
    arrow(&job.path("data/1.arrow"), &rows);
    arrow(&job.path("data/2.arrow"), &rows.project(&[0, 2, 1, 3]).unwrap());
    let message = job.error(2);
    assert!(message.contains("column 2 is `a` Utf8 in ") && message.contains(" and `b` Utf8 in "), "{message}");
}

#[test]
fn output_has_no_view_types_at_any_depth() {
    let job = job().change("SELECT * FROM pairs", "SELECT id, any_value(a) AS a, any_value(b) AS b, array_agg(v) AS list, named_struct('x', any_value(v)) AS s FROM pairs GROUP BY id");
    parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(StringArray::from(vec!["x", "y"]))));
    job.report();
    let (schema, _) = crate::support::footer_of(&job.output());
    let types = schema.fields().iter().map(|field| field.data_type().to_string()).collect::<Vec<_>>().join(" ");
    assert!(!types.contains("View"), "{types}");
    assert_eq!(query(&job, "SELECT list, s FROM demo ORDER BY id")[0], json!({"list": ["x"], "s": {"x": "x"}}));
}

#[test]
fn every_type_is_written_or_its_column_is_named() {
    let field = |data_type: DataType| Arc::new(Field::new("item", data_type, true));
    let uuid = FixedSizeBinaryArray::try_from_iter([[1_u8; 16]].into_iter()).unwrap();
    let time = Arc::new(Time32SecondArray::from(vec![3723])) as ArrayRef;
    let arrow_rows = |values: ArrayRef, metadata: &[(&str, &str)]| {
        let job = job().change("\"data/\"", "{ uri = \"data/\", format = \"arrow\" }");
        let rows = pairs(1, values);
        let mut fields = rows.schema().fields().to_vec();
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        fields[3] = Arc::new(Field::clone(&fields[3]).with_metadata(metadata));
        arrow(
            &job.path("data/a.arrow"),
            &RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec()).unwrap(),
        );
        job
    };
    let value = |job: Job| {
        job.report();
        assert_eq!(query(&job, "SELECT v FROM pairs"), query(&job, "SELECT v FROM demo"));
        query(&job, "SELECT v FROM demo")[0]["v"].clone()
    };
    assert_eq!(value(arrow_rows(time, &[])), "01:02:03");
    let day = Arc::new(arrow::array::Date64Array::from(vec![-86_400_000])) as ArrayRef;
    assert_eq!(value(arrow_rows(day, &[])), "1969-12-31");
    let extension = [("ARROW:extension:name", "arrow.uuid"), ("ARROW:extension:metadata", "")];
    assert_eq!(value(arrow_rows(Arc::new(uuid.clone()), &extension)), "01010101-0101-0101-0101-010101010101");
    assert_eq!(value(arrow_rows(Arc::new(uuid), &[])), "01010101010101010101010101010101");
    assert_eq!(value(arrow_rows(new_null_array(&DataType::List(field(DataType::Null)), 1), &[])), Value::Null);
    let union =
        UnionFields::from_fields([Field::new("n", DataType::Int64, true), Field::new("t", DataType::Utf8, true)]);
    let union = field(DataType::Union(union, UnionMode::Sparse));
    for unknown in [
        DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Struct(Vec::<Field>::new().into()),
        DataType::List(Arc::clone(&union)),
        DataType::Struct(vec![union].into()),
    ] {
        let job = arrow_rows(new_null_array(&unknown, 1), &[]);
        let message = job.error(2);
        assert!(
            message.contains("column `v` is ") && message.contains("which no Parquet file can hold; CAST it"),
            "{message}"
        );
        let message = stderr_of(
            &mut job.couplet(&["query", "--pipeline", "pipeline.toml", "SELECT v FROM pairs", "-o", "x.parquet"]),
            2,
        );
        assert!(message.contains("column `v` is "), "{message}");
    }
}

#[test]
fn dates_far_from_today_are_printed_as_dates() {
    let job = job();
    let times = TimestampMicrosecondArray::from(vec![i64::MAX]).with_timezone("UTC");
    let values = batch(&[("d", Arc::new(Date32Array::from(vec![i32::MAX]))), ("t", Arc::new(times))]);
    parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(StructArray::from(values))));
    for sql in ["SELECT v['d'] AS d, v['t'] AS t FROM pairs", "SELECT v, [v] AS list FROM pairs"] {
        for format in ["table", "csv", "tsv", "json", "jsonl"] {
            let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", format, sql]);
            let printed = stdout_of(&mut query);
            for date in ["+5881580-07-11", "+294247-01-10T04:00:54.775807Z"] {
                assert!(printed.contains(date), "{sql} {format}: {printed}");
            }
        }
    }
}

#[test]
fn a_distant_date_as_a_duplicate_id_is_named() {
    let job = job().change("SELECT * FROM pairs", "SELECT v AS id, a, b FROM pairs");
    parquet(&job.path("data/a.parquet"), &pairs(1, Arc::new(Date32Array::from(vec![i32::MAX, i32::MAX]))));
    let message = job.error(2);
    assert!(message.contains("\"+5881580-07-11\" 2 times"), "{message}");
}

#[test]
fn init_accepts_decimals_uuids_and_bytes_as_ids() {
    let ids: [(&str, ArrayRef); 4] = [
        ("decimal", Arc::new(Decimal128Array::from(vec![1, 2]).with_precision_and_scale(38, 0).unwrap())),
        ("bytes", Arc::new(FixedSizeBinaryArray::try_from_iter([[1_u8; 16], [2_u8; 16]].into_iter()).unwrap())),
        ("large", Arc::new(UInt64Array::from(vec![u64::MAX, 1]))),
        ("times", Arc::new(TimestampMicrosecondArray::from(vec![1, i64::MAX]))),
    ];
    for (kind, values) in ids {
        let job = job();
        let rows = pairs(1, values);
        let rows = batch(&[
            ("id", Arc::clone(rows.column(3))),
            ("sentence1", Arc::clone(rows.column(1))),
            ("sentence2", Arc::clone(rows.column(2))),
        ]);
        parquet(&job.path("data/a.parquet"), &rows);
        let made = job.couplet(&["init", "new", "--from", "data/a.parquet"]).output().unwrap();
        assert!(made.status.success(), "{kind}: {}", String::from_utf8_lossy(&made.stderr));
        let pipeline = std::fs::read_to_string(job.path("new/pipeline.toml")).unwrap();
        assert!(pipeline.contains("by its name; unique in all 2 rows"), "{kind}: {pipeline}");
    }
}

/// Two rows with UUIDs as pyarrow marks them: by the type of the field in Arrow's schema.
fn uuids_of_pyarrow(path: &Path) {
    let ids = FixedSizeBinaryArray::try_from_iter([[1_u8; 16], [2_u8; 16]].into_iter()).unwrap();
    let texts = |texts: [&str; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let rows = batch(&[("id", Arc::new(ids)), ("sentence1", texts(["x", "y"])), ("sentence2", texts(["v", "w"]))]);
    let mut fields = rows.schema().fields().to_vec();
    let name = ("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
    fields[0] = Arc::new(Field::clone(&fields[0]).with_metadata([name].into()));
    parquet(path, &RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec()).unwrap());
}

/// Two rows with UUIDs as DuckDB marks them: by the type of the column in Parquet's schema, without an Arrow schema.
fn uuids_of_duckdb(path: &Path) {
    let schema = "message m { optional fixed_len_byte_array(16) id (UUID); optional binary sentence1 (UTF8); \
                  optional binary sentence2 (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    write(path, "");
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    let levels: &[i16] = &[1, 1];
    let mut column = rows.next_column().unwrap().unwrap();
    let ids = [1, 2].map(|byte| FixedLenByteArray::from(vec![byte; 16]));
    column.typed::<FixedLenByteArrayType>().write_batch(&ids, Some(levels), None).unwrap();
    column.close().unwrap();
    for texts in [["x", "y"], ["v", "w"]] {
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts.map(ByteArray::from), Some(levels), None).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn uuids_are_ids_and_come_out_as_text() {
    for file in [uuids_of_pyarrow as fn(&Path), uuids_of_duckdb] {
        let job = job();
        file(&job.path("data/a.parquet"));
        let mut init = job.couplet(&["init", "new", "--from", "data/a.parquet", "--model"]);
        stderr_of(init.arg(golden("tiny-distilbert")), 0);
        let pipeline = std::fs::read_to_string(job.path("new/pipeline.toml")).unwrap();
        let chosen = pipeline.lines().find(|line| line.starts_with("id = \"id\""));
        let why = "by its name; unique in all 2 rows";
        assert!(chosen.is_some_and(|line| line.contains(why)), "{pipeline}");
        stderr_of(&mut job.couplet(&["run", "new/pipeline.toml"]), 0);
        let mut rows = rows_of(&job.path("new/out/predictions.parquet"));
        rows.sort_by_key(|row| row["id"].to_string());
        let ids: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
        assert_eq!(ids, ["01010101-0101-0101-0101-010101010101", "02020202-0202-0202-0202-020202020202"]);
    }
}

#[test]
fn encrypted_parquet_is_reported_as_encrypted() {
    let job = job();
    write(&job.path("data/a.parquet"), b"PARE\0\0\0\0\0\0\0\0\x04\0\0\0PARE");
    let message = job.error(2);
    assert!(
        message.contains("data/a.parquet: it is an encrypted Parquet file, which couplet cannot read"),
        "{message}"
    );
}

/// A Delta table `table` of three ids, whose file has another name for its column.
pub fn column_mapped_table(job: &Job) {
    let physical = batch(&[("col-1", Arc::new(Int64Array::from(vec![1, 2, 3])))]);
    parquet(&job.path("table/part-0.parquet"), &physical);
    let bytes = job.path("table/part-0.parquet").metadata().unwrap().len();
    let column = json!({"name": "id", "type": "long", "nullable": true,
        "metadata": {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}});
    let log = [
        json!({"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}),
        json!({"metaData": {"id": "0", "format": {"provider": "parquet", "options": {}},
            "schemaString": json!({"type": "struct", "fields": [column]}).to_string(), "partitionColumns": [],
            "configuration": {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"}, "createdTime": 0}}),
        json!({"add": {"path": "part-0.parquet", "partitionValues": {}, "size": bytes, "modificationTime": 0, "dataChange": true}}),
    ];
    let log = log.map(|action| action.to_string()).join("\n");
    write(&job.path("table/_delta_log/00000000000000000000.json"), log);
}

#[test]
fn a_delta_table_with_column_mapping_can_be_counted() {
    let job = job();
    column_mapped_table(&job);
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM 'table/'", 3),
        ("SELECT count(*) AS n FROM 'table/' WHERE id > 1", 2),
        ("SELECT sum(id) AS n FROM 'table/'", 6),
    ] {
        let rows: Value =
            serde_json::from_str(&stdout_of(&mut job.couplet(&["query", "--format", "json", sql]))).unwrap();
        assert_eq!(rows[0]["n"], expected, "{sql}");
    }
}
