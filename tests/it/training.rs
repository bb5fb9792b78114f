//! Training: bit-identical for any number of threads and after a resume, equal up to rounding for any micro-batch size;
//! it writes a valid checkpoint and refuses invalid input.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use couplet::model::{BERT, DISTILBERT, Family, Model, ModelConfig, PackedBatch};
use couplet::ops::{Kernels, Rates};
use couplet::train::{AdamW, Example, Objective, Options, Schedule, Target, TrainError, Trainer};

use crate::support::golden;
use crate::tiny::{Variant, WEIGHTS};

const LABELS: Objective = Objective::Classification { labels: 3, class_weights: None, label_smoothing: 0.0 };

/// Examples whose label is determined by one of their words.
fn examples(count: usize) -> Vec<Example> {
    (0..count as u32)
        .map(|e| {
            let tokens = 2 + e * 7 % 23;
            let mut input_ids: Vec<u32> = (0..tokens).map(|t| 10 + (t * 31 + e * 17) % 500).collect();
            input_ids[tokens as usize / 2] = 600 + e % 3;
            let token_type_ids = (0..tokens).map(|t| u32::from(2 * t > tokens)).collect();
            Example { input_ids, token_type_ids, target: Target::Label(e as usize % 3) }
        })
        .collect()
}

/// The examples with one word in three masked.
fn masked(count: usize) -> Vec<Example> {
    let hide = |mut example: Example| {
        let places = (1..example.input_ids.len()).step_by(3);
        let words = places.map(|at| (at as u32, std::mem::replace(&mut example.input_ids[at], 4))).collect();
        Example { target: Target::Words(words), ..example }
    };
    examples(count).into_iter().map(hide).collect()
}

fn options() -> Options {
    let adamw = AdamW { weight_decay: 0.01, ..AdamW::default() };
    Options { adamw, schedule: Schedule::constant(1e-3), micro_batch_tokens: 64, ..Options::default() }
}

fn trainer_with(model: &str, objective: Objective, options: Options, kernels: Kernels) -> Trainer {
    Trainer::from_checkpoint_with(&golden(model), objective, options, &Device::Cpu, kernels).unwrap()
}

