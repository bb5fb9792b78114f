//! `couplet report`: one page about a run, and its data as JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Job, QUICKSTART, couplet, finetune_stage, golden, quickstart_model, quickstart_pairs, root, rows_of, stderr_of,
    stdout_of, write,
};
use crate::tiny::Variant;

fn json_of(job: &Job, arguments: &[&str]) -> Value {
    let mut command = job.couplet(&["report", "pipeline.toml", "--format", "json"]);
    serde_json::from_str(&stdout_of(command.args(arguments))).unwrap()
}

fn page_of(job: &Job, arguments: &[&str]) -> String {
    let page = stdout_of(job.couplet(&["report", "pipeline.toml", "-o", "-"]).args(arguments));
    check_page(&page);
    page
}

/// Checks that every tag is closed in order, and that nothing is fetched or executed.
#[track_caller]
fn check_page(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>"));
    let mut open: Vec<&str> = Vec::new();
    let body = page.split_once("</style>").unwrap().1;
    for part in body.split('<').skip(1) {
        let tag = part.split_once('>').unwrap_or_else(|| panic!("<{part} is not closed")).0;
        let name = tag.trim_start_matches('/').split_whitespace().next().unwrap().trim_end_matches('/');
        if tag.starts_with('/') {
            // The style element is in the head, which is opened before it.
            let opened = open.pop();
            assert!(
                opened == Some(name) || opened.is_none() && ["head", "html"].contains(&name),
                "</{name}> closes {opened:?}"
            );
        } else if !tag.ends_with('/') && !["meta", "br"].contains(&name) {
            open.push(name);
        }
        let address = ["href=", "src=", "srcset=", "action="].iter().find(|word| tag.contains(**word));
        assert!(!tag.split(' ').any(|word| word.starts_with("on") && word.contains('=')), "<{tag}>");
        assert!(name != "script" && name != "link" && name != "iframe" && address.is_none(), "<{tag}>");
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    assert!(!page.contains("@import") && !page.contains("url("), "the style fetches something");
    assert!(page.contains("default-src 'none'") && page.contains("prefers-color-scheme: dark"));
    assert!(!page.contains("NaN"), "a number is none");
}

#[test]
fn the_page_of_the_quickstart_matches_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let mut command = couplet();
    let message = stdout_of(command.arg("report").arg(&QUICKSTART.pipeline).arg("-o").arg(&path));
    assert!(message.contains("report.html ("), "{message}");
    let page = std::fs::read_to_string(path).unwrap();
    check_page(&page);
    for expected in [
        "<h1>quickstart <span class=\"outcome done\">done</span></h1>",
        "<dt>accuracy</dt><dd>56.4 %</dd>",
        "Mistakes, most confident first",
        "Slowest windows",
        "Velodrine",
        "Reliability",
    ] {
        assert!(page.contains(expected), "{expected} is not in the page");
    }
    let mut command = couplet();
    let json: Value =
        serde_json::from_str(&stdout_of(command.arg("report").arg(&QUICKSTART.pipeline).args(["--format", "json"])))
            .unwrap();
    let rows = rows_of(&QUICKSTART.output);
    let count = |gold: &str, predicted: &str| {
        rows.iter().filter(|row| row["label"] == gold && row["predicted_label"] == predicted).count()
    };
    let names = ["not_paraphrase", "paraphrase"];
    let matrix = names.map(|gold| names.map(|predicted| count(gold, predicted)));
    assert_eq!(json["judged"]["confusion"], json!(matrix));
    assert_eq!(json["judged"]["labels"], json!(names));
    assert_eq!(json["run"]["rows_read"], 525);
    assert_eq!(json["run"]["labels"][1], json!(["paraphrase", matrix[0][1] + matrix[1][1]]));
    let counts = json["run"]["scores"]["counts"].as_array().unwrap();
    assert_eq!(counts.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 525);
    let mean = rows.iter().map(|row| row["score"].as_f64().unwrap()).sum::<f64>() / 525.0;
    assert!((json["run"]["scores"]["mean"].as_f64().unwrap() - mean).abs() < 1e-6);
    assert_eq!(json["run"]["windows"]["slowest"][0]["texts"], 525);
    let run: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    assert_eq!(json["run"]["windows"]["slowest"][0]["tokens"], run["tokens"]["scored"]);
    assert_eq!(json["run"]["run"], run["run"]);
    // The page has the sample rows of the JSON, in the same order.
    let surest =
        rows.iter().filter(|row| row["label"] != row["predicted_label"]).map(|row| row["score"].as_f64().unwrap());
    let surest = surest.fold(0.0, f64::max);
    assert_eq!(json["samples"][0]["title"], "Mistakes, most confident first");
    assert_eq!(json["samples"][0]["rows"][0][5], format!("{surest:.4}"));
}

