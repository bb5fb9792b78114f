//! Loading checkpoints: every supported file layout gives the same model, and every broken checkpoint gives a clear
//! error.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use couplet::model::{Model, Problem, import};
use couplet::ops::Kernels;
use couplet::scorer::{Pool, Precision, PrecisionSetting, Prediction, Scorer, ScorerOptions, TextColumn, Window};
use couplet::train::{Objective, Options, Trainer};
use serde_json::{Value, json};

use crate::fuzz_targets::{archive, members};
use crate::support::{golden, shared};
use crate::tiny::{ARCHIVE, TEXTS, Variant, WEIGHTS, logits};

fn golden_logits(name: &str) -> Vec<Vec<f32>> {
    logits(&Model::load(&golden(name), &Device::Cpu).unwrap())
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.concat().iter().zip(b.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The predictions of [`TEXTS`], one at a time, because some are single texts.
fn predictions(variant: &Variant) -> Vec<Prediction> {
    let scorer = Scorer::load(variant.folder(), ScorerOptions::default(), &Pool::new(Some(1)).unwrap()).unwrap();
    let column = |text: &str| TextColumn { name: "text".into(), values: std::iter::once(Some(text)).collect() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    TEXTS
        .iter()
        .map(|(text, text_pair)| {
            let window = Window::new(column(text), text_pair.map(column));
            runtime.block_on(scorer.score(window)).unwrap().remove(0).unwrap()
        })
        .collect()
}

// Layouts that give the same model.

#[test]
fn half_precision_weights_give_the_rounded_model() {
    for name in ["tiny-bert", "tiny-distilbert"] {
        let exact = golden_logits(name);
        for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 1e-1)] {
            let rounded = |(name, tensor): (String, Tensor)| Some((name, tensor.to_dtype(dtype).unwrap()));
            let widened = |(name, tensor): (String, Tensor)| Some((name, tensor.to_dtype(DType::F32).unwrap()));
            let half = Variant::of(name).with_tensors(rounded);
            let half_logits = logits(&half.load().unwrap());
            let difference = largest_difference(&exact, &half_logits);
            assert!(difference > 0.0 && difference < tolerance, "{name} in {dtype:?}: {difference}");
            assert_eq!(half_logits, logits(&half.with_tensors(widened).load().unwrap()), "{name} in {dtype:?}");
        }
    }
}

#[test]
fn weights_of_64_bits_give_the_same_model() {
    for name in ["tiny-bert", "tiny-distilbert"] {
        let widened = |(name, tensor): (String, Tensor)| Some((name, tensor.to_dtype(DType::F64).unwrap()));
        assert_eq!(logits(&Variant::of(name).with_tensors(widened).load().unwrap()), golden_logits(name));
    }
}

#[test]
fn keys_with_defaults_may_be_missing() {
    let bert = ["hidden_act", "type_vocab_size", "max_position_embeddings", "layer_norm_eps", "hidden_dropout_prob"];
    let distilbert = ["activation", "max_position_embeddings", "dropout", "attention_dropout"];
    for (name, keys) in [("tiny-bert", &bert[..]), ("tiny-distilbert", &distilbert[..])] {
        let variant = keys.iter().fold(Variant::of(name), |variant, key| variant.without_config(key));
        assert_eq!(logits(&variant.load().unwrap()), golden_logits(name));
    }
}

#[test]
fn half_precision_arithmetic_is_close_to_f32() {
    // The f16 path of GPUs, run on the CPU.
    for name in ["tiny-bert", "tiny-distilbert"] {
        let exact = golden_logits(name);
        for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 1e-1)] {
            let kernels = Kernels::reference(dtype);
            let half = logits(&Model::load_with(&golden(name), &Device::Cpu, kernels).unwrap());
            let difference = largest_difference(&exact, &half);
            assert!(difference > 0.0 && difference < tolerance, "{name} in {dtype:?}: {difference}");
        }
    }
}

/// Splits the weights into two files and returns the text of their index.
fn shard(variant: Variant) -> (Variant, Value) {
    let mut tensors: Vec<(String, Tensor)> = variant.tensors().into_iter().collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut map = serde_json::Map::new();
    for (i, tensors) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), Value::from(file.as_str()))));
        let tensors: HashMap<&str, Tensor> = tensors.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
        candle_core::safetensors::save(&tensors, variant.path(&file)).unwrap();
    }
    (variant.without(WEIGHTS), json!({"metadata": {}, "weight_map": map}))
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn sharded_weights_give_the_same_model() {
    for name in ["tiny-bert", "tiny-distilbert"] {
        let whole = Model::load(&golden(name), &Device::Cpu).unwrap();
        let (variant, index) = shard(Variant::of(name));
        let sharded = variant.with(INDEX, index.to_string()).load().unwrap();
        assert_eq!(logits(&sharded), logits(&whole));
        assert_eq!(sharded.parameters, whole.parameters);
        assert_ne!(sharded.fingerprint, whole.fingerprint);
    }
}

#[test]
fn a_sharded_pytorch_archive_gives_the_same_model() {
    let variant = Variant::of("tiny-bert-bin");
    let index = json!({"weight_map": {"classifier.bias": "pytorch_model-00001-of-00001.bin"}});
    let content = variant.read(ARCHIVE);
    let variant = variant
        .without(ARCHIVE)
        .with("pytorch_model-00001-of-00001.bin", content)
        .with("pytorch_model.bin.index.json", index.to_string());
    assert_eq!(logits(&variant.load().unwrap()), golden_logits("tiny-bert"));
}

#[test]
fn tensor_names_need_no_prefix() {
    for (name, prefix) in [("tiny-bert", "bert."), ("tiny-distilbert", "distilbert.")] {
        let bare =
            |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix).unwrap_or(&name).to_owned(), tensor));
        assert_eq!(logits(&Variant::of(name).with_tensors(bare).load().unwrap()), golden_logits(name));
    }
}

