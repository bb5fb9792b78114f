//! Maps the values of a label column to training targets, and back to names.
//!
//! The mapping is derived from the training rows, or given, or that of a GLUE task. It is stored in the checkpoint as
//! `id2label`, so that evaluation and scoring use the same mapping later.

mod error;

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write as _};

use couplet_encoder::model::{Problem, ScoreActivation, problem_type};
use couplet_storage::words::closest;
use serde_json::{Map, Value, json};

use super::names::same_name;
use super::task::Task;
pub use error::{LabelError, WrongRow};
use error::{Wrong, WrongRows};

/// The maximum number of known labels that an error lists.
const MAX_LISTED: usize = 20;

/// A value of a label column.
#[derive(Debug, Clone, PartialEq)]
pub enum GoldLabel {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list of texts: the labels of a row in a multi-label task.
    Texts(Vec<String>),
}

impl From<bool> for GoldLabel {
    /// Converts a boolean to the label `false` or `true`.
    fn from(value: bool) -> Self {
        Self::Text(value.to_string())
    }
}

impl fmt::Display for GoldLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Texts(values) => write!(f, "{values:?}"),
        }
    }
}

/// The training targets of the rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// The index of each row's label.
    Classes(Vec<u32>),
    /// The value of each row.
    Values(Vec<f32>),
    /// One flag per row and label, row by row.
    Sets(Vec<bool>),
}

/// The names of the logits, in order, and the mapping from the values of a label column to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    task: Task,
    names: Vec<String>,
    indices: HashMap<String, u32>,
    numbers: Numbers,
}

/// The meaning of an integer in a label column.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Numbers {
    /// The label with that name.
    Names,
    /// The label at that index, from 0.
    Indices,
    /// The label with that number in the GLUE data set, mapped to its index among the names, which may be in another
    /// order.
    DataSet(Vec<u32>),
    /// Ambiguous: the names are some of the GLUE data set's, but not all.
    Ambiguous,
}

impl Numbers {
    fn of(task: Task, names: &[String]) -> Self {
        let indices: Vec<Option<usize>> =
            task.labels().iter().map(|label| names.iter().position(|name| same_name(name, label))).collect();
        if names.iter().all(|name| name.parse::<i64>().is_ok()) {
            Self::Names
        } else if indices.iter().any(Option::is_some) {
            let all = indices.into_iter().map(|index| index.and_then(|index| u32::try_from(index).ok()));
            all.collect::<Option<_>>().map_or(Self::Ambiguous, Self::DataSet)
        } else if task.is_glue() && names.len() != task.labels().len() {
            Self::Ambiguous
        } else {
            Self::Indices
        }
    }
}

impl Labels {
    /// Derives the mapping from the training rows: integers in numeric order, texts in byte order. A GLUE task has a
    /// fixed mapping, and a regression needs none.
    ///
    /// # Errors
    /// NULL, or a value that does not suit the task, with its row; fewer than two different labels (one for a
    /// multi-label task).
    pub fn learn(task: Task, rows: &[GoldLabel]) -> Result<Self, LabelError> {
        if task.problem() == Problem::Regression {
            return Ok(Self::regression(task));
        }
        if task.is_glue() {
            return Self::given(task, task.labels().iter().map(ToString::to_string).collect());
        }
        let multi = task.problem() == Problem::MultiLabel;
        let (mut integers, mut texts) = (BTreeSet::new(), BTreeSet::new());
        let mut wrong = WrongRows::default();
        for (row, value) in rows.iter().enumerate() {
            match (value, multi) {
                (GoldLabel::Texts(values), true) => texts.extend(values.iter().cloned()),
                (GoldLabel::Text(value), false) => _ = texts.insert(value.clone()),
                (value, false) if as_integer(value).is_some() => integers.extend(as_integer(value)),
                (value, _) => wrong.push(row, value, unsuitable(value, task.problem())),
            }
            if !integers.is_empty() && !texts.is_empty() {
                wrong.push(row, value, ("has another type than the labels before it".into(), MIXED.into()));
                break;
            }
        }
        wrong.into_result(String::new())?;
        // Integers are sorted by value, not by digits: 2 before 10.
        let names: Vec<String> = integers.iter().map(ToString::to_string).chain(texts).collect();
        if names.len() < if multi { 1 } else { 2 } {
            return Err(LabelError::TooFew { found: names.into_iter().next(), multi });
        }
        Self::given(task, names)
    }

