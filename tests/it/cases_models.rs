//! Runs every checkpoint of `../shared/cases/models` through `model show`, `predict`, `plan`, `run` and `query`. The
//! expected values come from transformers 5.24, and from sentence-transformers 6.2 for scores of one logit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use candle_core::{DType, Device};
use couplet::model::{Model, PackedBatch};
use couplet::ops::Kernels;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::support::{Job, couplet, golden, shared, stderr_of, stdout_of};

/// The largest accepted difference of a logit or a probability.
const TOLERANCE: f64 = 1e-4;

/// Checkpoints that are refused at load time, and why.
const REFUSED: [(&str, &str); 5] = [
    ("n05_type_vocab_1", "config.json: key `type_vocab_size`: expected 2 or more"),
    ("n11_is_decoder", "config.json: key `is_decoder`: expected false"),
    ("t19_japanese", "tokenizer_config.json: key `tokenizer_class`: expected \"BertTokenizer\""),
    ("t19b_japanese_character", "found \"BertJapaneseTokenizer\""),
    ("t32_class_in_config", "config.json: key `tokenizer_class`: expected \"BertTokenizer\""),
];

/// A checkpoint without a classifier, to which transformers adds a random one.
const HEADLESS: &str = "a12_bert_pretraining";

/// A one-logit model with activation `Identity`: `CrossEncoder` returns the logit, the transformers pipeline a sigmoid.
const IDENTITY: [&str; 2] = ["l08_one_label_identity", "l10_one_label_old_identity"];

struct Cases {
    folder: PathBuf,
    pairs: Vec<(String, Option<String>)>,
    expected: BTreeMap<String, Value>,
}

impl Cases {
    /// Loads the cases; `None` if they are not beside the checkout.
    fn find(test: &str) -> Option<Self> {
        let folder = shared(test, "cases/models")?;
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let pairs = serde_json::from_slice(&read("pairs.json")).unwrap();
        let expected = serde_json::from_slice(&read("expected.json")).unwrap();
        Some(Self { folder, pairs, expected })
    }

    /// All checkpoints that score, with the expected values of each text or pair.
    fn scoring(&self) -> impl Iterator<Item = (&str, PathBuf, &Vec<Value>)> {
        let names =
            self.expected.iter().filter(|(name, _)| *name != HEADLESS && !REFUSED.iter().any(|(r, _)| r == name));
        names.map(|(name, expected)| {
            let rows = expected["rows"].as_array().unwrap();
            assert_eq!(rows.len(), self.pairs.len(), "{name}");
            (name.as_str(), self.folder.join(name), rows)
        })
    }
}

fn kernels() -> Vec<Kernels> {
    vec![Kernels::for_device(&Device::Cpu), Kernels::reference(DType::F32)]
}

fn close(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= TOLERANCE, "{what}: {ours}, and {theirs} by transformers");
}

#[test]
fn ids_token_types_and_logits_match_transformers() {
    let Some(cases) = Cases::find("ids_token_types_and_logits_match_transformers") else { return };
    for (name, folder, rows) in cases.scoring() {
        for kernels in kernels() {
            let model = Model::load_with(&folder, &Device::Cpu, kernels).unwrap_or_else(|e| panic!("{name}: {e}"));
            let tokenizer = model.tokenizer.with_max_length(model.max_length()).unwrap();
            let mut batch = PackedBatch::default();
            for ((text, pair), row) in cases.pairs.iter().zip(rows) {
                // `tokenizer(text, "")` treats an empty second text as none. `tokenizer([text], [""])`, which
                // `CrossEncoder` calls, does not, and neither does couplet. The cases were made with the former.
                let pair = pair.as_deref().filter(|pair| !pair.is_empty());
                let encoding = tokenizer.encode(text, pair).unwrap();
                assert_eq!(serde_json::json!(encoding.input_ids), row["ids"], "{name}: {text:?}");
                // NULL: the tokenizer returns no token types, and the model uses zeros.
                let zeros = serde_json::json!(vec![0; encoding.input_ids.len()]);
                let types = if row["types"].is_null() { &zeros } else { &row["types"] };
                assert_eq!(serde_json::json!(encoding.token_type_ids), *types, "{name}: {text:?}");
                batch.push(&encoding.input_ids, &encoding.token_type_ids);
            }
            let logits = model.forward(&batch).unwrap().to_vec2::<f32>().unwrap();
            for (ours, row) in logits.iter().zip(rows) {
                let theirs = row["logits"].as_array().unwrap();
                assert_eq!(ours.len(), theirs.len(), "{name}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    close(f64::from(*ours), theirs.as_f64().unwrap(), name);
                }
            }
        }
    }
}

