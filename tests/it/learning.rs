//! `couplet run` with stages that train: what they leave, what comes after them, and what stops them.

use serde_json::Value;

use crate::support::{couplet, golden, quickstart_pairs, rows_of, stderr_of, stdout_of, write};

/// A pipeline that pretrains, fine-tunes and scores, in a folder of its own.
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

    fn change(self, from: &str, to: &str) -> Self {
        let path = self.0.path().join("learn.toml");
        let toml = std::fs::read_to_string(&path).unwrap();
        assert!(toml.contains(from));
        write(&path, toml.replace(from, to));
        self
    }

    fn couplet(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = couplet();
        command.current_dir(self.0.path()).args(["run", "learn.toml"]).args(arguments);
        command
    }

    fn report(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&stdout_of(self.couplet(arguments).arg("--json"))).unwrap()
    }
}

#[test]
fn a_model_is_pretrained_fine_tuned_and_then_scores() {
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
fn a_model_that_is_not_good_enough_does_not_take_the_place_of_the_old_one() {
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
    assert!(again["finetune"]["training"].is_null(), "the same is not trained and refused every night: {again:#}");
}

#[test]
fn what_cannot_be_learned_from_is_said() {
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
