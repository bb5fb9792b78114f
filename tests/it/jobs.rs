//! Training jobs: what they leave is a checkpoint; a run that was ended anywhere goes on to the same bytes; an old
//! model stays where the new one is not good enough; settings that make no sense are refused.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::Device;
use couplet::model::{Form, Model, import};
use couplet::train::course::{Event, Interval, JobError, Outcome, Watch};
use couplet::train::finetune::{self, Calibrate, Promotion, Row};
use couplet::train::labels::GoldLabel;
use couplet::train::metrics::{Metric, measured};
use couplet::train::promotion::Condition;
use couplet::train::sampling::{ClassWeights, HoldOut};
use couplet::train::task::Task;
use couplet::train::{Hyper, Warmup, pretrain};
use serde_json::Value;

use crate::support::golden;

const WORDS: [&str; 8] = ["said", "that", "with", "from", "company", "more", "percent", "about"];

fn text(seed: usize) -> String {
    (0..4 + seed % 9).map(|i| WORDS[(seed * 31 + i * i * 7 + seed / 3) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

/// Pairs whose label is whether the second begins like the first.
fn rows(count: usize, seed: usize) -> Vec<Row> {
    let row = |i: usize| {
        let same = i % 2 == 0;
        let first = text(i + seed);
        let start = first.split(' ').next().unwrap();
        let second = format!("{} {}", if same { start } else { "not" }, text(i * 3 + seed));
        let label = GoldLabel::Integer(i64::from(same));
        Row { id: vec![i.to_string()], text: first, text_pair: Some(second), label }
    };
    (0..count).map(row).collect()
}

fn hyper() -> Hyper {
    Hyper {
        epochs: 3,
        batch_size: 8,
        learning_rate: 2e-3,
        max_length: 48,
        warmup: Warmup::Share(0.1),
        ..Hyper::default()
    }
}

/// Five steps an epoch, fifteen in all.
fn job(folder: &Path) -> finetune::Job {
    let mut job = finetune::Job::new(golden("tiny-distilbert"), folder.join("model"), Task::Mrpc);
    job.training = rows(37, 0);
    job.validation = rows(16, 100);
    job.hyper = hyper();
    job.interval = Interval::Steps(3);
    job
}

fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

fn run_watched(
    job: &finetune::Job,
    mut event: impl FnMut(&Event) + Send,
    cancelled: impl Fn() -> bool + Sync,
) -> Result<Outcome<finetune::Report>, JobError> {
    finetune::run(job, &Device::Cpu, &pool(), &mut Watch { event: &mut event, cancelled: &cancelled })
}

fn run(job: &finetune::Job) -> finetune::Report {
    match run_watched(job, |_| (), || false).unwrap() {
        Outcome::Finished(report) => report,
        other => panic!("{other:?}"),
    }
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn leaves_a_checkpoint_that_scores() {
    let folder = tempfile::tempdir().unwrap();
    for base in ["tiny-distilbert", "tiny-bert"] {
        let mut job = job(folder.path());
        job.base = golden(base);
        job.calibrate = Calibrate::Threshold("f1".parse_objective());
        let report = run(&job);
        assert_eq!((&report.promotion, report.steps), (&Promotion::Published, 15));
        let model = Model::load(&job.output, &Device::Cpu).unwrap();
        assert_eq!(model.config.labels, ["not_equivalent", "equivalent"]);
        // The published weights give the metrics that the report says.
        let accuracy = report.evaluation.unwrap().metrics.get(Metric::Accuracy).unwrap();
        let mut batch = couplet::model::PackedBatch::default();
        let tokenizer = model.tokenizer.with_max_length(48).unwrap();
        for row in &job.validation {
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

/// Objectives are read from text, as pipelines have them.
trait ParseObjective {
    fn parse_objective(&self) -> couplet::train::threshold::Objective;
}
impl ParseObjective for str {
    fn parse_objective(&self) -> couplet::train::threshold::Objective {
        couplet::train::threshold::Objective::parse(self).unwrap()
    }
}

#[test]
fn goes_on_to_the_same_bytes_wherever_it_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    let curve = run(&undisturbed).json["curve"].clone();
    let expected = weights(&undisturbed.output);
    for stop in [0, 1, 3, 4, 5, 7, 12, 14] {
        let job = job(&folder.path().join(stop.to_string()));
        let steps = std::sync::atomic::AtomicU64::new(0);
        let count = |event: &Event| {
            if let Event::Step { step, .. } = event {
                steps.store(*step, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let outcome = run_watched(&job, count, || steps.load(std::sync::atomic::Ordering::Relaxed) == stop).unwrap();
        assert!(matches!(outcome, Outcome::Interrupted { step, total_steps: 15, .. } if step == stop), "{outcome:?}");
        assert!(!job.output.exists());
        let mut resumed = None;
        let note = |event: &Event| {
            if let Event::Resumed { step, .. } = event {
                resumed = Some(*step);
            }
        };
        let Outcome::Finished(report) = run_watched(&job, note, || false).unwrap() else { panic!("interrupted") };
        assert_eq!(resumed, Some(stop));
        assert!(weights(&job.output) == expected, "after step {stop}");
        assert_eq!(report.json["curve"], curve);
        assert!(!folder.path().join(stop.to_string()).join("model.training").exists());
    }
}

#[test]
fn goes_on_to_the_same_bytes_after_a_kill_between_any_two_events() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    let mut events = 0;
    run_watched(&undisturbed, |_| events += 1, || false).unwrap();
    let expected = weights(&undisturbed.output);
    let killed = job(&folder.path().join("killed"));
    // Every run gets one event further than the one before: between two saves, right before one and right after one.
    let mut kills = 0;
    for stop in 1..=events {
        let mut seen = 0;
        let die = |_: &Event| {
            seen += 1;
            assert!(seen < stop, "killed");
        };
        // A panic leaves the files as a kill would.
        let ended = catch_unwind(AssertUnwindSafe(|| run_watched(&killed, die, || false)));
        kills += usize::from(ended.is_err());
        if ended.is_ok_and(|outcome| outcome.is_ok()) {
            break;
        }
    }
    run(&killed);
    assert!(kills > 5);
    assert!(weights(&killed.output) == expected);
}

/// Runs as a child of the next test.
#[test]
#[ignore = "it is the child of `goes_on_to_the_same_bytes_after_sigkill`"]
fn child_that_is_killed() {
    run(&job(Path::new(&std::env::var("COUPLET_TEST_JOB").unwrap())));
}

#[test]
fn goes_on_to_the_same_bytes_after_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    run(&undisturbed);
    let killed = job(&folder.path().join("killed"));
    let mut kills = 0;
    for attempt in 0..60 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "jobs::child_that_is_killed"])
            .env("COUPLET_TEST_JOB", folder.path().join("killed"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Later and later, so that it is killed at other places and gets to the end at last.
        std::thread::sleep(std::time::Duration::from_millis(20 + 7 * attempt));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // What is there is whole.
        if killed.output.exists() {
            assert!(weights(&killed.output) == weights(&undisturbed.output));
        }
    }
    run(&killed);
    assert!(kills > 0);
    assert!(weights(&killed.output) == weights(&undisturbed.output));
    assert_eq!(names(&folder.path().join("killed")), names(&folder.path().join("undisturbed")));
}

#[test]
fn one_seed_gives_one_model_and_another_seed_another() {
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, seed: u64, threads: usize| {
        let mut job = job(&folder.path().join(name));
        job.hyper.seed = seed;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        finetune::run(&job, &Device::Cpu, &pool, &mut Watch { event: &mut |_| (), cancelled: &|| false }).unwrap();
        weights(&job.output)
    };
    let one = model("one", 1, 1);
    assert!(one == model("again", 1, 3));
    assert!(one != model("two", 2, 1));
}

#[test]
fn ignores_the_state_of_another_job_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = job(&folder.path().join("undisturbed"));
    run(&undisturbed);
    let mut other = job(folder.path());
    other.hyper.learning_rate = 1e-3;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let after_step = |event: &Event| {
        stop.fetch_or(matches!(event, Event::Step { .. }), std::sync::atomic::Ordering::Relaxed);
    };
    run_watched(&other, after_step, || stop.load(std::sync::atomic::Ordering::Relaxed)).unwrap();
    let mut said = String::new();
    let note = |event: &Event| {
        if let Event::StateIgnored { .. } = event {
            said = event.to_string();
        }
    };
    run_watched(&job(folder.path()), note, || false).unwrap();
    assert!(said.contains("other settings"), "{said}");
    assert!(weights(&folder.path().join("model")) == weights(&undisturbed.output));
}

#[test]
fn refuses_to_train_for_one_output_twice_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let mut second = None;
    let inner = |event: &Event| {
        if second.is_none() && matches!(event, Event::Step { .. }) {
            second = Some(run_watched(&job, |_| (), || false));
        }
    };
    run_watched(&job, inner, || false).unwrap();
    let busy = second.unwrap();
    assert!(matches!(&busy, Err(JobError::Busy { .. })), "{busy:?}");
}

#[test]
fn keeps_the_old_model_unless_the_new_one_is_good_enough() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    run(&job);
    let old = weights(&job.output);
    job.hyper.seed = 7;
    let metrics = measured(couplet::model::Problem::SingleLabel, Some(2));
    job.promote_if = Some(Condition::parse("log_loss < 0.0001 and accuracy >= 0", &metrics).unwrap());
    let mut events = Vec::new();
    let outcome = run_watched(&job, |event| events.push(event.to_string()), || false).unwrap();
    let Outcome::Finished(report) = outcome else { panic!("interrupted") };
    let Promotion::Rejected { candidate, verdict } = &report.promotion else { panic!("{report:?}") };
    assert!(!verdict.holds && candidate == &job.candidate());
    assert!(events.iter().any(|event| event.starts_with("the old model stays, as log_loss < 0.0001 does not hold")));
    assert!(weights(&job.output) == old);
    Model::load(candidate, &Device::Cpu).unwrap();
    assert_eq!(read_json(candidate.join("training.json"))["promotion"]["published"], false);
    job.promote_if = Some(Condition::parse("accuracy >= 0", &metrics).unwrap());
    assert_eq!(run(&job).promotion, Promotion::Published);
    assert!(weights(&job.output) == weights(candidate) && weights(&job.output) != old);
}

#[test]
fn keeps_the_best_epoch_and_the_last_and_stops_when_nothing_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    // A step so large that nothing good comes after the first epochs.
    job.hyper = Hyper { epochs: 40, learning_rate: 0.05, patience: Some(2), ..job.hyper };
    job.metric = Some(Metric::LogLoss);
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
fn learns_values_sets_and_many_labels() {
    let folder = tempfile::tempdir().unwrap();
    let with = |task: Task, label: fn(usize) -> GoldLabel| {
        let mut job = job(folder.path());
        job.task = task;
        for rows in [&mut job.training, &mut job.validation] {
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
    job.validation.clear();
    job.class_weights = ClassWeights::Balanced;
    job.label_smoothing = 0.1;
    let report = run(&job);
    assert_eq!((report.epoch, report.evaluation), (3, None));
    let first = weights(&job.output);
    job.base.clone_from(&job.output);
    run(&job);
    assert!(weights(&job.output) != first);
    assert_eq!(names(folder.path()), ["model"]);
}

#[test]
fn says_which_setting_is_wrong() {
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
    assert!(error(|job| job.training.clear()).contains("no training rows"));
    assert!(
        error(|job| job.training[3].label = GoldLabel::Integer(7))
            .starts_with("training rows: row 4: label 7 is unknown")
    );
    assert!(
        error(|job| job.metric = Some(Metric::Pearson))
            .starts_with("`metric`: expected metrics that are measured here: accuracy")
    );
    assert!(
        error(|job| {
            job.validation.clear();
            job.hyper.patience = Some(1);
        })
        .starts_with("`patience`: expected validation rows")
    );
    assert!(error(|job| job.base = "/nowhere".into()).contains("/nowhere"));
}

fn pretrain_job(folder: &Path, start: pretrain::Start) -> pretrain::Job {
    let mut job = pretrain::Job::new(start, folder.join("mlm"));
    job.texts = (0..90).map(|i| format!("{} . {}", text(i), text(i * 5 + 1))).collect();
    job.hold_out = HoldOut::try_new(0.2, 1).ok();
    job.hyper = Hyper { max_length: 12, epochs: 4, ..hyper() };
    job.also_measure = vec![0.5];
    job.interval = Interval::Steps(4);
    job
}

fn run_pretrain(
    job: &pretrain::Job,
    mut event: impl FnMut(&Event) + Send,
    cancelled: impl Fn() -> bool + Sync,
) -> Outcome<pretrain::Report> {
    pretrain::run(job, &Device::Cpu, &pool(), &mut Watch { event: &mut event, cancelled: &cancelled }).unwrap()
}

#[test]
fn learns_to_fill_in_words_from_random_weights_and_fine_tunes_from_there() {
    for tiny in ["tiny-distilbert", "tiny-bert"] {
        let folder = tempfile::tempdir().unwrap();
        let start = pretrain::Start::Random { config: golden(tiny).join("config.json"), tokenizer: golden(tiny) };
        let job = pretrain_job(folder.path(), start);
        let Outcome::Finished(report) = run_pretrain(&job, |_| (), || false) else { panic!("interrupted") };
        let shares: Vec<f64> = report.measured.iter().map(|measured| measured.mask_probability).collect();
        assert_eq!(shares, [0.15, 0.5]);
        for measured in &report.measured {
            assert_eq!(measured.before.words, measured.after.words);
            assert!(measured.before.loss > 6.0 && measured.after.loss < 4.0, "{measured:?}");
        }
        assert_eq!(report.json["epochs"].as_array().unwrap().len(), 5);
        // It goes on from its own head.
        let again = pretrain::Job {
            start: pretrain::Start::Checkpoint(job.output.clone()),
            output: folder.path().join("again"),
            ..job.clone()
        };
        let Outcome::Finished(second) = run_pretrain(&again, |_| (), || false) else { panic!("interrupted") };
        assert!((second.measured[0].before.loss - report.measured[0].after.loss).abs() < 1e-9);
        let mut fine = self::job(folder.path());
        fine.base = job.output;
        run(&fine);
        Model::load(&fine.output, &Device::Cpu).unwrap();
    }
}

#[test]
fn pretraining_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let start = || pretrain::Start::Checkpoint(golden("tiny-bert"));
    let undisturbed = pretrain_job(&folder.path().join("undisturbed"), start());
    run_pretrain(&undisturbed, |_| (), || false);
    for stop in [0, 5, 25] {
        let job = pretrain_job(&folder.path().join(stop.to_string()), start());
        let steps = std::sync::atomic::AtomicU64::new(0);
        let count = |event: &Event| {
            if let Event::Step { step, .. } = event {
                steps.store(*step, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let outcome = run_pretrain(&job, count, || steps.load(std::sync::atomic::Ordering::Relaxed) == stop);
        assert!(matches!(outcome, Outcome::Interrupted { .. }), "{outcome:?}");
        run_pretrain(&job, |_| (), || false);
        assert!(weights(&job.output) == weights(&undisturbed.output), "after step {stop}");
    }
}

#[test]
fn imports_an_encoder_as_it_is_or_in_distilberts_form() {
    let folder = tempfile::tempdir().unwrap();
    let as_it_is = import(&golden("tiny-bert"), &folder.path().join("bert"), Form::AsItIs).unwrap();
    assert_eq!(as_it_is.dropped, ["classifier.bias", "classifier.weight"]);
    let folded = import(&golden("tiny-bert"), &folder.path().join("distilbert"), Form::DistilBert).unwrap();
    assert_eq!(folded.dropped, ["classifier.bias", "classifier.weight", "pooler.dense.bias", "pooler.dense.weight"]);
    for name in ["bert", "distilbert"] {
        let mut job = job(folder.path());
        job.base = folder.path().join(name);
        run(&job);
    }
    let error = Model::load(&folder.path().join("distilbert"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("it is a base encoder"), "{error}");
}