#[test]
fn checkpoints_that_cannot_match_transformers_are_refused() {
    let Some(cases) = Cases::find("checkpoints_that_cannot_match_transformers_are_refused") else { return };
    for (name, why) in REFUSED {
        let folder = cases.folder.join(name);
        let message = stderr_of(couplet().args(["model", "show"]).arg(&folder), 2);
        assert!(message.contains(why), "{name}: {message}");
        let message = stderr_of(couplet().arg("predict").arg("a").arg("b").arg("--model").arg(&folder), 2);
        assert!(message.contains(why), "{name}: {message}");
        let job = job_with(&folder);
        write_pairs(&cases, &job.path("pairs.parquet"));
        let sql = format!("SELECT predict('{}', a, b) AS p FROM pairs", folder.display());
        for arguments in
            [&["plan", "pipeline.toml"][..], &["run", "pipeline.toml"], &["query", "--pipeline", "pipeline.toml", &sql]]
        {
            let message = stderr_of(&mut job.couplet(arguments), 2);
            assert!(message.contains(why), "{name}, {}: {message}", arguments[0]);
        }
        assert!(job.output_files().is_empty(), "{name}");
    }
    // No head: a base model for training, as `model show` reports. It cannot score.
    let folder = cases.folder.join(HEADLESS);
    let card = stdout_of(couplet().args(["model", "show", "--json"]).arg(&folder));
    assert_eq!(serde_json::from_str::<Value>(&card).unwrap()["architecture"], "BertModel");
    let message = stderr_of(couplet().arg("predict").arg("a").arg("--model").arg(&folder), 2);
    assert!(message.contains("it is a masked-language model"), "{message}");
}

/// Writes the pairs with their indices as a Parquet file, without single texts and pairs with an empty text.
fn write_pairs(cases: &Cases, path: &Path) -> Vec<usize> {
    let is_pair = |i: &usize| cases.pairs[*i].1.as_ref().is_some_and(|pair| !pair.is_empty());
    let places: Vec<usize> = (0..cases.pairs.len()).filter(is_pair).collect();
    let text = |of: fn(&(String, Option<String>)) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(places.iter().map(|i| of(&cases.pairs[*i]))))
    };
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(places.iter().map(|i| *i as i64)));
    let columns =
        [("id", ids), ("a", text(|(text, _)| text)), ("b", text(|(_, pair)| pair.as_deref().unwrap_or_default()))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    places
}

/// A job over `pairs.parquet` with a checkpoint.
fn job_with(folder: &Path) -> Job {
    let job = Job::new("").change("\"pairs.csv\"", "\"pairs.parquet\"");
    job.change(&format!("{:?}", golden("tiny-distilbert")), &format!("{folder:?}"))
}

/// Compares a prediction with the expected logits and with the label scores of the transformers pipeline.
fn compare(name: &str, labels: &[String], ours: &Prediction, row: &Value) {
    let logits: Vec<f64> = row["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let pipe = row["pipe"].as_object().unwrap();
    if let [logit] = logits[..] {
        let identity = IDENTITY.contains(&name);
        let expected = if identity { logit } else { pipe["LABEL_0"].as_f64().unwrap() };
        close(ours.score, expected, name);
        assert_eq!((ours.label.as_deref(), &ours.probabilities), (None, &None), "{name}");
        // The logit is in a separate column, unless it is the score.
        match &ours.raw {
            None => assert!(identity, "{name}"),
            Some(raw) => close(raw[0], logit, name),
        }
        return;
    }
    let best = pipe.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap())).unwrap();
    assert_eq!(ours.label.as_ref(), Some(best.0), "{name}");
    close(ours.score, best.1.as_f64().unwrap(), name);
    for (label, probability) in labels.iter().zip(ours.probabilities.as_ref().unwrap()) {
        close(*probability, pipe[label].as_f64().unwrap(), &format!("{name}: {label}"));
    }
}