/// Three runs over different parts of the bundled pairs, into a sink.
fn nights(sink: &str) -> Job {
    let source = "SELECT id, sentence1 AS a, sentence2 AS b, label FROM pairs";
    let job = Job::over_quickstart_pairs()
        .change("SELECT id, sentence1 AS a, sentence2 AS b FROM pairs", &format!("{source} WHERE id <= 'q0200'"))
        .change("text = [\"a\", \"b\"]", "text = [\"a\", \"b\"]\nlabel = \"label\"")
        .change("uri = \"out/scores.parquet\"", sink);
    stdout_of(&mut job.run());
    let job = job.change("id <= 'q0200'", "id > 'q0200' AND id <= 'q0400'");
    stdout_of(&mut job.run());
    let job = job.change("id > 'q0200' AND id <= 'q0400'", "id > 'q0400'");
    stdout_of(&mut job.run());
    job
}

#[test]
fn an_earlier_run_is_shown_with_its_rows_if_the_sink_keeps_them() {
    for sink in ["uri = \"out\"\nformat = \"delta\"", "uri = \"out\""] {
        let job = nights(sink);
        let newest = json_of(&job, &[]);
        let runs: Vec<String> =
            newest["runs"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap().to_owned()).collect();
        assert_eq!((runs.len(), &newest["run"]["run"], &newest["run"]["rows_read"]), (3, &json!(runs[0]), &json!(125)));
        assert_eq!(newest["judged"]["rows"], 125, "{sink}");
        assert!(newest["runs"][1]["drift_to_run"]["psi"].as_f64() > Some(0.0), "{newest:#}");
        assert!(newest["runs"][0]["drift"]["ks"].as_f64() > Some(0.0) && newest["runs"][2]["drift"].is_null());
        let first = json_of(&job, &["--run", &runs[2]]);
        assert_eq!((&first["judged"]["rows"], &first["run"]["rows_read"]), (&json!(200), &json!(200)), "{sink}");
        assert_eq!(first["runs"].as_array().map(Vec::len), Some(1));
        assert!(page_of(&job, &[]).contains("Drift of the scores"));
    }
}

