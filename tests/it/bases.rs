//! Checkpoints of any class with an encoder as base models, for `model import`, `[pretrain]` and `[finetune]`.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::support::{couplet, stderr_of, stdout_of, write};
use crate::tiny::{Variant, WEIGHTS};

/// A tiny encoder saved under another class of transformers, with the head of that class.
fn base(name: &str, class: &str, head: &[(&str, &[usize])]) -> Variant {
    let is_classifier = |tensor: &str| tensor.starts_with("classifier.") || tensor.starts_with("pre_classifier.");
    let bare = |(tensor, values): (String, Tensor)| (!is_classifier(&tensor)).then_some((tensor, values));
    let variant = Variant::of(name).with_tensors(bare).without_config("id2label").without_config("label2id");
    let variant = variant.with_config("architectures", json!([class]));
    head.iter().fold(variant, |variant, (tensor, shape)| {
        let values = if tensor.to_lowercase().contains("norm.weight") {
            Tensor::ones(*shape, DType::F32, &Device::Cpu)
        } else {
            Tensor::randn(0_f32, 0.1_f32, *shape, &Device::Cpu)
        };
        variant.with_tensor(tensor, values.unwrap())
    })
}

/// One of each class with the names, heads and poolers that transformers writes.
fn bases() -> Vec<Variant> {
    let no_pooler = |(name, tensor): (String, Tensor)| (!name.contains("pooler")).then_some((name, tensor));
    let bare_names = |(name, tensor): (String, Tensor)| Some((name.replacen("distilbert.", "", 1), tensor));
    let words_of_bert: [(&str, &[usize]); 5] = [
        ("cls.predictions.bias", &[787]),
        ("cls.predictions.transform.dense.weight", &[32, 32]),
        ("cls.predictions.transform.dense.bias", &[32]),
        ("cls.predictions.transform.LayerNorm.weight", &[32]),
        ("cls.predictions.transform.LayerNorm.bias", &[32]),
    ];
    let next_sentence: [(&str, &[usize]); 2] =
        [("cls.seq_relationship.weight", &[2, 32]), ("cls.seq_relationship.bias", &[2])];
    let words_of_distilbert: [(&str, &[usize]); 5] = [
        ("vocab_transform.weight", &[32, 32]),
        ("vocab_transform.bias", &[32]),
        ("vocab_layer_norm.weight", &[32]),
        ("vocab_layer_norm.bias", &[32]),
        ("vocab_projector.bias", &[787]),
    ];
    let answers: [(&str, &[usize]); 2] = [("qa_outputs.weight", &[2, 32]), ("qa_outputs.bias", &[2])];
    let of_tokens: [(&str, &[usize]); 2] = [("classifier.weight", &[5, 32]), ("classifier.bias", &[5])];
    let both_of_bert = [words_of_bert.as_slice(), &next_sentence].concat();
    let [distilbert, bert] = ["tiny-distilbert", "tiny-bert"];
    vec![
        base(distilbert, "DistilBertForMaskedLM", &words_of_distilbert),
        base(distilbert, "DistilBertModel", &[]).with_tensors(bare_names),
        base(distilbert, "DistilBertForQuestionAnswering", &answers),
        base(bert, "BertForPreTraining", &both_of_bert),
        base(bert, "BertForMaskedLM", &words_of_bert).with_tensors(no_pooler),
        base(bert, "BertForTokenClassification", &of_tokens).with_tensors(no_pooler),
    ]
}

/// The word embedding matrix of a checkpoint.
fn words(folder: &Path) -> Vec<f32> {
    let tensors = candle_core::safetensors::load(folder.join(WEIGHTS), &Device::Cpu).unwrap();
    let table = tensors.iter().find(|(name, _)| name.ends_with("embeddings.word_embeddings.weight")).unwrap().1;
    table.flatten_all().unwrap().to_vec1().unwrap()
}

/// The class name in the configuration of a checkpoint.
fn class(folder: &Path) -> String {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["architectures"][0].as_str().unwrap().to_owned()
}

/// The class of the same family with another head, or without one.
fn sibling(class: &str, head: &str) -> String {
    let family = if class.starts_with("DistilBert") { "DistilBert" } else { "Bert" };
    format!("{family}{head}")
}

#[test]
fn model_import_accepts_any_class_with_an_encoder() {
    for base in bases() {
        let of = class(base.folder());
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("base");
        let mut import = couplet();
        import.args(["model", "import", "--json"]).arg(base.folder()).arg(&target);
        let message: Value = serde_json::from_str(&stdout_of(&mut import)).unwrap();
        assert_eq!(message["largest_difference"], 0.0, "{of}: {message}");
        assert_eq!(class(&target), sibling(&of, "Model"));
        let card: Value =
            serde_json::from_str(&stdout_of(couplet().args(["model", "show", "--json"]).arg(&target))).unwrap();
        assert_eq!(card["architecture"], sibling(&of, "Model"), "{of}");
        assert_eq!(words(&target), words(base.folder()), "{of}");
    }
}

#[test]
fn training_accepts_any_class_with_an_encoder() {
    for base in bases() {
        let of = class(base.folder());
        let folder = tempfile::tempdir().unwrap();
        let rows: String = (0..40).map(|i| format!("the men had {i},it was {},{}\n", i * 7, i % 2)).collect();
        write(&folder.path().join("gold.csv"), format!("a,b,label\n{rows}"));
        let toml = format!(
            r#"
name = "bases"
[tables]
gold = "gold.csv"
[pretrain]
sql = "SELECT a AS text FROM gold"
model = {:?}
output = "words"
validation = 0.3
mask_probability = 0.4
max_length = 16
[finetune]
sql = "SELECT a, b, label FROM gold"
text = ["a", "b"]
task = "classification"
model = {:?}
output = "task"
validation = 0.3
epochs = 1
max_length = 16
"#,
            base.folder(),
            base.folder()
        );
        write(&folder.path().join("bases.toml"), toml);
        let report = stdout_of(couplet().current_dir(folder.path()).args(["run", "bases.toml", "--json"]));
        let report: Value = serde_json::from_str(&report).unwrap();
        for (stage, output) in [("pretrain", "words"), ("finetune", "task")] {
            assert_eq!(report[stage]["promoted"], true, "{of}: {report:#}");
            // A few small steps away from the base; a randomly initialized encoder would be far away.
            let (before, after) = (words(base.folder()), words(&folder.path().join(output)));
            let difference = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(before.len() == after.len() && difference < 0.005, "{of}, {stage}: {difference}");
        }
        assert_eq!(class(&folder.path().join("task")), sibling(&of, "ForSequenceClassification"));
        // The base itself cannot score.
        stderr_of(couplet().args(["predict", "a", "b", "--model"]).arg(base.folder()), 2);
    }
}
