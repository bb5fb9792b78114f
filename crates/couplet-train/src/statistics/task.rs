//! Tasks by name: the nine GLUE tasks and the generic ones.
//!
//! **Source**: Wang et al. 2019, "GLUE: a multi-task benchmark and analysis platform for natural language
//! understanding"; the columns and the names of the labels are those of the data set `nyu-mll/glue`.

use std::fmt;

use couplet_encoder::model::Problem;

use super::metrics::Metric;
use super::names::{UnknownName, same_name};

/// The task that a model is fine-tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Corpus of linguistic acceptability: is a sentence grammatical?
    Cola,
    /// Stanford sentiment treebank: is a sentence positive?
    Sst2,
    /// Microsoft Research paraphrase corpus: do two sentences mean the same?
    Mrpc,
    /// Quora question pairs: do two questions ask the same?
    Qqp,
    /// Semantic textual similarity benchmark: how alike are two sentences, 0 to 5?
    Stsb,
    /// Multi-genre natural language inference: does the premise entail the hypothesis?
    Mnli,
    /// Question-answering inference: does the sentence answer the question?
    Qnli,
    /// Recognizing textual entailment.
    Rte,
    /// Winograd inference.
    Wnli,
    /// One label of several, on any columns.
    Classification,
    /// A value, on any columns.
    Regression,
    /// Any number of labels, on any columns.
    Multilabel,
}

/// The fixed properties of a task.
struct Spec {
    task: Task,
    name: &'static str,
    text: &'static [&'static str],
    labels: &'static [&'static str],
    /// The main metric first.
    metrics: &'static [Metric],
}

/// Binary tasks always report accuracy, F1 and Matthews together: a model that predicts "paraphrase" for every pair of
/// MRPC's test split has an F1 of 0.799 and a Matthews correlation of 0. Accuracy, not F1, therefore selects the best
/// checkpoint there.
const BINARY: &[Metric] = &[Metric::Accuracy, Metric::F1, Metric::Matthews];
const CORRELATIONS: &[Metric] = &[Metric::Pearson, Metric::Spearman];
const SENTENCES: &[&str] = &["sentence1", "sentence2"];

const TASKS: [Spec; 12] = [
    Spec {
        task: Task::Cola,
        name: "cola",
        text: &["sentence"],
        labels: &["unacceptable", "acceptable"],
        metrics: &[Metric::Matthews, Metric::Accuracy, Metric::F1],
    },
    Spec { task: Task::Sst2, name: "sst2", text: &["sentence"], labels: &["negative", "positive"], metrics: BINARY },
    Spec {
        task: Task::Mrpc,
        name: "mrpc",
        text: SENTENCES,
        labels: &["not_equivalent", "equivalent"],
        metrics: BINARY,
    },
    Spec {
        task: Task::Qqp,
        name: "qqp",
        text: &["question1", "question2"],
        labels: &["not_duplicate", "duplicate"],
        metrics: BINARY,
    },
    Spec { task: Task::Stsb, name: "stsb", text: SENTENCES, labels: &[], metrics: CORRELATIONS },
    Spec {
        task: Task::Mnli,
        name: "mnli",
        text: &["premise", "hypothesis"],
        labels: &["entailment", "neutral", "contradiction"],
        metrics: &[Metric::Accuracy, Metric::F1Macro, Metric::Matthews],
    },
    Spec {
        task: Task::Qnli,
        name: "qnli",
        text: &["question", "sentence"],
        labels: &["entailment", "not_entailment"],
        metrics: BINARY,
    },
    Spec { task: Task::Rte, name: "rte", text: SENTENCES, labels: &["entailment", "not_entailment"], metrics: BINARY },
    Spec {
        task: Task::Wnli,
        name: "wnli",
        text: SENTENCES,
        labels: &["not_entailment", "entailment"],
        metrics: BINARY,
    },
    Spec { task: Task::Classification, name: "classification", text: &[], labels: &[], metrics: BINARY },
    Spec { task: Task::Regression, name: "regression", text: &[], labels: &[], metrics: CORRELATIONS },
    Spec {
        task: Task::Multilabel,
        name: "multilabel",
        text: &[],
        labels: &[],
        metrics: &[Metric::F1Micro, Metric::F1Macro, Metric::SubsetAccuracy],
    },
];