#[test]
fn a_single_file_sink_has_drift_but_no_older_rows() {
    let job = nights("uri = \"out/scores.parquet\"");
    let newest = json_of(&job, &[]);
    assert!(newest["runs"][0]["drift"]["psi"].as_f64() > Some(0.0), "{newest:#}");
    let id = newest["runs"][2]["run"].as_str().unwrap();
    let first = json_of(&job, &["--run", id]);
    assert!(first["judged"].is_null() && first["samples"] == json!([]));
    assert!(first["notes"][0].as_str().unwrap().starts_with("A later run has replaced"), "{first:#}");
    assert_eq!(
        first["run"]["scores"]["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>(),
        200
    );
    let message = job.error_of(&mut job.couplet(&["report", "pipeline.toml", "--run", "xyz"]), 2);
    assert!(message.starts_with("error: --run xyz: the pipeline has no such run (the newest are "), "{message}");
    let begin = &id[..2];
    let message = job.error_of(&mut job.couplet(&["report", "pipeline.toml", "--run", begin]), 2);
    assert_eq!(message, format!("error: --run {begin}: 3 runs have an id with this prefix; give a longer prefix"));
}

#[test]
fn a_file_of_another_writer_is_not_shown_as_the_run() {
    let job = nights("uri = \"out/scores.parquet\"");
    assert_eq!(json_of(&job, &[])["judged"]["rows"], 125);
    let other = job.path("out/scores.parquet");
    std::fs::copy(quickstart_pairs(), &other).unwrap();
    let json = json_of(&job, &[]);
    assert!(json["judged"].is_null() && json["samples"] == json!([]), "{json:#}");
    let note = json["notes"][0].as_str().unwrap();
    assert!(note.starts_with("out/scores.parquet is not the file that this run published"), "{note}");
    page_of(&job, &[]);
    std::fs::remove_file(other).unwrap();
    assert!(json_of(&job, &[])["notes"][0].as_str().unwrap().contains("no longer exists"));
}

#[test]
fn an_earlier_run_is_shown_after_the_columns_changed() {
    for sink in ["uri = \"out\"\nformat = \"delta\"", "uri = \"out\""] {
        let job = nights(sink);
        let runs = json_of(&job, &[]);
        let first = runs["runs"][2]["run"].as_str().unwrap().to_owned();
        let job = job.change("id, sentence1 AS a, sentence2 AS b", "id AS nr, sentence1 AS one, sentence2 AS two");
        let job = job.change("text = [\"a\", \"b\"]", "text = [\"one\", \"two\"]").change("id = \"id\"", "id = \"nr\"");
        let json = json_of(&job, &["--run", &first]);
        assert_eq!((&json["judged"]["rows"], &json["run"]["rows_read"]), (&json!(200), &json!(200)), "{sink}");
        assert!(!json["samples"].as_array().unwrap().is_empty(), "{sink}");
    }
}

#[test]
fn an_appended_table_is_reported_as_rows_of_all_runs() {
    let job = nights("uri = \"out\"\nformat = \"delta\"\nmode = \"append\"");
    let json = json_of(&job, &[]);
    assert_eq!((&json["run"]["rows_read"], &json["judged"]["rows"]), (&json!(125), &json!(525)));
    assert!(json["notes"][0].as_str().unwrap().starts_with("The sink appends"), "{:#}", json["notes"]);
    let first = json_of(&job, &["--run", json["runs"][2]["run"].as_str().unwrap()]);
    assert_eq!((&first["judged"]["rows"], &first["notes"]), (&json!(200), &json!([])));
}

#[test]
fn untrusted_texts_are_escaped() {
    let evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\" onload=\"x";
    let long = "word ".repeat(200);
    let csv =
        format!("id,a,b,label\n1,{e},\"{long}\",paraphrase\n2,x,{e},{e}\n<b>3</b>,,{e},paraphrase\n", e = quoted(evil));
    let job = Job::new(csv)
        .change("SELECT id, a, b FROM pairs", "SELECT id, a, b, label FROM pairs")
        .change("text = [\"a\", \"b\"]", "text = [\"a\", \"b\"]\nlabel = \"label\"");
    stdout_of(&mut job.run());
    let page = page_of(&job, &[]);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("&lt;b&gt;3&lt;/b&gt;"), "{page}");
    assert!(!page.contains(&long) && page.contains("word…"), "long texts are cut");
    // The label of the second row is not one of the model's.
    let json = json_of(&job, &[]);
    assert_eq!((&json["judged"]["rows"], &json["judged"]["unknown"]), (&json!(1), &json!([[evil, 1]])));
    assert_eq!((&json["judged"]["unscored"], &json["run"]["rejected"]), (&json!(1), &json!([["NULL text", 1]])));
    assert_eq!(json["samples"].as_array().unwrap().last().unwrap()["title"], "Rows without a score");
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Single sentences of the bundled pairs with a label, scored by a tiny model with three outputs or one.
fn sentences(outputs: usize, labels: Value, problem: &str, label: &str) -> (Job, Variant) {
    let variant = Variant::of("tiny-distilbert")
        .with_outputs(outputs)
        .without_config("label2id")
        .with_config("id2label", labels)
        .with_config("problem_type", json!(problem));
    let job = Job::over_quickstart_pairs()
        .change(&format!("{:?}", golden("tiny-distilbert")), &format!("{:?}", variant.folder()))
        .change("sentence1 AS a, sentence2 AS b", &format!("sentence1 AS a, {label} AS label"))
        .change("text = [\"a\", \"b\"]", "text = \"a\"\nlabel = \"label\"");
    stdout_of(&mut job.run());
    (job, variant)
}

#[test]
fn regressions_are_compared_by_their_errors() {
    let (job, _model) = sentences(1, json!({ "0": "LABEL_0" }), "regression", "length(sentence1) / 20.0");
    let json = json_of(&job, &[]);
    let rows = rows_of(&job.output());
    let mae =
        rows.iter().map(|row| (row["score"].as_f64().unwrap() - row["label"].as_f64().unwrap()).abs()).sum::<f64>()
            / 525.0;
    assert_eq!((&json["judged"]["kind"], &json["judged"]["rows"]), (&json!("values"), &json!(525)));
    assert!((json["judged"]["mae"].as_f64().unwrap() - mae).abs() < 1e-6);
    assert_eq!(json["samples"][0]["title"], "Largest differences from the labels");
    let page = page_of(&job, &[]);
    assert!(page.contains("Values against labels") && page.contains("Highest values"), "{page}");
}

#[test]
fn multilabel_rows_are_compared_per_label() {
    let label = "array_remove_all(make_array(CASE WHEN length(sentence1) > 50 THEN 'long' ELSE '' END, \
                 CASE WHEN sentence1 LIKE '%?' THEN 'it''s' ELSE '' END), '')";
    let names = json!({ "0": "long", "1": "other", "2": "it's" });
    let (job, _model) = sentences(3, names, "multi_label_classification", label);
    let json = json_of(&job, &[]);
    let rows = rows_of(&job.output());
    for (place, name) in ["long", "other", "it's"].into_iter().enumerate() {
        let so = |row: &Value| row["label"].as_array().unwrap().contains(&json!(name));
        let is_predicted = |row: &Value| row["probabilities"][place].as_f64().unwrap() >= 0.5;
        let (gold, predicted) =
            (rows.iter().filter(|row| so(row)).count(), rows.iter().filter(|row| is_predicted(row)).count());
        let judged = &json["judged"]["by_label"][place];
        assert_eq!(
            (&judged["label"], &judged["rows"], &judged["predicted"]),
            (&json!(name), &json!(gold), &json!(predicted))
        );
    }
    assert_eq!(json["samples"][0]["title"], "Mistakes, most confident first");
    page_of(&job, &[]);
}

#[test]
fn only_the_most_frequent_labels_are_shown() {
    // The rows have the last labels of the model.
    let label = "array_remove_all(make_array(CASE WHEN length(sentence1) > 50 THEN 'n249' ELSE '' END, \
                 CASE WHEN sentence1 LIKE '%?' THEN 'n248' ELSE '' END), '')";
    let names: serde_json::Map<String, Value> = (0..250).map(|i| (i.to_string(), format!("n{i}").into())).collect();
    let (job, _model) = sentences(250, names.into(), "multi_label_classification", label);
    let json = json_of(&job, &[]);
    let by_label = json["judged"]["by_label"].as_array().unwrap();
    assert_eq!((by_label.len(), &json["judged"]["left_out"]), (100, &json!(150)));
    let rows = rows_of(&job.output());
    for (place, name) in [(248, "n248"), (249, "n249")] {
        let so = |row: &Value| row["label"].as_array().unwrap().contains(&json!(name));
        let is_predicted = |row: &Value| row["probabilities"][place].as_f64().unwrap() >= 0.5;
        let judged = by_label.iter().find(|judged| judged["label"] == name).unwrap();
        let counts = [rows.iter().filter(|row| so(row)).count(), rows.iter().filter(|row| is_predicted(row)).count()];
        assert_eq!((&judged["rows"], &judged["predicted"]), (&json!(counts[0]), &json!(counts[1])), "{name}");
    }
    assert_eq!(
        (json["run"]["labels"].as_array().unwrap().len(), &json["runs"][0]["labels_left_out"]),
        (250, &json!(150))
    );
    let page = page_of(&job, &[]);
    assert!(page.contains("150 less frequent labels") && page.contains("of the 100 most frequent"), "{page}");
    assert!(page.contains(">n249<") && page.matches("<tr>").count() < 150, "{page}");
    let message = stdout_of(&mut job.run());
    assert!(
        message.lines().any(|line| line.trim_start().starts_with("labels") && line.ends_with("230 more labels")),
        "{message}"
    );
}

#[test]
fn numeric_labels_are_positions_of_the_model_labels() {
    let job = Job::over_quickstart_pairs()
        .change("sentence2 AS b", "sentence2 AS b, CASE label WHEN 'paraphrase' THEN 1 ELSE 0 END AS label")
        .change("text = [\"a\", \"b\"]", "text = [\"a\", \"b\"]\nlabel = \"label\"")
        .change(&format!("{:?}", golden("tiny-distilbert")), &format!("{:?}", quickstart_model()));
    stdout_of(&mut job.run());
    let json = json_of(&job, &[]);
    assert!((json["judged"]["accuracy"].as_f64().unwrap() - 0.5638).abs() < 1e-4, "{json:#}");
    assert_eq!(json["samples"][0]["title"], "Mistakes, most confident first");
}

#[test]
fn a_run_that_failed_is_shown_with_its_reason() {
    let job = Job::new("id,a,b\n1,x,y\n2,,y\n").add("[score]\nmax_errors = 0.0");
    stderr_of(&mut job.run(), 1);
    let page = page_of(&job, &[]);
    assert!(page.contains("class=\"outcome failed\"") && page.contains("1 of 2 rows were rejected"), "{page}");
    let json = json_of(&job, &[]);
    assert_eq!(json["notes"][0], "This run published no table, so there are no rows to show.");
}

#[test]
fn a_pipeline_without_runs_has_no_report() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let message = job.error_of(&mut job.couplet(&["report", "pipeline.toml"]), 2);
    insta::assert_snapshot!(message, @"error: pipeline.toml: nothing to report: no run of this pipeline is recorded, and there is no trained model or evaluation; run it first: couplet run pipeline.toml");
    let message = job.error_of(&mut job.couplet(&["report", "pipeline.toml", "--format", "prometheus"]), 2);
    insta::assert_snapshot!(message, @"error: pipeline.toml: nothing to report: no run of this pipeline is recorded; run it first: couplet run pipeline.toml");
    assert!(!job.path("demo-report.html").exists());
}