    /// Takes the names of the labels in the order of the logits, from a pipeline or a checkpoint.
    ///
    /// A text in the label column is a name. If all names are integers, an integer is a name too. Otherwise it is the
    /// index of a name, from 0. For a GLUE task with GLUE's labels, in any order, it is the number of a label in GLUE's
    /// data set instead.
    ///
    /// # Errors
    /// Too few names, an empty name, or a duplicate name; names for a regression.
    pub fn given(task: Task, names: Vec<String>) -> Result<Self, LabelError> {
        let problem = task.problem();
        let error = |names, problem: String| Err(LabelError::Given { names, problem });
        let least = match problem {
            Problem::Regression if names.is_empty() => return Ok(Self::regression(task)),
            Problem::Regression => return error(names, format!("task {task} predicts a value and has no labels")),
            Problem::SingleLabel => 2,
            Problem::MultiLabel => 1,
        };
        if names.len() < least {
            return error(names, format!("task {task} needs {least} labels or more"));
        }
        let mut indices = HashMap::new();
        for (name, index) in names.iter().zip(0..) {
            if name.is_empty() {
                return error(names, "a label has no name".into());
            }
            if indices.insert(name.clone(), index).is_some() {
                let problem = format!("label {name:?} occurs twice");
                return error(names, problem);
            }
        }
        let numbers = Numbers::of(task, &names);
        Ok(Self { task, names, indices, numbers })
    }

    fn regression(task: Task) -> Self {
        Self { task, names: Vec::new(), indices: HashMap::new(), numbers: Numbers::Names }
    }

    /// Returns the names of the logits, in order; empty for a regression.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the index of the positive label, which precision, recall, F1 and average precision refer to. For a GLUE
    /// task it is the label that is 1 in its data set, wherever the model has it; otherwise it is the second of two.
    /// None unless there are two labels.
    #[must_use]
    pub fn positive(&self) -> Option<usize> {
        let [first, second] = self.names.as_slice() else { return None };
        if self.problem() != Problem::SingleLabel {
            return None;
        }
        let is_first = match self.task.labels() {
            // If one name is GLUE's, the other label is known too.
            [negative, positive] => {
                same_name(first, positive) || same_name(second, negative) || (first == "1" && second == "0")
            }
            _ => false,
        };
        Some(usize::from(!is_first))
    }

