//! Fine-tuning jobs: they write a checkpoint that scores; the old model stays if the new one is not good enough;
//! invalid settings are refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use couplet::model::Model;
use couplet::train::finetune::{self, Calibrate, Promotion, Row};
use couplet::train::sampling::ClassWeights;
use couplet::train::statistics::evaluation::Evaluation;
use couplet::train::statistics::labels::GoldLabel;
use couplet::train::statistics::metrics::{Metric, measured};
use couplet::train::statistics::promotion::Condition;
use couplet::train::statistics::task::Task;
use couplet::train::statistics::threshold::Objective;
use couplet::train::training_loop::{Event, Interval, JobError, JobStatus, Outcome, Watch};
use couplet::train::{Hyper, Warmup};
use serde_json::Value;

use crate::support::golden;

pub const WORDS: [&str; 8] = ["said", "that", "with", "from", "company", "more", "percent", "about"];

pub fn text(seed: usize) -> String {
    (0..4 + seed % 9).map(|i| WORDS[(seed * 31 + i * i * 7 + seed / 3) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

/// Pairs labelled by whether the second text begins like the first.
pub fn rows(count: usize, seed: usize) -> Vec<Row> {
    let row = |i: usize| {
        let same = i.is_multiple_of(2);
        let first = text(i + seed);
        let start = first.split(' ').next().unwrap();
        let second = format!("{} {}", if same { start } else { "not" }, text(i * 3 + seed));
        let label = GoldLabel::Integer(i64::from(same));
        Row { number: i + 1, id: vec![i.to_string()], text: first, text_pair: Some(second), label }
    };
    (0..count).map(row).collect()
}

pub fn hyper() -> Hyper {
    Hyper {
        epochs: 3,
        batch_size: 8,
        learning_rate: 2e-3,
        max_length: 48,
        warmup: Warmup::Share(0.1),
        ..Hyper::default()
    }
}

/// Five steps per epoch, fifteen in all.
pub fn job(folder: &Path) -> finetune::Job {
    let mut job = finetune::Job::new(golden("tiny-distilbert"), folder.join("model"), Task::Mrpc);
    job.kind.training = rows(37, 0);
    job.kind.validation = rows(16, 100);
    job.hyper = hyper();
    job.interval = Interval::Steps(3);
    job
}

pub fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

pub fn run_watched(
    job: &finetune::Job,
    mut event: impl FnMut(&Event) + Send,
    cancelled: impl Fn() -> bool + Sync,
) -> Result<Outcome<finetune::Report>, JobError> {
    job.run(&Device::Cpu, &pool(), &mut Watch { event: &mut event, cancelled: &cancelled })
}

pub fn run(job: &finetune::Job) -> finetune::Report {
    match run_watched(job, |_| (), || false).unwrap() {
        Outcome::Finished(report) => report,
        other => panic!("{other:?}"),
    }
}

fn is_done(job: &finetune::Job) -> bool {
    job.status().unwrap() == Some(JobStatus::Done)
}

pub fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn leaves_a_checkpoint_that_scores() {
    let folder = tempfile::tempdir().unwrap();
    for base in ["tiny-distilbert", "tiny-bert"] {
        let mut job = job(folder.path());
        job.kind.base = golden(base);
        job.kind.calibrate = Calibrate::Threshold(Objective::parse("f1").unwrap());
        let report = run(&job);
        assert_eq!((&report.promotion, report.steps), (&Promotion::Published, 15));
        let model = Model::load(&job.output, &Device::Cpu).unwrap();
        assert_eq!(model.config.labels, ["not_equivalent", "equivalent"]);
        // The published weights give the metrics in the report.
        let accuracy = report.evaluation.unwrap().metrics.get(Metric::Accuracy).unwrap();
        let mut batch = couplet::model::PackedBatch::default();
        let tokenizer = model.tokenizer.with_max_length(48).unwrap();
        for row in &job.kind.validation {
            let encoding = tokenizer.encode(&row.text, row.text_pair.as_deref()).unwrap();
            batch.push(&encoding.input_ids, &encoding.token_type_ids);
        }
        let logits = model.forward(&batch).unwrap().to_vec2::<f32>().unwrap();
        let right = logits.iter().enumerate().filter(|(i, row)| (row[1] > row[0]) == (i % 2 == 0)).count();
        assert!((right as f64 / 16.0 - accuracy).abs() < 1e-9);
        let json = read_json(job.output.join("training.json"));
        assert_eq!(json["curve"]["loss"].as_array().unwrap().len(), 15);
        assert_eq!(json["epochs"].as_array().unwrap().len(), 3);
        assert_eq!(json["epochs"][2]["step"], 15);
        assert!(job.output.join("calibration.json").exists());
        let around = names(folder.path());
        assert!(around.iter().all(|name| name == "model" || name == "model.last"), "{around:?}");
    }
}

/// Objectives are parsed from text, as in pipelines.
#[test]
fn keeps_the_old_model_unless_the_new_one_passes() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    run(&job);
    let old = weights(&job.output);
    job.hyper.seed = 7;
    let metrics = measured(couplet::model::Problem::SingleLabel, Some(2));
    job.kind.promote_if = Some(Condition::parse("log_loss < 0.0001 and accuracy >= 0", &metrics).unwrap());
    let mut events = Vec::new();
    let outcome = run_watched(&job, |event| events.push(event.to_string()), || false).unwrap();
    let Outcome::Finished(report) = outcome else { panic!("interrupted") };
    let Promotion::Rejected { candidate, verdict } = &report.promotion else { panic!("{report:?}") };
    assert!(!verdict.holds && candidate == &job.candidate());
    assert!(events.iter().any(|event| event.starts_with("the old model stays, as log_loss < 0.0001 does not hold")));
    assert!(weights(&job.output) == old);
    Model::load(candidate, &Device::Cpu).unwrap();
    assert_eq!(read_json(candidate.join("training.json"))["promotion"]["published"], false);
    assert_eq!(job.status().unwrap(), Some(JobStatus::Rejected));
    job.kind.promote_if = Some(Condition::parse("accuracy >= 0", &metrics).unwrap());
    assert_eq!(job.status().unwrap(), Some(JobStatus::ToCalibrate), "another condition");
    let (refused, report) = (weights(candidate), run(&job));
    assert_eq!((report.promotion, report.trained), (Promotion::Published, false));
    assert!(weights(&job.output) != old && weights(&job.output) == refused, "a rejected model is not trained again");
    assert_eq!(read_json(job.output.join("training.json"))["promotion"], serde_json::json!({ "published": true }));
    // It is no longer a candidate.
    assert!(!candidate.exists());
    assert!(is_done(&job));
    job.hyper.seed = 8;
    assert_eq!(job.status().unwrap(), None);
}

#[test]
fn keeps_the_best_and_last_epochs_and_stops_early() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    // A learning rate so high that only the first epochs are good.
    job.hyper = Hyper { epochs: 40, learning_rate: 0.05, patience: Some(2), ..job.hyper };
    job.kind.metric = Some(Metric::LogLoss);
    let report = run(&job);
    let epochs = report.json["epochs"].as_array().unwrap();
    assert!(epochs.len() < 40);
    assert_eq!(epochs.len() as u64, report.epoch + 2);
    let losses: Vec<f64> = epochs.iter().map(|epoch| epoch["scores"]["log_loss"].as_f64().unwrap()).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(losses[report.epoch as usize - 1], best);
    assert_eq!(report.evaluation.unwrap().metrics.get(Metric::LogLoss), Some(best));
    assert!(weights(&job.last()) != weights(&job.output));
    Model::load(&job.last(), &Device::Cpu).unwrap();
}

#[test]
fn trains_regression_multilabel_and_multiclass_models() {
    let folder = tempfile::tempdir().unwrap();
    let with = |task: Task, label: fn(usize) -> GoldLabel| {
        let mut job = job(folder.path());
        job.kind.task = task;
        for rows in [&mut job.kind.training, &mut job.kind.validation] {
            for (i, row) in rows.iter_mut().enumerate() {
                row.label = label(i);
                row.text_pair = None;
            }
        }
        let report = run(&job);
        (Model::load(&job.output, &Device::Cpu).unwrap().config, report)
    };
    let (config, report) = with(Task::Regression, |i| GoldLabel::Float(i as f64 / 10.0));
    assert_eq!((config.problem, config.labels.len()), (couplet::model::Problem::Regression, 0));
    assert!(report.evaluation.unwrap().metrics.get(Metric::Pearson).is_some());
    let (config, _) = with(Task::Multilabel, |i| {
        GoldLabel::Texts(if i % 3 == 0 { vec!["x".into(), "y".into()] } else { vec!["y".into()] })
    });
    assert_eq!(
        (config.problem, &config.labels[..]),
        (couplet::model::Problem::MultiLabel, &["x".into(), "y".into()][..])
    );
    let (config, _) = with(Task::Classification, |i| GoldLabel::Text(["a", "b", "c"][i % 3].into()));
    assert_eq!(config.labels, ["a", "b", "c"]);
}

#[test]
fn trains_without_validation_rows_and_from_its_own_output() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    job.kind.validation.clear();
    job.kind.class_weights = ClassWeights::Balanced;
    job.kind.label_smoothing = 0.1;
    let report = run(&job);
    assert_eq!((report.epoch, report.evaluation), (3, None));
    let first = weights(&job.output);
    job.kind.base.clone_from(&job.output);
    run(&job);
    assert!(weights(&job.output) != first);
    assert_eq!(names(folder.path()), ["model"]);
}

