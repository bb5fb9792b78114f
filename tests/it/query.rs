//! `couplet query`, `couplet predict` and `couplet model show`: inspecting results and models.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::support::{
    Job, QUICKSTART, couplet, golden, golden_lines, quickstart_model, quickstart_pairs, root, rows_of, stderr_of,
    stdout_of,
};

/// The largest difference due to rounding to four digits and the tolerance of the goldens.
const TOLERANCE: f64 = 2e-4;

/// Runs `couplet query` over the quickstart and its output.
fn query(arguments: &[&str]) -> Command {
    let mut command = couplet();
    command.current_dir(root()).arg("query").arg("--pipeline").arg(&QUICKSTART.pipeline).args(arguments);
    command
}

/// The result of a query in a file of `sql/`.
fn result_of(file: &str) -> Vec<Value> {
    let printed = stdout_of(&mut query(&["--format", "json", "-f", &format!("sql/{file}")]));
    serde_json::from_str(&printed).unwrap()
}

/// The gold label and the prediction of Hugging Face for a pair of the quickstart.
struct Judged {
    label: String,
    predicted: &'static str,
    /// The probability of the predicted label.
    score: f64,
}

fn judged() -> Vec<Judged> {
    let pairs = rows_of(&quickstart_pairs());
    let goldens = golden_lines("pairs.minilm-mrpc.jsonl");
    let judged = pairs.iter().zip(&goldens).map(|(pair, golden)| {
        assert_eq!(pair["id"], golden["id"]);
        let logit = |i: usize| golden["logits"][i].as_f64().unwrap();
        let predicted = if logit(1) > logit(0) { "paraphrase" } else { "not_paraphrase" };
        let score = 1.0 / (1.0 + (-(logit(1) - logit(0)).abs()).exp());
        Judged { label: pair["label"].as_str().unwrap().to_owned(), predicted, score }
    });
    judged.collect()
}

/// The number of pairs with each combination of label and prediction.
fn confusion() -> BTreeMap<(String, &'static str), f64> {
    let mut counts = BTreeMap::new();
    for pair in judged() {
        *counts.entry((pair.label, pair.predicted)).or_default() += 1.0;
    }
    counts
}

#[track_caller]
fn assert_close(value: &Value, expected: f64, tolerance: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"));
    assert!((value - expected).abs() <= tolerance, "{value} instead of {expected}");
}

#[test]
fn accuracy_is_the_share_of_predictions_equal_to_gold_labels() {
    let judged = judged();
    let right = judged.iter().filter(|pair| pair.label == pair.predicted).count();
    let result = result_of("accuracy.sql");
    assert_eq!((result.len(), &result[0]["rows"]), (1, &json!(525)));
    assert_close(&result[0]["accuracy"], right as f64 / 525.0, 5.1e-5);
}

#[test]
fn f1_and_mcc_match_the_confusion_matrix() {
    let counts = confusion();
    let of = |label: &str, predicted| counts[&(label.to_owned(), predicted)];
    let (tp, fn_) = (of("paraphrase", "paraphrase"), of("paraphrase", "not_paraphrase"));
    let (fp, tn) = (of("not_paraphrase", "paraphrase"), of("not_paraphrase", "not_paraphrase"));
    let matthews = (tp * tn - fp * fn_) / ((tp + fp) * (tp + fn_) * (tn + fp) * (tn + fn_)).sqrt();
    let result = result_of("f1.sql");
    assert_eq!(result.len(), 2);
    for (row, label, tp, fp, fn_) in
        [(&result[0], "not_paraphrase", tn, fn_, fp), (&result[1], "paraphrase", tp, fp, fn_)]
    {
        assert_eq!((&row["label"], &row["rows"]), (&json!(label), &json!((tp + fn_) as i64)));
        assert_close(&row["precision"], tp / (tp + fp), 5.1e-5);
        assert_close(&row["recall"], tp / (tp + fn_), 5.1e-5);
        assert_close(&row["f1"], 2.0 * tp / (2.0 * tp + fp + fn_), 5.1e-5);
        assert_close(&row["matthews"], matthews, 5.1e-5);
    }
}

