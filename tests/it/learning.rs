//! `couplet run` with training stages: the files that they write, the stages after them, and the errors that stop them.

use couplet::train::sampling::HoldOut;
use serde_json::Value;

use crate::support::{couplet, golden, quickstart_pairs, rows_of, stderr_of, stdout_of, write};

/// A pipeline that pretrains, fine-tunes and scores, in a temporary folder.
struct Learning(tempfile::TempDir);

impl Learning {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let toml = format!(
            r#"
name = "learn"
[tables]
pairs = "{}"
[pretrain]
sql = "SELECT sentence1 AS text FROM pairs"
model = "{}"
output = "models/domain"
mask_probability = 0.3
max_length = 32
[finetune]
sql = "SELECT id, sentence1, sentence2, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
task = "classification"
model = "models/domain"
output = "models/task"
epochs = 2
max_length = 32
[source]
sql = "SELECT id, sentence1, sentence2, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
label = "label"
[model]
uri = "models/task"
max_length = 32
[sink]
uri = "out.parquet"
"#,
            quickstart_pairs().display(),
            golden("tiny-distilbert").display()
        );
        write(&folder.path().join("learn.toml"), toml);
        Self(folder)
    }

    /// Fine-tunes on a CSV file with the columns `id`, `text` and `label`.
    fn on_rows(rows: impl Iterator<Item = (String, String, String)>, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rows: String = rows.map(|(id, text, label)| format!("{id},{text},{label}\n")).collect();
        write(&folder.path().join("gold.csv"), format!("id,text,label\n{rows}"));
        let toml = format!(
            r#"
name = "learn"
[tables]
gold = "gold.csv"
[finetune]
sql = "SELECT id, text, label FROM gold"
text = "text"
task = "classification"
model = {:?}
output = "model"
epochs = 1
max_length = 16
{settings}
[run]
window = 8
"#,
            golden("tiny-distilbert")
        );
        write(&folder.path().join("learn.toml"), toml);
        Self(folder)
    }

    fn change(self, from: &str, to: &str) -> Self {
        let path = self.0.path().join("learn.toml");
        let toml = std::fs::read_to_string(&path).unwrap();
        assert!(toml.contains(from));
        write(&path, toml.replace(from, to));
        self
    }

    fn couplet(&self, arguments: &[&str]) -> assert_cmd::Command {
        self.command("run", arguments)
    }

    fn command(&self, name: &str, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = couplet();
        command.current_dir(self.0.path()).args([name, "learn.toml"]).args(arguments);
        command
    }

    /// The error of a run, which the plan must report too.
    fn refusal(&self) -> String {
        let planned = stderr_of(&mut self.command("plan", &[]), 2);
        let message = stderr_of(&mut self.couplet(&[]), 2);
        assert_eq!(message.lines().last(), planned.lines().last());
        message
    }

    /// Reads `training.json` of the model.
    fn training(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.0.path().join("model/training.json")).unwrap()).unwrap()
    }

    fn report(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&stdout_of(self.couplet(arguments).arg("--json"))).unwrap()
    }
}

#[test]
fn one_run_pretrains_fine_tunes_and_scores() {
    let job = Learning::new();
    let report = job.report(&[]);
    for stage in ["pretrain", "finetune"] {
        assert_eq!(report[stage]["promoted"], true, "{report:#}");
        assert!(report[stage]["training"].is_object(), "{report:#}");
    }
    assert_eq!(report["rows"]["read"], 525);
    let rows = rows_of(&job.0.path().join("out.parquet"));
    assert!(
        rows.iter().all(|row| ["paraphrase", "not_paraphrase"].contains(&row["predicted_label"].as_str().unwrap()))
    );

    let again = job.report(&[]);
    for stage in ["pretrain", "finetune"] {
        assert!(again[stage]["training"].is_null(), "nothing has changed: {again:#}");
    }
    assert_eq!(report["model"]["fingerprint"], again["model"]["fingerprint"]);
    let only = job.report(&["--only", "finetune"]);
    assert!(only["finetune"].is_object() && only["pretrain"].is_null() && only["rows"].is_null(), "{only:#}");
}