fn trainer(model: &str, objective: Objective, options: Options) -> Trainer {
    trainer_with(model, objective, options, Kernels::for_training(&Device::Cpu))
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Weights and moments, bit for bit.
fn bits(trainer: &Trainer) -> Vec<(String, Vec<u32>)> {
    let state = trainer.state().unwrap().into_iter().filter(|(name, _)| name != "optimizer.steps");
    state.map(|(name, x)| (name, values(&x).into_iter().map(f32::to_bits).collect())).collect()
}

fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for (model, objective, batch) in [
        ("tiny-bert", LABELS, examples(24)),
        ("tiny-distilbert", LABELS, examples(24)),
        ("tiny-bert", Objective::MaskedWords, masked(24)),
    ] {
        let runs = [1, 2, 2, 3].map(|threads| {
            with_threads(threads, || {
                let mut trainer = trainer(model, objective.clone(), options());
                let steps: Vec<_> = (0..3).map(|_| trainer.step(&batch).unwrap()).collect();
                (steps, bits(&trainer))
            })
        });
        for run in &runs[1..] {
            assert!(*run == runs[0], "{model}, {objective:?}");
        }
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let batch = examples(24);
    let mut whole = trainer("tiny-distilbert", LABELS, options());
    for _ in 0..3 {
        whole.step(&batch).unwrap();
    }
    let state: HashMap<String, Tensor> = whole.state().unwrap().into_iter().collect();
    candle_core::safetensors::save(&state, &path).unwrap();
    let mut resumed = trainer("tiny-distilbert", LABELS, options());
    resumed.restore(&candle_core::safetensors::load(&path, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(resumed.steps(), 3);
    for _ in 0..3 {
        assert_eq!(whole.step(&batch).unwrap(), resumed.step(&batch).unwrap());
    }
    assert!(bits(&whole) == bits(&resumed));
}

#[test]
fn dropout_depends_only_on_the_seed() {
    let losses = [1, 1, 2].map(|seed| {
        let mut trainer = trainer("tiny-bert", LABELS, Options { seed, ..options() });
        trainer.step(&examples(24)).unwrap().loss
    });
    assert!(losses[0] == losses[1] && losses[0] != losses[2], "{losses:?}");
}

/// The gradient of a batch, with dropout.
fn gradient(mut trainer: Trainer, batch: &[Example]) -> Vec<(String, Vec<f32>)> {
    let (_, gradients) = trainer.gradients(batch).unwrap();
    gradients.into_iter().map(|(name, x)| (name, values(&x))).collect()
}

fn largest_error(ours: &[(String, Vec<f32>)], theirs: &[(String, Vec<f32>)]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let whole = norm(&mut theirs.iter().flat_map(|(_, x)| x.iter().copied()));
    let errors = ours.iter().zip(theirs).map(|((a, x), (b, y))| {
        assert_eq!((a, x.len()), (b, y.len()));
        norm(&mut x.iter().zip(y).map(|(x, y)| x - y)) / (norm(&mut y.iter().copied()) + 1e-2 * whole)
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn the_fused_kernels_and_the_reference_drop_the_same_values() {
    for (model, objective, batch) in [
        ("tiny-bert", LABELS, examples(9)),
        ("tiny-distilbert", LABELS, examples(9)),
        ("tiny-distilbert", Objective::MaskedWords, masked(9)),
    ] {
        let [fused, reference] = [Kernels::for_training(&Device::Cpu), Kernels::reference(DType::F32)]
            .map(|kernels| gradient(trainer_with(model, objective.clone(), options(), kernels), &batch));
        let error = largest_error(&fused, &reference);
        assert!(error < 1e-5, "{model}, {objective:?}: {error}");
    }
}

#[test]
fn the_micro_batch_size_changes_only_rounding() {
    let weighted =
        Objective::Classification { labels: 3, class_weights: Some(vec![0.2, 1.0, 3.0]), label_smoothing: 0.1 };
    for (objective, batch) in [(weighted, examples(40)), (Objective::MaskedWords, masked(40))] {
        let of = |micro_batch_tokens, lanes| {
            let options = Options { micro_batch_tokens, lanes, ..options() };
            gradient(trainer("tiny-distilbert", objective.clone(), options), &batch)
        };
        let whole = of(10_000, 1);
        for (tokens, lanes) in [(1, 1), (50, 3), (200, 4)] {
            let error = largest_error(&of(tokens, lanes), &whole);
            assert!(error < 1e-5, "{objective:?}, {tokens} tokens: {error}");
        }
    }
}

#[test]
fn a_model_learns_a_label_from_one_word() {
    for model in ["tiny-bert", "tiny-distilbert"] {
        let options = Options { schedule: Schedule::constant(3e-3), ..options() };
        let mut trainer = trainer(model, LABELS, options);
        let (train, test) = (examples(240), examples(300).split_off(240));
        let before = trainer.loss(&test).unwrap();
        for batch in train.chunks(24).cycle().take(150) {
            trainer.step(batch).unwrap();
        }
        let after = trainer.loss(&test).unwrap();
        assert!(after < 0.1 && after < before / 5.0, "{model}: loss {before} before, {after} after");
        let logits = trainer.logits(&test).unwrap();
        let right = logits.iter().zip(&test).filter(|(logits, example)| {
            let Target::Label(label) = example.target else { panic!() };
            logits.iter().all(|x| *x <= logits[label])
        });
        assert!(right.count() >= 57, "{model}");
    }
}

fn tiny_config(family: &Family) -> ModelConfig {
    let mut config = Model::load(&golden(&format!("tiny-{}", family.model_type)), &Device::Cpu).unwrap().config;
    config.max_position_embeddings = 64;
    config.dropout = Rates::NONE;
    config
}

#[test]
fn a_random_encoder_learns_to_predict_words() {
    for family in [&BERT, &DISTILBERT] {
        let options = Options { schedule: Schedule::constant(3e-3), ..options() };
        let mut trainer =
            Trainer::from_config(tiny_config(family), Objective::MaskedWords, options, &Device::Cpu).unwrap();
        let batch = masked(48);
        let before = trainer.masked_words(&batch).unwrap();
        // Each of the 787 words is equally likely.
        assert!((before.loss - 787f64.ln()).abs() < 0.2 && before.words > 100, "{before:?}");
        for _ in 0..40 {
            trainer.step(&batch).unwrap();
        }
        let after = trainer.masked_words(&batch).unwrap();
        assert!(after.loss < 5.5 && after.correct > before.correct, "{}: {before:?}, {after:?}", family.name);
        assert!((after.loss - trainer.loss(&batch).unwrap()).abs() < 1e-6);
    }
}

#[test]
fn random_weights_are_drawn_from_the_seed() {
    let draw = |seed| {
        let options = Options { seed, ..options() };
        let trainer = Trainer::from_config(tiny_config(&BERT), LABELS, options, &Device::Cpu).unwrap();
        bits(&trainer)
    };
    assert!(draw(1) == draw(1) && draw(1) != draw(2));
    let trainer = Trainer::from_config(tiny_config(&BERT), LABELS, options(), &Device::Cpu).unwrap();
    for (name, x) in trainer.tensors().unwrap() {
        let x = values(&x);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let deviation = (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / x.len() as f32).sqrt();
        let (expected_mean, expected_deviation) = match &*name {
            name if name.ends_with(".bias") => (0.0, 0.0),
            name if name.contains("LayerNorm") => (1.0, 0.0),
            _ => (0.0, 0.02),
        };
        let tolerance = 0.1 / (x.len() as f32).sqrt();
        assert!((mean - expected_mean).abs() < tolerance, "{name}: mean {mean}");
        assert!((deviation - expected_deviation).abs() < tolerance, "{name}: deviation {deviation}");
    }
}

fn logits(folder: &Path, examples: &[Example]) -> Vec<Vec<f32>> {
    let mut batch = PackedBatch::default();
    for example in examples {
        batch.push(&example.input_ids, &example.token_type_ids);
    }
    Model::load(folder, &Device::Cpu).unwrap().forward(&batch).unwrap().to_vec2().unwrap()
}

#[test]
fn a_trained_model_scores_the_same_after_saving_and_loading() {
    for (model, labels) in [("tiny-bert", 3), ("tiny-distilbert", 2)] {
        let objective = Objective::Classification { labels, class_weights: None, label_smoothing: 0.0 };
        let mut trainer = trainer(model, objective, options());
        let batch: Vec<Example> = examples(24).into_iter().map(|e| Example { target: Target::Label(0), ..e }).collect();
        // Loading and saving lose nothing.
        let close = |ours: Vec<Vec<f32>>, theirs: Vec<Vec<f32>>| {
            let pairs = ours.concat().into_iter().zip(theirs.concat());
            pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) < 1e-6
        };
        assert!(close(trainer.logits(&batch).unwrap(), logits(&golden(model), &batch)), "{model}");
        trainer.step(&batch).unwrap();
        let checkpoint = Variant::of(model);
        let tensors: HashMap<String, Tensor> = trainer.tensors().unwrap().into_iter().collect();
        let names = |tensors: &HashMap<String, Tensor>| {
            let mut names: Vec<String> = tensors.keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(&tensors), names(&checkpoint.tensors()), "{model}");
        candle_core::safetensors::save(&tensors, checkpoint.path(WEIGHTS)).unwrap();
        assert!(close(trainer.logits(&batch).unwrap(), logits(checkpoint.folder(), &batch)), "{model}");
    }
}

#[test]
fn invalid_examples_are_refused_and_change_no_weights() {
    let mut trainer = trainer("tiny-bert", LABELS, options());
    let before = bits(&trainer);
    let good = examples(4);
    let bad = |change: fn(&mut Example)| {
        let mut batch = good.clone();
        change(&mut batch[2]);
        batch
    };
    for (batch, expected) in [
        (bad(|e| e.target = Target::Label(3)), "example 2 of the batch: target Label(3) does not fit"),
        (bad(|e| e.target = Target::Value(0.0)), "example 2 of the batch: target Value(0.0) does not fit"),
        (bad(|e| e.input_ids.clear()), "example 2 of the batch: 0 tokens; expected 1 to 512"),
        (bad(|e| e.input_ids[0] = 787), "id 787 is not in an embedding table of 787"),
        (Vec::new(), "a batch without a target to train on: 0 examples"),
    ] {
        let error = trainer.step(&batch).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(bits(&trainer) == before, "{expected}");
    }
    assert_eq!(trainer.steps(), 0);
    // No gradients are kept of the examples before the refused one: the shortest is processed last.
    let mut broken = good.clone();
    broken[0].input_ids[0] = 787;
    let mut gradients = |batch: &[Example]| -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(trainer.gradients(batch)?.1.iter().map(|(_, x)| values(x)).collect())
    };
    let expected = gradients(&good).unwrap();
    assert!(gradients(&broken).is_err());
    assert!(gradients(&good).unwrap() == expected);
    assert!(trainer.step(&good).is_ok());
    let wrong = HashMap::from([("optimizer.steps".to_owned(), Tensor::new(&[1i64], &Device::Cpu).unwrap())]);
    let error = trainer.restore(&wrong).unwrap_err().to_string();
    assert!(error.starts_with("saved tensor `optimizer.mean."), "{error}");
}

#[test]
fn a_diverging_training_stops_before_it_ruins_the_weights() {
    let mut trainer = trainer("tiny-distilbert", LABELS, Options { schedule: Schedule::constant(1e30), ..options() });
    let batch = examples(8);
    let error = (0..20).find_map(|_| trainer.step(&batch).err()).unwrap();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    let begins = format!("training diverged at step {}: loss ", trainer.steps() + 1);
    assert!(error.to_string().starts_with(&begins), "{begins} does not begin {error}");
}

#[test]
fn invalid_options_are_errors() {
    let dropout = Some(Rates { head: 1.0, ..Rates::BERT });
    let weights = Objective::Classification { labels: 3, class_weights: Some(vec![1.0]), label_smoothing: 0.0 };
    for (objective, options, expected) in [
        (LABELS, Options { lanes: 0, ..options() }, "`lanes`: expected 1 or more, found 0"),
        (LABELS, Options { dropout, ..options() }, "`dropout`: expected rates from 0 to below 1, found 1"),
        (weights, options(), "`class_weights`: expected 3 numbers from 0, found [1.0]"),
    ] {
        let error = Trainer::from_checkpoint(&golden("tiny-bert"), objective, options, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