#[test]
fn names_the_setting_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let error = |change: fn(&mut finetune::Job)| {
        let mut job = job(folder.path());
        change(&mut job);
        let error = run_watched(&job, |_| (), || false).unwrap_err().to_string();
        assert!(names(folder.path()).is_empty());
        error
    };
    assert_eq!(error(|job| job.hyper.batch_size = 0), "`batch_size`: expected 1 or more, found 0");
    assert_eq!(
        error(|job| job.hyper.max_length = 4000),
        "`max_length`: expected 3 to 512, the positions that the encoder has, found 4000"
    );
    assert!(error(|job| job.kind.training.clear()).contains("no training rows"));
    assert!(
        error(|job| job.kind.training[3].label = GoldLabel::Integer(7))
            .starts_with("training rows: row with id \"3\": label 7 is unknown")
    );
    assert!(
        error(|job| {
            job.kind.validation[3].label = GoldLabel::Null;
            job.kind.validation[3].id.clear();
            job.kind.validation[3].number = 38;
        })
        .starts_with("validation rows: row 38: label NULL is not a label")
    );
    assert_eq!(
        error(|job| {
            job.kind.calibrate = Calibrate::Threshold(Objective::F1);
            job.kind.validation.retain(|row| row.label == GoldLabel::Integer(1));
        }),
        "`calibrate`: expected validation rows of both labels, to find a threshold between them, found 8 rows, all of them \"equivalent\"; hold out more rows, or write `calibrate = true` for a temperature without a threshold"
    );
    assert_eq!(error(|job| job.hyper.epochs = u64::MAX), "`epochs`: expected 1 to 1000000, found 18446744073709551615");
    assert!(
        error(|job| job.kind.metric = Some(Metric::Pearson))
            .starts_with("`metric`: expected metrics that are measured here: accuracy")
    );
    assert!(
        error(|job| {
            job.kind.validation.clear();
            job.hyper.patience = Some(1);
        })
        .starts_with("`patience`: expected validation rows")
    );
    assert!(error(|job| job.kind.base = "/nowhere".into()).contains("/nowhere"));
}