    /// Returns the meaning of the logits.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.task.problem()
    }

    /// Returns the keys of `config.json` that `transformers` reads: `id2label`, `label2id` and `problem_type`. For a
    /// regression it adds the activation that the `CrossEncoder` of sentence-transformers reads, whose default is a
    /// sigmoid.
    #[must_use]
    pub fn config_keys(&self) -> Map<String, Value> {
        let numbered = || self.names.iter().enumerate();
        let (ids, names) = match self.problem() {
            // `transformers` identifies a regression by its single logit, which is named like any other.
            Problem::Regression => (json!({ "0": "LABEL_0" }), json!({ "LABEL_0": 0 })),
            _ => (
                numbered().map(|(i, name)| (i.to_string(), name.clone().into())).collect::<Map<_, _>>().into(),
                numbered().map(|(i, name)| (name.clone(), i.into())).collect::<Map<_, _>>().into(),
            ),
        };
        let mut keys = Map::new();
        keys.insert("id2label".into(), ids);
        keys.insert("label2id".into(), names);
        keys.insert("problem_type".into(), problem_type(self.problem()).into());
        if self.problem() == Problem::Regression {
            let settings = json!({ "activation_fn": ScoreActivation::IDENTITY_CLASS });
            keys.insert("sentence_transformers".into(), settings);
        }
        keys
    }

    /// Maps the label of every row to a training target.
    ///
    /// # Errors
    /// NULL, and values that are unknown or do not suit the task: the first few rows, the known labels, and how to fix
    /// them.
    pub fn targets(&self, rows: &[GoldLabel]) -> Result<Targets, LabelError> {
        match self.problem() {
            Problem::SingleLabel => self.map_rows(rows, |value| self.class(value)).map(Targets::Classes),
            Problem::Regression => self.map_rows(rows, |value| self.number(value)).map(Targets::Values),
            Problem::MultiLabel => {
                let sets = self.map_rows(rows, |value| self.set(value))?;
                Ok(Targets::Sets(sets.into_iter().flatten().collect()))
            }
        }
    }

    /// Returns the labels that no row has; empty if there are no rows, or no labels.
    #[must_use]
    pub fn without_rows(&self, targets: &Targets) -> Vec<String> {
        let mut has_row = vec![false; self.names.len()];
        match targets {
            Targets::Classes(classes) => classes.iter().for_each(|class| has_row[*class as usize] = true),
            Targets::Sets(sets) => sets.iter().enumerate().for_each(|(i, has)| has_row[i % self.names.len()] |= has),
            Targets::Values(_) => {}
        }
        let is_empty = match targets {
            Targets::Classes(classes) => classes.is_empty(),
            Targets::Sets(sets) => sets.is_empty(),
            Targets::Values(_) => true,
        };
        let missing = self.names.iter().zip(has_row).filter(|(_, has_row)| !has_row && !is_empty);
        missing.map(|(name, _)| name.clone()).collect()
    }

    fn map_rows<T>(
        &self,
        rows: &[GoldLabel],
        map: impl Fn(&GoldLabel) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, LabelError> {
        let mut wrong = WrongRows::default();
        let mut targets = Vec::with_capacity(rows.len());
        for (row, value) in rows.iter().enumerate() {
            match map(value) {
                Ok(target) => targets.push(target),
                Err(problem) => wrong.push(row, value, problem),
            }
        }
        wrong.into_result(self.known()).map(|()| targets)
    }

    fn class(&self, value: &GoldLabel) -> Result<u32, Wrong> {
        if let Some(number) = as_integer(value) {
            return self.integer(number);
        }
        match value {
            GoldLabel::Text(text) => match text.parse() {
                // A column of a delimited file may hold a GLUE task's numbers as text.
                Ok(number) if self.task.is_glue() => self.integer(number),
                _ => self.name(text),
            },
            value => Err(unsuitable(value, self.problem())),
        }
    }

    fn integer(&self, number: i64) -> Result<u32, Wrong> {
        let index = usize::try_from(number).ok();
        let found = match &self.numbers {
            Numbers::Names => return self.name(&number.to_string()),
            Numbers::Indices => index.filter(|index| *index < self.names.len()).and_then(|index| index.try_into().ok()),
            Numbers::DataSet(indices) => index.and_then(|index| indices.get(index).copied()),
            Numbers::Ambiguous => {
                return Err((
                    "is not clear".into(),
                    format!(
                        "GLUE's {} has the labels {}, which are not those of the model: name the labels in the query, \
                         for example with CASE",
                        self.task,
                        listed(self.task.labels())
                    ),
                ));
            }
        };
        match found {
            Some(index) => Ok(index),
            None if self.task.is_glue() && number == -1 => Err((
                "is not a label".into(),
                "GLUE's test parts have no gold labels: select the train or validation part".into(),
            )),
            None => Err((
                "is unknown".into(),
                match &self.numbers {
                    Numbers::DataSet(indices) => format!(
                        "whole numbers from 0 to {} stand for the labels of GLUE's {}: {}",
                        indices.len() - 1,
                        self.task,
                        listed(self.task.labels())
                    ),
                    _ => {
                        format!("whole numbers from 0 to {} stand for the labels in their order", self.names.len() - 1)
                    }
                },
            )),
        }
    }

    fn name(&self, text: &str) -> Result<u32, Wrong> {
        self.indices.get(text).copied().ok_or_else(|| {
            let near = closest(text, self.names.iter().map(String::as_str));
            let near = near.map_or("m".into(), |near| format!("did you mean {near:?}? M"));
            (
                "is unknown".into(),
                format!("{near}ap it in the query, leave the row out, or name all labels in `labels`"),
            )
        })
    }

    fn number(&self, value: &GoldLabel) -> Result<f32, Wrong> {
        let number = match value {
            GoldLabel::Integer(value) => *value as f64,
            GoldLabel::Float(value) if (*value as f32).is_finite() => *value,
            value => return Err(unsuitable(value, self.problem())),
        };
        match self.task.range() {
            Some((low, high)) if number < low || number > high => Err((
                format!("is not from {low} to {high}"),
                format!("task {} has no other values; GLUE's test parts have -1 where others have a label", self.task),
            )),
            _ => Ok(number as f32),
        }
    }

    fn set(&self, value: &GoldLabel) -> Result<Vec<bool>, Wrong> {
        let GoldLabel::Texts(names) = value else { return Err(unsuitable(value, self.problem())) };
        let mut set = vec![false; self.names.len()];
        for name in names {
            let index = self.name(name).map_err(|(problem, help)| (format!("has {name:?}, which {problem}"), help))?;
            set[index as usize] = true;
        }
        Ok(set)
    }

    fn known(&self) -> String {
        let mut known = listed(&self.names[..self.names.len().min(MAX_LISTED)]);
        if self.names.len() > MAX_LISTED {
            let _ = write!(known, " and {} more", self.names.len() - MAX_LISTED);
        }
        known
    }
}

fn listed(names: &[impl fmt::Debug]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

const MIXED: &str = "cast the column to one type in the query";

/// Returns the value as an integer, if it is one.
fn as_integer(value: &GoldLabel) -> Option<i64> {
    match value {
        GoldLabel::Integer(value) => Some(*value),
        // Many programs convert an integer column with gaps to floats.
        GoldLabel::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => Some(*value as i64),
        _ => None,
    }
}

/// Explains why a value cannot be a label for a kind of problem, and how to fix it.
fn unsuitable(value: &GoldLabel, problem: Problem) -> Wrong {
    let (wrong, help) = match (value, problem) {
        (GoldLabel::Null, _) => ("is not a label", "leave such rows out with `WHERE label IS NOT NULL`"),
        (GoldLabel::Float(_), Problem::Regression) => {
            ("is not a finite number", "leave the row out or fix its value in the query")
        }
        (_, Problem::Regression) => ("is not a number", "cast it in the query: `CAST(label AS DOUBLE)`"),
        (GoldLabel::Float(_), Problem::SingleLabel) => {
            ("is not a whole number", "labels are whole numbers or texts; to learn a value, set task = \"regression\"")
        }
        (GoldLabel::Texts(_), Problem::SingleLabel) => {
            ("is a list", "for rows with any number of labels, set task = \"multilabel\"")
        }
        (_, Problem::MultiLabel) => ("is not a list of texts", "make it one in the query: `make_array(label)`"),
        (_, Problem::SingleLabel) => ("is unknown", "map it in the query"),
    };
    (wrong.into(), help.into())
}
