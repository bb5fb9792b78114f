//! Fine-tuning: labelled rows and a base checkpoint to a checkpoint that classifies, or gives a value.
//!
//! **Source**: Devlin et al. 2019, section 4; the settings are those of transformers' `Trainer` and `run_glue`.

mod lesson;
mod report;

use std::path::PathBuf;

use candle_core::Device;
use rayon::ThreadPool;
use serde_json::{Value, json};

use super::calibration::{CALIBRATION_FILE, Calibration};
use super::course::{
    self, Event, Interval, JobError, Key, Learned, Outcome, Plan, Publication, Watch, base_config, beside,
    remove_model, report_of,
};
use super::evaluation::Evaluation;
use super::hyper::Hyper;
use super::labels::{GoldLabel, Labels, Targets};
use super::metrics::{Metric, measured};
use super::promotion::{Condition, Verdict};
use super::sampling::ClassWeights;
use super::task::Task;
use super::threshold;
use super::{Objective, Trainer};
use crate::model::{ModelConfig, Problem, Tokenizer};
use lesson::{Labelled, encode, sample};

/// A labelled text or pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What names it, in errors.
    pub id: Vec<String>,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// What is right.
    pub label: GoldLabel,
}

/// What is fitted on the validation rows when training is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrate {
    /// Nothing.
    Nothing,
    /// A temperature.
    Temperature,
    /// A temperature, and the decision threshold for an objective; for two labels.
    Threshold(threshold::Objective),
}

/// What to fine-tune, on what, and where the model goes.
#[derive(Debug, Clone)]
pub struct Job {
    /// A Hugging Face folder to start from: an encoder, a masked-language model, or a classifier.
    ///
    /// It may be `output`. A run that is killed after the new model is in its place, and before it could remove its
    /// state, then finds another base and trains on top of the new model when it is run again.
    pub base: PathBuf,
    /// The folder that the model is written to, instead of what is there.
    pub output: PathBuf,
    /// What is learned.
    pub task: Task,
    /// The names of the logits, in order; none to learn them from the rows.
    pub labels: Option<Vec<String>>,
    /// Rows to learn from.
    pub training: Vec<Row>,
    /// Rows to measure on; they choose the best epoch.
    pub validation: Vec<Row>,
    /// How to train.
    pub hyper: Hyper,
    /// The share of a target's probability that is spread over all labels.
    pub label_smoothing: f32,
    /// How much each label weighs.
    pub class_weights: ClassWeights,
    /// Which metric chooses the best epoch; none for the task's own.
    pub metric: Option<Metric>,
    /// What must hold for the model to take its place; it is judged by the best epoch's metrics on the validation rows,
    /// without calibration.
    pub promote_if: Option<Condition>,
    /// What is fitted on the validation rows when training is over.
    pub calibrate: Calibrate,
    /// How often the state is saved.
    pub interval: Interval,
}

impl Job {
    /// A job with the usual settings.
    #[must_use]
    pub fn new(base: impl Into<PathBuf>, output: impl Into<PathBuf>, task: Task) -> Self {
        Self {
            base: base.into(),
            output: output.into(),
            task,
            labels: None,
            training: Vec::new(),
            validation: Vec::new(),
            hyper: Hyper::default(),
            label_smoothing: 0.0,
            class_weights: ClassWeights::Equal,
            metric: None,
            promote_if: None,
            calibrate: Calibrate::Nothing,
            interval: Interval::Seconds(60.0),
        }
    }

    /// Where a model goes that does not take its place.
    #[must_use]
    pub fn candidate(&self) -> PathBuf {
        beside(&self.output, ".candidate")
    }