#[test]
fn a_rejected_model_is_recalibrated_without_training_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    let metrics = measured(couplet::model::Problem::SingleLabel, Some(2));
    job.kind.promote_if = Some(Condition::parse("log_loss < 0.0001", &metrics).unwrap());
    let raw = run(&job);
    let refused = weights(&job.candidate());
    assert!(raw.trained && job.status().unwrap() == Some(JobStatus::Rejected));
    // The changed setting takes effect, although the model is rejected again.
    job.kind.calibrate = Calibrate::Temperature;
    assert_eq!(job.status().unwrap(), Some(JobStatus::ToCalibrate));
    let calibrated = run(&job);
    assert!(!calibrated.trained && job.candidate().join("calibration.json").exists());
    assert_eq!(job.status().unwrap(), Some(JobStatus::Rejected));
    assert!(weights(&job.candidate()) == refused);
    // The condition applies to the model that would be published, so after calibration, which lowers the log loss.
    let loss = |evaluation: Option<Evaluation>| evaluation.unwrap().metrics.get(Metric::LogLoss).unwrap();
    let (before, after) = (loss(raw.evaluation), loss(calibrated.calibrated));
    assert!(after < before, "{after} {before}");
    let between = format!("log_loss < {}", after.midpoint(before));
    job.kind.promote_if = Some(Condition::parse(&between, &metrics).unwrap());
    let promoted = run(&job);
    assert_eq!((promoted.promotion, promoted.trained), (Promotion::Published, false));
    assert!(weights(&job.output) == refused && !job.candidate().exists() && is_done(&job));
}

#[test]
fn a_training_state_left_after_publishing_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    run(&job);
    let state = job.output.with_file_name("model.training");
    assert!(!state.exists());
    // Simulates a kill between the two: recreates the training state of the same job, and stops.
    let published = folder.path().join("published");
    fs::rename(&job.output, &published).unwrap();
    let polls = AtomicUsize::new(0);
    let stopped = run_watched(&job, |_| (), || polls.fetch_add(1, Ordering::Relaxed) > 6);
    assert!(matches!(stopped, Ok(Outcome::Interrupted { .. })));
    fs::rename(&published, &job.output).unwrap();
    assert!(state.exists() && is_done(&job));
    job.hyper.seed += 1;
    job.clean().unwrap();
    assert!(state.exists(), "it is of another job");
    job.hyper.seed -= 1;
    job.clean().unwrap();
    assert!(!state.exists());
}