/// A pipeline that trains in `model`, evaluates, and scores with the trained model.
fn stages(more: &str) -> String {
    format!(
        r#"
name = "stages"
[tables]
pairs = {:?}
{}
[evaluate]
sql = "SELECT id, sentence1, sentence2, category, label FROM pairs"
slices = "category"
resamples = 20
output = "evaluation"
[source]
sql = "SELECT id, sentence1, sentence2, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
label = "label"
[model]
uri = "model"
max_length = 32
[sink]
uri = "out.parquet"
"#,
        quickstart_pairs(),
        finetune_stage("true", &format!("learning_rate = 2e-3\n{more}"))
    )
}

#[test]
fn trainings_and_evaluations_are_part_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("p.toml"), stages("calibrate = { threshold = \"f1\" }"));
    let run = |arguments: &[&str]| stdout_of(couplet().current_dir(folder.path()).args(arguments));
    run(&["run", "p.toml", "--quiet", "--metrics", "m.prom"]);
    let metrics = std::fs::read_to_string(folder.path().join("m.prom")).unwrap();
    for stage in ["finetune", "evaluate", "score"] {
        assert!(
            metrics.contains(&format!("couplet_run_stage_duration_seconds{{pipeline=\"stages\",stage=\"{stage}\"}}")),
            "{metrics}"
        );
    }
    let page = run(&["report", "p.toml", "-o", "-"]);
    check_page(&page);
    for expected in [
        "Fine-tuning on ",
        " held-out rows, calibrated (",
        "<p>Calibrated: temperature ",
        " for f1, fitted on ",
        "<th class=\"n\">before calibration</th><th class=\"n\">calibrated</th>",
        "<td>finetune</td>",
        "<dt>fine-tuned model</dt><dd>promoted</dd>",
        "Evaluation on 525 rows",
        "Precision, recall, F1 and average precision are for the label <bdi>paraphrase</bdi>.",
        "By category",
        "95 % interval",
        "Learning rate",
        "shared_words",
    ] {
        assert!(page.contains(expected), "{expected} is not in the page");
    }
    let json: Value = serde_json::from_str(&run(&["report", "p.toml", "--format", "json"])).unwrap();
    assert_eq!(json["trainings"][0]["path"], "model/training.json");
    assert_eq!(json["evaluation"]["document"]["rows"], 525);
    assert!(json["refused"].is_null() && json["run"]["promoted"] == true, "{:#}", json["run"]);
}