#[test]
fn the_confusion_matrix_counts_every_pair() {
    let counts = confusion();
    let result = result_of("confusion.sql");
    assert_eq!(result.len(), counts.len());
    for (row, ((label, predicted), n)) in result.iter().zip(&counts) {
        assert_eq!((&row["label"], &row["predicted"]), (&json!(label), &json!(predicted)));
        assert_eq!(row["rows"], *n as i64);
        let of_label: f64 = counts.iter().filter(|((other, _), _)| other == label).map(|(_, n)| n).sum();
        assert_close(&row["percent_of_label"], 100.0 * n / of_label, 0.051);
    }
}

#[test]
fn label_counts_include_the_mean_score() {
    let result = result_of("label_counts.sql");
    assert_eq!(result.len(), 2);
    for (row, label) in result.iter().zip(["paraphrase", "not_paraphrase"]) {
        let scores: Vec<f64> = judged().iter().filter(|pair| pair.predicted == label).map(|pair| pair.score).collect();
        assert_eq!((&row["predicted"], &row["rows"]), (&json!(label), &json!(scores.len())));
        assert_close(&row["mean_score"], scores.iter().sum::<f64>() / scores.len() as f64, TOLERANCE);
        assert_close(&row["lowest_score"], scores.iter().copied().fold(1.0, f64::min), TOLERANCE);
    }
}

#[test]
fn the_worst_mistakes_are_the_most_confident_ones() {
    let mut expected: Vec<f64> =
        judged().iter().filter(|pair| pair.label != pair.predicted).map(|pair| pair.score).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    let result = result_of("worst_mistakes.sql");
    assert_eq!(result.len(), 10);
    for (row, score) in result.iter().zip(&expected) {
        assert_close(&row["score"], *score, TOLERANCE);
        assert_ne!(row["label"], row["predicted_label"]);
        assert!(row["sentence1"].is_string() && row["sentence2"].is_string());
    }
}

#[test]
fn a_query_sees_the_output_and_the_tables_of_a_pipeline() {
    let sql = "SELECT count(*) AS n FROM quickstart o JOIN predictions s USING (id) JOIN pairs p USING (id)";
    insta::assert_snapshot!(stdout_of(&mut query(&[sql])), @r"
    +-----+
    | n   |
    +-----+
    | 525 |
    +-----+
    ");
}

#[test]
fn a_command_line_table_overrides_one_of_the_pipeline() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let table = format!("Pairs={}", job.path("pairs.csv").display());
    let counted = stdout_of(&mut query(&["SELECT count(*) AS n FROM pairs", "--table", &table, "--format", "csv"]));
    assert_eq!(counted, "n\n1\n");
}

/// `couplet query` without a pipeline; `MODEL` in the SQL is replaced by a tiny model.
fn ad_hoc(sql: &str, arguments: &[&str]) -> Command {
    let mut command = couplet();
    command.current_dir(root()).args(["query", &sql.replace("MODEL", "tests/it/goldens/tiny-distilbert")]);
    command.args(arguments);
    command
}

/// One row with a NULL, and with texts that each format has to escape.
const ONE_ROW: &str = "SELECT 1 AS id, 'a, \"b\"' AS text, CAST(NULL AS VARCHAR) AS nothing, [1.5, 2.5] AS list";

