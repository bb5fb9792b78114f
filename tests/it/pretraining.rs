//! Pretraining jobs, from random weights to a fine-tuned model, and the import of an encoder.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;
use couplet::model::{DISTILBERT, Model, import};
use couplet::train::sampling::HoldOut;
use couplet::train::training_loop::{Event, Interval, Outcome, Watch};
use couplet::train::{Hyper, pretrain};

use crate::jobs::{self, hyper, pool, run, text};
use crate::support::golden;

pub fn pretrain_job(folder: &Path, start: pretrain::Start) -> pretrain::Job {
    let mut job = pretrain::Job::new(start, folder.join("mlm"));
    job.kind.texts = (0..90).map(|i| format!("{} . {}", text(i), text(i * 5 + 1))).collect();
    job.kind.hold_out = HoldOut::try_new(0.2, 1).ok();
    job.hyper = Hyper { max_length: 12, epochs: 4, ..hyper() };
    job.kind.also_measure = vec![0.5];
    job.interval = Interval::Steps(4);
    job
}

pub fn run_pretrain(
    job: &pretrain::Job,
    mut event: impl FnMut(&Event) + Send,
    cancelled: impl Fn() -> bool + Sync,
) -> Outcome<pretrain::Report> {
    job.run(&Device::Cpu, &pool(), &mut Watch { event: &mut event, cancelled: &cancelled }).unwrap()
}

#[test]
fn pretrains_from_random_weights_and_then_fine_tunes() {
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
        // Pretraining continues from the model's own head.
        let again = pretrain::Job {
            kind: pretrain::Pretraining { start: pretrain::Start::Checkpoint(job.output.clone()), ..job.kind.clone() },
            output: folder.path().join("again"),
            ..job.clone()
        };
        let Outcome::Finished(second) = run_pretrain(&again, |_| (), || false) else { panic!("interrupted") };
        assert!((second.measured[0].before.loss - report.measured[0].after.loss).abs() < 1e-9);
        let mut fine = jobs::job(folder.path());
        fine.kind.base = job.output;
        run(&fine);
        Model::load(&fine.output, &Device::Cpu).unwrap();
    }
}

#[test]
fn imports_an_encoder_unchanged_or_as_distilbert() {
    let folder = tempfile::tempdir().unwrap();
    let as_it_is = import(&golden("tiny-bert"), &folder.path().join("bert"), None).unwrap();
    assert_eq!(as_it_is.dropped, ["classifier.bias", "classifier.weight"]);
    let folded = import(&golden("tiny-bert"), &folder.path().join("distilbert"), Some(&DISTILBERT)).unwrap();
    assert_eq!(folded.dropped, ["classifier.bias", "classifier.weight", "pooler.dense.bias", "pooler.dense.weight"]);
    for name in ["bert", "distilbert"] {
        let mut job = jobs::job(folder.path());
        job.kind.base = folder.path().join(name);
        run(&job);
    }
    let error = Model::load(&folder.path().join("distilbert"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("it is a base encoder"), "{error}");
}

#[test]
fn batches_without_a_masked_word_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = pretrain_job(folder.path(), pretrain::Start::Checkpoint(golden("tiny-bert")));
    job.hyper = Hyper { epochs: 1, batch_size: 1, ..job.hyper };
    (job.kind.mask_probability, job.kind.also_measure) = (0.02, vec![1e-12]);
    let Outcome::Finished(report) = run_pretrain(&job, |_| (), || false) else { panic!("interrupted") };
    let rows = report.json["rows"]["training"].as_u64().unwrap();
    assert!(report.steps > 0 && report.skipped > report.steps, "{} of {rows}", report.skipped);
    assert_eq!(report.steps + report.skipped, rows);
    assert_eq!(report.json["skipped_batches"], report.skipped);
    // They count in the schedule, which runs to its end.
    let rates = report.json["curve"]["learning_rate"].as_array().unwrap();
    assert!(rates.last().unwrap().as_f64() < Some(job.hyper.learning_rate / 2.0), "{rates:?}");
    let other = pretrain::Job { output: folder.path().join("other"), ..job.clone() };
    let steps = AtomicU64::new(0);
    let count = |event: &Event| {
        if let Event::Step { step, .. } = event {
            steps.store(*step, Ordering::Relaxed);
        }
    };
    let cancelled = run_pretrain(&other, count, || steps.load(Ordering::Relaxed) == 2);
    assert!(matches!(cancelled, Outcome::Interrupted { step: 2, .. }));
    assert!(matches!(run_pretrain(&other, |_| (), || false), Outcome::Finished(_)));
    assert!(jobs::weights(&other.output) == jobs::weights(&job.output));
    // Without masked tokens, nothing is measured.
    assert_eq!(report.measured[1].after.words, 0);
    assert_eq!((report.measured[1].after.perplexity(), report.measured[1].after.accuracy()), (None, None));
    for number in ["loss", "perplexity", "accuracy"] {
        assert!(report.json["held_out"][1]["after"][number].is_null(), "{number}");
    }
}

#[test]
fn explains_why_there_is_nothing_to_train_on() {
    let folder = tempfile::tempdir().unwrap();
    let error = |change: &dyn Fn(&mut pretrain::Job)| {
        let mut job = pretrain_job(folder.path(), pretrain::Start::Checkpoint(golden("tiny-bert")));
        change(&mut job);
        let mut watch = Watch { event: &mut |_| (), cancelled: &|| false };
        let error = job.run(&Device::Cpu, &pool(), &mut watch).unwrap_err().to_string();
        assert!(jobs::names(folder.path()).is_empty(), "{error}");
        error
    };
    let hold_out = HoldOut::try_new(0.2, 1).unwrap();
    let held = (0..).map(|i| format!("company {i}")).find(|text| hold_out.holds_out(&[text])).unwrap();
    assert_eq!(
        error(&|job| job.kind.texts = vec![held.clone(); 3]),
        "all 3 texts are held out, and none is left to train on; select more texts, or set a smaller `validation`"
    );
    assert_eq!(error(&|job| job.kind.texts.clear()), "there are no training rows; look at the query that selects them");
    let hidden = error(&|job| job.kind.mask_probability = 1e-12);
    assert!(hidden.starts_with("`mask_probability` = 0.000000000001 masks no word of the "), "{hidden}");
}
