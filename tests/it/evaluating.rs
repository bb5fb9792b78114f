//! Complete pipelines: pretrain, fine-tune, calibrate, evaluate and score; the effect of a calibration on every way of
//! scoring; the files of an evaluation.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{couplet, golden, quickstart_model, quickstart_pairs, rows_of, stderr_of, stdout_of, write};
use crate::tiny::Variant;

/// A pipeline file in a temporary folder.
struct Stages(tempfile::TempDir);

impl Stages {
    /// Pretrains from random weights, fine-tunes with a calibration, evaluates and scores.
    fn all() -> Self {
        let toml = format!(
            r#"
name = "stages"
[tables]
pairs = {pairs:?}
[pretrain]
sql = "SELECT sentence1 AS text FROM pairs"
model = {{ config = "tiny.json", tokenizer = {base:?} }}
output = "models/domain"
mask_probability = 0.5
measure_at = [0.15, 0.5]
max_length = 32
epochs = 2
learning_rate = 2e-3
[finetune]
sql = "SELECT id, sentence1, sentence2, label FROM pairs WHERE category <> 'news'"
id = "id"
text = ["sentence1", "sentence2"]
task = "classification"
labels = ["not_paraphrase", "paraphrase"]
class_weights = "balanced"
model = "models/domain"
output = "models/task"
validation = 0.3
epochs = 2
max_length = 32
learning_rate = 2e-3
calibrate = {{ threshold = "accuracy" }}
[evaluate]
sql = "SELECT id, sentence1, sentence2, category, label FROM pairs"
slices = "category"
resamples = 50
output = "out/evaluation"
[source]
sql = "SELECT id, sentence1, sentence2, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
label = "label"
[model]
uri = "models/task"
max_length = 32
[sink]
uri = "out/scores.parquet"
"#,
            pairs = quickstart_pairs(),
            base = golden("tiny-distilbert"),
        );
        let stages = Self::of(&toml);
        write(&stages.path("tiny.json"), std::fs::read(golden("tiny-distilbert").join("config.json")).unwrap());
        stages
    }

    /// Evaluates the bundled model on the bundled pairs.
    fn evaluation() -> Self {
        Self::of(&format!(
            r#"
name = "measure"
[tables]
pairs = {:?}
[evaluate]
sql = "SELECT id, sentence1, sentence2, category, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
model = {:?}
slices = ["category"]
resamples = 100
output = "evaluation"
"#,
            quickstart_pairs(),
            quickstart_model(),
        ))
    }