struct Prediction {
    label: Option<String>,
    score: f64,
    probabilities: Option<Vec<f64>>,
    raw: Option<Vec<f64>>,
}

impl Prediction {
    fn of(row: &Value, label: &str) -> Self {
        let list = |value: &Value| Some(value.as_array()?.iter().map(|x| x.as_f64().unwrap()).collect());
        Self {
            label: row[label].as_str().map(str::to_owned),
            score: row["score"].as_f64().unwrap(),
            probabilities: list(&row["probabilities"]),
            raw: list(&row["raw_probabilities"]),
        }
    }
}

#[test]
fn every_command_gives_the_scores_of_transformers() {
    let Some(cases) = Cases::find("every_command_gives_the_scores_of_transformers") else { return };
    for (name, folder, rows) in cases.scoring() {
        let card = stdout_of(couplet().args(["model", "show", "--json"]).arg(&folder));
        let card: Value = serde_json::from_str(&card).unwrap();
        assert_eq!(card["architecture"], "BertForSequenceClassification", "{name}");
        let labels: Vec<String> = serde_json::from_value(card["labels"].clone()).unwrap();
        let one_logit = rows[0]["logits"].as_array().unwrap().len() == 1;
        let theirs: BTreeMap<u32, String> = serde_json::from_value(cases.expected[name]["id2label"].clone()).unwrap();
        let theirs = if one_logit { Vec::new() } else { theirs.into_values().collect() };
        assert_eq!(labels, theirs, "{name}");

        let job = job_with(&folder);
        let places = write_pairs(&cases, &job.path("pairs.parquet"));
        let plan: Value =
            serde_json::from_str(&stdout_of(&mut job.couplet(&["plan", "pipeline.toml", "--json"]))).unwrap();
        assert_eq!(plan["score"]["rows"]["read"], places.len(), "{name}: {plan}");
        assert!(job.output_files().is_empty(), "{name}");
        let written = job.rows();
        assert_eq!(written.len(), places.len(), "{name}");
        let sql = "SELECT id, predicted_label, score, probabilities, raw_probabilities FROM predictions ORDER BY id";
        let queried = stdout_of(&mut job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]));
        let queried: Vec<Value> = serde_json::from_str(&queried).unwrap();
        for rows_of_table in [written, queried] {
            for ours in rows_of_table {
                let place = usize::try_from(ours["id"].as_u64().unwrap()).unwrap();
                compare(name, &labels, &Prediction::of(&ours, "predicted_label"), &rows[place]);
            }
        }

        // One pair and one text, through the `predict` command and the SQL function.
        let single = cases.pairs.iter().position(|(_, pair)| pair.is_none()).unwrap();
        for place in [0, single] {
            let (text, pair) = &cases.pairs[place];
            let mut predict = couplet();
            predict.args(["predict", "--json", "--model"]).arg(&folder).arg(text).args(pair);
            let message: Value = serde_json::from_str(&stdout_of(&mut predict)).unwrap();
            close(message["score"].as_f64().unwrap(), compare_score(name, &rows[place]), name);
            if one_logit && !IDENTITY.contains(&name) {
                let logit = &rows[place]["logits"][0];
                close(message["raw_probabilities"]["logit"].as_f64().unwrap(), logit.as_f64().unwrap(), name);
            }
            let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
            let pair = pair.as_deref().map_or_else(String::new, |pair| format!(", {}", quoted(pair)));
            let sql = format!("SELECT p.* FROM (SELECT predict('{}', {}{pair}) AS p)", folder.display(), quoted(text));
            let sql = sql.replace(
                "p.*",
                "p['label'] AS label, p['score'] AS score, p['probabilities'] AS probabilities, \
                                          p['raw_probabilities'] AS raw_probabilities",
            );
            let message = stdout_of(couplet().args(["query", "--format", "json", &sql]));
            let message: Vec<Value> = serde_json::from_str(&message).unwrap();
            compare(name, &labels, &Prediction::of(&message[0], "label"), &rows[place]);
        }
    }
}

/// The score of a text or pair.
fn compare_score(name: &str, row: &Value) -> f64 {
    if IDENTITY.contains(&name) {
        return row["logits"][0].as_f64().unwrap();
    }
    row["pipe"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).fold(f64::MIN, f64::max)
}
