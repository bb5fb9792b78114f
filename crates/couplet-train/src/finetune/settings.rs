//! Checks of a job's settings against its labels.

use couplet_encoder::model::Problem;

use super::{Calibrate, FineTuning, Row};
use crate::Objective;
use crate::hyper::Hyper;
use crate::sampling::ClassWeights;
use crate::statistics::labels::{LabelError, Labels, Targets};
use crate::statistics::metrics::{Metric, measured};
use crate::statistics::promotion::Condition;
use crate::training_loop::JobError;

impl FineTuning {
    pub(super) fn read_labels(&self) -> Result<(Labels, Targets, Targets), JobError> {
        if self.training.is_empty() {
            return Err(JobError::NoRows { what: "training" });
        }
        let column = |rows: &[Row]| rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>();
        let (training, validation) = (column(&self.training), column(&self.validation));
        let labels = match &self.labels {
            Some(names) => Labels::given(self.task, names.clone()),
            None => Labels::learn(self.task, &training),
        };
        let labels = labels.map_err(label_error("training", &self.training))?;
        let targets = labels.targets(&training).map_err(label_error("training", &self.training))?;
        let gold = labels.targets(&validation).map_err(label_error("validation", &self.validation))?;
        Ok((labels, targets, gold))
    }

    /// Checks the settings that depend on the labels; returns the metric that selects the best epoch.
    pub(super) fn check(&self, hyper: &Hyper, labels: &Labels, gold: &Targets) -> Result<Metric, JobError> {
        let needs_validation = [
            ("promote_if", self.promote_if.is_some()),
            ("calibrate", self.calibrate != Calibrate::Nothing),
            ("patience", hyper.patience.is_some()),
            ("metric", self.metric.is_some()),
        ];
        if let Some((setting, _)) = needs_validation.iter().find(|(_, set)| *set && self.validation.is_empty()) {
            return error(setting, "validation rows to evaluate on", "none".into());
        }
        let (problem, count) = (labels.problem(), labels.names().len());
        if problem != Problem::SingleLabel && self.label_smoothing != 0.0 {
            return error("label_smoothing", &format!("0 for a {problem}"), self.label_smoothing.to_string());
        }
        if problem != Problem::SingleLabel && self.class_weights != ClassWeights::Equal {
            return error("class_weights", &format!("none for a {problem}"), format!("{:?}", self.class_weights));
        }
        self.check_calibration(labels, gold)?;
        let known = measured(problem, Some(count));
        let names = known.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        let required = self.promote_if.iter().flat_map(Condition::clauses).map(|clause| ("promote_if", clause.metric));
        for (setting, metric) in required.chain(self.metric.map(|metric| ("metric", metric))) {
            if !known.contains(&metric) {
                return error(setting, &format!("metrics that are measured here: {names}"), metric.to_string());
            }
        }
        // GLUE's first metric of the task; for a generic task, the first metric that suits its labels.
        Ok(self.metric.unwrap_or(self.task.metrics(count)[0]))
    }

    fn check_calibration(&self, labels: &Labels, gold: &Targets) -> Result<(), JobError> {
        let (problem, count) = (labels.problem(), labels.names().len());
        match (self.calibrate, only_class(gold)) {
            (Calibrate::Temperature | Calibrate::Threshold(_), _) if problem == Problem::Regression => {
                error("calibrate", "nothing for a regression, which has no probabilities", "it".into())
            }
            (Calibrate::Threshold(objective), _) if problem != Problem::SingleLabel || count != 2 => {
                error("calibrate", "a threshold for two labels only", format!("{objective} for {count} labels"))
            }
            // Training cannot change this, so it is reported before training.
            (Calibrate::Threshold(_), Some(class)) => {
                let (rows, label) = (self.validation.len(), &labels.names()[class as usize]);
                let all = if rows == 1 { "1 row, whose label is".into() } else { format!("{rows} rows, all of them") };
                let found = format!(
                    "{all} {label:?}; hold out more rows, or write `calibrate = true` for a temperature without a \
                     threshold"
                );
                error("calibrate", "validation rows of both labels, to find a threshold between them", found)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn objective(&self, labels: &Labels, targets: &Targets) -> Result<Objective, JobError> {
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
}

fn error<T>(setting: &'static str, expected: &str, found: String) -> Result<T, JobError> {
    Err(JobError::Setting { setting, expected: expected.to_owned(), found })
}

/// Returns the class of all rows, if they all have the same one.
fn only_class(gold: &Targets) -> Option<u32> {
    let Targets::Classes(classes) = gold else { return None };
    let first = *classes.first()?;
    classes.iter().all(|class| *class == first).then_some(first)
}

/// Converts a label error, with the names of the rows and of the set that they belong to.
fn label_error(what: &'static str, rows: &[Row]) -> impl FnOnce(LabelError) -> JobError {
    move |source| JobError::Labels { what, source: source.named(|row| rows[row].name()) }
}
