//! `couplet run`: its output and report, for good and for bad rows.

use std::collections::BTreeMap;

use parquet::basic::Compression;
use serde_json::{Value, json};

use crate::support::{
    Job, QUICKSTART, couplet, footer_of, golden, golden_lines, quickstart_pairs, root, rows_of, shared, stdout_of,
};

/// The largest accepted difference of a probability.
const TOLERANCE: f64 = 1e-4;

fn column<'r>(rows: &'r [Value], name: &str) -> Vec<&'r Value> {
    rows.iter().map(|row| &row[name]).collect()
}

#[test]
fn the_quickstart_writes_source_columns_before_its_own() {
    let (schema, _) = footer_of(&QUICKSTART.output);
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| {
            let nullable = if field.is_nullable() { "" } else { " NOT NULL" };
            format!("{} {}{nullable}", field.name(), field.data_type())
        })
        .collect();
    insta::assert_snapshot!(columns.join("\n"), @r"
    id Utf8
    sentence1 Utf8
    sentence2 Utf8
    category Utf8
    label Utf8
    predicted_label Utf8
    score Float32
    probabilities List(non-null Float32)
    truncated Boolean
    error Utf8
    raw_probabilities List(non-null Float32)
    model Utf8 NOT NULL
    ");
}

#[test]
fn the_quickstart_writes_every_pair_once_and_in_order() {
    let (pairs, written) = (rows_of(&quickstart_pairs()), rows_of(&QUICKSTART.output));
    assert_eq!(written.len(), 525);
    for name in ["id", "sentence1", "sentence2", "category", "label"] {
        assert_eq!(column(&written, name), column(&pairs, name), "{name}");
    }
}

