//! The queries of `sql/`: each on real output, with its example as printed and its figures computed independently.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use couplet::parameters::declared;
use serde_json::{Value, json};

use crate::support::{QUICKSTART, couplet, golden, quickstart_pairs, root, rows_of, stderr_of, stdout_of, write};
use crate::tiny::Variant;

/// A pipeline that has run, in a folder that lasts as long as the tests.
struct Ran {
    folder: tempfile::TempDir,
    _model: Option<Variant>,
}

impl Ran {
    fn new(model: PathBuf, variant: Option<Variant>, source: &str, text: &str, sink: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let toml = format!(
            "name = \"job\"\n[tables]\npairs = {:?}\n[source]\nsql = \"\"\"{source}\"\"\"\nid = \"id\"\ntext = {text}\n\
             label = \"label\"\n[model]\nuri = {model:?}\n[sink]\n{sink}\n",
            quickstart_pairs()
        );
        write(&folder.path().join("pipeline.toml"), toml);
        let ran = Self { folder, _model: variant };
        ran.run();
        ran
    }

    fn run(&self) {
        stdout_of(couplet().current_dir(self.folder.path()).args(["run", "pipeline.toml", "--quiet"]));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn query(&self, file: &str, arguments: &[&str]) -> Vec<Value> {
        let mut command = couplet();
        command.current_dir(self.folder.path()).args([
            "query",
            "--pipeline",
            "pipeline.toml",
            "--format",
            "json",
            "-f",
        ]);
        serde_json::from_str(&stdout_of(command.arg(root().join("sql").join(file)).args(arguments))).unwrap()
    }

    fn output(&self) -> Vec<Value> {
        rows_of(&self.path("out.parquet"))
    }
}

/// The quickstart's pairs scored by a tiny model, as a second model and a second run.
static OTHER: LazyLock<Ran> = LazyLock::new(|| {
    let sql = "SELECT id, sentence1, sentence2, category, label FROM pairs";
    Ran::new(golden("tiny-distilbert"), None, sql, "[\"sentence1\", \"sentence2\"]", "uri = \"out.parquet\"")
});

/// Single sentences with a numeric label.
static VALUES: LazyLock<Ran> = LazyLock::new(|| {
    let variant = Variant::of("tiny-distilbert")
        .with_outputs(1)
        .without_config("label2id")
        .with_config("id2label", json!({ "0": "LABEL_0" }))
        .with_config("problem_type", json!("regression"));
    let sql = "SELECT id, sentence1 AS sentence, length(sentence1) / 20 AS label FROM pairs";
    Ran::new(variant.folder().into(), Some(variant), sql, "\"sentence\"", "uri = \"out.parquet\"")
});

/// Single sentences with any number of labels.
static SETS: LazyLock<Ran> = LazyLock::new(|| {
    let variant = Variant::of("tiny-distilbert")
        .with_outputs(3)
        .without_config("label2id")
        .with_config("id2label", json!({ "0": "long", "1": "it's \"odd\"", "2": "question" }))
        .with_config("problem_type", json!("multi_label_classification"));
    let sql = "SELECT id, sentence1 AS sentence, \
               array_remove_all(make_array(CASE WHEN length(sentence1) > 50 THEN 'long' ELSE '' END, \
               CASE WHEN sentence1 LIKE '%?' THEN 'question' ELSE '' END), '') AS label FROM pairs";
    Ran::new(variant.folder().into(), Some(variant), sql, "\"sentence\"", "uri = \"out.parquet\"")
});

fn files() -> Vec<String> {
    let names = root().join("sql").read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The result of a query over the quickstart.
fn quickstart(file: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = couplet();
    command.current_dir(root()).args(["query", "--format", "json", "--pipeline"]).arg(&QUICKSTART.pipeline);
    let printed = stdout_of(command.args(["-f", &format!("sql/{file}")]).args(arguments));
    serde_json::from_str(&printed).unwrap()
}

fn other_table() -> String {
    format!("other={}", OTHER.path("out.parquet").display())
}

fn before_table() -> String {
    format!("before={}", OTHER.path("out.parquet").display())
}

#[track_caller]
fn assert_close(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"));
    assert!((value - expected).abs() <= 6e-5 * expected.abs().max(1.0), "{value} instead of {expected}");
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn every_file_documents_itself_and_runs() {
    for file in files() {
        let sql = std::fs::read_to_string(root().join("sql").join(&file)).unwrap();
        let head: Vec<&str> = sql.lines().take_while(|line| line.starts_with("--")).collect();
        assert!(head[0].contains('?') && head.len() > 4, "{file} does not say what question it answers");
        let (command, _) = example(&sql);
        assert!(command.iter().any(|word| *word == format!("sql/{file}")), "{file} has no example");
        for parameter in declared(&sql) {
            assert!(!parameter.meaning.is_empty(), "{file}: ${} says nothing", parameter.name);
            assert!(
                sql.matches(&format!("${}", parameter.name)).count() > 1,
                "{file}: ${} is not used",
                parameter.name
            );
        }
        let rows = if file.starts_with("regression") {
            VALUES.query(&file, &[])
        } else if file.starts_with("multilabel") {
            SETS.query(&file, &[])
        } else {
            let model = format!("model={}", golden("tiny-distilbert").display());
            let mut arguments = vec![];
            let (other, before) = (other_table(), before_table());
            if file.starts_with("disagreement") {
                arguments.extend(["--table", &other]);
            }
            if file.starts_with("drift") {
                arguments.extend(["--table", &before]);
            }
            if file == "second_opinion.sql" {
                arguments.extend(["--param", &model]);
            }
            quickstart(&file, &arguments)
        };
        // All rows of the quickstart have a score.
        assert_eq!(rows.is_empty(), file == "rejected.sql", "{file} gives {} rows", rows.len());
    }
}

/// The command of an example, and its output.
fn example(sql: &str) -> (Vec<String>, String) {
    let head = sql.lines().take_while(|line| line.starts_with("--"));
    let head: Vec<&str> = head.map(|line| line[2..].strip_prefix(' ').unwrap_or("")).collect();
    let begin = head.iter().position(|line| line.starts_with("  couplet query")).unwrap();
    let end = begin + head[begin..].iter().position(|line| line.is_empty()).unwrap();
    let command = head[begin..end].iter().flat_map(|line| line.split_whitespace()).filter(|word| *word != "\\");
    (command.skip(1).map(str::to_owned).collect(), head[end + 1..].join("\n"))
}

#[test]
fn examples_over_the_quickstart_print_the_documented_output() {
    let mut compared = Vec::new();
    for file in files() {
        let (command, expected) = example(&std::fs::read_to_string(root().join("sql").join(&file)).unwrap());
        assert!(expected.lines().count() > 1, "{file} shows no result");
        if !command.iter().any(|word| word == "pipelines/quickstart/pipeline.toml") {
            continue;
        }
        let here = |word: String| match word.as_str() {
            "pipelines/quickstart/pipeline.toml" => QUICKSTART.pipeline.to_str().unwrap().to_owned(),
            "other=out/other.parquet" => other_table(),
            _ => word,
        };
        let printed = stdout_of(couplet().current_dir(root()).args(command.into_iter().map(here)));
        assert_eq!(printed.trim_end(), expected, "{file}");
        compared.push(file);
    }
    assert!(compared.len() >= 10, "{compared:?}");
}

/// Label, predicted label and score of the quickstart's rows.
fn judged() -> Vec<(String, String, f64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = rows_of(&QUICKSTART.output);
    rows.iter().map(|row| (text(&row["label"]), text(&row["predicted_label"]), number(&row["score"]))).collect()
}

#[test]
fn calibration_is_the_accuracy_of_each_bin() {
    let mut bins = BTreeMap::<i64, (f64, f64, f64)>::new();
    for (label, predicted, score) in judged() {
        let bin = bins.entry(((score * 5.0).ceil() as i64).max(1)).or_default();
        *bin = (bin.0 + 1.0, bin.1 + score, bin.2 + f64::from(u8::from(label == predicted)));
    }
    let off: f64 = bins.values().map(|(n, total, right)| (right - total).abs() / n * n).sum::<f64>() / 525.0;
    let rows = quickstart("calibration.sql", &["--param", "bins=5"]);
    assert_eq!(rows.len(), bins.len());
    for (row, (bin, (n, total, right))) in rows.iter().zip(bins) {
        assert_close(&row["up_to"], bin as f64 / 5.0);
        assert_eq!(number(&row["rows"]), n);
        assert_close(&row["confidence"], total / n);
        assert_close(&row["accuracy"], right / n);
        assert_close(&row["expected_error"], off);
    }
}

#[test]
fn a_histogram_counts_the_rows_of_each_bin() {
    let rows = quickstart("score_histogram.sql", &["--param", "width=0.1", "--param", "bar=10"]);
    for row in &rows {
        let (low, high) = (number(&row["above"]), number(&row["up_to"]));
        let n = judged().iter().filter(|(.., score)| *score > low && *score <= high).count();
        assert_eq!(number(&row["rows"]), n as f64, "{row}");
    }
    assert_eq!(rows.iter().map(|row| number(&row["rows"])).sum::<f64>(), 525.0);
    assert!(rows.iter().any(|row| row["bar"] == "##########"));
}

#[test]
fn rows_to_label_are_the_least_certain_and_balanced() {
    let rows = quickstart("uncertain.sql", &["--param", "rows=6"]);
    let mut of_label = BTreeMap::<String, usize>::new();
    for row in &rows {
        *of_label.entry(row["predicted_label"].as_str().unwrap().into()).or_default() += 1;
        assert!(row["sentence1"].is_string() && row["id"].is_string() && row.get("probabilities").is_none(), "{row}");
    }
    assert!(of_label.values().all(|n| *n == 3) && of_label.len() == 2, "{of_label:?}");
    let least = judged().iter().map(|(.., score)| *score).fold(1.0, f64::min);
    assert_close(&rows[0]["score"], least);
    assert!(quickstart("uncertain.sql", &["--param", "below=0.1"]).is_empty());
}

#[test]
fn two_models_disagree_where_their_labels_differ() {
    let other = rows_of(&OTHER.path("out.parquet"));
    let mut cells = BTreeMap::<(String, String), f64>::new();
    for ((_, predicted, _), other) in judged().into_iter().zip(&other) {
        *cells.entry((predicted, other["predicted_label"].as_str().unwrap().into())).or_default() += 1.0;
    }
    let table = other_table();
    let rows = quickstart("disagreement.sql", &["--table", &table]);
    assert_eq!(rows.len(), cells.len());
    let agreed: f64 = cells.iter().filter(|((a, b), _)| a == b).map(|(_, n)| n / 525.0).sum();
    let side = |name: &str, second: bool| -> f64 {
        cells.iter().filter(|((a, b), _)| if second { b } else { a } == name).map(|(_, n)| n / 525.0).sum()
    };
    let chance: f64 = ["paraphrase", "not_paraphrase"].iter().map(|name| side(name, false) * side(name, true)).sum();
    for (row, ((a, b), n)) in rows.iter().zip(&cells) {
        assert_eq!((&row["label"], &row["other"], number(&row["rows"])), (&json!(a), &json!(b), *n));
        assert_close(&row["kappa"], (agreed - chance) / (1.0 - chance));
    }
    let rows = quickstart("disagreement_rows.sql", &["--table", &table, "--param", "rows=3"]);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["predicted_label"] != row["other_label"]), "{rows:?}");
}

#[test]
fn a_query_can_use_another_model() {
    let model = format!("model={}", golden("tiny-distilbert").display());
    let rows = quickstart("second_opinion.sql", &["--param", &model, "--param", "rows=5"]);
    let other = rows_of(&OTHER.path("out.parquet"));
    assert_eq!(rows.len(), 5);
    for row in rows {
        let same =
            other.iter().find(|other| other["sentence1"] == row["sentence1"] && other["sentence2"] == row["sentence2"]);
        assert_eq!(same.unwrap()["predicted_label"], row["other_label"]);
    }
}

/// The KS statistic of two samples, by its definition.
fn ks(a: &[f64], b: &[f64]) -> f64 {
    let share =
        |values: &[f64], x: f64| values.iter().filter(|value| **value <= x).count() as f64 / values.len() as f64;
    a.iter().chain(b).map(|x| (share(a, *x) - share(b, *x)).abs()).fold(0.0, f64::max)
}

#[test]
fn drift_is_the_psi_and_ks_of_two_runs() {
    let table = before_table();
    let scores = |rows: Vec<Value>| rows.iter().map(|row| number(&row["score"])).collect::<Vec<_>>();
    let (mut before, now) = (scores(OTHER.output()), scores(rows_of(&QUICKSTART.output)));
    let row = quickstart("drift.sql", &["--table", &table]).remove(0);
    assert_eq!((number(&row["rows_before"]), number(&row["rows_now"])), (525.0, 525.0));
    assert_close(&row["ks"], ks(&before, &now));
    // Deciles of the earlier scores, by their ranks.
    before.sort_by(f64::total_cmp);
    let ends: Vec<f64> = (1..=10).map(|i| before[(525 * i / 10) - 1]).collect();
    let bin = |x: f64| ends.iter().position(|end| x <= *end).unwrap_or(9);
    let (mut p, mut q) = ([0.0_f64; 10], [0.0_f64; 10]);
    before.iter().for_each(|x| p[bin(*x)] += 1.0 / 525.0);
    now.iter().for_each(|x| q[bin(*x)] += 1.0 / 525.0);
    let psi: f64 = p.iter().zip(q).map(|(p, q)| (q.max(0.5 / 525.0), p)).map(|(q, p)| (q - p) * (q / p).ln()).sum();
    assert!((number(&row["psi"]) - psi).abs() < 0.02 * psi, "{row} and {psi}");
    let same = format!("before={}", QUICKSTART.output.display());
    let row = quickstart("drift.sql", &["--table", &same]).remove(0);
    assert_eq!((number(&row["psi"]), number(&row["ks"])), (0.0, 0.0));
    let rows = quickstart("drift_labels.sql", &["--table", &table]);
    let psi: f64 = rows.iter().map(|row| number(&row["psi"])).sum();
    assert!((number(&rows[0]["psi_of_all"]) - psi).abs() < 2e-4, "{rows:?}");
}

/// The rows of a query of `sql/` over tables that are files.
fn over(file: &str, tables: &[(&str, &str)], arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = couplet();
    command.args(["query", "--format", "json", "-f"]).arg(root().join("sql").join(file)).args(arguments);
    for (name, csv) in tables {
        let path = folder.path().join(format!("{name}.csv"));
        write(&path, csv);
        command.arg("--table").arg(format!("{name}={}", path.display()));
    }
    serde_json::from_str(&stdout_of(&mut command)).unwrap()
}

#[test]
fn drift_away_from_the_most_frequent_score_is_detected() {
    let scores = |parts: &[(&str, usize)]| {
        let rows = parts.iter().flat_map(|(score, n)| std::iter::repeat_n(format!("x,{score}\n"), *n));
        format!("predicted_label,score\n{}", rows.collect::<String>())
    };
    let term = |p: f64, q: f64| (q - p) * (q / p).ln();
    let of_two = term(0.95, 0.5) + term(0.05, 0.5);
    for (most, few) in [("1.0", "0.6"), ("0.5", "0.9")] {
        // A row without a score was rejected and is not counted.
        let (before, now) = (scores(&[(most, 95), (few, 5), ("", 7)]), scores(&[(most, 50), (few, 50)]));
        let row = over("drift.sql", &[("before", &before), ("predictions", &now)], &[]).remove(0);
        assert_close(&row["psi"], of_two);
        assert_close(&row["ks"], 0.45);
        assert_eq!((&row["rows_before"], &row["rows_now"]), (&json!(100), &json!(100)));
    }
    // 0.1 as a REAL differs from 0.1 as a DOUBLE.
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept.csv");
    let query = |arguments: &[&str]| {
        let mut command = couplet();
        command.args(["query", "--table"]).arg(format!("predictions={}", QUICKSTART.output.display()));
        stdout_of(command.args(arguments))
    };
    query(&["SELECT * FROM predictions", "-o", kept.to_str().unwrap()]);
    let drift = root().join("sql/drift.sql");
    let before = format!("before={}", kept.display());
    let printed = query(&["-f", drift.to_str().unwrap(), "--format", "json", "--table", &before]);
    let row = &serde_json::from_str::<Value>(&printed).unwrap()[0];
    assert_eq!((number(&row["psi"]), number(&row["ks"])), (0.0, 0.0));
    // Nothing to compare with gives no drift and no error.
    let row = over("drift.sql", &[("before", &scores(&[("", 3)])), ("predictions", &scores(&[("0.5", 3)]))], &[]);
    assert_eq!(
        (&row[0]["rows_before"], &row[0]["psi"], &row[0]["ks"]),
        (&json!(0), &json!(null), &json!(null)),
        "{row:?}"
    );
}

#[test]
fn a_label_of_only_one_run_has_its_share() {
    let labels = |labels: &str| format!("predicted_label,score\n{labels}");
    let (before, now) = (labels("a,1\na,1\na,1\nb,1\n,\n"), labels("a,1\nc,1\n,\n,\n"));
    let rows = over("drift_labels.sql", &[("before", &before), ("predictions", &now)], &[]);
    let shares: Vec<_> = rows
        .iter()
        .map(|row| (row["label"].as_str().unwrap(), number(&row["percent_before"]), number(&row["percent_now"])))
        .collect();
    assert_eq!(shares, [("a", 75.0, 50.0), ("b", 25.0, 0.0), ("c", 0.0, 50.0)]);
    let term = |p: f64, q: f64| (q - p) * (q / p).ln();
    assert_close(&rows[2]["psi_of_all"], term(0.75, 0.5) + term(0.25, 0.25) + term(0.125, 0.5));
}

#[test]
fn rows_and_labels_of_only_one_model_are_kept() {
    let predictions = "id,predicted_label,score\n1,a,0.9\n2,a,0.9\n3,b,0.9\n4,c,0.9\n5,,\n6,a,0.9\n7,,\n";
    let other = "id,predicted_label,score\n1,a,0.9\n2,b,0.9\n3,b,0.9\n4,d,0.9\n5,a,0.9\n7,,\n";
    let rows = over("disagreement.sql", &[("predictions", predictions), ("other", other)], &[]);
    let cells: Vec<_> = rows
        .iter()
        .map(|row| (row["label"].as_str(), row["other"].as_str(), number(&row["rows"]), row["percent"].as_f64()))
        .collect();
    let (a, b) = (Some("a"), Some("b"));
    assert_eq!(
        cells,
        [
            (a, a, 1.0, Some(25.0)),
            (a, b, 1.0, Some(25.0)),
            (a, None, 1.0, None),
            (b, b, 1.0, Some(25.0)),
            (Some("c"), Some("d"), 1.0, Some(25.0)),
            (None, a, 1.0, None)
        ]
    );
    // Of four rows two agree; by chance, a does with 1/2 · 1/4 and b with 1/4 · 1/2.
    assert_close(&rows[0]["kappa"], (0.5 - 0.25) / (1.0 - 0.25));
}

#[test]
fn only_the_most_frequent_labels_are_listed() {
    for file in ["multilabel_counts.sql", "multilabel_f1.sql"] {
        let all = SETS.query(file, &[]);
        let some = SETS.query(file, &["--param", "labels=1"]);
        assert_eq!((all.len(), some.len(), &some[0]["left_out"]), (3, 1, &json!(2)), "{file}");
        let most = all.iter().map(|row| number(&row["rows_with_it"])).fold(0.0, f64::max);
        assert_eq!(number(&some[0]["rows_with_it"]), most, "{file}");
        assert_eq!(some[0].get("f1_micro"), all[0].get("f1_micro"), "{file}");
    }
}

#[test]
fn drift_reads_a_version_of_a_delta_table() {
    let sql = "SELECT id, sentence1, label FROM pairs WHERE category <> 'news'";
    let ran = Ran::new(golden("tiny-distilbert"), None, sql, "\"sentence1\"", "uri = \"out\"\nformat = \"delta\"");
    let toml = std::fs::read_to_string(ran.path("pipeline.toml")).unwrap();
    write(&ran.path("pipeline.toml"), toml.replace("category <> 'news'", "category = 'news'"));
    ran.run();
    // The first version is the empty table, or the first run.
    let first = ran.query("throughput.sql", &[]).pop().unwrap();
    assert_eq!(first["rows_read"], 450);
    let runs = ran.query("throughput.sql", &["--param", "rows=1"]);
    assert_eq!(runs[0]["rows_read"], 75);
    let versions: Vec<Value> = serde_json::from_str(&stdout_of(couplet().current_dir(ran.folder.path()).args([
        "runs",
        "pipeline.toml",
        "--json",
    ])))
    .unwrap();
    let before = format!("before=out@{}", versions[1]["output_version"]);
    let row = ran.query("drift.sql", &["--table", &before]).remove(0);
    assert_eq!((&row["rows_before"], &row["rows_now"]), (&json!(450), &json!(75)));
}

#[test]
fn regression_errors_match_their_definitions() {
    let rows = VALUES.output();
    let pairs: Vec<(f64, f64)> = rows.iter().map(|row| (number(&row["label"]), number(&row["score"]))).collect();
    let n = pairs.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / n;
    let (my, mx) = (mean(&|p| p.0), mean(&|p| p.1));
    let var = mean(&|p| (p.0 - my).powi(2));
    let mse = mean(&|p| (p.1 - p.0).powi(2));
    let row = VALUES.query("regression_error.sql", &[]).remove(0);
    assert_eq!(number(&row["rows"]), n);
    assert_close(&row["mae"], mean(&|p| (p.1 - p.0).abs()));
    assert_close(&row["rmse"], mse.sqrt());
    assert_close(&row["bias"], mx - my);
    assert_close(&row["r2"], 1.0 - mse / var);
    let (labels, scores): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let correlation = couplet::train::statistics::metrics::Correlation::new(&labels, &scores).unwrap();
    let (pearson, spearman) = correlation.measure(&vec![1; labels.len()]);
    assert_close(&row["pearson"], pearson.unwrap());
    assert_close(&row["spearman"], spearman.unwrap());
    let ranges = VALUES.query("regression_by_range.sql", &["--param", "width=2"]);
    assert_eq!(ranges.iter().map(|range| number(&range["rows"])).sum::<f64>(), n);
    let worst = VALUES.query("regression_worst.sql", &["--param", "rows=2"]);
    let largest = pairs.iter().map(|(label, score)| (score - label).abs()).fold(0.0, f64::max);
    assert_close(&json!(number(&worst[0]["difference"]).abs()), largest);
    assert!(worst[0]["sentence"].is_string());
}

#[test]
fn multilabel_rows_are_counted_per_label() {
    let rows = SETS.output();
    let counts = SETS.query("multilabel_counts.sql", &[]);
    let scores = SETS.query("multilabel_f1.sql", &[]);
    // The figures that the run itself recorded, which the report and its page show.
    let mut runs = couplet();
    runs.current_dir(SETS.folder.path()).args(["query", "--pipeline", "pipeline.toml", "--format", "json"]);
    let runs: Value = serde_json::from_str(&stdout_of(runs.arg("SELECT label_rows FROM runs"))).unwrap();
    let (mut all_hits, mut all_either) = (0.0, 0.0);
    for (place, name) in ["long", "it's \"odd\"", "question"].into_iter().enumerate() {
        let is_predicted = |row: &Value| number(&row["probabilities"][place]) >= 0.5;
        let so = |row: &Value| row["label"].as_array().unwrap().contains(&json!(name));
        let count = |which: &dyn Fn(&Value) -> bool| rows.iter().filter(|row| which(row)).count() as f64;
        let (hits, gold, predicted) = (count(&|row| so(row) && is_predicted(row)), count(&so), count(&is_predicted));
        assert_eq!((&counts[place]["label"], number(&counts[place]["rows_with_it"])), (&json!(name), predicted));
        assert_eq!(number(&runs[0]["label_rows"][place]), predicted, "{name}");
        let f1 = if gold + predicted == 0.0 { 0.0 } else { 2.0 * hits / (gold + predicted) };
        assert_eq!(
            (number(&scores[place]["rows_with_it"]), number(&scores[place]["rows_predicted"])),
            (gold, predicted)
        );
        assert_close(&scores[place]["f1"], f1);
        (all_hits, all_either) = (all_hits + 2.0 * hits, all_either + gold + predicted);
    }
    assert_close(&scores[0]["f1_micro"], all_hits / all_either);
    let none = SETS.query("multilabel_counts.sql", &["--param", "threshold=1.1"]);
    assert!(none.iter().all(|row| row["rows_with_it"] == 0), "{none:?}");
}

/// The error of `couplet query` for SQL with parameters.
fn ad_hoc(sql: &str, parameters: &[&str]) -> assert_cmd::Command {
    let mut command = couplet();
    command.current_dir(root()).args(["query", "--table", "pairs=pipelines/quickstart/pairs.parquet"]);
    command.args(["--format", "csv", sql]).args(parameters.iter().flat_map(|parameter| ["--param", parameter]));
    command
}

#[test]
fn parameters_get_the_type_that_the_query_expects() {
    let csv = |sql: &str, parameters: &[&str]| stdout_of(&mut ad_hoc(sql, parameters));
    let count = "SELECT count(*) AS n FROM pairs WHERE label = $label";
    assert_eq!(csv(count, &["label=paraphrase"]), "n\n278\n");
    // A value is never interpreted as SQL.
    assert_eq!(csv(count, &["label=' OR '1' = '1"]), "n\n0\n");
    assert_eq!(csv("SELECT $x AS x, arrow_typeof($x) AS t", &["x=1"]), "x,t\n1,Int64\n");
    assert_eq!(csv("SELECT $x AS x, arrow_typeof($x) AS t", &["x=1.5"]), "x,t\n1.5,Float64\n");
    assert_eq!(csv("SELECT $x AS x, arrow_typeof($x) AS t", &["x=true"]), "x,t\ntrue,Boolean\n");
    // No digit is lost.
    let digits = ["0.1", "007", "9223372036854775807", "18446744073709551616", "0.12345678901234567891"];
    for x in digits {
        assert_eq!(csv("SELECT $x AS x", &[&format!("x={x}")]), format!("x\n{x}\n"));
    }
    let decimal = "SELECT CAST('12345678901234567.89' AS DECIMAL(20, 2)) = $x AS same";
    assert_eq!(csv(decimal, &["x=12345678901234567.89"]), "same\ntrue\n");
    assert_eq!(csv(decimal, &["x=12345678901234567.88"]), "same\nfalse\n");
    assert_eq!(csv("SELECT $x AS x, arrow_typeof($x) AS t", &["x=a=b"]), "x,t\na=b,Utf8\n");
    assert_eq!(csv("SELECT arrow_typeof(CAST($x AS DATE)) AS t", &["x=2026-11-24"]), "t\nDate32\n");
    assert_eq!(
        csv("SELECT id FROM pairs WHERE id > $after ORDER BY id LIMIT $n", &["after=q0100", "n=2"]),
        "id\nq0101\nq0102\n"
    );
    // A parameter for a text column is a text, whatever it looks like.
    assert_eq!(csv("SELECT count(*) AS n FROM pairs WHERE category = $c", &["c=1"]), "n\n0\n");
    let view =
        "CREATE VIEW some AS SELECT id FROM pairs WHERE label = $label; SELECT count(*) AS n FROM some WHERE id < $id";
    assert_eq!(csv(view, &["label=paraphrase", "id=q0003"]).lines().count(), 2);
}

#[test]
fn parameters_work_in_calls_of_predict() {
    let sql = "SELECT predict($model, sentence1, $pair)['label'] AS label FROM pairs WHERE id = $id AND \
               predict($model, sentence1, $pair)['score'] > $least";
    let model = "model=tests/it/goldens/tiny-distilbert";
    let bound = stdout_of(&mut ad_hoc(sql, &[model, "pair=A man.", "id=q0001", "least=0"]));
    let pasted = sql
        .replace("$model", "'tests/it/goldens/tiny-distilbert'")
        .replace("$pair", "'A man.'")
        .replace("$id", "'q0001'")
        .replace("$least", "0");
    assert_eq!(bound, stdout_of(&mut ad_hoc(&pasted, &[])));
    assert_eq!(bound.lines().count(), 2);
}

#[test]
fn parameters_that_do_not_fit_the_query_are_named() {
    let refused = |sql: &str, parameters: &[&str]| stderr_of(&mut ad_hoc(sql, parameters), 2).trim_end().to_owned();
    let sql = "SELECT id FROM pairs WHERE label = $label LIMIT $rows";
    insta::assert_snapshot!(refused(sql, &["label=x"]), @"error: SQL: $rows has no value: add --param rows=VALUE");
    insta::assert_snapshot!(refused(sql, &["labels=x", "rows=1"]), @"error: SQL: --param labels=x: the SQL has no $labels (its parameters are $label, $rows); did you mean `label`?");
    insta::assert_snapshot!(refused("SELECT 1", &["x=1"]), @"error: SQL: --param x=1: the SQL has no $x (it has no parameters)");
    insta::assert_snapshot!(refused(sql, &["label=x", "rows=1", "rows=2"]), @"error: SQL: --param rows is given twice");
    insta::assert_snapshot!(refused("SELECT id FROM pairs WHERE length(id) > $n", &["n=many"]), @"error: SQL: --param n=many: expected a number, as the SQL uses $n");
    insta::assert_snapshot!(refused("SELECT ? AS x", &[]), @"error: SQL: a parameter needs a name: write $name instead of ?");
    let mut command = couplet();
    command
        .current_dir(root())
        .args(["query", "--pipeline"])
        .arg(&QUICKSTART.pipeline)
        .args(["-f", "sql/second_opinion.sql"]);
    insta::assert_snapshot!(stderr_of(&mut command, 2).trim_end(), @"error: sql/second_opinion.sql: $model (the folder or URI of the other model) has no value: add --param model=VALUE");
}