    /// Whether the output holds the model that this very job leaves: same base, rows and settings. The base and all rows
    /// are read for it; nothing is trained.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_done(&self) -> Result<bool, JobError> {
        if !self.output.exists() {
            return Ok(false);
        }
        let (labels, ..) = self.read_labels()?;
        Ok(report_of(&self.output, self.key(&labels)?).is_some())
    }

    /// Whether the candidate is the model that this very job leaves, and was refused by the same condition.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_rejected(&self) -> Result<bool, JobError> {
        let candidate = self.candidate();
        if self.promote_if.is_none() || !candidate.exists() {
            return Ok(false);
        }
        let (labels, ..) = self.read_labels()?;
        let condition = self.promote_if.as_ref().map(ToString::to_string);
        let report = report_of(&candidate, self.key(&labels)?);
        Ok(report.is_some_and(|report| report["settings"]["promote_if"].as_str() == condition.as_deref()))
    }

    /// Where the last epoch's model goes, if it is not the best.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        beside(&self.output, ".last")
    }
}

/// Whether the model took its place.
#[derive(Debug, Clone, PartialEq)]
pub enum Promotion {
    /// It did.
    Published,
    /// The condition does not hold: the old model stays, and the new one is beside it.
    Rejected {
        /// Where the new model is.
        candidate: PathBuf,
        /// The condition, with what was measured.
        verdict: Verdict,
    },
}

/// What came of a job.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether the model took its place.
    pub promotion: Promotion,
    /// Which epoch's weights it has, from 1.
    pub epoch: u64,
    /// Steps that were taken.
    pub steps: u64,
    /// All metrics on the validation rows; none without such rows.
    pub evaluation: Option<Evaluation>,
    /// What was fitted on them.
    pub calibration: Option<Calibration>,
    /// The names of the logits, in order; empty for a regression.
    pub labels: Vec<String>,
    /// What `training.json` says.
    pub json: Value,
}

/// Does a job, or goes on with it where an earlier run was ended.
///
/// The state is in the folder `<output>.training`, which goes when the model is in its place. Computes on `pool`.
///
/// # Errors
/// Settings that make no sense, rows or a base that cannot be used, a training that diverges, files that cannot be
/// written. What was at `output` before is still there then, and the last saved state too.
pub fn run(job: &Job, device: &Device, pool: &ThreadPool, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    pool.install(|| run_here(job, device, watch))
}

fn run_here(job: &Job, device: &Device, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    let config = ModelConfig::load(&job.base.join("config.json"))?;
    job.hyper.check(config.max_position_embeddings)?;
    let (labels, targets, gold) = job.read_labels()?;
    let metric = job.check(&labels)?;
    let objective = job.objective(&labels, &targets)?;
    let tokenizer = Tokenizer::load(&job.base, &config)?.with_max_length(job.hyper.max_length);
    let tokenizer = tokenizer.map_err(|found| JobError::Setting {
        setting: "max_length",
        expected: "room for the special tokens".into(),
        found,
    })?;
    let training = encode(&tokenizer, &job.training, &targets)?;
    let validation = encode(&tokenizer, &job.validation, &gold)?;
    let lesson = Labelled::new(training.examples, validation.examples, labels, gold, metric);
    let trainer = Trainer::from_checkpoint(&job.base, objective, job.hyper.options(job.training.len()), device)?;
    let truncated = training.truncated + validation.truncated;
    watch.emit(&Event::Prepared {
        rows: job.training.len(),
        held_out: job.validation.len(),
        tokens: training.tokens,
        truncated,
        total_steps: job.hyper.total_steps(job.training.len()),
    });
    let plan = Plan { output: &job.output, key: job.key(&lesson.labels)?, hyper: &job.hyper, interval: job.interval };
    match course::run(&plan, &lesson, trainer, watch)? {
        Outcome::Finished(learned) => job.finish(&lesson, learned, truncated, watch).map(Outcome::Finished),
        Outcome::Interrupted { step, total_steps, state } => Ok(Outcome::Interrupted { step, total_steps, state }),
    }
}

