//! Losses, gradients of every parameter, and ten training steps, compared with PyTorch.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use couplet::ops::{Kernels, Rates};
use couplet::train::{AdamW, Example, Objective, Options, Schedule, Shape, Target, Trainer};
use serde_json::Value;

use crate::support::golden;
use crate::tiny::Variant;

/// The largest error of a gradient, relative to its norm.
const ROUNDING: f64 = 1e-5;
/// The largest error relative to the gradient of the whole network. Some gradients, such as those of key biases, are 0
/// except for rounding.
const NOTHING: f64 = 1e-7;

fn document() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden("gradients.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

fn objective(name: &str) -> Objective {
    let classification =
        |class_weights, label_smoothing| Objective::Classification { labels: 3, class_weights, label_smoothing };
    match name {
        "classification" => classification(None, 0.0),
        "weighted_smoothed" => classification(Some(vec![0.5, 2.0, 1.25]), 0.1),
        "regression" => Objective::Regression,
        "multi_label" => Objective::MultiLabel { labels: 3 },
        "masked_words" => Objective::MaskedWords,
        _ => panic!("{name}"),
    }
}

fn examples(document: &Value, objective: &Objective) -> Vec<Example> {
    let example = |json: &Value| Example {
        input_ids: ids(&json["input_ids"]),
        token_type_ids: ids(&json["token_type_ids"]),
        target: match objective {
            Objective::Classification { .. } => Target::Label(json["label"].as_u64().unwrap() as usize),
            Objective::Regression => Target::Value(json["value"].as_f64().unwrap() as f32),
            Objective::MultiLabel { .. } => {
                Target::Labels(numbers(&json["labels"]).into_iter().map(|x| x as f32).collect())
            }
            Objective::MaskedWords => Target::Words(
                json["words"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|word| {
                        let word = ids(word);
                        (word[0], word[1])
                    })
                    .collect(),
            ),
        },
    };
    document["examples"].as_array().unwrap().iter().map(example).collect()
}

/// `formula` of `make_gradients.py`.
fn formula(name: &str, shape: &[usize]) -> Tensor {
    let is_scale = name.to_lowercase().contains("norm") && name.ends_with("weight");
    let value = |i: usize| {
        let wave = 0.2 * (0.37 * (i as f64) * (i as f64) + name.len() as f64).sin();
        (wave as f32) + if is_scale { 1.0 } else { 0.0 }
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The tiny checkpoint with the heads that the goldens were made with.
fn checkpoint(model: &str, outputs: usize) -> Variant {
    let mut heads: Vec<(&str, Vec<usize>)> =
        vec![("classifier.weight", vec![outputs, 32]), ("classifier.bias", vec![outputs])];
    heads.extend(match model {
        "tiny-bert" => vec![
            ("cls.predictions.transform.dense.weight", vec![32, 32]),
            ("cls.predictions.transform.dense.bias", vec![32]),
            ("cls.predictions.transform.LayerNorm.weight", vec![32]),
            ("cls.predictions.transform.LayerNorm.bias", vec![32]),
            ("cls.predictions.bias", vec![787]),
        ],
        _ => vec![
            ("vocab_transform.weight", vec![32, 32]),
            ("vocab_transform.bias", vec![32]),
            ("vocab_layer_norm.weight", vec![32]),
            ("vocab_layer_norm.bias", vec![32]),
            ("vocab_projector.bias", vec![787]),
        ],
    });
    let variant = Variant::of(model);
    let mut tensors = variant.tensors();
    tensors.extend(heads.into_iter().map(|(name, shape)| (name.to_owned(), formula(name, &shape))));
    candle_core::safetensors::save(&tensors, variant.path("model.safetensors")).unwrap();
    variant
}

/// Without dropout, so that the results can be compared.
fn options() -> Options {
    Options { dropout: Some(Rates::NONE), micro_batch_tokens: 30, lanes: 2, ..Options::default() }
}

fn trainer(model: &str, objective: &Objective, options: Options, kernels: Kernels) -> Trainer {
    let outputs = if *objective == Objective::Regression { 1 } else { 3 };
    let checkpoint = checkpoint(model, outputs);
    Trainer::from_checkpoint_with(checkpoint.folder(), objective.clone(), options, &Device::Cpu, kernels).unwrap()
}

fn both() -> [(&'static str, Kernels); 2] {
    [("fused", Kernels::for_training(&Device::Cpu)), ("reference", Kernels::reference(DType::F32))]
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn norm(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `sketch` of `make_gradients.py`.
fn sketch(x: &Tensor) -> [f64; 3] {
    let x = values(x);
    let dot = |wave: fn(f64) -> f64| x.iter().enumerate().map(|(i, x)| x * wave(i as f64)).sum();
    [norm(x.iter().copied()), dot(|i| (i + 1.0).sin()), dot(|i| (1.7 * i).cos())]
}

#[test]
fn losses_and_gradients_match_pytorch() {
    let document = document();
    let golden_tensors = candle_core::safetensors::load(golden("gradients.safetensors"), &Device::Cpu).unwrap();
    for case in document["cases"].as_array().unwrap() {
        let (model, name) = (case["model"].as_str().unwrap(), case["objective"].as_str().unwrap());
        let objective = objective(name);
        let batch = examples(&document, &objective);
        let sketches = case["gradients"].as_object().unwrap();
        let whole = norm(sketches.values().map(|sketch| numbers(sketch)[0]));
        for (kernels_name, kernels) in both() {
            let what = format!("{kernels_name}, {model}, {name}");
            let (loss, gradients) = trainer(model, &objective, options(), kernels).gradients(&batch).unwrap();
            let expected = case["loss"].as_f64().unwrap();
            assert!((loss - expected).abs() < 1e-6 * (1.0 + expected), "{what}: loss {loss} for {expected}");
            assert_eq!(gradients.len(), sketches.len(), "{what}");
            let mut worst = 0f64;
            for (parameter, gradient) in &gradients {
                let expected = numbers(&sketches[parameter]);
                let tolerance = ROUNDING * expected[0] + NOTHING * whole;
                for (x, y) in sketch(gradient).into_iter().zip(&expected) {
                    // A dot product with a wave accumulates errors that the norm does not show.
                    assert!(
                        (x - y).abs() < 3.0 * tolerance,
                        "{what}: {parameter}: {x} for {y} of norm {}",
                        expected[0]
                    );
                }
                if let Some(golden) = golden_tensors.get(&format!("{model}/{name}/{parameter}")) {
                    let (x, y) = (values(gradient), values(golden));
                    let difference = norm(x.iter().zip(y.iter().chain(std::iter::repeat(&0.0))).map(|(x, y)| x - y));
                    assert!(difference < tolerance, "{what}: {parameter}: off by {difference} of {}", expected[0]);
                    if expected[0] > 1e-4 * whole {
                        worst = worst.max(difference / expected[0]);
                    }
                }
            }
            println!("{what}: largest relative error {worst:.1e}");
        }
    }
}

#[test]
fn ten_training_steps_match_pytorch() {
    let document = document();
    let batch = examples(&document, &objective("classification"));
    for trajectory in document["trajectories"].as_array().unwrap() {
        let model = trajectory["model"].as_str().unwrap();
        let shape = match trajectory["schedule"].as_str().unwrap() {
            "linear" => Shape::Linear,
            _ => Shape::Cosine,
        };
        for (kernels_name, kernels) in both() {
            let what = format!("{kernels_name}, {model}, {shape:?}");
            let options = Options {
                adamw: AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 },
                schedule: Schedule { peak: 1e-3, warmup_steps: 3, total_steps: 10, shape },
                max_grad_norm: Some(0.5),
                ..options()
            };
            let mut trainer = trainer(model, &objective("classification"), options, kernels);
            let before: HashMap<String, Tensor> = trainer.tensors().unwrap().into_iter().collect();
            for (step, expected) in trajectory["steps"].as_array().unwrap().iter().enumerate() {
                let examples: Vec<Example> = (0..5).map(|e| batch[(step + e) % batch.len()].clone()).collect();
                let done = trainer.step(&examples).unwrap();
                let expected = numbers(expected);
                for (x, y) in [done.loss, done.grad_norm, done.learning_rate].into_iter().zip(&expected) {
                    assert!((x - y).abs() < 2e-5 * y.abs() + 1e-12, "{what}: {x} for {y} in step {step}");
                }
            }
            for (name, after) in trainer.tensors().unwrap() {
                // Their gradient is 0 except for rounding, which Adam amplifies.
                if name.ends_with("key.bias") || name.ends_with("k_lin.bias") {
                    continue;
                }
                let change = sketch(&(after - &before[&name]).unwrap());
                let expected = numbers(&trajectory["changes"][&name]);
                for (x, y) in change.into_iter().zip(&expected) {
                    assert!((x - y).abs() < 2e-3 * expected[0], "{what}: {name}: {x} for {y} of norm {}", expected[0]);
                }
            }
        }
    }
}