#[test]
fn foreign_files_are_not_taken_for_a_training_state() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let state = folder.path().join("model.training");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("best-recipes.txt"), "mine").unwrap();
    let refused = run_watched(&job, |_| (), || false).unwrap_err();
    assert!(refused.is_mistake() && refused.to_string().contains("model.training has `best-recipes.txt`"), "{refused}");
    assert_eq!(names(&state), ["best-recipes.txt"]);
    fs::remove_file(state.join("best-recipes.txt")).unwrap();
    // Files that appear during training stay.
    let bring = |event: &Event| {
        if let Event::Saved { folder, .. } = event {
            fs::write(folder.join("best-recipes.txt"), "mine").unwrap();
            fs::write(folder.join("notes.txt"), "mine").unwrap();
        }
    };
    assert!(matches!(run_watched(&job, bring, || false), Ok(Outcome::Finished(_))));
    assert_eq!(names(&state), ["best-recipes.txt", "notes.txt"]);
    assert!(is_done(&job));
}

#[test]
fn a_model_folder_with_foreign_files_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    run(&job);
    let before = weights(&job.output);
    fs::write(job.output.join("notes.txt"), "mine").unwrap();
    job.hyper.seed += 1;
    let refused = run_watched(&job, |_| (), || false).unwrap_err().to_string();
    assert!(refused.contains("it has `notes.txt`, which is no file of a model"), "{refused}");
    assert!(weights(&job.output) == before);
    assert_eq!(fs::read_to_string(job.output.join("notes.txt")).unwrap(), "mine");
    // Training is done when the file is gone.
    fs::remove_file(job.output.join("notes.txt")).unwrap();
    let mut steps = 0;
    run_watched(&job, |event| steps += u64::from(matches!(event, Event::Step { .. })), || false).unwrap();
    assert!(steps == 0 && weights(&job.output) != before, "{steps}");
}

#[test]
fn dropout_rates_come_from_the_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    let report = run(&job);
    let dropout = &report.json["settings"]["dropout"];
    assert_eq!(dropout["head"].as_f64().map(|rate| (rate * 1000.0).round()), Some(200.0), "{dropout}");
    let with = weights(&job.output);
    let base = crate::tiny::Variant::of("tiny-distilbert")
        .with_config("dropout", 0.0.into())
        .with_config("attention_dropout", 0.0.into())
        .with_config("seq_classif_dropout", 0.0.into());
    job.kind.base = base.folder().into();
    let report = run(&job);
    assert_eq!(report.json["settings"]["dropout"]["head"], 0.0);
    assert!(weights(&job.output) != with);
    let base = base.with_config("dropout", 1.5.into());
    job.kind.base = base.folder().into();
    let refused = run_watched(&job, |_| (), || false).unwrap_err().to_string();
    assert!(refused.contains("key `dropout`: expected a number from 0, below 1, found 1.5"), "{refused}");
}

#[test]
fn rows_on_both_sides_of_the_split_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    job.hyper.epochs = 1;
    for (i, row) in job.kind.validation.iter_mut().enumerate() {
        row.text = format!("held out {i}");
    }
    assert_eq!(job.overlapping_rows(), 0);
    // Two held-out rows have the texts of two equal training rows, and count as two shared rows.
    job.kind.validation[3] = job.kind.training[5].clone();
    job.kind.validation[4] = Row { id: vec!["another".into()], ..job.kind.training[5].clone() };
    job.kind.training.push(job.kind.training[5].clone());
    // The texts in reverse order are another pair.
    let Row { text, text_pair, .. } = job.kind.training[6].clone();
    job.kind.validation[7].text = text_pair.unwrap();
    job.kind.validation[7].text_pair = Some(text);
    assert_eq!(job.overlapping_rows(), 2);
    let mut message = Vec::new();
    let note = |event: &Event| {
        if event.is_warning() {
            message.push(event.to_string());
        }
    };
    let Outcome::Finished(report) = run_watched(&job, note, || false).unwrap() else { panic!("interrupted") };
    assert_eq!(report.json["rows"]["validation_in_training"], 2);
    assert_eq!(message.len(), 1);
    assert!(message[0].starts_with("2 of 16 held-out rows have texts that are also training texts"), "{message:?}");
}