impl Job {
    fn read_labels(&self) -> Result<(Labels, Targets, Targets), JobError> {
        if self.training.is_empty() {
            return Err(JobError::NoRows { what: "training" });
        }
        let column = |rows: &[Row]| rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>();
        let (training, validation) = (column(&self.training), column(&self.validation));
        let wrong = |what| move |source| JobError::Labels { what, source };
        let labels = match &self.labels {
            Some(names) => Labels::given(self.task, names.clone()),
            None => Labels::learn(self.task, &training),
        };
        let labels = labels.map_err(wrong("training"))?;
        let targets = labels.targets(&training).map_err(wrong("training"))?;
        let gold = labels.targets(&validation).map_err(wrong("validation"))?;
        Ok((labels, targets, gold))
    }

    /// Checks what depends on the labels, and returns the metric that decides.
    fn check(&self, labels: &Labels) -> Result<Metric, JobError> {
        let error = |setting, expected: &str, found: String| {
            Err(JobError::Setting { setting, expected: expected.to_owned(), found })
        };
        let needs_validation = [
            ("promote_if", self.promote_if.is_some()),
            ("calibrate", self.calibrate != Calibrate::Nothing),
            ("patience", self.hyper.patience.is_some()),
            ("metric", self.metric.is_some()),
        ];
        if let Some((setting, _)) = needs_validation.iter().find(|(_, set)| *set && self.validation.is_empty()) {
            return error(setting, "validation rows to measure on", "none".into());
        }
        let (problem, count) = (labels.problem(), labels.names().len());
        if problem != Problem::SingleLabel && self.label_smoothing != 0.0 {
            return error("label_smoothing", &format!("0 for a {problem}"), self.label_smoothing.to_string());
        }
        if problem != Problem::SingleLabel && self.class_weights != ClassWeights::Equal {
            return error("class_weights", &format!("none for a {problem}"), format!("{:?}", self.class_weights));
        }
        match self.calibrate {
            Calibrate::Temperature | Calibrate::Threshold(_) if problem == Problem::Regression => {
                return error("calibrate", "nothing for a regression, which has no probabilities", "it".into());
            }
            Calibrate::Threshold(objective) if problem != Problem::SingleLabel || count != 2 => {
                return error(
                    "calibrate",
                    "a threshold for two labels only",
                    format!("{objective} for {count} labels"),
                );
            }
            _ => {}
        }
        let known = measured(problem, Some(count));
        let names = known.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        let asked = self.promote_if.iter().flat_map(Condition::clauses).map(|clause| ("promote_if", clause.metric));
        for (setting, metric) in asked.chain(self.metric.map(|metric| ("metric", metric))) {
            if !known.contains(&metric) {
                return error(setting, &format!("metrics that are measured here: {names}"), metric.to_string());
            }
        }
        // GLUE's first metric of the task, and of those of a plain task the first that suits its labels.
        Ok(self.metric.unwrap_or(self.task.metrics(count)[0]))
    }

    fn objective(&self, labels: &Labels, targets: &Targets) -> Result<Objective, JobError> {
        let count = labels.names().len();
        Ok(match targets {
            Targets::Values(_) => Objective::Regression,
            Targets::Sets(_) => Objective::MultiLabel { labels: count },
            Targets::Classes(classes) => {
                let mut rows = vec![0; count];
                for class in classes {
                    rows[*class as usize] += 1;
                }
                let weights = self.class_weights.weights(labels.names(), &rows)?;
                let weighted = self.class_weights != ClassWeights::Equal;
                Objective::Classification {
                    labels: count,
                    class_weights: weighted.then(|| weights.iter().map(|weight| *weight as f32).collect()),
                    label_smoothing: self.label_smoothing,
                }
            }
        })
    }

    /// A hash of everything that the weights depend on. What happens to them afterwards is left out: a condition may
    /// be changed while a training is under way.
    fn key(&self, labels: &Labels) -> Result<blake3::Hash, JobError> {
        let mut key = Key::new("finetune");
        key.files(&self.base)?;
        key.text(self.task.name());
        key.text(&format!("{:?}", labels.names()));
        key.text(&format!("{:?} {} {:?} {:?}", self.hyper, self.label_smoothing, self.class_weights, self.metric));
        for rows in [&self.training, &self.validation] {
            key.number(rows.len() as u64);
            for row in rows {
                key.text(&row.text);
                key.text(row.text_pair.as_deref().unwrap_or_default());
                key.text(&format!("{} {:?}", row.text_pair.is_some(), row.label));
            }
        }
        Ok(key.finish())
    }