#[test]
fn the_quickstart_matches_hugging_face() {
    let (goldens, written) = (golden_lines("pairs.minilm-mrpc.jsonl"), rows_of(&QUICKSTART.output));
    assert_eq!(goldens.len(), written.len());
    let mut largest: f64 = 0.0;
    for (golden, row) in goldens.iter().zip(&written) {
        assert_eq!(golden["id"], row["id"]);
        let exp: Vec<f64> =
            golden["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap().exp()).collect();
        let expected: Vec<f64> = exp.iter().map(|e| e / exp.iter().sum::<f64>()).collect();
        let probabilities: Vec<f64> =
            row["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert_eq!(probabilities.len(), expected.len());
        for (ours, theirs) in probabilities.iter().zip(&expected) {
            largest = largest.max((ours - theirs).abs());
        }
        let answer = usize::from(expected[1] > expected[0]);
        assert_eq!(row["predicted_label"], ["not_paraphrase", "paraphrase"][answer], "{row}");
        assert_eq!(row["score"], row["probabilities"][answer], "{row}");
        assert_eq!((&row["truncated"], &row["error"]), (&json!(false), &Value::Null), "{row}");
    }
    assert!(largest < TOLERANCE, "the largest difference of a probability is {largest}");
}

#[test]
fn the_footer_records_the_model_and_its_settings() {
    let (_, footer) = footer_of(&QUICKSTART.output);
    let report: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    let metadata: BTreeMap<&str, &str> = footer
        .file_metadata()
        .key_value_metadata()
        .unwrap()
        .iter()
        .filter(|entry| entry.key != "ARROW:schema")
        .map(|entry| (entry.key.as_str(), entry.value.as_deref().unwrap()))
        .collect();
    let fingerprint = report["model"]["fingerprint"].as_str().unwrap();
    let expected = BTreeMap::from([
        ("couplet.max_length", "128"),
        ("couplet.model", fingerprint),
        ("couplet.model_uri", root().to_str().unwrap()),
        ("couplet.pipeline", "quickstart"),
        ("couplet.precision", "f32"),
        ("couplet.version", env!("CARGO_PKG_VERSION")),
    ]);
    assert_eq!(metadata.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, value) in expected {
        assert!(metadata[key].starts_with(value), "{key} is {}", metadata[key]);
    }
    let models = rows_of(&QUICKSTART.output);
    assert!(column(&models, "model").iter().all(|model| fingerprint.starts_with(model.as_str().unwrap())));
}

#[test]
fn every_column_is_compressed_with_zstd() {
    let (_, footer) = footer_of(&QUICKSTART.output);
    for group in footer.row_groups() {
        for column in group.columns() {
            assert!(matches!(column.compression(), Compression::ZSTD(_)), "{column:?}");
        }
    }
}

#[test]
fn the_json_report_is_one_document_whose_numbers_add_up() {
    let report: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    assert_eq!(report["pipeline"], "quickstart");
    assert_eq!(
        report["rows"],
        json!({"read": 525, "scored": 525, "remembered": 0, "repeated": 0, "rejected": 0, "truncated": 0, "damaged_scores": 0})
    );
    assert_eq!(report["rejected"], json!({}));
    assert_eq!(report["labels"], json!({"not_paraphrase": 190, "paraphrase": 335}));
    let tokens: i64 = golden_lines("pairs.minilm-mrpc.jsonl").iter().map(|row| row["tokens"].as_i64().unwrap()).sum();
    assert_eq!((&report["tokens"]["scored"], &report["tokens"]["in_rows"]), (&json!(tokens), &json!(tokens)));
    assert_eq!(report["tokens"]["padded_batch"], 32);
    assert!(report["tokens"]["padding_avoided"].as_u64().unwrap() > 1000, "{report}");
    let number = |value: &Value| value.as_f64().unwrap();
    let seconds = &report["seconds"];
    assert!(number(&seconds["scoring"]) > 0.0 && number(&seconds["scoring"]) <= number(&seconds["all"]), "{report}");
    let rows_per_second = 525.0 / number(&seconds["scoring"]);
    assert!((number(&report["rows_per_second"]) / rows_per_second - 1.0).abs() < 1e-6, "{report}");
    assert!(number(&report["tokens_per_second"]) > number(&report["rows_per_second"]), "{report}");
    assert_eq!(report["output"]["bytes"].as_u64().unwrap(), QUICKSTART.output.metadata().unwrap().len());
}

#[test]
fn a_run_without_a_terminal_shows_no_progress_bar() {
    assert!(!QUICKSTART.stderr.contains(['\r', '\u{1b}']), "{:?}", QUICKSTART.stderr);
}

/// A summary without the parts that differ in every run.
fn without_times(summary: &str) -> String {
    let lines = summary.lines().map(|line| match line.trim_start().split_once(' ') {
        Some((name @ ("speed" | "time"), _)) => format!("  {name:<10} …"),
        Some(("output", _)) => line.split(" (").next().unwrap().to_owned(),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_summary_counts_the_work() {
    let job = Job::over_quickstart_pairs();
    let summary = job.without_paths(&stdout_of(&mut job.run()));
    insta::assert_snapshot!(without_times(&summary), @r"
    demo: done
      rows       525 read · 525 scored · 0 rejected
      labels     not_paraphrase 525 (100.0 %) · paraphrase 0 (0.0 %)
      tokens     32,135 · 1 row truncated
      padding    23,551 tokens avoided (42.3 % of padded batches of 32)
      speed      …
      time       …
      model      ROOT/tests/it/goldens/tiny-distilbert (4abb5d7d4ac5b0ad, f32)
      output     out/scores.parquet
    ");
}

#[test]
fn quiet_runs_print_nothing() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let output = job.run().arg("--quiet").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(rows_of(&job.output()).len(), 1);
}

#[test]
fn two_runs_write_the_same_bytes() {
    let job = Job::over_quickstart_pairs();
    job.report();
    let first = std::fs::read(job.output()).unwrap();
    job.report();
    assert!(std::fs::read(job.output()).unwrap() == first);
}

#[test]
fn threads_windows_and_batches_do_not_change_a_row() {
    let reference = Job::over_quickstart_pairs().add("[run]\nthreads = 1\nwindow = 525").rows();
    assert_eq!(reference.len(), 525);
    for threads in [1, 2] {
        for (window, batch_tokens) in [(7, 64), (7, 4096), (8192, 64), (8192, 4096)] {
            let run = format!("[run]\nthreads = {threads}\nwindow = {window}\nbatch_tokens = {batch_tokens}");
            assert!(Job::over_quickstart_pairs().add(&run).rows() == reference, "{run}");
        }
    }
}

#[test]
fn int16_is_close_repeatable_and_recorded() {
    let job = |precision: &str| {
        Job::over_quickstart_pairs().change("[sink]", &format!("precision = \"{precision}\"\n[sink]"))
    };
    let exact = job("f32").rows();
    let int16 = job("int16");
    if !cfg!(target_arch = "x86_64") {
        assert!(int16.error(2).contains("precision"));
        return;
    }
    assert_eq!(int16.report()["model"]["precision"], "int16");
    let auto = job("auto");
    assert_eq!(auto.report()["model"]["precision"], "int16", "the bundled model passes the self-check");
    assert!(rows_of(&auto.output()) == rows_of(&int16.output()));
    for precision in ["f16", "bf16"] {
        let problem = job(precision).error(2);
        assert!(problem.contains(&format!("precision = \"{precision}\" needs a GPU")), "{problem}");
    }
    let near = rows_of(&int16.output());
    let probability = |row: &Value| row["probabilities"][0].as_f64().unwrap();
    let differences = exact.iter().zip(&near).map(|(x, y)| (probability(x) - probability(y)).abs());
    let largest = differences.fold(0.0, f64::max);
    assert!(largest > 0.0 && largest < 0.02, "{largest}");
    assert!(job("int16").add("[run]\nthreads = 1\nbatch_tokens = 64").rows() == near);
}

#[test]
fn identical_pairs_are_scored_once() {
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n3,x,y\n4,y,x\n");
    let report = job.report();
    assert_eq!(
        report["rows"],
        json!({"read": 4, "scored": 3, "remembered": 0, "repeated": 1, "rejected": 0, "truncated": 0, "damaged_scores": 0})
    );
    let rows = rows_of(&job.output());
    assert_eq!(rows[0]["probabilities"], rows[2]["probabilities"]);
    assert_eq!(column(&rows, "id"), [1, 2, 3, 4]);
}

#[test]
fn long_pairs_are_truncated_and_marked() {
    let job =
        Job::new(format!("id,a,b\n1,x,y\n2,{},y\n", "w ".repeat(200))).change("\n[sink]", "\nmax_length = 16\n[sink]");
    let report = job.report();
    assert_eq!((&report["rows"]["truncated"], &report["tokens"]["in_rows"]), (&json!(1), &json!(5 + 16)));
    assert_eq!(column(&rows_of(&job.output()), "truncated"), [false, true]);
}

#[test]
fn an_empty_source_gives_an_empty_table() {
    let job = Job::new("id,a,b\n1,x,y\n").change("FROM pairs", "FROM pairs WHERE id < 0");
    let report = job.report();
    assert_eq!(
        report["rows"],
        json!({"read": 0, "scored": 0, "remembered": 0, "repeated": 0, "rejected": 0, "truncated": 0, "damaged_scores": 0})
    );
    assert!(rows_of(&job.output()).is_empty());
    assert_eq!(footer_of(&job.output()).0.fields().len(), 10);
    let count = "SELECT count(*) AS n FROM predictions";
    let counted = stdout_of(&mut job.couplet(&["query", "--pipeline", "pipeline.toml", count, "--format", "csv"]));
    assert_eq!(counted, "n\n0\n");
}

#[test]
fn one_text_column_is_enough() {
    let job = Job::new("id,a\n1,x\n2,y\n")
        .change("SELECT id, a, b", "SELECT id, a")
        .change("[\"a\", \"b\"]", "\"a\"")
        .change("tiny-distilbert", "tiny-bert");
    assert_eq!(job.rows().len(), 2);
}

#[test]
fn all_of_mrpc_is_read_in_its_published_form() {
    let name = "all_of_mrpc_is_read_in_its_published_form";
    let Some(corpus) = shared(name, "data/mrpc/msr_paraphrase_train.txt") else { return };
    // The sink is next to the pipeline file, so the pipeline is copied to a temporary folder.
    let job = Job::new("");
    std::fs::copy(root().join("pipelines/score_mrpc.toml"), job.path("score_mrpc.toml")).unwrap();
    let toml = std::fs::read_to_string(job.path("score_mrpc.toml")).unwrap();
    std::fs::write(job.path("score_mrpc.toml"), toml.replace("../out/score_mrpc.parquet", "out/score_mrpc.parquet"))
        .unwrap();
    let corpus = format!("corpus={}", corpus.display());
    let model = format!("model={}", golden("tiny-distilbert").display());
    let printed = stdout_of(&mut job.couplet(&["run", "score_mrpc.toml", "--json", "--var", &corpus, "--var", &model]));
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&report["rows"]["read"], &report["rows"]["rejected"]), (&json!(4076), &json!(0)));
    let rows = rows_of(&job.path("out/score_mrpc.parquet"));
    assert_eq!(rows.len(), 4076);
    assert_eq!(rows.iter().filter(|row| row["label"] == "paraphrase").count(), 2753);
    assert_eq!(rows[0]["id1"], 702_876);
    assert!(rows.iter().any(|row| row["sentence1"].as_str().unwrap().contains('"')));
}

/// A CSV file with every kind of unscorable row, and some that only look bad.
fn bad_rows() -> String {
    let huge = "w".repeat(10_000_000);
    format!(
        "id,a,b\nnull text,,y\nnull pair,x,\nblank,\"  \t \",y\nhuge text,{huge},y\nhuge pair,x,{huge}\n\
         blank pair,x,\" \"\ncontrol,a\u{1}b\u{7f},c\u{200b}\nfine,x,y\n"
    )
}

#[test]
fn bad_rows_get_a_reason_and_the_run_continues() {
    let job = Job::new(bad_rows());
    let report = job.report();
    assert_eq!(
        report["rows"],
        json!({"read": 8, "scored": 3, "remembered": 0, "repeated": 0, "rejected": 5, "truncated": 0, "damaged_scores": 0})
    );
    assert_eq!(report["rejected"], json!({"NULL text": 2, "empty text": 1, "text too large": 2}));
    let rows = rows_of(&job.output());
    let errors: Vec<String> =
        rows.iter().map(|row| format!("{}: {}", row["id"].as_str().unwrap(), row["error"])).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    null text: "a is NULL"
    null pair: "b is NULL"
    blank: "a is empty"
    huge text: "a has 10000000 bytes, more than the 1048576 that are scored"
    huge pair: "b has 10000000 bytes, more than the 1048576 that are scored"
    blank pair: null
    control: null
    fine: null
    "#);
    for row in &rows {
        for name in ["predicted_label", "score", "probabilities", "truncated"] {
            assert_eq!(row[name].is_null(), row["error"].is_string(), "{name} of {}", row["id"]);
        }
        assert!(row["model"].is_string());
    }
    assert_eq!(rows[3]["a"].as_str().unwrap().len(), 10_000_000);
}

#[test]
fn the_summary_counts_bad_rows_by_reason() {
    let job = Job::new("id,a,b\n1,,y\n2,x,\n3,\" \",y\n4,x,y\n");
    let summary = job.without_paths(&stdout_of(&mut job.run()));
    insta::assert_snapshot!(without_times(&summary), @r"
    demo: done
      rows       4 read · 1 scored · 3 rejected
                 2 with NULL text
                 1 with empty text
      labels     not_paraphrase 1 (100.0 %) · paraphrase 0 (0.0 %)
      tokens     5 · none truncated
      padding    0 tokens avoided (0.0 % of padded batches of 32)
      speed      …
      time       …
      model      ROOT/tests/it/goldens/tiny-distilbert (4abb5d7d4ac5b0ad, f32)
      output     out/scores.parquet
    ");
}

#[test]
fn rows_that_are_all_bad_are_written_too() {
    let job = Job::new("id,a,b\n1,,y\n2,,\n");
    assert_eq!(column(&job.rows(), "error"), ["a is NULL", "a is NULL"]);
}

#[test]
fn too_many_bad_rows_fail_the_run_and_keep_the_old_output() {
    let job = Job::new("id,a,b\n1,x,y\n");
    job.report();
    let before = std::fs::read(job.output()).unwrap();
    std::fs::write(job.path("pairs.csv"), "id,a,b\n1,x,y\n2,,y\n3,x,y\n4,\" \",y\n").unwrap();
    let job = job.change("[sink]", "[score]\nmax_errors = 0.4\n[sink]");
    insta::assert_snapshot!(job.error(1), @"error: 2 of 4 rows were rejected (1 with NULL text, 1 with empty text; the first id: 2; 4), more than score.max_errors = 0.4 allows; nothing was written. Look at the rows, or raise max_errors");
    assert!(std::fs::read(job.output()).unwrap() == before);
    assert_eq!(job.output_files(), ["scores.parquet"]);
    let job = job.change("0.4", "0.5");
    assert_eq!(job.rows().len(), 4);
}

#[test]
fn too_many_bad_rows_of_a_first_run_write_nothing() {
    let job = Job::new("id,a,b\n1,,y\n").change("[sink]", "[score]\nmax_errors = 0\n[sink]");
    assert!(job.error(1).ends_with("nothing was written. Look at the rows, or raise max_errors"));
    assert!(job.output_files().is_empty());
}

#[test]
fn the_pipeline_runs_from_any_folder() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = couplet();
    command.current_dir(elsewhere.path()).arg("run").arg(job.path("pipeline.toml"));
    stdout_of(&mut command);
    assert_eq!(rows_of(&job.output()).len(), 1);
    assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
}