    fn of(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("p.toml"), toml);
        Self(folder)
    }

    fn change(self, from: &str, to: &str) -> Self {
        let toml = std::fs::read_to_string(self.path("p.toml")).unwrap();
        assert!(toml.contains(from), "{from} is not in {toml}");
        write(&self.path("p.toml"), toml.replace(from, to));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn couplet(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = couplet();
        command.current_dir(self.0.path()).args(arguments);
        command
    }

    fn report(&self, arguments: &[&str]) -> Value {
        let run = stdout_of(self.couplet(&["run", "p.toml", "--json"]).args(arguments));
        serde_json::from_str(&run).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = self.path(folder).read_dir().unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Softmax probabilities at temperature 1, computed from those at another temperature.
fn raw_of(probabilities: &[f64], temperature: f64) -> Vec<f64> {
    let powers: Vec<f64> = probabilities.iter().map(|p| p.powf(temperature)).collect();
    powers.iter().map(|power| power / powers.iter().sum::<f64>()).collect()
}

#[test]
fn a_pipeline_trains_random_weights_to_calibrated_scores() {
    let stages = Stages::all();
    let report = stages.report(&[]);
    let measured = report["pretrain"]["training"]["held_out"].as_array().unwrap();
    let shares: Vec<_> = measured.iter().map(|measured| measured["mask_probability"].as_f64().unwrap()).collect();
    assert_eq!(shares, [0.5, 0.15], "{report:#}");
    for measured in measured {
        let perplexity = |when: &str| measured[when]["perplexity"].as_f64().unwrap();
        assert!(perplexity("after") < perplexity("before"), "{measured:#}");
    }
    for model in ["models/domain", "models/task"] {
        let chart = std::fs::read_to_string(stages.path(model).join("training.svg")).unwrap();
        assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n"), "{chart}");
    }
    assert!(!stages.path("models/domain/calibration.json").exists());

    // Scoring applies the fitted calibration and keeps the raw probabilities.
    let calibration = stages.json("models/task/calibration.json");
    let temperature = calibration["temperature"].as_f64().unwrap();
    let threshold = calibration["threshold"]["value"].as_f64().unwrap();
    assert!((temperature - 1.0).abs() > 1e-3, "{calibration:#}");
    assert_eq!(report["finetune"]["training"]["calibration"], calibration);
    let rows = rows_of(&stages.path("out/scores.parquet"));
    assert_eq!(rows.len(), 525);
    for row in &rows {
        let (calibrated, raw) = (numbers(&row["probabilities"]), numbers(&row["raw_probabilities"]));
        for (expected, raw) in raw_of(&calibrated, temperature).iter().zip(&raw) {
            assert!((expected - raw).abs() < 1e-4, "{row}");
        }
        assert_ne!(calibrated, raw);
        let label = usize::from(calibrated[1] >= threshold);
        assert_eq!(row["predicted_label"], ["not_paraphrase", "paraphrase"][label], "{row}");
        assert_eq!(row["score"], row["probabilities"][label], "{row}");
    }

    // The evaluation has the same labels and probabilities.
    assert_eq!(stages.files("out"), ["evaluation", "scores.parquet"]);
    assert_eq!(stages.files("out/evaluation"), ["evaluation.json", "mistakes.parquet"]);
    let evaluation = stages.json("out/evaluation/evaluation.json");
    assert_eq!(report["evaluate"]["evaluation"], evaluation);
    assert_eq!(evaluation["model"]["fingerprint"], report["model"]["fingerprint"]);
    let right = rows.iter().filter(|row| row["label"] == row["predicted_label"]).count();
    assert_eq!(evaluation["metrics"]["accuracy"], json!(right as f64 / 525.0));
    let mistakes = rows_of(&stages.path("out/evaluation/mistakes.parquet"));
    assert_eq!((mistakes.len(), &evaluation["mistakes"]), (525 - right, &json!(525 - right)));
    assert_eq!(evaluation["calibration"]["temperature"], temperature);
    assert_ne!(evaluation["uncalibrated"]["metrics"]["log_loss"], evaluation["metrics"]["log_loss"]);

    // A second run trains nothing and gives the same scores.
    let again = stages.report(&[]);
    for stage in ["pretrain", "finetune"] {
        assert!(again[stage]["training"].is_null(), "{again:#}");
    }
    assert_eq!(again["evaluate"]["evaluation"], evaluation);
    assert_eq!(rows_of(&stages.path("out/scores.parquet")), rows);
}

#[test]
fn predict_uses_the_calibration_and_the_fingerprint_covers_it() {
    let stages = Stages::of("");
    let model = stages.path("model");
    for entry in quickstart_model().read_dir().unwrap() {
        let entry = entry.unwrap();
        write(&model.join(entry.file_name()), std::fs::read(entry.path()).unwrap());
    }
    let shown = |arguments: &[&str]| stdout_of(&mut stages.couplet(arguments));
    let raw_model: Value = serde_json::from_str(&shown(&["model", "show", "model", "--json"])).unwrap();
    assert!(raw_model["calibration"].is_null());
    let predict = ["predict", "--model", "model", "He sold the car.", "The car was bought.", "--json"];
    let raw: Value = serde_json::from_str(&shown(&predict)).unwrap();
    assert!(raw["raw_probabilities"].is_null());

    let mut calibration = json!({
        "version": 1,
        "problem_type": "single_label_classification",
        "temperature": 2.0,
        "threshold": { "value": 0.9999, "objective": "precision >= 0.9" },
    });
    write(&model.join("calibration.json"), calibration.to_string());
    let calibrated_model: Value = serde_json::from_str(&shown(&["model", "show", "model", "--json"])).unwrap();
    assert_ne!(raw_model["fingerprint"], calibrated_model["fingerprint"]);
    assert_eq!(calibrated_model["calibration"]["threshold"], 0.9999);
    let text = shown(&["model", "show", "model"]);
    assert!(text.contains("calibration   temperature 2.0000, threshold 0.9999 for precision >= 0.9\n"), "{text}");

    let calibrated: Value = serde_json::from_str(&shown(&predict)).unwrap();
    assert_eq!(calibrated["raw_probabilities"], raw["probabilities"]);
    assert_eq!(calibrated["label"], "not_paraphrase");
    assert_eq!(calibrated["score"], calibrated["probabilities"]["not_paraphrase"]);
    let p = calibrated["probabilities"]["paraphrase"].as_f64().unwrap();
    let expected = raw["probabilities"]["paraphrase"].as_f64().unwrap();
    assert!((raw_of(&[1.0 - p, p], 2.0)[1] - expected).abs() < 1e-5);
    let text = shown(&predict[..5]);
    assert!(text.contains("before calibration)"), "{text}");

    let sql = "SELECT p['label'] AS label, p['raw_probabilities'][2] AS raw, p['probabilities'][2] AS p FROM \
               (SELECT predict('model', 'He sold the car.', 'The car was bought.') AS p)";
    let rows: Value = serde_json::from_str(&shown(&["query", sql, "--format", "json"])).unwrap();
    let row = if rows.is_array() { &rows[0] } else { &rows };
    assert_eq!(row["label"], "not_paraphrase");
    assert!((row["p"].as_f64().unwrap() - p).abs() < 1e-6 && (row["raw"].as_f64().unwrap() - expected).abs() < 1e-6);

    calibration["temperature"] = json!(-1);
    write(&model.join("calibration.json"), calibration.to_string());
    let error = stderr_of(&mut stages.couplet(&["model", "show", "model"]), 2);
    assert!(error.contains("calibration.json: key `temperature`: expected a number above 0, found -1"), "{error}");
}

#[test]
fn a_model_is_recalibrated_without_training_again() {
    let stages = Stages::all();
    stages.report(&["--only", "pretrain,finetune"]);
    let weights = std::fs::read(stages.path("models/task/model.safetensors")).unwrap();
    let training = stages.json("models/task/training.json");
    let stages = stages.change("calibrate = { threshold = \"accuracy\" }", "calibrate = true");
    let report = stages.report(&["--only", "finetune"]);
    assert_eq!(report["finetune"]["training"]["settings"]["calibrate"], "temperature", "{report:#}");
    let calibration = stages.json("models/task/calibration.json");
    assert!(calibration["threshold"].is_null());
    assert_eq!(calibration["temperature"], training["calibration"]["temperature"]);
    assert_eq!(stages.json("models/task/training.json")["epochs"], training["epochs"]);
    assert!(std::fs::read(stages.path("models/task/model.safetensors")).unwrap() == weights);

    let stages = stages.change("calibrate = true\n", "");
    stages.report(&["--only", "finetune"]);
    assert!(!stages.path("models/task/calibration.json").exists());
    assert!(stages.report(&["--only", "finetune"])["finetune"]["training"].is_null());
}

/// The expected values are those of `pipelines/quickstart/README.md`.
#[test]
fn an_evaluation_measures_the_bundled_model() {
    let stages = Stages::evaluation();
    let report = stages.report(&[]);
    let evaluation = &report["evaluate"]["evaluation"];
    assert!(report["rows"].is_null() && evaluation["uncalibrated"].is_null(), "{report:#}");
    assert_eq!(evaluation["confusion"]["gold_by_predicted"], json!([[104, 143], [86, 192]]));
    let accuracy = evaluation["metrics"]["accuracy"].as_f64().unwrap();
    assert!((accuracy - 296.0 / 525.0).abs() < 1e-12);
    let interval = numbers(&evaluation["intervals"]["accuracy"]);
    assert!(interval[0] < accuracy && accuracy < interval[1] && interval[1] - interval[0] < 0.12, "{interval:?}");
    let slices = evaluation["slices"]["category"].as_array().unwrap();
    let shared_words = slices.iter().find(|slice| slice["value"] == "shared_words").unwrap();
    assert!((shared_words["metrics"]["accuracy"].as_f64().unwrap() - 9.0 / 80.0).abs() < 1e-12);

    let mistakes = rows_of(&stages.path("evaluation/mistakes.parquet"));
    assert_eq!(mistakes.len(), 229);
    let scores: Vec<f64> = mistakes.iter().map(|row| row["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "the most confident mistakes come first");
    for row in &mistakes {
        assert_eq!(row["label"], row["gold_label"]);
        assert_ne!(row["gold_label"], row["predicted_label"]);
        assert!(row["category"].is_string() && row["id"].is_string());
        assert!((row["score"].as_f64().unwrap() + row["gold_score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    }
    let text = stdout_of(&mut stages.couplet(&["run", "p.toml"]));
    for expected in ["525 rows; intervals of 95 %", "accuracy 0.5638 [", "category = shared_words: ", "229 mistakes in"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[test]
fn binary_metrics_use_the_positive_label_of_glue() {
    let variant = Variant::of("tiny-distilbert")
        .with_outputs(2)
        .without_config("label2id")
        .with_config("id2label", json!({ "0": "equivalent", "1": "not_equivalent" }));
    for (task, place, positive) in [("task = \"mrpc\"\n", 0, "equivalent"), ("", 1, "not_equivalent")] {
        let label = "CASE label WHEN 'paraphrase' THEN 'equivalent' ELSE 'not_equivalent' END AS label FROM pairs";
        let stages = Stages::evaluation()
            .change("label FROM pairs", label)
            .change(&format!("{:?}", quickstart_model()), &format!("{:?}", variant.folder()))
            .change("resamples", &format!("{task}resamples"));
        let message = stdout_of(&mut stages.couplet(&["run", "p.toml"]));
        assert!(message.contains(&format!("525 rows; intervals of 95 %; positive is {positive:?}")), "{message}");
        let evaluation = stages.json("evaluation/evaluation.json");
        assert_eq!(evaluation["positive"], positive);
        for metric in ["f1", "precision", "recall"] {
            let of_label = &evaluation["confusion"]["labels"][place][metric];
            assert_eq!(&evaluation["metrics"][metric], of_label, "{metric}: {evaluation:#}");
        }
    }
}

#[test]
fn regressions_are_measured_by_their_errors() {
    let variant = Variant::of("tiny-distilbert")
        .with_outputs(1)
        .without_config("id2label")
        .without_config("label2id")
        .with_config("problem_type", json!("regression"));
    let stages = Stages::evaluation()
        .change("label FROM pairs", "length(sentence1) * 1.0 AS label FROM pairs")
        .change(&format!("{:?}", quickstart_model()), &format!("{:?}", variant.folder()));
    let report = stages.report(&[]);
    let evaluation = &report["evaluate"]["evaluation"];
    assert!(evaluation["metrics"]["pearson"].is_number() && evaluation["confusion"].is_null(), "{report:#}");
    let rows = rows_of(&stages.path("evaluation/mistakes.parquet"));
    assert_eq!(rows.len(), 525);
    let differences: Vec<f64> = rows.iter().map(|row| row["difference"].as_f64().unwrap()).collect();
    assert!(differences.is_sorted_by(|a, b| a.abs() >= b.abs() - 1e-4), "the largest come first");
    let first = &rows[0];
    let difference = first["score"].as_f64().unwrap() - first["label"].as_f64().unwrap();
    assert!((differences[0] - difference).abs() < 1e-4, "{first}");
}

#[test]
fn unscorable_rows_are_counted_and_left_out() {
    let sentence =
        "CASE WHEN category = 'news' THEN NULL WHEN category = 'numbers' THEN ' ' ELSE sentence1 END AS sentence1";
    let stages = Stages::evaluation().change("SELECT id, sentence1", &format!("SELECT id, {sentence}"));
    let message = stdout_of(&mut stages.couplet(&["run", "p.toml"]));
    let measured = stages.json("evaluation/evaluation.json");
    let of = |reason: &str| measured["rejected"][reason].as_u64().unwrap();
    let (null, empty) = (of("NULL text"), of("empty text"));
    assert!(null > 0 && empty > 0);
    assert_eq!(measured["rows"].as_u64(), Some(525 - null - empty));
    for (rows, reason) in [(null, "NULL text"), (empty, "empty text")] {
        assert!(message.contains(&format!("{rows} rows not measured: {reason}")), "{message}");
    }
    let slices = measured["slices"]["category"].as_array().unwrap();
    let others: Vec<_> = slices.iter().map(|slice| slice["value"].as_str().unwrap()).collect();
    assert!(!others.contains(&"news") && !others.contains(&"numbers") && others.len() == 5, "{others:?}");

    // The metrics of the other rows are the same as without those rows.
    let query = "WHERE category NOT IN ('news', 'numbers')";
    let without = Stages::evaluation().change("FROM pairs", &format!("FROM pairs {query}"));
    without.report(&[]);
    assert_eq!(without.json("evaluation/evaluation.json")["metrics"], measured["metrics"]);
}

#[test]
fn a_wrong_label_is_reported_with_its_row_of_the_query() {
    let row = |n: usize| {
        let (a, label) = (if n <= 10 { "" } else { "He sold it." }, if n == 21 { "maybe" } else { "paraphrase" });
        format!("r{n},{a},It was sold.,{label}\n")
    };
    let rows: String = (1..=30).map(row).collect();
    let toml = format!(
        r#"
name = "measure"
[tables]
pairs = "pairs.csv"
[evaluate]
sql = "SELECT id, a, b, label FROM pairs"
id = "id"
text = ["a", "b"]
model = {:?}
output = "evaluation"
"#,
        quickstart_model()
    );
    let stages = Stages::of(&toml);
    write(&stages.path("pairs.csv"), format!("id,a,b,label\n{rows}"));
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 2);
    assert!(problem.contains("[evaluate]: row with id \"r21\": label \"maybe\" is unknown; known"), "{problem}");
    let stages = stages.change("id = \"id\"\n", "");
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 2);
    assert!(problem.contains("[evaluate]: row 21: label \"maybe\" is unknown; known"), "{problem}");
}

#[test]
fn impossible_evaluations_are_refused() {
    for (from, to, expected) in [
        ("id = \"id\"", "id = \"ids\"", "has no column `ids` (did you mean `id`?)"),
        ("[\"category\"]", "[\"categories\"]", "has no column `categories` (did you mean `category`?)"),
        ("FROM pairs", "FROM pairs WHERE id = 'none'", "the query of [evaluate] returns no rows"),
        ("label FROM pairs", "upper(label) AS label FROM pairs", "did you mean \"not_paraphrase\"?"),
        (
            "label FROM pairs",
            "label, 1 AS score FROM pairs",
            "column `score` of the query of [evaluate] is a column that couplet adds to mistakes.parquet",
        ),
        ("resamples", "task = \"stsb\"\nresamples", "task stsb is a regression"),
        (
            "sentence1, sentence2, category",
            "'' AS sentence1, sentence2, category",
            "none of the 525 rows of the query of [evaluate] can be scored: in the first, sentence1 is empty",
        ),
    ] {
        let stages = Stages::evaluation().change(from, to);
        let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 2);
        assert!(problem.contains(expected), "{expected} is not in {problem}");
        assert!(!stages.path("evaluation").exists());
    }
}

#[test]
fn a_folder_that_is_not_an_evaluation_is_not_replaced() {
    let stages = Stages::evaluation();
    write(&stages.path("evaluation/thesis.txt"), "years of work");
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 2);
    assert!(problem.contains("is not the folder of an evaluation"), "{problem}");
    assert_eq!(stages.files("evaluation"), ["thesis.txt"]);
    let stages = Stages::all();
    write(&stages.path("models/domain/thesis.txt"), "years of work");
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 2);
    assert!(problem.contains("models/domain is there and is not the folder of a model"), "{problem}");
    assert_eq!(stages.files("models/domain"), ["thesis.txt"]);
}

#[test]
fn a_missing_model_is_explained_by_its_rejected_candidate() {
    let stages = Stages::all().change("calibrate =", "promote_if = \"accuracy > 0.999\"\ncalibrate =");
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml"]), 1);
    for expected in [
        "there is no model models/task yet: promote_if rejected the trained one, as accuracy > 0.999 does not hold (0.",
        "Lower promote_if or improve the training and run again",
        "use the rejected model in models/task.candidate",
        "not promoted, as accuracy > 0.999 does not hold (0.",
        ": there is still no model; the new model is models/task.candidate",
    ] {
        assert!(problem.contains(expected), "{expected} is not in {problem}");
    }
    let problem = stderr_of(&mut stages.couplet(&["run", "p.toml", "--only", "score"]), 1);
    assert!(problem.contains("there is no model models/task yet"), "{problem}");
}

#[test]
fn an_encoder_is_imported() {
    let stages = Stages::of("");
    let bert = golden("tiny-bert").display().to_string();
    let import = |arguments: &[&str]| {
        let mut command = stages.couplet(&["model", "import"]);
        command.args(arguments);
        command
    };
    let text = stdout_of(&mut import(&[&bert, "models/bert"]));
    assert!(text.contains("encoder       BERT, as it is"), "{text}");
    let text = stdout_of(&mut import(&[&bert, "models/distilbert", "--as", "distilbert"]));
    assert!(text.contains("encoder       DistilBERT, folded from BERT"), "{text}");
    assert!(text.contains("checked       hidden states of single texts differ by"), "{text}");
    assert!(text.contains("classifier.weight"), "{text}");

    let problem = stderr_of(&mut import(&[&bert, "models/bert"]), 2);
    assert!(problem.contains("models/bert already exists; name another folder, or add --force"), "{problem}");
    let report = stdout_of(&mut import(&[&bert, "models/bert", "--force", "--json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["architecture"], &report["largest_difference"]), (&json!("BERT"), &json!(0.0)));
    write(&stages.path("thesis/text.txt"), "years of work");
    let problem = stderr_of(&mut import(&[&bert, "thesis", "--force"]), 2);
    assert!(problem.contains("is not the folder of a model"), "{problem}");
    let distilbert = golden("tiny-distilbert").display().to_string();
    let problem = stderr_of(&mut import(&[&distilbert, "models/other", "--as", "bert"]), 2);
    assert!(problem.contains("it is a DistilBERT, which has no token types"), "{problem}");
    let problem = stderr_of(&mut import(&["nowhere", "models/other"]), 2);
    assert!(problem.contains("nowhere"), "{problem}");
    assert!(!stages.path("models/other").exists());

    // The result is a base model for training.
    let stages = stages_on(&stages.path("models/distilbert"));
    assert_eq!(stages.report(&["--only", "finetune"])["finetune"]["promoted"], true);
}

/// The stages with another base and with integer labels.
fn stages_on(base: &std::path::Path) -> Stages {
    Stages::all().change("model = \"models/domain\"", &format!("model = {base:?}")).change(
        "SELECT id, sentence1, sentence2, label FROM pairs WHERE category <> 'news'",
        "SELECT id, sentence1, sentence2, CASE label WHEN 'paraphrase' THEN 1 ELSE 0 END AS label FROM pairs",
    )
}

#[test]
fn labels_and_their_weights_are_read_from_the_pipeline() {
    let base = golden("tiny-distilbert");
    // Integers are indices of the configured labels, or label names if none are configured.
    let stages = stages_on(&base);
    assert_eq!(
        stages.report(&["--only", "finetune"])["finetune"]["training"]["labels"],
        json!(["not_paraphrase", "paraphrase"])
    );
    let numbered = stages_on(&base).change("labels = [\"not_paraphrase\", \"paraphrase\"]\n", "");
    let training = numbered.report(&["--only", "finetune"])["finetune"]["training"].clone();
    assert_eq!(training["labels"], json!(["0", "1"]));
    assert_eq!(training["settings"]["class_weights"], "balanced");

    let weighted = |weights: &str| {
        Stages::all().change("model = \"models/domain\"", &format!("model = {base:?}")).change("\"balanced\"", weights)
    };
    let given = weighted("{ not_paraphrase = 9, paraphrase = 0.5 }");
    let settings = given.report(&["--only", "finetune"])["finetune"]["training"]["settings"].clone();
    assert_eq!(settings["class_weights"], json!({ "not_paraphrase": 9.0, "paraphrase": 0.5 }));
    let recalled = |stages: &Stages| {
        let confusion = stages.json("models/task/training.json")["evaluation"]["confusion"].clone();
        confusion["labels"][0]["predicted"].as_u64().unwrap()
    };
    let other = weighted("{ not_paraphrase = 0.5, paraphrase = 9 }");
    other.report(&["--only", "finetune"]);
    assert!(recalled(&given) > recalled(&other), "the label with the larger weight is predicted more often");
    let problem = stderr_of(&mut weighted("{ paraphrase = 2 }").couplet(&["run", "p.toml", "--only", "finetune"]), 2);
    assert!(problem.contains("not_paraphrase"), "{problem}");
}