#[test]
fn the_default_format_is_a_readable_table() {
    insta::assert_snapshot!(stdout_of(&mut ad_hoc(ONE_ROW, &[])), @r#"
    +----+--------+---------+------------+
    | id | text   | nothing | list       |
    +----+--------+---------+------------+
    | 1  | a, "b" | NULL    | [1.5, 2.5] |
    +----+--------+---------+------------+
    "#);
}

#[test]
fn the_result_can_be_csv() {
    insta::assert_snapshot!(stdout_of(&mut ad_hoc(ONE_ROW, &["--format", "csv"])), @r#"
    id,text,nothing,list
    1,"a, ""b""",,"[1.5, 2.5]"
    "#);
}

#[test]
fn the_result_can_be_json() {
    let printed = stdout_of(&mut ad_hoc(ONE_ROW, &["--format", "json"]));
    let rows: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(rows, json!([{"id": 1, "text": "a, \"b\"", "nothing": null, "list": [1.5, 2.5]}]));
}

#[test]
fn an_empty_result_has_its_columns() {
    let empty = format!("SELECT * FROM ({ONE_ROW}) WHERE id = 2");
    assert_eq!(stdout_of(&mut ad_hoc(&empty, &["--format", "csv"])), "id,text,nothing,list\n");
    assert_eq!(stdout_of(&mut ad_hoc(&empty, &["--format", "json"])).trim(), "[]");
    assert!(stdout_of(&mut ad_hoc(&empty, &[])).contains("| id | text | nothing | list |"));
}

#[test]
fn the_output_extension_selects_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let result_in = |name: &str| {
        let path = folder.path().join("new").join(name);
        assert_eq!(stdout_of(&mut ad_hoc(ONE_ROW, &["-o", path.to_str().unwrap()])), "");
        path
    };
    let printed = |format: &str| stdout_of(&mut ad_hoc(ONE_ROW, &["--format", format]));
    for (name, format) in
        [("r.csv", "csv"), ("r.tsv", "tsv"), ("r.json", "json"), ("r.jsonl", "jsonl"), ("r.txt", "table")]
    {
        assert_eq!(std::fs::read_to_string(result_in(name)).unwrap(), printed(format), "{name}");
    }
    let expected = json!([{"id": 1, "text": "a, \"b\"", "nothing": null, "list": [1.5, 2.5]}]);
    assert_eq!(json!(rows_of(&result_in("r.parquet"))), expected);
}

#[test]
fn the_format_option_overrides_the_extension() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.data");
    stdout_of(&mut ad_hoc("SELECT 1 AS x", &["-o", path.to_str().unwrap(), "--format", "csv"]));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "x\n1\n");
}

#[test]
fn a_failed_query_leaves_the_output_file_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.csv");
    std::fs::write(&path, "before").unwrap();
    let fails = "SELECT CAST(x AS INT) AS x FROM (VALUES ('1'), ('y')) AS v(x)";
    stderr_of(&mut ad_hoc(fails, &["-o", path.to_str().unwrap()]), 1);
    assert_eq!(std::fs::read_to_string(path).unwrap(), "before");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn predictions_can_be_written_in_every_format() {
    let call = "SELECT predict('MODEL', 'a man', 'a man') AS p";
    let rows: Value = serde_json::from_str(&stdout_of(&mut ad_hoc(call, &["--format", "json"]))).unwrap();
    let label = rows[0]["p"]["label"].as_str().unwrap();
    let csv = stdout_of(&mut ad_hoc(call, &["--format", "csv"]));
    assert!(csv.starts_with(&format!("p\n\"{{label: {label}, score: 0.")), "{csv}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.parquet");
    stdout_of(&mut ad_hoc(call, &["-o", path.to_str().unwrap()]));
    assert_eq!(rows_of(&path)[0]["p"]["label"], label);
}

#[test]
fn statements_are_executed_one_after_the_other() {
    let sql = "CREATE VIEW v AS SELECT 1 AS x; SELECT x FROM v; -- and\nSELECT x + 1 AS y FROM v;";
    assert_eq!(stdout_of(&mut ad_hoc(sql, &["--format", "csv"])), "x\n1\ny\n2\n");
}

#[test]
fn a_closed_stdout_ends_the_query_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_couplet"))
        .args(["query", "SELECT value FROM generate_series(1, 3000000)", "--format", "csv"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "value");
    drop(lines);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""));
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "temporary files are left");
}

/// The message of a query that cannot be executed, with exit code 2.
fn refusal(sql: &str, arguments: &[&str]) -> String {
    let message = stderr_of(&mut ad_hoc(sql, arguments), 2);
    message.replace(root().to_str().unwrap(), "ROOT").trim_end().to_owned()
}

