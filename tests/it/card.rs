//! `couplet model show`: the card of a model as text and as JSON.

use serde_json::Value;

use crate::support::{couplet, golden, quickstart_model, quickstart_pairs, stderr_of, stdout_of, write};
use crate::tiny::Variant;

fn show(folder: &std::path::Path) -> String {
    let text = stdout_of(couplet().args(["model", "show"]).arg(folder));
    text.replace(folder.to_str().unwrap(), "MODEL")
}

fn json(folder: &std::path::Path) -> Value {
    serde_json::from_str(&stdout_of(couplet().args(["model", "show", "--json"]).arg(folder))).unwrap()
}

const README: &str = "---
license: apache-2.0
language: en
base_model: distilbert/distilbert-base-uncased
datasets:
- nyu-mll/glue
model-index:
- name: tiny
  results:
  - task:
      type: text-classification
    dataset:
      name: GLUE MRPC
      type: glue
      split: validation
    metrics:
    - type: accuracy
      value: 0.8725
    - type: f1
      value: 0.9105
---
# A tiny model
";

#[test]
fn a_card_lists_the_known_facts() {
    let variant = Variant::of("tiny-distilbert");
    insta::assert_snapshot!(show(variant.folder()), @r"
    MODEL
      architecture  DistilBertForSequenceClassification
      task          single-label classification
      labels        not_paraphrase, paraphrase
      encoder       2 layers x 32, 4 heads, feed-forward 64
      parameters    59,842 (0.2 MB on disk)
      vocabulary    787 word pieces
      max length    512 tokens
      fingerprint   4abb5d7d4ac5b0ad5be3e00faa2410cbe2edd3d7310220061588d45f0868da1d
    ");
    write(&variant.path("README.md"), README);
    insta::assert_snapshot!(show(variant.folder()), @r"
    MODEL
      architecture  DistilBertForSequenceClassification
      task          single-label classification
      labels        not_paraphrase, paraphrase
      encoder       2 layers x 32, 4 heads, feed-forward 64
      parameters    59,842 (0.2 MB on disk)
      vocabulary    787 word pieces
      max length    512 tokens
      languages     en
      base model    distilbert/distilbert-base-uncased
      data          nyu-mll/glue
      metrics       accuracy 0.8725 (GLUE MRPC, validation)
                    f1 0.9105 (GLUE MRPC, validation)
      licence       apache-2.0
      fingerprint   4abb5d7d4ac5b0ad5be3e00faa2410cbe2edd3d7310220061588d45f0868da1d
    ");
    let card = json(variant.folder());
    assert_eq!(card["licence"], "apache-2.0");
    assert_eq!(card["datasets"], serde_json::json!(["nyu-mll/glue"]));
    assert_eq!(card["base_model"], serde_json::json!(["distilbert/distilbert-base-uncased"]));
    assert_eq!(card["training"], Value::Null);
    assert_eq!(card["fingerprint"], json(&golden("tiny-distilbert"))["fingerprint"]);
}

#[test]
fn a_card_without_optional_facts_has_no_empty_lines() {
    let text = show(&quickstart_model());
    assert!(!text.contains("licence") && !text.contains("trained"), "{text}");
    assert!(text.lines().skip(1).all(|line| line.starts_with("  ") && line.len() > 18), "{text}");
}

#[test]
fn a_card_describes_how_couplet_trained_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let toml = format!(
        r#"
name = "train"
[tables]
pairs = {:?}
[finetune]
sql = "SELECT id, sentence1, sentence2, label FROM pairs LIMIT 200"
id = "id"
text = ["sentence1", "sentence2"]
task = "classification"
model = {:?}
output = "model"
epochs = 2
max_length = 32
calibrate = true
"#,
        quickstart_pairs(),
        golden("tiny-distilbert")
    );
    write(&folder.path().join("pipeline.toml"), toml);
    stdout_of(couplet().current_dir(folder.path()).args(["run", "pipeline.toml"]));
    let model = folder.path().join("model");
    let text = show(&model);
    let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
    let base = golden("tiny-distilbert");
    assert!(line("base model").ends_with(base.to_str().unwrap()), "{text}");
    let trained = line("trained");
    assert!(trained.contains("fine-tuned for classification, ") && trained.contains(" of 2, learning rate "), "{text}");
    assert!(
        line("metrics").contains("accuracy ") && line("metrics").contains(" held-out rows; positive is "),
        "{text}"
    );
    assert!(text.contains("calibrated: ") && line("calibration").contains("temperature "), "{text}");
    let card = json(&model);
    let report: Value = serde_json::from_slice(&std::fs::read(model.join("training.json")).unwrap()).unwrap();
    assert_eq!(card["training"]["metrics"], report["evaluation"]["metrics"]);
    assert_eq!(card["training"]["rows"], report["rows"]);
    assert_eq!(card["training"]["task"], "classification");
    assert_eq!(card["training"].get("curve"), None);
}

#[test]
fn an_encoder_without_a_head_has_a_card() {
    let base = Variant::of("tiny-distilbert").without_tensor("classifier.weight");
    let text = show(base.folder());
    assert!(text.contains("  architecture  DistilBertModel\n"), "{text}");
    assert!(text.contains("  task          none: it is a base encoder: fine-tune it for a task first\n"), "{text}");
    assert!(!text.contains("  labels") && text.contains("  vocabulary    787 word pieces\n"), "{text}");
    let card = json(base.folder());
    assert_eq!((&card["task"], &card["labels"]), (&Value::Null, &serde_json::json!([])));
    assert_eq!(card["fingerprint"].as_str().unwrap().len(), 64);
}

#[test]
fn a_truncated_vocabulary_is_reported() {
    let words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nman\n";
    let model = Variant::of("tiny-distilbert").without("tokenizer.json").with("vocab.txt", words);
    let message = stderr_of(couplet().args(["model", "show"]).arg(model.folder()), 0);
    assert!(message.contains("vocab.txt: it has 7 tokens and the encoder knows 787"), "{message}");
}