#[test]
fn a_rejected_first_model_is_on_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let toml = stages("promote_if = \"accuracy > 0.999\"").replace("\"model\"", "\"../models/task\"");
    write(&folder.path().join("pipelines/p.toml"), toml);
    // Paths are relative to the reader's working directory.
    let here = |arguments: &[&str]| {
        let mut command = couplet();
        command.current_dir(folder.path()).args(arguments);
        command
    };
    let message = stdout_of(&mut here(&["run", "pipelines/p.toml", "--only", "finetune"]));
    assert!(message.contains("not promoted, as accuracy > 0.999 does not hold (0."), "{message}");
    assert!(message.contains("; the new model is models/task.candidate\n"), "{message}");
    let page = stdout_of(&mut here(&["report", "pipelines/p.toml", "-o", "-"]));
    check_page(&page);
    assert!(page.contains("<h2>Not promoted: Fine-tuning on "), "{page}");
    assert!(page.contains("not promoted, as accuracy &gt; 0.999 does not hold (0."), "{page}");
    assert!(page.contains("<code>models/task.candidate/training.json</code>"), "{page}");
    let json = stdout_of(&mut here(&["report", "pipelines/p.toml", "--format", "json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["trainings"], &json["run"]), (&json!([]), &Value::Null));
    assert_eq!(json["refused"]["training"]["document"]["promotion"]["published"], false);
}

#[test]
fn runs_of_earlier_versions_can_still_be_read() {
    // A store of an early build of version 0.1.0, with fewer columns.
    let job = Job::new("id,a,b\n1,A man.,A woman.\n");
    let old = root().join("tests/it/stores/runs-of-23-columns");
    copy(&old, &job.path(".couplet/demo/runs"));
    stdout_of(&mut job.run());
    let json = json_of(&job, &[]);
    assert_eq!(json["runs"].as_array().map(Vec::len), Some(2), "{json:#}");
    assert!(json["runs"][1]["scores"].is_null() && json["runs"][1]["rows_read"] == 1);
    let listed = stdout_of(&mut job.couplet(&["runs", "pipeline.toml"]));
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}