impl Task {
    /// Returns all tasks, GLUE's first.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        TASKS.iter().map(|spec| spec.task)
    }

    /// Finds a task by its name, ignoring case and dashes: `MRPC`, `sst-2`, `STS-B`, `multi-label`.
    ///
    /// # Errors
    /// An unknown name, with the closest one and a list of all names.
    pub fn parse(name: &str) -> Result<Self, UnknownName> {
        let found = Self::all().find(|task| same_name(task.name(), name));
        found.ok_or_else(|| UnknownName::new("task", name, TASKS.iter().map(|spec| spec.name)))
    }

    fn spec(self) -> &'static Spec {
        TASKS.iter().find(|spec| spec.task == self).expect("the table has every task")
    }

    /// Returns the task's name in a pipeline: lowercase, no dashes.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Returns true if the task is one of GLUE's, so that its columns and labels are known.
    #[must_use]
    pub fn is_glue(self) -> bool {
        !self.spec().text.is_empty()
    }

    /// Returns the meaning of the logits of a model for the task.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::Stsb | Self::Regression => Problem::Regression,
            Self::Multilabel => Problem::MultiLabel,
            _ => Problem::SingleLabel,
        }
    }

    /// Returns the text columns of the task's data set, one or two; none for a generic task. The gold label is in
    /// `label`.
    #[must_use]
    pub fn text_columns(self) -> &'static [&'static str] {
        self.spec().text
    }

    /// Returns the labels that the data set's 0, 1, 2 stand for; none for a regression or a generic task.
    #[must_use]
    pub fn labels(self) -> &'static [&'static str] {
        self.spec().labels
    }

    /// Returns the lowest and the highest gold value, if the task defines them.
    #[must_use]
    pub fn range(self) -> Option<(f64, f64)> {
        (self == Self::Stsb).then_some((0.0, 5.0))
    }

    /// Returns the metrics for a model with the given number of labels, the main one first.
    ///
    /// They are GLUE's metrics, and for two labels always accuracy, F1 and Matthews together.
    #[must_use]
    pub fn metrics(self, labels: usize) -> &'static [Metric] {
        const MANY: &[Metric] = &[Metric::Accuracy, Metric::F1Macro, Metric::Matthews];
        if self == Self::Classification && labels != 2 { MANY } else { self.spec().metrics }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_found_however_it_is_written() {
        for task in Task::all() {
            assert_eq!(Task::parse(task.name()), Ok(task));
            assert_eq!(Task::parse(&task.name().to_uppercase()), Ok(task));
        }
        for (written, task) in
            [("SST-2", Task::Sst2), ("sts_b", Task::Stsb), ("CoLA", Task::Cola), ("multi-label", Task::Multilabel)]
        {
            assert_eq!(Task::parse(written), Ok(task));
        }
    }

    #[test]
    fn an_unknown_task_gets_a_suggestion_if_one_is_close() {
        refuses(
            "mrcp",
            "unknown task \"mrcp\" (did you mean `mrpc`?); known are cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, classification, regression, multilabel",
        );
        refuses(
            "translation",
            "unknown task \"translation\"; known are cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, classification, regression, multilabel",
        );
    }

    fn refuses(written: &str, expected: &str) {
        assert_eq!(Task::parse(written).unwrap_err().to_string(), expected);
    }

    #[test]
    fn two_labels_show_accuracy_f1_and_matthews() {
        for task in Task::all().filter(|task| task.labels().len() == 2) {
            for metric in [Metric::Accuracy, Metric::F1, Metric::Matthews] {
                assert!(task.metrics(2).contains(&metric), "{task}");
            }
        }
        assert_eq!(Task::Cola.metrics(2)[0], Metric::Matthews);
        assert_eq!(Task::Stsb.problem(), Problem::Regression);
        assert_eq!(Task::Classification.metrics(3)[1], Metric::F1Macro);
    }
}