#[test]
fn a_query_must_be_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let copy = format!("COPY (SELECT 1) TO '{}'", folder.path().join("x.csv").display());
    insta::assert_snapshot!(refusal(&copy, &[]), @"error: SQL: a query only reads; to write its result, use -o FILE instead of COPY or INSERT");
    insta::assert_snapshot!(refusal("CREATE TABLE t AS SELECT 1 AS x; INSERT INTO t VALUES (2)", &[]), @"error: SQL: a query only reads; to write its result, use -o FILE instead of COPY or INSERT");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn unknown_tables_are_named_with_suggestions() {
    let table = format!("Pairs={}", quickstart_pairs().display());
    insta::assert_snapshot!(refusal("SELECT 1 FROM pair", &["--table", &table]), @"error: SQL: there is no table `pair` (tables: Pairs); did you mean `Pairs`?");
    insta::assert_snapshot!(refusal("SELECT 1 FROM pairs", &[]), @"error: SQL: there is no table `pairs`, and no tables are defined: name one with --table pairs=URI or --pipeline FILE, or read a file with FROM 'FILE'");
}

#[test]
fn predictions_before_the_first_run_are_explained() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let mut command = job.couplet(&["query", "--pipeline", "pipeline.toml", "SELECT * FROM predictions"]);
    insta::assert_snapshot!(job.error_of(&mut command, 2), @"error: SQL: there is no table `predictions`: run the pipeline first, or name a result with --table predictions=URI (tables: pairs)");
}

#[test]
fn unknown_columns_are_named_with_suggestions() {
    insta::assert_snapshot!(refusal("SELECT ident FROM (SELECT 1 AS id, 2 AS idents)", &[]), @r"
    error: SQL: there is no column `ident` (columns: id, idents); did you mean `idents`?
    ");
}

#[test]
fn fields_of_predictions_are_explained() {
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 'a').label", &[]), @"error: SQL: a field of a call is written with brackets: predict('model', text)['label'], not predict('model', text).label");
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 'a')['lable']", &[]), @"error: SQL: there is no field 'lable'; a prediction has label, score, probabilities, truncated, error, raw_probabilities; did you mean ['label']?");
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 'a')['xyz']", &[]), @"error: SQL: there is no field 'xyz'; a prediction has label, score, probabilities, truncated, error, raw_probabilities");
}

#[test]
fn arguments_of_predict_are_explained() {
    insta::assert_snapshot!(refusal("SELECT predict('MODEL')", &[]), @"error: SQL: predict takes a model and one or two texts, all of them strings: predict('models/mrpc', sentence1, sentence2); write CAST(… AS VARCHAR) for other types");
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 1, 2)", &[]), @"error: SQL: predict takes a model and one or two texts, all of them strings: predict('models/mrpc', sentence1, sentence2); write CAST(… AS VARCHAR) for other types");
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 'a', 'b', 'c')", &[]), @"error: SQL: predict takes a model and one or two texts, all of them strings: predict('models/mrpc', sentence1, sentence2); write CAST(… AS VARCHAR) for other types");
    insta::assert_snapshot!(refusal("SELECT predict(NULL, 'a')", &[]), @"error: SQL: the first argument of predict names the model and must not be NULL");
}

#[test]
fn a_model_that_is_missing_is_named() {
    insta::assert_snapshot!(refusal("SELECT predict('MODEL-2', 'a')", &[]), @"error: SQL: model ROOT/tests/it/goldens/tiny-distilbert-2 does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin; did you mean ROOT/tests/it/goldens/tiny-distilbert?");
}

#[test]
fn a_length_that_the_model_does_not_have_is_refused() {
    insta::assert_snapshot!(refusal("SELECT predict('MODEL', 'a')", &["--max-length", "1000"]), @"error: SQL: max_length = 1000 does not suit ROOT/tests/it/goldens/tiny-distilbert: it reads at most 512 tokens");
}