    /// Measures and calibrates the best weights, and puts them in their place if they may.
    fn finish(
        &self,
        lesson: &Labelled,
        mut learned: Learned,
        truncated: usize,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let config = self.config(&lesson.labels)?;
        let publication = |documents| Publication { config: config.clone(), tokenizer: &self.base, documents };
        if learned.last_is_another() {
            let note = json!({ "epoch": learned.progress.epochs().len(), "best": self.output });
            publication(vec![("training.json", note)]).publish(&learned.trainer, &self.last())?;
        } else {
            remove_model(&self.last())?;
        }
        learned.take_best()?;
        let (mut evaluation, mut calibration, mut verdict) = (None, None, None);
        if !self.validation.is_empty() {
            let logits = learned.trainer.logits(&lesson.validation)?.concat();
            let sample = sample(&lesson.labels, &lesson.gold, &logits)?;
            let evaluated = Evaluation::of(&sample, None, &[])?;
            verdict = self.promote_if.as_ref().map(|condition| condition.evaluate(&evaluated.metrics));
            evaluation = Some(evaluated);
            calibration = self.fit(&lesson.labels, &lesson.gold, &logits)?;
        }
        let mut report = Report {
            promotion: match verdict {
                Some(verdict) if !verdict.holds => Promotion::Rejected { candidate: self.candidate(), verdict },
                _ => Promotion::Published,
            },
            epoch: learned.progress.best().map_or(learned.progress.epochs().len() as u64, |best| best.epoch),
            steps: learned.trainer.steps(),
            evaluation,
            calibration,
            labels: lesson.labels.names().to_vec(),
            json: Value::Null,
        };
        report.json = self.report(lesson, &learned, &report, truncated);
        let mut documents = vec![("training.json", report.json.clone())];
        documents.extend(report.calibration.as_ref().map(|calibration| (CALIBRATION_FILE, calibration.to_json())));
        match &report.promotion {
            Promotion::Published => {
                publication(documents).publish(&learned.trainer, &self.output)?;
                remove_model(&self.candidate())?;
                watch.emit(&Event::Published { folder: &self.output });
            }
            Promotion::Rejected { candidate, verdict } => {
                publication(documents).publish(&learned.trainer, candidate)?;
                watch.emit(&Event::Rejected { candidate, verdict: &verdict.to_string() });
            }
        }
        learned.discard_state()?;
        Ok(report)
    }

    fn fit(&self, labels: &Labels, gold: &Targets, logits: &[f32]) -> Result<Option<Calibration>, JobError> {
        let objective = match self.calibrate {
            Calibrate::Nothing => return Ok(None),
            Calibrate::Temperature => None,
            Calibrate::Threshold(objective) => Some(objective),
        };
        let count = labels.names().len();
        Ok(match gold {
            Targets::Classes(gold) => Some(Calibration::fit(count, logits, gold, objective)?),
            Targets::Sets(gold) => Some(Calibration::fit_sets(count, logits, gold)?),
            Targets::Values(_) => None,
        })
    }

    /// `config.json` of the model.
    fn config(&self, labels: &Labels) -> Result<serde_json::Map<String, Value>, JobError> {
        let architecture = ModelConfig::load(&self.base.join("config.json"))?.architecture;
        let mut config = base_config(&self.base)?;
        config.insert("architectures".into(), json!([architecture.class_name()]));
        config.extend(labels.config_keys());
        config.insert("num_labels".into(), json!(labels.names().len().max(1)));
        config.insert("finetuning_task".into(), self.task.name().into());
        Ok(config)
    }
}