#[test]
fn layer_norms_may_have_their_old_names() {
    let old = |(name, tensor): (String, Tensor)| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        Some((name, tensor))
    };
    for name in ["tiny-bert", "tiny-distilbert"] {
        assert_eq!(logits(&Variant::of(name).with_tensors(old).load().unwrap()), golden_logits(name));
    }
}

#[test]
fn of_two_names_for_a_tensor_the_full_one_wins() {
    for (name, spare, holds) in [
        ("tiny-bert", "bert.classifier.weight", "classifier.weight"),
        ("tiny-bert", "embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("tiny-bert", "bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("tiny-distilbert", "embeddings.word_embeddings.weight", "distilbert.embeddings.word_embeddings.weight"),
    ] {
        let variant = Variant::of(name);
        let other = (variant.tensors()[holds].clone() * -3.0).unwrap();
        let variant = variant.with_tensor(spare, other);
        // The tensor names of a file are listed in a different order each time.
        for _ in 0..12 {
            assert_eq!(logits(&variant.load().unwrap()), golden_logits(name), "{spare}");
        }
    }
}

#[test]
fn distilbert_ignores_a_layer_norm_eps_setting() {
    let variant = Variant::of("tiny-distilbert").with_config("layer_norm_eps", json!(0.1));
    assert_eq!(logits(&variant.load().unwrap()), golden_logits("tiny-distilbert"));
    let variant = Variant::of("tiny-bert").with_config("layer_norm_eps", json!(0.1));
    assert_ne!(logits(&variant.load().unwrap()), golden_logits("tiny-bert"));
}

/// The token ids of every text of the edge cases.
fn token_ids(variant: &Variant, max_length: usize) -> Vec<Vec<u32>> {
    let tokenizer = variant.load().unwrap().tokenizer.with_max_length(max_length).unwrap();
    let cases = std::fs::read_to_string(golden("edge_cases.jsonl")).unwrap();
    cases
        .lines()
        .map(|line| {
            let case: Value = serde_json::from_str(line).unwrap();
            tokenizer.encode(case["text"].as_str().unwrap(), case["text_pair"].as_str()).unwrap().input_ids
        })
        .collect()
}

/// tiny-bert with the tokenizer.json of tiny-distilbert, which has the same vocabulary and keeps case.
fn bert_with_tokenizer_json() -> Variant {
    let json = std::fs::read(golden("tiny-distilbert").join("tokenizer.json")).unwrap();
    Variant::of("tiny-bert").without("vocab.txt").with("tokenizer.json", json)
}

#[test]
fn tokenizer_json_and_vocab_txt_give_the_same_ids() {
    // tiny-bert's tokenizer_config.json sets lower case, which overrides tokenizer.json.
    assert_eq!(token_ids(&bert_with_tokenizer_json(), 128), token_ids(&Variant::of("tiny-bert"), 128));
}

#[test]
fn the_tokenizer_class_decides_which_file_sets_lower_casing() {
    let class = |class: &str| {
        bert_with_tokenizer_json()
            .with_json("tokenizer_config.json", |settings| settings["tokenizer_class"] = class.into())
    };
    let [lower, cased] = ["tiny-bert", "tiny-distilbert"].map(|name| token_ids(&Variant::of(name), 128));
    assert_ne!(lower, cased);
    assert_eq!(token_ids(&class("BertTokenizerFast"), 128), lower);
    assert_eq!(token_ids(&class("DistilBertTokenizer"), 128), lower);
    assert_eq!(token_ids(&class("PreTrainedTokenizerFast"), 128), cased);
}

#[test]
fn texts_are_truncated_on_the_side_that_the_tokenizer_sets() {
    let left = Variant::of("tiny-bert")
        .with_json("tokenizer_config.json", |settings| settings["truncation_side"] = "left".into());
    let [right, left] = [Variant::of("tiny-bert"), left].map(|variant| variant.load().unwrap().tokenizer);
    let (text, pair) = ("a b c d e f g h", "s t u v w x y z");
    let ids = |text: &str| right.encode(text, None).unwrap().input_ids;
    let cut = |tokenizer: &couplet::model::Tokenizer, pair| {
        let encoding = tokenizer.with_max_length(7).unwrap().encode(text, pair).unwrap();
        assert!(encoding.truncated);
        encoding.input_ids
    };
    assert_eq!(cut(&right, None), ids("a b c d e"));
    assert_eq!(cut(&left, None), ids("d e f g h"));
    assert_eq!(cut(&right, Some(pair)), right.encode("a b", Some("s t")).unwrap().input_ids);
    assert_eq!(cut(&left, Some(pair)), right.encode("g h", Some("y z")).unwrap().input_ids);
}

#[test]
fn inputs_have_no_more_tokens_than_the_tokenizer_allows() {
    let variant = Variant::of("tiny-bert")
        .with_json("tokenizer_config.json", |settings| settings["model_max_length"] = 40.into());
    assert_eq!(variant.load().unwrap().max_length(), 40);
    let unlimited = variant.with_json("tokenizer_config.json", |settings| settings["model_max_length"] = json!(1e30));
    assert_eq!(unlimited.load().unwrap().max_length(), 512);
}

// Meaning of the logits.

#[test]
fn a_model_may_have_many_labels() {
    let labels: serde_json::Map<String, Value> = (0..70).map(|i| (i.to_string(), format!("l{i}").into())).collect();
    let variant = Variant::of("tiny-distilbert").with_outputs(70).with_config("id2label", labels.into());
    let model = variant.load().unwrap();
    // The ids are sorted as numbers: 10 comes after 9, not after 1.
    assert_eq!(model.config.labels[10], "l10");
    for (prediction, logits) in predictions(&variant).iter().zip(logits(&model)) {
        let best = (0..70).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        assert_eq!(prediction.label, best);
        assert!((prediction.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let ratio = prediction.probabilities[0] / prediction.probabilities[1];
        assert!((ratio.ln() - (logits[0] - logits[1])).abs() < 1e-4);
    }
}

#[test]
fn a_multi_label_model_has_a_sigmoid_for_each_label() {
    let variant = Variant::of("tiny-bert").with_config("problem_type", "multi_label_classification".into());
    let model = variant.load().unwrap();
    assert_eq!(model.config.problem, Problem::MultiLabel);
    for (prediction, logits) in predictions(&variant).iter().zip(logits(&model)) {
        for (probability, logit) in prediction.probabilities.iter().zip(&logits) {
            assert!((probability - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
        }
        assert_eq!(prediction.score, prediction.probabilities[prediction.label.unwrap()]);
    }
}

#[test]
fn labels_that_do_not_fit_the_classifier_are_refused() {
    let tiny = || Variant::of("tiny-bert");
    insta::assert_snapshot!(tiny().without_config("id2label").with_config("num_labels", json!(2)).error(), @"MODEL/config.json: key `num_labels`: expected 3, the number of outputs of `classifier.weight`, found 2");
    insta::assert_snapshot!(tiny().without_config("id2label").with_config("num_labels", json!("3")).error(), @r#"MODEL/config.json: key `num_labels`: expected a whole number, found "3""#);
    insta::assert_snapshot!(tiny().with_config("id2label", json!({"0": "no", "1": "yes"})).error(), @r#"MODEL/config.json: key `id2label`: expected a name for each of the 3 outputs of `classifier.weight`, such as {"0": "no", "1": "yes"}, found 2 names"#);
    insta::assert_snapshot!(tiny().with_config("id2label", json!({"0": "a", "1": "b", "3": "c"})).error(), @"MODEL/config.json: key `id2label.2`: expected a label, as the 3 ids must run from 0 without a gap, found nothing");
    insta::assert_snapshot!(tiny().with_config("id2label", json!({"0": "a", "1": 7, "2": "c"})).error(), @"MODEL/config.json: key `id2label.1`: expected a label, as the 3 ids must run from 0 without a gap, found 7");
    insta::assert_snapshot!(tiny().with_config("id2label", json!({"0": "a", "1": "b", "2": "a"})).error(), @r#"MODEL/config.json: key `id2label.2`: expected a name that no other label has, found "a""#);
    insta::assert_snapshot!(tiny().with_config("id2label", json!(["a", "b", "c"])).error(), @r#"MODEL/config.json: key `id2label`: expected an object such as {"0": "no", "1": "yes"}, found ["a","b","c"]"#);
    insta::assert_snapshot!(tiny().with_config("problem_type", json!("ranking")).error(), @r#"MODEL/config.json: key `problem_type`: expected "single_label_classification", "multi_label_classification" or "regression", found "ranking""#);
    insta::assert_snapshot!(tiny().with_config("problem_type", json!("regression")).error(), @r#"MODEL/config.json: key `problem_type`: expected a classification, as `classifier.weight` has 3 outputs, found "regression""#);
}

// Folders that are not a model for couplet.

#[test]
fn a_config_of_another_architecture_is_refused() {
    let bert = || Variant::of("tiny-bert");
    let distilbert = || Variant::of("tiny-distilbert");
    insta::assert_snapshot!(bert().with_config("model_type", json!("roberta")).error(), @r#"MODEL/config.json: key `model_type`: expected "distilbert" or "bert", found "roberta""#);
    insta::assert_snapshot!(bert().without_config("model_type").error(), @r#"MODEL/config.json: key `model_type`: expected "distilbert" or "bert", found nothing"#);
    insta::assert_snapshot!(bert().with_config("architectures", json!(["BertForQuestionAnswering"])).error(), @r#"MODEL/config.json: key `architectures`: expected ["BertForSequenceClassification"], found ["BertForQuestionAnswering"]"#);
    insta::assert_snapshot!(distilbert().with_config("architectures", json!(["BertForSequenceClassification"])).error(), @r#"MODEL/config.json: key `architectures`: expected ["DistilBertForSequenceClassification"], found ["BertForSequenceClassification"]"#);
    insta::assert_snapshot!(distilbert().with_config("activation", json!("mish")).error(), @r#"MODEL/config.json: key `activation`: expected "gelu", "gelu_new", "gelu_pytorch_tanh", "relu" or "silu", found "mish""#);
    insta::assert_snapshot!(bert().with_config("hidden_act", json!(1)).error(), @r#"MODEL/config.json: key `hidden_act`: expected "gelu", "gelu_new", "gelu_pytorch_tanh", "relu" or "silu", found 1"#);
    insta::assert_snapshot!(bert().with_config("is_decoder", json!(true)).error(), @"MODEL/config.json: key `is_decoder`: expected false, as couplet runs encoders only, found true");
    insta::assert_snapshot!(bert().with_config("position_embedding_type", json!("relative_key")).error(), @r#"MODEL/config.json: key `position_embedding_type`: expected "absolute", found "relative_key""#);
}

#[test]
fn a_config_with_missing_keys_is_refused() {
    let bert = || Variant::of("tiny-bert");
    let distilbert = || Variant::of("tiny-distilbert");
    // The default differs from the size of the weights.
    insta::assert_snapshot!(distilbert().without_config("dim").error(), @"MODEL: tensor `pre_classifier.weight`: expected shape [768, 768] by config.json, found [32, 32]");
    insta::assert_snapshot!(bert().with_config("type_vocab_size", json!(null)).error(), @"MODEL/config.json: key `type_vocab_size`: expected a whole number from 1, found null");
    insta::assert_snapshot!(bert().with_config("num_hidden_layers", json!(0)).error(), @"MODEL/config.json: key `num_hidden_layers`: expected a whole number from 1, found 0");
    insta::assert_snapshot!(bert().with_config("num_hidden_layers", json!(-2)).error(), @"MODEL/config.json: key `num_hidden_layers`: expected a whole number from 1, found -2");
    insta::assert_snapshot!(bert().with_config("vocab_size", json!("many")).error(), @r#"MODEL/config.json: key `vocab_size`: expected a whole number from 1, found "many""#);
    insta::assert_snapshot!(bert().with_config("num_attention_heads", json!(5)).error(), @"MODEL/config.json: key `num_attention_heads`: expected a divisor of hidden_size = 32, found 5");
    insta::assert_snapshot!(bert().with("config.json", "{\"model_type\": \"bert\",").error(), @"cannot read MODEL/config.json: not JSON: EOF while parsing a value at line 1 column 22");
    insta::assert_snapshot!(bert().with("config.json", "[1, 2]").error(), @"cannot read MODEL/config.json: not a JSON object");
    insta::assert_snapshot!(bert().with("config.json", [0x89, b'P', b'N', b'G', 0xFF]).error(), @"cannot read MODEL/config.json: not JSON: expected value at line 1 column 1");
    insta::assert_snapshot!(bert().with("config.json", "").error(), @"cannot read MODEL/config.json: not JSON: EOF while parsing a value at line 1 column 0");
    insta::assert_snapshot!(bert().without("config.json").error(), @"model folder MODEL has no config.json; a model and its tokenizer are written into one folder by `save_pretrained` of transformers");
}

#[test]
fn a_model_that_is_not_a_folder_is_refused() {
    let variant = Variant::of("tiny-bert");
    let error = |path: std::path::PathBuf| {
        let error = Model::load(&path, &Device::Cpu).unwrap_err().to_string();
        error.replace(variant.folder().to_str().unwrap(), "FOLDER")
    };
    insta::assert_snapshot!(error(variant.path("nowhere")), @"model FOLDER/nowhere does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin");
    insta::assert_snapshot!(error(variant.path(WEIGHTS)), @"model FOLDER/model.safetensors is not a folder; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin");
}

#[test]
fn a_checkpoint_without_a_head_is_refused() {
    let headless = |name: &str| {
        let bare = |(name, tensor): (String, Tensor)| (!name.contains("classifier")).then_some((name, tensor));
        Variant::of(name).with_tensors(bare)
    };
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let base = headless("tiny-bert").with_config("architectures", json!(["BertModel"])).without_config("id2label");
    insta::assert_snapshot!(base.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 39 tensors; it is a base encoder: fine-tune it for a task first");
    let masked = headless("tiny-bert")
        .with_config("architectures", json!(["BertForMaskedLM"]))
        .with_tensor("cls.predictions.bias", tensor(&[787]))
        .with_tensor("cls.predictions.transform.dense.weight", tensor(&[32, 32]));
    insta::assert_snapshot!(masked.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 41 tensors; it is a masked-language model: fine-tune it for a task first");
    let masked = headless("tiny-distilbert")
        .with_config("architectures", json!(["DistilBertForMaskedLM"]))
        .with_tensor("vocab_transform.weight", tensor(&[32, 32]));
    insta::assert_snapshot!(masked.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 37 tensors; it is a masked-language model: fine-tune it for a task first");
    let questions = headless("tiny-distilbert").with_tensor("qa_outputs.weight", tensor(&[2, 32]));
    insta::assert_snapshot!(questions.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 37 tensors; it answers questions, which couplet does not");
    let something = Variant::of("tiny-bert").with_tensors(|_| None).with_tensor("conv1.weight", tensor(&[3, 3]));
    insta::assert_snapshot!(something.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 1 tensors; it has no word embeddings either: it is incomplete, or of another family than BERT");
    insta::assert_snapshot!(Variant::of("tiny-bert").with_tensors(|_| None).error(), @"cannot read MODEL/model.safetensors: it holds no tensors by name, and nothing else in it is read");
    insta::assert_snapshot!(Variant::of("tiny-distilbert").without_tensor("pre_classifier.bias").error(), @"MODEL: tensor `pre_classifier.bias`: expected shape [32], found nothing under that name; 39 tensors, the nearest is `pre_classifier.weight`");
    insta::assert_snapshot!(Variant::of("tiny-bert").without_tensor("bert.pooler.dense.weight").error(), @"MODEL: tensor `bert.pooler.dense.weight`: expected shape [32, 32], found nothing under that name; 40 tensors, the nearest is `bert.pooler.dense.bias`");
}

#[test]
fn any_class_with_an_encoder_can_be_a_base() {
    let classes = ["BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering", "BertLMHeadModel"];
    for class in classes {
        let pooler = |(name, tensor): (String, Tensor)| (!name.contains("pooler")).then_some((name, tensor));
        let base = Variant::of("tiny-bert").with_tensors(pooler).with_config("architectures", json!([class]));
        let target = tempfile::tempdir().unwrap();
        let imported = import(base.folder(), &target.path().join("base"), None).unwrap();
        assert!(imported.difference == 0.0, "{class}");
        let labels = Objective::Classification { labels: 3, class_weights: None, label_smoothing: 0.0 };
        for objective in [labels, Objective::MaskedWords] {
            Trainer::from_checkpoint(base.folder(), objective, Options::default(), &Device::Cpu).unwrap();
        }
    }
}

#[test]
fn a_real_base_encoder_has_no_head() {
    let Some(base) = shared("a_real_base_encoder_has_no_head", "models/minilm-base") else { return };
    let error = Model::load(&base, &Device::Cpu).unwrap_err().to_string();
    insta::assert_snapshot!(error.replace(base.to_str().unwrap(), "MODEL"), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 103 tensors; it is a base encoder: fine-tune it for a task first");
}

// Broken files.

#[test]
fn missing_tensors_and_wrong_shapes_are_refused() {
    let bert = || Variant::of("tiny-bert");
    let distilbert = || Variant::of("tiny-distilbert");
    let tensor = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let (f32, i64) = (DType::F32, DType::I64);
    let missing = distilbert().without_tensor("distilbert.transformer.layer.0.ffn.lin1.weight");
    insta::assert_snapshot!(missing.error(), @"MODEL: tensor `distilbert.transformer.layer.0.ffn.lin1.weight`: expected shape [64, 32], found nothing under that name; 39 tensors, the nearest is `distilbert.transformer.layer.0.ffn.lin1.bias`");
    insta::assert_snapshot!(bert().without_tensor("bert.embeddings.LayerNorm.bias").error(), @"MODEL: tensor `bert.embeddings.LayerNorm.bias`: expected shape [32], found nothing under that name; 40 tensors, the nearest is `bert.embeddings.LayerNorm.weight`");
    insta::assert_snapshot!(bert().with_config("num_hidden_layers", json!(3)).error(), @"MODEL: tensor `bert.encoder.layer.2.attention.self.query.weight`: expected shape [32, 32], found nothing under that name; 41 tensors, the nearest is `bert.encoder.layer.1.output.dense.weight`");
    insta::assert_snapshot!(bert().with_config("vocab_size", json!(800)).error(), @"MODEL: tensor `bert.embeddings.word_embeddings.weight`: expected shape [800, 32] by config.json, found [787, 32]");
    insta::assert_snapshot!(bert().with_config("max_position_embeddings", json!(128)).error(), @"MODEL: tensor `bert.embeddings.position_embeddings.weight`: expected shape [128, 32] by config.json, found [512, 32]");
    insta::assert_snapshot!(bert().with_tensor("bert.pooler.dense.bias", tensor(&[32, 1], f32)).error(), @"MODEL: tensor `bert.pooler.dense.bias`: expected shape [32] by config.json, found [32, 1]");
    insta::assert_snapshot!(bert().with_tensor("classifier.weight", tensor(&[3, 16], f32)).error(), @"MODEL: tensor `classifier.weight`: expected shape [3, 32] by config.json, found [3, 16]");
    insta::assert_snapshot!(bert().with_tensor("classifier.weight", tensor(&[3], f32)).error(), @"MODEL: tensor `classifier.weight`: expected shape [labels, dim], found [3]");
    insta::assert_snapshot!(bert().with_tensor("classifier.bias", tensor(&[3], i64)).error(), @"MODEL: tensor `classifier.bias`: expected type F64, F32, F16 or BF16, found I64");
}

#[test]
fn tensors_that_the_model_does_not_use_may_have_any_type() {
    let positions = Tensor::arange(0i64, 512, &Device::Cpu).unwrap();
    let variant = Variant::of("tiny-bert").with_tensor("bert.embeddings.position_ids", positions);
    let model = variant.load().unwrap();
    assert_eq!(logits(&model), golden_logits("tiny-bert"));
    assert_eq!(model.parameters, Model::load(&golden("tiny-bert"), &Device::Cpu).unwrap().parameters);
}

#[test]
fn a_weights_index_with_missing_files_is_refused() {
    let with_index = |edit: fn(&mut Value)| {
        let (variant, mut index) = shard(Variant::of("tiny-distilbert"));
        edit(&mut index);
        variant.with(INDEX, index.to_string())
    };
    let missing = with_index(|_| {}).without("model-00002-of-00002.safetensors");
    insta::assert_snapshot!(missing.error(), @"cannot read MODEL/model-00002-of-00002.safetensors: it does not exist, although MODEL/model.safetensors.index.json names it");
    insta::assert_snapshot!(with_index(|index| index["weight_map"]["classifier.bias"] = "../x".into()).error(), @r#"MODEL/model.safetensors.index.json: key `weight_map.classifier.bias`: expected the name of a file beside the index, found "../x""#);
    insta::assert_snapshot!(with_index(|index| index["weight_map"]["classifier.bias"] = "/etc/passwd".into()).error(), @r#"MODEL/model.safetensors.index.json: key `weight_map.classifier.bias`: expected the name of a file beside the index, found "/etc/passwd""#);
    insta::assert_snapshot!(with_index(|index| index["weight_map"]["classifier.bias"] = 1.into()).error(), @"MODEL/model.safetensors.index.json: key `weight_map.classifier.bias`: expected the name of a file beside the index, found 1");
    insta::assert_snapshot!(with_index(|index| index["weight_map"] = json!({})).error(), @"MODEL/model.safetensors.index.json: key `weight_map`: expected an object from tensor names to names of files beside the index, found {}");
    insta::assert_snapshot!(with_index(|index| *index = json!({"metadata": {}})).error(), @"MODEL/model.safetensors.index.json: key `weight_map`: expected an object from tensor names to names of files beside the index, found nothing");
    insta::assert_snapshot!(with_index(|_| {}).with(INDEX, "{").error(), @"cannot read MODEL/model.safetensors.index.json: not JSON: EOF while parsing an object at line 1 column 1");
    let incomplete = with_index(|index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.retain(|_, file| file == "model-00002-of-00002.safetensors");
    });
    insta::assert_snapshot!(incomplete.error(), @"MODEL has no classification head: tensor `classifier.weight` is missing among its 20 tensors; it has no word embeddings either: it is incomplete, or of another family than BERT");
}

#[test]
fn an_invalid_safetensors_file_is_refused() {
    let tiny = || Variant::of("tiny-bert");
    let length = tiny().read(WEIGHTS).len();
    insta::assert_snapshot!(tiny().without(WEIGHTS).error(), @"model folder MODEL has no weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin; a model and its tokenizer are written into one folder by `save_pretrained` of transformers");
    insta::assert_snapshot!(tiny().with_only(WEIGHTS, length - 1).error(), @"cannot read MODEL/model.safetensors: its 244147 bytes are not what its header describes: it is truncated or was appended to");
    insta::assert_snapshot!(tiny().with_only(WEIGHTS, 2000).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (2000 bytes; invalid header length)");
    insta::assert_snapshot!(tiny().with_only(WEIGHTS, 5).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (5 bytes; header too small)");
    insta::assert_snapshot!(tiny().with(WEIGHTS, "").error(), @"cannot read MODEL/model.safetensors: it is empty");
    let longer = [tiny().read(WEIGHTS), vec![0; 3]].concat();
    insta::assert_snapshot!(tiny().with(WEIGHTS, longer).error(), @"cannot read MODEL/model.safetensors: its 244151 bytes are not what its header describes: it is truncated or was appended to");
    let png = [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".as_slice(), &[7; 2000]].concat();
    insta::assert_snapshot!(tiny().with(WEIGHTS, png).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (2016 bytes; header too large)");
    insta::assert_snapshot!(tiny().with(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 244148\n").error(), @"cannot read MODEL/model.safetensors: it is a pointer of Git LFS, not the file itself; `git lfs pull` fetches that");
    let huge = |length: u64| tiny().with(WEIGHTS, [&length.to_le_bytes(), b"{}      ".as_slice()].concat());
    insta::assert_snapshot!(huge(u64::MAX).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (16 bytes; header too large)");
    insta::assert_snapshot!(huge(1 << 40).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (16 bytes; header too large)");
    insta::assert_snapshot!(huge(50_000_000).error(), @"cannot read MODEL/model.safetensors: it is not a safetensors file, or truncated within its header (16 bytes; header too large)");
    // A header of 90 MB that is complete.
    let long = [&90_000_000_u64.to_le_bytes(), vec![b' '; 90_000_000].as_slice()].concat();
    insta::assert_snapshot!(tiny().with(WEIGHTS, long).error(), @"cannot read MODEL/model.safetensors: its header has 90000000 bytes, and at most 16777216 are read");
    let header =
        |header: &str| tiny().with(WEIGHTS, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).error();
    insta::assert_snapshot!(header("not json"), @"cannot read MODEL/model.safetensors: its header is damaged (16 bytes; invalid JSON in header: expected ident at line 1 column 2)");
    insta::assert_snapshot!(header(r#"{"classifier.weight":{"dtype":"F32","shape":[3,9223372036854775807],"data_offsets":[0,4]}}"#), @"cannot read MODEL/model.safetensors: its header is damaged (98 bytes; overflow computing buffer size from shape and/or element type)");
    insta::assert_snapshot!(header(r#"{"classifier.weight":{"dtype":"F32","shape":[3,32],"data_offsets":[0,4]}}"#), @"cannot read MODEL/model.safetensors: its header is damaged (81 bytes; invalid shape, data type, or offset for tensor)");
    insta::assert_snapshot!(header(r#"{"classifier.weight":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#), @"cannot read MODEL/model.safetensors: its header is damaged (78 bytes; invalid JSON in header: unknown variant `F33`, expected one of `BOOL`, `F4`, `F6_E2M3`, `F6_E3M2`, `U8`, `I8`, `F8_E5M2`, `F8_E4M3`, `F8_E8M0`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ`, `I16`, `U16`, `F16`, `BF16`, `I32`, `U32`, `F32`, `C64`, `F64`, `I64`, `U64` at line 1 column 70)");
}

/// Pickle opcodes that call `callable(argument)`.
fn call(callable: &str, argument: &str) -> Vec<u8> {
    let mut pickle = format!("c{}\n", callable.replace('.', "\n")).into_bytes();
    pickle.push(b'X');
    pickle.extend((argument.len() as u32).to_le_bytes());
    pickle.extend(argument.as_bytes());
    pickle.extend(b"\x85R");
    pickle
}

fn archive_of_pickle(pickle: &[u8]) -> Vec<u8> {
    archive(&[
        ("archive/data.pkl".into(), [b"\x80\x02", pickle, b"."].concat()),
        ("archive/version".into(), b"3\n".into()),
    ])
}

#[test]
fn an_invalid_pytorch_archive_is_refused() {
    let tiny = || Variant::of("tiny-bert-bin");
    let length = tiny().read(ARCHIVE).len();
    insta::assert_snapshot!(tiny().with_only(ARCHIVE, length - 1000).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (invalid Zip archive: Could not find EOCD)");
    insta::assert_snapshot!(tiny().with_only(ARCHIVE, 5000).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (invalid Zip archive: Could not find EOCD)");
    insta::assert_snapshot!(tiny().with(ARCHIVE, "").error(), @"cannot read MODEL/pytorch_model.bin: it is empty");
    insta::assert_snapshot!(tiny().with(ARCHIVE, [b"\x89PNG\r\n\x1a\n".as_slice(), &[7; 2000]].concat()).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (invalid Zip archive: Could not find EOCD)");
    // torch.save before PyTorch 1.6 wrote a bare pickle that begins with a magic number.
    let old = [b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".as_slice(), &[0; 100]].concat();
    insta::assert_snapshot!(tiny().with(ARCHIVE, old).error(), @"cannot read MODEL/pytorch_model.bin: it has the format from before PyTorch 1.6; load it with transformers and `save_pretrained` it");
    insta::assert_snapshot!(tiny().with(ARCHIVE, archive(&[("a.txt".into(), b"hello".into())])).error(), @"cannot read MODEL/pytorch_model.bin: it holds no tensors by name, and nothing else in it is read");
    // An empty dict, an unknown opcode, and a string of 4 GB.
    insta::assert_snapshot!(tiny().with(ARCHIVE, archive_of_pickle(b"}")).error(), @"cannot read MODEL/pytorch_model.bin: it holds no tensors by name, and nothing else in it is read");
    insta::assert_snapshot!(tiny().with(ARCHIVE, archive_of_pickle(b"\xff")).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (unknown op-code 255)");
    insta::assert_snapshot!(tiny().with(ARCHIVE, archive_of_pickle(b"X\xff\xff\xff\xffabc")).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (failed to fill whole buffer)");
    // `_rebuild_tensor_v2()` without arguments.
    let rebuild = b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n)Rs";
    insta::assert_snapshot!(tiny().with(ARCHIVE, archive_of_pickle(rebuild)).error(), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (its pickle is not as PyTorch writes it)");
}

/// The members of tiny-bert-bin with an edited pickle.
fn with_pickle(edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut members = members(&std::fs::read(golden("tiny-bert-bin").join(ARCHIVE)).unwrap());
    edit(&mut members.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap().1);
    archive(&members)
}

#[test]
fn a_rewritten_archive_gives_the_same_model() {
    let variant = Variant::of("tiny-bert-bin").with(ARCHIVE, with_pickle(|_| {}));
    assert_eq!(logits(&variant.load().unwrap()), golden_logits("tiny-bert"));
}

#[test]
fn a_tensor_beyond_the_data_of_its_archive_is_refused() {
    let mut members = members(&std::fs::read(golden("tiny-bert-bin").join(ARCHIVE)).unwrap());
    let data = members.iter().position(|(name, _)| name.ends_with("data/1")).unwrap();
    members[data].1.truncate(100);
    let cut = Variant::of("tiny-bert-bin").with(ARCHIVE, archive(&members));
    insta::assert_snapshot!(cut.error(), @"MODEL: tensor `bert.embeddings.word_embeddings.weight`: expected 25184 values of type F32, found an unreadable tensor (failed to fill whole buffer)");
    members.remove(data);
    let gone = Variant::of("tiny-bert-bin").with(ARCHIVE, archive(&members));
    insta::assert_snapshot!(gone.error(), @"MODEL: tensor `bert.embeddings.word_embeddings.weight`: expected 25184 values of type F32, found an unreadable tensor (specified file not found in archive)");
}

#[test]
fn code_in_a_checkpoint_is_not_executed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("executed");
    let (shell, python) = (format!("touch {}", trace.display()), format!("open({:?}, 'w')", trace.display()));
    for payload in [call("posix.system", &shell), call("os.system", &shell), call("builtins.eval", &python)] {
        let alone = Variant::of("tiny-bert-bin").with(ARCHIVE, archive_of_pickle(&payload));
        insta::allow_duplicates! {
            insta::assert_snapshot!(alone.error(), @"cannot read MODEL/pytorch_model.bin: it holds no tensors by name, and nothing else in it is read");
        }
        // In place of a tensor.
        let entry = [b"}X\x11\0\0\0classifier.weight".as_slice(), &payload, b"s"].concat();
        let tensor = Variant::of("tiny-bert-bin").with(ARCHIVE, archive_of_pickle(&entry));
        insta::allow_duplicates! {
            insta::assert_snapshot!(tensor.error(), @"cannot read MODEL/pytorch_model.bin: it holds no tensors by name, and nothing else in it is read");
        }
        // Beside the tensors of a good model, which still loads.
        let pickle = with_pickle(|pickle| {
            assert_eq!(pickle.pop(), Some(b'.'));
            pickle.extend([b"X\x01\0\0\0a".as_slice(), &payload, b"s."].concat());
        });
        let variant = Variant::of("tiny-bert-bin").with(ARCHIVE, pickle);
        assert_eq!(logits(&variant.load().unwrap()), golden_logits("tiny-bert"));
        assert!(!trace.exists(), "the checkpoint was executed");
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let bert = || Variant::of("tiny-bert");
    let distilbert = || Variant::of("tiny-distilbert");
    insta::assert_snapshot!(bert().without("vocab.txt").error(), @"model folder MODEL has no tokenizer.json and no vocab.txt; a model and its tokenizer are written into one folder by `save_pretrained` of transformers");
    let more = [bert().read("vocab.txt"), b"one\xe2\x80\xa6more\n".to_vec()].concat();
    insta::assert_snapshot!(bert().with("vocab.txt", more).error(), @"cannot read MODEL/vocab.txt: it knows 788 tokens, the encoder only 787 (`vocab_size` of config.json)");
    // As many tokens as embeddings, but one token has an id beyond them.
    let beyond = distilbert().with_json("tokenizer.json", |json| json["model"]["vocab"]["the"] = 5000.into());
    insta::assert_snapshot!(beyond.error(), @r#"cannot read MODEL/tokenizer.json: token "the" has the id 5000, beyond the 787 that the encoder knows (`vocab_size` of config.json)"#);
    let without = |token: &str| {
        let vocab = String::from_utf8(bert().read("vocab.txt")).unwrap().replace(&format!("{token}\n"), "x-x\n");
        bert().with("vocab.txt", vocab).error()
    };
    insta::assert_snapshot!(without("[CLS]"), @"cannot read MODEL/vocab.txt: the vocabulary has no special token [CLS]");
    insta::assert_snapshot!(without("[UNK]"), @"cannot read MODEL/vocab.txt: the vocabulary has no special token [UNK]");
    insta::assert_snapshot!(bert().with("vocab.txt", "").error(), @"cannot read MODEL/vocab.txt: the vocabulary has no special token [UNK]");
    insta::assert_snapshot!(bert().with("vocab.txt", b"[PAD]\n\xff\xfe\n").error(), @"cannot read MODEL/vocab.txt: stream did not contain valid UTF-8");
    insta::assert_snapshot!(bert().with("tokenizer_config.json", "{").error(), @"cannot read MODEL/tokenizer_config.json: not JSON: EOF while parsing an object at line 1 column 1");
    insta::assert_snapshot!(distilbert().with("tokenizer.json", "").error(), @"cannot read MODEL/tokenizer.json: EOF while parsing a value at line 1 column 0");
    insta::assert_snapshot!(distilbert().with("tokenizer.json", "{}").error(), @"cannot read MODEL/tokenizer.json: Model missing. at line 1 column 2");
    insta::assert_snapshot!(distilbert().with_only("tokenizer.json", 9000).error(), @"cannot read MODEL/tokenizer.json: EOF while parsing a value at line 511 column 5");
    insta::assert_snapshot!(distilbert().with_json("tokenizer.json", |json| json["model"]["type"] = "Magic".into()).error(), @"cannot read MODEL/tokenizer.json: data did not match any variant of untagged enum ModelUntagged at line 1 column 9001");
}

#[test]
fn weights_with_nan_or_infinity_give_no_scores() {
    for (name, weight) in [
        ("tiny-distilbert", "distilbert.transformer.layer.1.ffn.lin2.weight"),
        ("tiny-bert", "bert.encoder.layer.1.output.dense.weight"),
    ] {
        for broken in [f32::NAN, f32::INFINITY] {
            let spoil = |(tensor, values): (String, Tensor)| {
                let values = if tensor == weight { (values * f64::from(broken)).unwrap() } else { values };
                Some((tensor, values))
            };
            let variant = Variant::of(name).with_tensors(spoil);
            for precision in [PrecisionSetting::Auto, PrecisionSetting::Of(Precision::F32)] {
                let options = ScorerOptions { precision, ..ScorerOptions::default() };
                let scorer = Scorer::load(variant.folder(), options, &Pool::new(Some(1)).unwrap()).unwrap();
                assert_eq!(scorer.precision().to_string(), "f32", "the self-check of int16 passed");
                let column = TextColumn { name: "text".into(), values: std::iter::once(Some("A man.")).collect() };
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let error = runtime.block_on(scorer.score(Window::new(column, None))).unwrap_err().to_string();
                assert!(error.contains("no finite logits for 1 of them"), "{name}: {error}");
            }
        }
    }
}

#[test]
fn an_empty_head_or_invalid_norm_is_refused() {
    let tiny = || Variant::of("tiny-distilbert");
    let dim = tiny().tensors()["classifier.weight"].dim(1).unwrap();
    let empty = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let headless =
        tiny().with_tensor("classifier.weight", empty(&[0, dim])).with_tensor("classifier.bias", empty(&[0]));
    insta::assert_snapshot!(headless.without_config("id2label").error(), @"MODEL: tensor `classifier.weight`: expected shape [labels, dim], found [0, 32]");
    let bert = || Variant::of("tiny-bert");
    insta::assert_snapshot!(bert().with_config("layer_norm_eps", json!(-1)).error(), @"MODEL/config.json: key `layer_norm_eps`: expected a number from 0, below 1, found -1");
    insta::assert_snapshot!(bert().with_config("layer_norm_eps", json!("1e-5")).error(), @r#"MODEL/config.json: key `layer_norm_eps`: expected a number from 0, below 1, found "1e-5""#);
}

#[test]
fn a_post_processor_with_unknown_tokens_is_refused() {
    let with = |change: fn(&mut Value)| {
        Variant::of("tiny-distilbert").with_json("tokenizer.json", |json| change(&mut json["post_processor"])).error()
    };
    insta::assert_snapshot!(with(|processor| processor["pair"][2]["SpecialToken"]["id"] = "</s>".into()), @r#"cannot read MODEL/tokenizer.json: `post_processor`: the template `pair` puts the token "</s>", which `special_tokens` does not have"#);
    insta::assert_snapshot!(with(|processor| processor["single"][1]["Sequence"]["id"] = "B".into()), @"cannot read MODEL/tokenizer.json: `post_processor`: the template `single` puts a second text, where there is one only");
    insta::assert_snapshot!(with(|processor| processor["special_tokens"]["[SEP]"]["ids"] = json!([9000])), @r#"cannot read MODEL/tokenizer.json: token "[SEP]" has the id 9000, beyond the 787 that the encoder knows (`vocab_size` of config.json)"#);
    let nested = |processor: &mut Value| {
        processor["special_tokens"].as_object_mut().unwrap().remove("[CLS]");
        *processor = json!({"type": "Sequence", "processors": [processor.take()]});
    };
    insta::assert_snapshot!(with(nested), @r#"cannot read MODEL/tokenizer.json: `post_processor`: the template `single` puts the token "[CLS]", which `special_tokens` does not have"#);
    let other = json!({"type": "BertProcessing", "sep": ["[SEP]", 4_000_000_000_u32], "cls": ["[CLS]", 2]});
    let other = Variant::of("tiny-distilbert").with_json("tokenizer.json", |json| json["post_processor"] = other);
    insta::assert_snapshot!(other.error(), @r#"cannot read MODEL/tokenizer.json: token "[SEP]" has the id 4000000000, beyond the 787 that the encoder knows (`vocab_size` of config.json)"#);
}

#[test]
fn tokenizer_settings_are_checked() {
    let with = |key: &str, value: Value| {
        Variant::of("tiny-bert").with_json("tokenizer_config.json", |settings| settings[key] = value).error()
    };
    insta::assert_snapshot!(with("truncation_side", "middle".into()), @r#"MODEL/tokenizer_config.json: key `truncation_side`: expected "left" or "right", found "middle""#);
    insta::assert_snapshot!(with("do_lower_case", "yes".into()), @r#"MODEL/tokenizer_config.json: key `do_lower_case`: expected true or false, found "yes""#);
    insta::assert_snapshot!(with("cls_token", "<s>".into()), @"cannot read MODEL/vocab.txt: the vocabulary has no special token <s>");
}