#[test]
fn mistakes_in_the_command_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.sql");
    std::fs::write(&empty, "-- nothing\n").unwrap();
    insta::assert_snapshot!(refusal("SELECT 1", &["-o", "result.xlsx"]), @"error: -o result.xlsx: the extension implies no format (csv, tsv, json, jsonl, parquet, txt); add --format");
    insta::assert_snapshot!(refusal("SELECT 1", &["--format", "parquet"]), @"error: --format parquet needs a file: add -o FILE.parquet");
    insta::assert_snapshot!(refusal("SELECT 1; SELECT 2", &["-o", "result.csv"]), @"error: SQL: 2 statements cannot share one output file");
    insta::assert_snapshot!(refusal("SELECT 1", &["--table", "pairs.csv"]), @"error: --table pairs.csv: expected NAME=URI, such as pairs=data/pairs.parquet");
    insta::assert_snapshot!(refusal("SELECT 1", &["--table", "my-pairs=pairs.csv"]), @r#"error: --table my-pairs=pairs.csv: "my-pairs" cannot be the name of a table; write for example `my_pairs`"#);
    insta::assert_snapshot!(refusal("SELECT 1", &["--var", "day=1"]), @"error: --var needs --pipeline: variables belong to a pipeline");
    insta::assert_snapshot!(refusal("SELECT 1", &["--table", "t=a.csv", "--table", "T=b.csv"]), @"error: --table T=b.csv: T was given before, as a.csv; give each name once");
    insta::assert_snapshot!(refusal("SELECT 1", &["--table", "t=a.html"]), @r#"error: --table t=a.html: cannot infer the format of `a.html`; write a table with its format: `{ uri = "…", format = "csv" }`"#);
    insta::assert_snapshot!(refusal("sql/accuracy.sql", &[]), @"error: `sql/accuracy.sql` is a file, not SQL; execute its SQL with --file sql/accuracy.sql");
    insta::assert_snapshot!(refusal("Cargo.toml", &[]), @r#"error: `Cargo.toml` is a file, not SQL; read it as a table: "SELECT * FROM 'Cargo.toml'""#);
    insta::assert_snapshot!(refusal("", &[]), @"error: SQL: there is no SQL");
    insta::assert_snapshot!(refusal("SELEC 1", &[]), @"error: SQL: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1");
    let mut command = couplet();
    command.args(["query", "-f", "no.sql"]);
    insta::assert_snapshot!(stderr_of(&mut command, 2), @"error: no.sql does not exist");
    let mut command = couplet();
    command.args(["query", "-f"]).arg(&empty);
    let message = stderr_of(&mut command, 2);
    assert_eq!(message.trim_end(), format!("error: {}: there is no SQL", empty.display()));
}

/// `couplet predict` with a model of the checkout.
fn predict(model: &str, texts: &[&str]) -> Command {
    let mut command = couplet();
    command.current_dir(root()).args(["predict", "--model", model]).args(texts);
    command
}

const CONSISTENT: [&str; 2] =
    ["This research was consistent with his findings.", "His findings were compatible with this research."];

#[test]
fn predict_classifies_a_pair() {
    insta::assert_snapshot!(stdout_of(&mut predict("pipelines/quickstart/model", &CONSISTENT)), @r"
    paraphrase (98.6 %)
      not_paraphrase  0.0136
      paraphrase      0.9864
    ");
}

#[test]
fn predict_prints_one_json_document() {
    let printed = stdout_of(predict("pipelines/quickstart/model", &CONSISTENT).arg("--json"));
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&document["label"], &document["truncated"]), (&json!("paraphrase"), &json!(false)));
    assert_close(&document["score"], 0.986_398, 1e-4);
    assert_eq!(document["probabilities"]["paraphrase"], document["score"]);
    assert_close(&document["probabilities"]["not_paraphrase"], 1.0 - 0.986_398, 1e-4);
    assert_eq!(document["tokens"], 19);
    assert!(document["model"].as_str().unwrap().starts_with("17881bc937bbf80d"), "{document}");
}

#[test]
fn predict_takes_one_text() {
    insta::assert_snapshot!(stdout_of(&mut predict("tests/it/goldens/tiny-bert", &["a man"])), @r"
    contradiction (87.0 %)
      contradiction  0.8701
      neutral        0.0762
      entailment     0.0538
    ");
}

#[test]
fn predict_reads_the_text_from_stdin() {
    let text = "The council heard the letter.";
    let piped = stdout_of(predict("tests/it/goldens/tiny-bert", &["-"]).write_stdin(format!("{text}\n")));
    assert_eq!(piped, stdout_of(&mut predict("tests/it/goldens/tiny-bert", &[text])));
}

#[test]
fn predict_reports_truncation() {
    let printed = stdout_of(predict("tests/it/goldens/tiny-bert", &CONSISTENT).args(["--max-length", "8"]));
    assert!(printed.ends_with("  truncated to 8 tokens\n"), "{printed}");
}

#[test]
fn predict_refuses_what_it_cannot_score() {
    let message =
        |command: &mut Command| stderr_of(command, 2).replace(root().to_str().unwrap(), "ROOT").trim_end().to_owned();
    insta::assert_snapshot!(message(&mut predict("tests/it/goldens/tiny-bert", &["  "])), @"error: TEXT is empty");
    insta::assert_snapshot!(message(&mut predict("tests/it/goldens/tiny", &["a"])), @"error: model tests/it/goldens/tiny does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin; did you mean tests/it/goldens/tiny-bert?");
    insta::assert_snapshot!(message(&mut predict("org/bert", &["a"])), @"error: model org/bert does not exist, nor does its folder org; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin; if it is of the hub, write hf://org/bert");
    insta::assert_snapshot!(message(predict("tests/it/goldens/tiny-bert", &["a"]).args(["--max-length", "1000"])), @"error: max_length = 1000 does not suit tests/it/goldens/tiny-bert: it reads at most 512 tokens");
}

#[test]
fn model_show_describes_the_bundled_model() {
    let mut command = couplet();
    command.current_dir(root()).args(["model", "show", "pipelines/quickstart/model"]);
    insta::assert_snapshot!(stdout_of(&mut command), @r"
    pipelines/quickstart/model
      architecture  DistilBertForSequenceClassification
      task          single-label classification
      labels        not_paraphrase, paraphrase
      encoder       6 layers x 384, 12 heads, feed-forward 1536
      parameters    22,713,218 (45.4 MB on disk)
      vocabulary    30,522 word pieces
      max length    512 tokens
      fingerprint   17881bc937bbf80dcb6d505ec18401ecd2d2d88cf66a11c5ec92d057e9001662
    ");
}

#[test]
fn model_show_prints_one_json_document() {
    let mut command = couplet();
    command.args(["model", "show", "--json"]).arg(golden("tiny-bert"));
    let mut document: Value = serde_json::from_str(&stdout_of(&mut command)).unwrap();
    let fingerprint = document["fingerprint"].take();
    assert_eq!(fingerprint.as_str().unwrap().len(), 64);
    assert!(document["bytes"].as_u64().unwrap() > 200_000);
    document["bytes"].take();
    assert_eq!(document["uri"].take(), golden("tiny-bert").to_str().unwrap());
    insta::assert_snapshot!(format!("{document:#}"), @r#"
    {
      "architecture": "BertForSequenceClassification",
      "base_model": [],
      "bytes": null,
      "calibration": null,
      "datasets": [],
      "dim": 32,
      "fingerprint": null,
      "heads": 4,
      "hidden_dim": 64,
      "labels": [
        "contradiction",
        "neutral",
        "entailment"
      ],
      "languages": [],
      "layers": 2,
      "licence": null,
      "max_length": 512,
      "metrics": [],
      "parameters": 59939,
      "revision": null,
      "score": null,
      "task": "single-label classification",
      "training": null,
      "uri": null,
      "vocabulary": 787
    }
    "#);
}

#[test]
fn model_show_explains_what_is_not_a_model() {
    let mut command = couplet();
    command.current_dir(root()).args(["model", "show", "sql"]);
    let import = stderr_of(couplet().current_dir(root()).args(["model", "import", "nope", "target/nope"]), 2);
    assert!(import.starts_with("error: model nope does not exist; expected a folder with config.json"), "{import}");
    insta::assert_snapshot!(stderr_of(&mut command, 2).trim_end(), @"error: model folder sql has no config.json; a model and its tokenizer are written into one folder by `save_pretrained` of transformers");
}

#[test]
fn model_show_and_run_give_the_same_fingerprint() {
    let mut command = couplet();
    command.args(["model", "show", "--json"]).arg(quickstart_model());
    let document: Value = serde_json::from_str(&stdout_of(&mut command)).unwrap();
    let report: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    assert_eq!(document["fingerprint"], report["model"]["fingerprint"]);
}
