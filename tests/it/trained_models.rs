//! transformers reads models trained by couplet identically: token ids and types, labels, the activation of a score.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use candle_core::Device;
use couplet::model::{Model, ScoreActivation};
use serde_json::{Value, json};

use crate::support::{couplet, root, skip, stderr_of, write};
use crate::tiny::{TEXTS, Variant, with_room};
use crate::venv;

/// Fine-tunes a base on a few rows; the model is in `model` of the folder.
fn train(base: &Variant, task: &str, label: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..16).map(|i| format!("the [E1]film[/E1] {i},it was {i},{}\n", i % 2)).collect();
    write(&folder.path().join("gold.csv"), format!("a,b,label\n{rows}"));
    let toml = format!(
        r#"
name = "trained"
[tables]
gold = "gold.csv"
[finetune]
sql = "SELECT a, b, {label} AS label FROM gold"
text = ["a", "b"]
task = "{task}"
model = {:?}
output = "model"
validation = 0.3
epochs = 1
max_length = 32
"#,
        base.folder()
    );
    write(&folder.path().join("trained.toml"), toml);
    stderr_of(couplet().current_dir(folder.path()).args(["run", "trained.toml"]), 0);
    folder
}

/// Texts with added and special tokens.
fn texts() -> Vec<(&'static str, Option<&'static str>)> {
    let more = [("a [E1]b[/E1] [e1] [SEP] c", Some("[MASK] [CLS]")), ("The [E1] film", None)];
    TEXTS.into_iter().filter(|(_, pair)| *pair != Some("")).chain(more).collect()
}

fn read_by_transformers(python: &Path, folders: &[&Path]) -> Vec<Value> {
    let mut command = Command::new(python);
    command.arg(root().join("tests/it/trained_models.py")).args(folders);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!(texts()).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn trained_models_read_the_same_in_transformers() {
    let python = match venv::program("transformers-venv", &["transformers==5.24.0"], "python") {
        Ok(python) => python,
        Err(why) => return skip("trained_models_read_the_same_in_transformers", &why),
    };
    let added = json!({ "[E1]": 787, "[/E1]": 788 }).to_string();
    let special = json!({ "additional_special_tokens": ["[E1]"] }).to_string();
    let bases = [
        (with_room().with("added_tokens.json", &added).with("special_tokens_map.json", &special), "classification"),
        (
            with_room().with("added_tokens.json", &added).with_json("tokenizer_config.json", |settings| {
                settings["model_input_names"] = json!(["input_ids", "attention_mask"]);
                settings["split_special_tokens"] = true.into();
            }),
            "classification",
        ),
        (Variant::of("tiny-distilbert"), "classification"),
        (Variant::of("tiny-distilbert").without("tokenizer_config.json"), "classification"),
        // A score of one logit becomes a regression value, regardless of the base's activation.
        (
            Variant::of("tiny-bert")
                .with_outputs(1)
                .without_config("id2label")
                .with_config("sbert_ce_default_activation_function", "torch.nn.modules.activation.Sigmoid".into()),
            "regression",
        ),
    ];
    let trained: Vec<_> = bases
        .iter()
        .map(|(base, task)| train(base, task, if *task == "regression" { "label * 0.5" } else { "label" }))
        .collect();
    let folders: Vec<_> = trained.iter().map(|folder| folder.path().join("model")).collect();
    let theirs = read_by_transformers(&python, &folders.iter().map(|folder| folder.as_path()).collect::<Vec<_>>());
    for (folder, theirs) in folders.iter().zip(theirs) {
        let model = Model::load(folder, &Device::Cpu).unwrap();
        for (i, (text, pair)) in texts().into_iter().enumerate() {
            let encoding = model.tokenizer.encode(text, pair).unwrap();
            assert_eq!(json!(encoding.input_ids), theirs["ids"][i], "{text}");
            match &theirs["types"][i] {
                Value::Null => assert!(encoding.token_type_ids.iter().all(|t| *t == 0), "{text}"),
                types => assert_eq!(json!(encoding.token_type_ids), *types, "{text}"),
            }
        }
        if model.config.labels.is_empty() {
            assert_eq!(theirs["problem_type"], "regression");
            assert_eq!(theirs["activation"], "torch.nn.modules.linear.Identity");
            assert_eq!(model.config.score, ScoreActivation::Identity);
        } else {
            assert_eq!(theirs["problem_type"], "single_label_classification");
            assert_eq!((json!(model.config.labels), &Value::Null), (theirs["labels"].clone(), &theirs["activation"]));
        }
    }
}
