//! A model that is replaced while it is loaded: scores are those of the model whose fingerprint they carry.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::{Device, Tensor};
use couplet::model::{LoadError, Model};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use crate::support::{Job, rows_of};
use crate::tiny::{Variant, WEIGHTS, logits};

/// Another model with the same configuration and tokenizer.
fn other() -> Variant {
    Variant::of("tiny-distilbert").with_tensors(|(name, tensor)| {
        let tensor = if name.starts_with("classifier") { (tensor * -2.0).unwrap() } else { tensor };
        Some((name, tensor))
    })
}

/// The ways in which one model replaces another.
#[derive(Debug, Clone, Copy)]
enum Replacing {
    /// A symlink is switched.
    Link,
    /// Two folders are exchanged, as `[finetune]` does.
    Exchange,
    /// Files are renamed over the old ones.
    Rename,
    /// The old files are overwritten.
    Copy,
}

/// Replaces the model at a path repeatedly until dropped.
struct Replacer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Replacer {
    fn start(how: Replacing, place: &Path, models: [&Path; 2], pause: Duration) -> Self {
        let (place, models) = (place.to_owned(), models.map(Path::to_owned));
        put(how, &place, &models[0]);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for turn in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                put(how, &place, &models[turn % 2]);
                std::thread::sleep(pause);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Replacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().unwrap().join());
    }
}

fn put(how: Replacing, place: &Path, model: &Path) {
    let sibling = |suffix: &str| PathBuf::from(format!("{}{suffix}", place.display()));
    let copy = |to: &Path| {
        fs::create_dir_all(to).unwrap();
        for entry in model.read_dir().unwrap().flatten() {
            fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
    };
    match how {
        Replacing::Link => {
            std::os::unix::fs::symlink(model, sibling(".new")).unwrap();
            fs::rename(sibling(".new"), place).unwrap();
        }
        Replacing::Exchange if place.exists() => {
            copy(&sibling(".new"));
            renameat_with(CWD, sibling(".new"), CWD, place, RenameFlags::EXCHANGE).unwrap();
            fs::remove_dir_all(sibling(".new")).unwrap();
        }
        Replacing::Rename if place.exists() => {
            copy(&sibling(".new"));
            for entry in sibling(".new").read_dir().unwrap().flatten() {
                fs::rename(entry.path(), place.join(entry.file_name())).unwrap();
            }
        }
        Replacing::Exchange | Replacing::Rename | Replacing::Copy => copy(place),
    }
}

const WAYS: [Replacing; 4] = [Replacing::Link, Replacing::Exchange, Replacing::Rename, Replacing::Copy];

#[test]
fn a_fingerprint_matches_the_loaded_weights() {
    let (one, other) = (Variant::of("tiny-distilbert"), other());
    let known: HashMap<String, Vec<Vec<f32>>> = [&one, &other]
        .map(|variant| {
            let model = variant.load().unwrap();
            (model.fingerprint.as_str().to_owned(), logits(&model))
        })
        .into();
    assert_eq!(known.len(), 2);
    let around = tempfile::tempdir().unwrap();
    for how in WAYS {
        let place = around.path().join(format!("{how:?}"));
        let mut loaded = 0;
        for milliseconds in [0, 1, 5, 20, 60] {
            let replacer =
                Replacer::start(how, &place, [one.folder(), other.folder()], Duration::from_millis(milliseconds));
            for _ in 0..30 {
                match Model::load(&place, &Device::Cpu) {
                    Ok(model) => {
                        loaded += 1;
                        let found = logits(&model);
                        match known.get(model.fingerprint.as_str()) {
                            Some(expected) => assert_eq!(&found, expected, "{how:?}"),
                            // While files are copied one by one, the folder is a third model for a moment.
                            None => assert!(matches!(how, Replacing::Rename | Replacing::Copy), "{how:?}"),
                        }
                    }
                    Err(LoadError::Changing { .. }) => {}
                    // A file that is being written is truncated.
                    Err(_) if matches!(how, Replacing::Copy) => {}
                    Err(error) => panic!("{how:?}: {error}"),
                }
            }
            drop(replacer);
        }
        assert!(loaded > 0, "{how:?}");
    }
}

#[test]
fn scores_of_a_replaced_model_carry_its_fingerprint() {
    let (one, other) = (Variant::of("tiny-distilbert"), other());
    let pairs: String = (0..8).map(|id| format!("{id},a text of number {id},the other text\n")).collect();
    let job = Job::new(format!("id,a,b\n{pairs}"));
    let uri = format!("{:?}", crate::support::golden("tiny-distilbert"));
    let job = job.change(&uri, "\"current\"");
    let scores = |rows: &[Value]| rows.iter().map(|row| row["score"].as_f64().unwrap()).collect::<Vec<_>>();
    let model = |rows: &[Value]| rows[0]["model"].as_str().unwrap().to_owned();
    let place = job.path("current");
    let mut known = HashMap::new();
    for variant in [&one, &other] {
        put(Replacing::Link, &place, variant.folder());
        let rows = job.rows();
        known.insert(model(&rows), scores(&rows));
    }
    assert_eq!(known.len(), 2);
    for how in [Replacing::Link, Replacing::Exchange] {
        fs::remove_file(&place).or_else(|_| fs::remove_dir_all(&place)).unwrap();
        let replacer = Replacer::start(how, &place, [one.folder(), other.folder()], Duration::from_millis(3));
        for _ in 0..6 {
            let _ = fs::remove_dir_all(job.path(".couplet"));
            let output = job.run().output().unwrap();
            if !output.status.success() {
                let stderr = String::from_utf8(output.stderr).unwrap();
                assert!(stderr.contains("changed each of the") && output.status.code() == Some(1), "{stderr}");
                continue;
            }
            let rows = rows_of(&job.output());
            assert_eq!(scores(&rows), known[&model(&rows)], "{how:?}");
        }
        drop(replacer);
    }
    // The next run finds the scores of the current model.
    fs::remove_dir_all(&place).unwrap();
    put(Replacing::Link, &place, one.folder());
    let rows = job.rows();
    assert_eq!(scores(&rows), known[&model(&rows)]);
}

#[test]
fn a_model_that_keeps_changing_is_a_transient_error() {
    let model = Variant::of("tiny-distilbert");
    let weights = model.read(WEIGHTS);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(model.path("new"), &weights).unwrap();
                fs::rename(model.path("new"), model.path(WEIGHTS)).unwrap();
            }
        });
        let loaded = model.load();
        stop.store(true, Ordering::Relaxed);
        // On a busy machine the other thread may pause for long enough.
        if let Err(error) = loaded {
            assert!(matches!(error, LoadError::Changing { .. }) && !error.is_mistake(), "{error}");
        }
    });
    assert!(model.load().is_ok());
}

/// Weights with another shape, so that loading a mixture of two models gives an error.
#[test]
fn a_mixture_of_two_models_is_never_loaded() {
    let (one, other) = (Variant::of("tiny-distilbert"), Variant::of("tiny-distilbert").with_outputs(3));
    let other = other.with_config("id2label", serde_json::json!({"0": "a", "1": "b", "2": "c"}));
    let wide = Tensor::zeros((3, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let other = other.with_tensor("classifier.weight", wide);
    let around = tempfile::tempdir().unwrap();
    let place = around.path().join("model");
    let replacer = Replacer::start(Replacing::Link, &place, [one.folder(), other.folder()], Duration::from_millis(2));
    for _ in 0..60 {
        match Model::load(&place, &Device::Cpu) {
            Ok(_) | Err(LoadError::Changing { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    drop(replacer);
}