#[test]
fn a_model_that_fails_promote_if_does_not_replace_the_old_one() {
    let job = Learning::new();
    job.report(&[]);
    let job = job.change("epochs = 2", "epochs = 1\npromote_if = \"accuracy > 0.999\"");
    let weights = job.0.path().join("models/task/model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    let report = job.report(&["--only", "finetune"]);
    assert_eq!(report["finetune"]["promoted"], false, "{report:#}");
    assert_eq!(std::fs::read(&weights).unwrap(), before);
    assert!(job.0.path().join("models/task.candidate/model.safetensors").exists());
    let again = job.report(&["--only", "finetune"]);
    assert_eq!(again["finetune"]["promoted"], false, "{again:#}");
    assert!(again["finetune"]["training"].is_null(), "a rejected model is not trained again in every run: {again:#}");
}

#[test]
fn unusable_training_data_is_refused() {
    for (from, to, expected) in [
        (
            "label FROM pairs\"\nid = \"id\"\ntext = [\"sentence1\", \"sentence2\"]\ntask",
            "labels FROM pairs\"\nid = \"id\"\ntext = [\"sentence1\", \"sentence2\"]\ntask",
            "labels",
        ),
        (
            "FROM pairs\"\nid = \"id\"\ntext = [\"sentence1\", \"sentence2\"]\ntask",
            "FROM pairs WHERE id = 'none'\"\nid = \"id\"\ntext = [\"sentence1\", \"sentence2\"]\ntask",
            "no training rows",
        ),
        ("task = \"classification\"", "task = \"regression\"", "label"),
    ] {
        let job = Learning::new().change(from, to);
        let problem = stderr_of(&mut job.couplet(&["--only", "pretrain,finetune"]), 2);
        assert!(problem.contains(expected), "{problem}");
    }
}

/// Forty rows with the ids 1 to 40, distinct texts and two labels.
fn forty_rows(row: impl Fn(usize) -> (String, String, String)) -> impl Iterator<Item = (String, String, String)> {
    (1..=40).map(row)
}

fn usual(n: usize) -> (String, String, String) {
    (n.to_string(), format!("text {n}"), (n % 2).to_string())
}

#[test]
fn a_wrong_label_is_reported_with_its_row_id_or_row_number() {
    let unlabelled = |n: usize| if n == 38 { (n.to_string(), format!("text {n}"), String::new()) } else { usual(n) };
    for (settings, expected) in [
        ("validation = 0.3\nid = \"id\"", "rows: row with id \"38\": label NULL is not a label"),
        ("validation = 0.3\nid = [\"text\", \"id\"]", "rows: row with id \"text 38, 38\": label NULL is not a label"),
        ("validation = 0.3", "rows: row 38: label NULL is not a label"),
        (
            "validation = \"SELECT id, text, label FROM gold WHERE id > 30\"",
            "training rows: row 38: label NULL is not a label",
        ),
    ] {
        let problem = Learning::on_rows(forty_rows(unlabelled), settings).refusal();
        assert!(problem.contains(expected), "{expected} is not in {problem}");
    }
}

#[test]
fn nulls_are_counted_over_all_batches() {
    let no_text = |n: usize| if n.is_multiple_of(2) { (n.to_string(), String::new(), "0".into()) } else { usual(n) };
    let problem = Learning::on_rows(forty_rows(no_text), "validation = 0.3").refusal();
    let expected = "column `text` of [finetune] is NULL in 20 of 40 rows; filter them out in the query";
    assert!(problem.contains(expected), "{problem}");
    let no_id =
        |n: usize| if n.is_multiple_of(10) { (String::new(), format!("text {n}"), "0".into()) } else { usual(n) };
    let problem = Learning::on_rows(forty_rows(no_id), "validation = 0.3\nid = \"id\"").refusal();
    let expected = "column `id` of [finetune] is NULL in 4 of 40 rows; each row needs an id, by which rows are held out: filter them out in the query, or name another column";
    assert!(problem.contains(expected), "{problem}");
}

#[test]
fn a_validation_share_that_takes_all_rows_is_refused() {
    let hold_out = HoldOut::try_new(0.5, 42).unwrap();
    let held = (1..).find(|id: &usize| hold_out.holds_out(&[id.to_string()])).unwrap();
    let problem = Learning::on_rows(std::iter::once(usual(held)), "validation = 0.5\nid = \"id\"").refusal();
    let expected = "learn.toml: [finetune]: the only row is held out, and none is left to train on; select more rows, or \
                    set a smaller `validation`";
    assert!(problem.contains(expected), "{problem}");
}

#[test]
fn an_impossible_threshold_is_refused_before_training() {
    let job = Learning::on_rows(
        forty_rows(usual),
        "validation = \"SELECT id, text, label FROM gold WHERE label = 1\"\ncalibrate = { threshold = \"f1\" }",
    );
    let problem = job.refusal();
    let expected = "`calibrate`: expected validation rows of both labels, to find a threshold between them, found 20 rows, \
                    all of them \"1\"";
    assert!(problem.contains(expected), "{problem}");
    assert!(!job.0.path().join("model.training").exists());
}

#[test]
fn texts_on_both_sides_of_the_split_give_a_warning() {
    let repeated = |n: usize| (n.to_string(), format!("text {}", n % 12), (n / 12 % 2).to_string());
    let job = Learning::on_rows(forty_rows(repeated), "validation = 0.3\nid = \"id\"");
    let plan: Value = serde_json::from_str(&stdout_of(&mut job.command("plan", &["--json"]))).unwrap();
    let shared = plan["finetune"]["held_out_in_training"].as_u64().unwrap();
    let held_out = plan["finetune"]["training"]["held_out"].as_u64().unwrap();
    assert!(shared > 0, "{plan:#}");
    let expected = format!("{shared} of {held_out} held-out rows have texts that are also training texts");
    let notes = plan["notes"].as_array().unwrap();
    assert!(
        notes.iter().any(|note| note.as_str().unwrap().starts_with(&format!("[finetune]: {expected}"))),
        "{notes:?}"
    );
    let message = stderr_of(&mut job.couplet(&["-q"]), 0);
    assert!(message.contains("WARN") && message.contains(&expected), "{message}");
    let training: Value =
        serde_json::from_slice(&std::fs::read(job.0.path().join("model/training.json")).unwrap()).unwrap();
    assert_eq!(training["rows"]["validation_in_training"], shared);

    // A split by text puts equal texts on one side.
    let job = Learning::on_rows(forty_rows(repeated), "validation = 0.5");
    let plan: Value = serde_json::from_str(&stdout_of(&mut job.command("plan", &["--json"]))).unwrap();
    assert_eq!(plan["finetune"]["held_out_in_training"], 0);
}

#[test]
fn labels_without_held_out_rows_give_a_warning() {
    let row = |n: usize| (n.to_string(), format!("text {n}"), (n % 3).to_string());
    let validation = "validation = \"SELECT id, text, label FROM gold WHERE label < 2\"";
    let job = Learning::on_rows(forty_rows(row), validation);
    let expected = "no held-out row has the label \"2\": nothing is measured for it";
    let plan: Value = serde_json::from_str(&stdout_of(&mut job.command("plan", &["--json"]))).unwrap();
    let notes = plan["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains(expected)), "{notes:?}");
    let message = stderr_of(&mut job.couplet(&["-q"]), 0);
    assert!(message.contains("WARN") && message.contains(expected), "{message}");
    assert_eq!(job.training()["unmeasured_labels"], serde_json::json!(["2"]));
    let all = Learning::on_rows(forty_rows(row), "validation = \"SELECT id, text, label FROM gold\"");
    let message = stderr_of(&mut all.couplet(&["-q"]), 0);
    assert!(!message.contains("no held-out row has"), "{message}");
}

#[test]
fn a_temperature_at_its_bound_gives_a_warning() {
    let row = |n: usize| (n.to_string(), format!("text {n}"), (n % 2).to_string());
    // One row is right or wrong, so no temperature is the best.
    let validation = "validation = \"SELECT id, text, label FROM gold WHERE id = 1\"\ncalibrate = true";
    let job = Learning::on_rows(forty_rows(row), validation);
    let message = stderr_of(&mut job.couplet(&["-q"]), 0);
    assert!(
        message.contains("WARN") && message.contains("the temperature ") && message.contains(" allowed, as "),
        "{message}"
    );
    let bound = job.training()["calibration"]["temperature_bound"].as_str().unwrap().to_owned();
    let card = stdout_of(couplet().current_dir(job.0.path()).args(["model", "show", "model"]));
    assert!(card.contains(&format!("(not reliable: at its bound, {bound})")), "{card}");
}

#[test]
fn pretraining_reports_skipped_rows_and_missing_measurements() {
    let job =
        Learning::new().change("mask_probability = 0.3", "mask_probability = 0.02\nbatch_size = 1\nmeasure_at = 1e-12");
    let message = stdout_of(&mut job.couplet(&["--only", "pretrain"]));
    for expected in [
        " batches had no masked word and were skipped; raise mask_probability or batch_size",
        "held-out words, 0.000000000001 of them masked: not defined before, not defined after",
    ] {
        assert!(message.contains(expected), "{expected} is not in {message}");
    }
    let job = Learning::new().change("mask_probability = 0.3", "mask_probability = 1e-12");
    let problem = stderr_of(&mut job.couplet(&["--only", "pretrain"]), 2);
    assert!(problem.contains("`mask_probability` = 0.000000000001 masks no word of the "), "{problem}");
}
