//! Label columns: the labels learned from them, the values that are refused, and the messages.

use couplet::model::Problem;
use couplet::train::statistics::labels::{GoldLabel, LabelError, Labels, Targets};
use couplet::train::statistics::task::Task;

fn integers(values: &[i64]) -> Vec<GoldLabel> {
    values.iter().copied().map(GoldLabel::Integer).collect()
}

fn texts(values: &[&str]) -> Vec<GoldLabel> {
    values.iter().map(|value| GoldLabel::Text((*value).to_owned())).collect()
}

fn list(values: &[&str]) -> GoldLabel {
    GoldLabel::Texts(values.iter().map(|value| (*value).to_owned()).collect())
}

fn names(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Learns the mapping from rows and applies it to them.
fn learn(task: Task, rows: &[GoldLabel]) -> Result<(Labels, Targets), LabelError> {
    let labels = Labels::learn(task, rows)?;
    let targets = labels.targets(rows)?;
    Ok((labels, targets))
}

#[test]
fn numbers_sort_by_value_and_texts_by_bytes() {
    let (labels, targets) = learn(Task::Classification, &integers(&[10, 2, -1, 2])).unwrap();
    assert_eq!(labels.names(), ["-1", "2", "10"]);
    assert_eq!(targets, Targets::Classes(vec![2, 1, 0, 1]));
    let (labels, targets) = learn(Task::Classification, &texts(&["é", "a", "B", "a", "10", "2"])).unwrap();
    assert_eq!(labels.names(), ["10", "2", "B", "a", "é"]);
    assert_eq!(targets, Targets::Classes(vec![4, 3, 2, 3, 0, 1]));
    let truths = [GoldLabel::from(true), GoldLabel::from(false)];
    assert_eq!(learn(Task::Classification, &truths).unwrap().1, Targets::Classes(vec![1, 0]));
    // The order of rows does not matter.
    assert_eq!(
        Labels::learn(Task::Classification, &texts(&["b", "a"])),
        Labels::learn(Task::Classification, &texts(&["a", "b", "a"]))
    );
}

#[test]
fn integral_floats_are_integers() {
    let floats = [1.0, 0.0, 1.0].map(GoldLabel::Float);
    let (labels, targets) = learn(Task::Classification, &floats).unwrap();
    assert_eq!(labels.names(), ["0", "1"]);
    assert_eq!(targets, Targets::Classes(vec![1, 0, 1]));
}

#[test]
fn a_glue_task_defines_its_labels_and_their_numbers() {
    let rows = [integers(&[1, 0]), texts(&["equivalent", "not_equivalent", "1"]), vec![GoldLabel::Float(0.0)]].concat();
    let (labels, targets) = learn(Task::Mrpc, &rows).unwrap();
    assert_eq!(labels.names(), ["not_equivalent", "equivalent"]);
    assert_eq!(targets, Targets::Classes(vec![1, 0, 1, 0, 1, 0]));
    // RTE and WNLI use the opposite numbering.
    assert_eq!(Labels::learn(Task::Rte, &[]).unwrap().names()[0], "entailment");
    assert_eq!(Labels::learn(Task::Wnli, &[]).unwrap().names()[1], "entailment");
}

#[test]
fn glue_numbers_map_to_labels_in_any_order_of_names() {
    let places = |task, given: &[&str], rows: &[i64]| {
        Labels::given(task, names(given)).unwrap().targets(&integers(rows)).map_err(|e| e.to_string())
    };
    // The order of GLUE's MRPC, and the opposite one.
    assert_eq!(places(Task::Mrpc, &["not_equivalent", "equivalent"], &[0, 1]), Ok(Targets::Classes(vec![0, 1])));
    assert_eq!(places(Task::Mrpc, &["Equivalent", "NOT-equivalent"], &[0, 1]), Ok(Targets::Classes(vec![1, 0])));
    // Many checkpoints for MNLI have their labels in this order.
    let reversed = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"];
    assert_eq!(places(Task::Mnli, &reversed, &[0, 1, 2]), Ok(Targets::Classes(vec![2, 1, 0])));
    // Custom names do not imply an order.
    assert_eq!(places(Task::Mrpc, &["LABEL_0", "LABEL_1"], &[0, 1]), Ok(Targets::Classes(vec![0, 1])));
    insta::assert_snapshot!(places(Task::Mrpc, &["equivalent", "different"], &[1]).unwrap_err(), @r#"row 1: label 1 is not clear; known labels: "equivalent", "different"; GLUE's mrpc has the labels "not_equivalent", "equivalent", which are not those of the model: name the labels in the query, for example with CASE"#);
    insta::assert_snapshot!(places(Task::Rte, &reversed, &[1]).unwrap_err(), @r#"row 1: label 1 is not clear; known labels: "CONTRADICTION", "NEUTRAL", "ENTAILMENT"; GLUE's rte has the labels "entailment", "not_entailment", which are not those of the model: name the labels in the query, for example with CASE"#);
    insta::assert_snapshot!(places(Task::Mnli, &reversed, &[3]).unwrap_err(), @r#"row 1: label 3 is unknown; known labels: "CONTRADICTION", "NEUTRAL", "ENTAILMENT"; whole numbers from 0 to 2 stand for the labels of GLUE's mnli: "entailment", "neutral", "contradiction""#);
}

#[test]
fn the_positive_label_is_label_1_of_glue() {
    let positive = |task, given: &[&str]| Labels::given(task, names(given)).unwrap().positive();
    assert_eq!(positive(Task::Mrpc, &["not_equivalent", "equivalent"]), Some(1));
    assert_eq!(positive(Task::Mrpc, &["Equivalent", "NOT-equivalent"]), Some(0));
    // Label 1 is not_entailment in RTE and entailment in WNLI.
    assert_eq!(positive(Task::Rte, &["entailment", "not_entailment"]), Some(1));
    assert_eq!(positive(Task::Wnli, &["entailment", "not_entailment"]), Some(0));
    // One known name is enough, and numbers follow GLUE.
    assert_eq!(positive(Task::Mrpc, &["equivalent", "different"]), Some(0));
    assert_eq!(positive(Task::Mrpc, &["same", "not_equivalent"]), Some(0));
    assert_eq!(positive(Task::Sst2, &["1", "0"]), Some(0));
    // Custom names, and labels of no data set, keep the model's order.
    assert_eq!(positive(Task::Mrpc, &["LABEL_0", "LABEL_1"]), Some(1));
    assert_eq!(positive(Task::Classification, &["equivalent", "not_equivalent"]), Some(1));
    assert_eq!(positive(Task::Mnli, &["entailment", "neutral", "contradiction"]), None);
    assert_eq!(positive(Task::Multilabel, &["a", "b"]), None);
    assert_eq!(positive(Task::Regression, &[]), None);
}

#[test]
fn given_names_map_by_position_unless_they_are_numbers() {
    let labels = Labels::given(Task::Classification, names(&["no", "yes"])).unwrap();
    assert_eq!(labels.targets(&integers(&[1, 0])), Ok(Targets::Classes(vec![1, 0])));
    let labels = Labels::given(Task::Classification, names(&["1", "0"])).unwrap();
    assert_eq!(labels.targets(&integers(&[1, 0])), Ok(Targets::Classes(vec![0, 1])));
    assert_eq!(labels.targets(&texts(&["1", "0"])), Ok(Targets::Classes(vec![0, 1])));
}

#[test]
fn regression_values_and_label_sets_are_parsed() {
    let rows = [GoldLabel::Integer(3), GoldLabel::Float(2.5)];
    assert_eq!(learn(Task::Stsb, &rows).unwrap().1, Targets::Values(vec![3.0, 2.5]));
    let (labels, targets) = learn(Task::Multilabel, &[list(&["b", "a"]), list(&[]), list(&["c", "c"])]).unwrap();
    assert_eq!(labels.names(), ["a", "b", "c"]);
    assert_eq!(targets, Targets::Sets([[true, true, false], [false; 3], [false, false, true]].concat()));
}

#[test]
fn a_checkpoint_keeps_the_mapping_as_transformers_reads_it() {
    let keys =
        |task, given: &[&str]| serde_json::Value::Object(Labels::given(task, names(given)).unwrap().config_keys());
    assert_eq!(
        keys(Task::Classification, &["no", "yes"]),
        serde_json::json!({
            "id2label": { "0": "no", "1": "yes" },
            "label2id": { "no": 0, "yes": 1 },
            "problem_type": "single_label_classification",
        })
    );
    assert_eq!(keys(Task::Multilabel, &["a"])["problem_type"], "multi_label_classification");
    assert_eq!(keys(Task::Regression, &[])["id2label"], serde_json::json!({ "0": "LABEL_0" }));
    assert_eq!(Labels::given(Task::Regression, vec![]).unwrap().problem(), Problem::Regression);
}

#[test]
fn a_wrong_label_is_reported_with_its_row_and_a_fix() {
    let message = |result: Result<(Labels, Targets), LabelError>| result.unwrap_err().to_string();
    let yes_no = Labels::given(Task::Classification, names(&["no", "yes"])).unwrap();
    let mapped = |rows: &[GoldLabel]| yes_no.targets(rows).unwrap_err().to_string();
    assert_eq!(
        message(learn(Task::Classification, &[texts(&["a", "b"]), vec![GoldLabel::Null]].concat())),
        "row 3: label NULL is not a label; leave such rows out with `WHERE label IS NOT NULL`"
    );
    assert_eq!(
        mapped(&texts(&["no", "Yes", "maybe"])),
        "row 2: label \"Yes\" is unknown; row 3: label \"maybe\" is unknown; known labels: \"no\", \"yes\"; did you mean \"yes\"? Map it in the query, leave the row out, or name all labels in `labels`"
    );
    assert_eq!(
        mapped(&integers(&[0, 2])),
        "row 2: label 2 is unknown; known labels: \"no\", \"yes\"; whole numbers from 0 to 1 stand for the labels in their order"
    );
    assert_eq!(
        mapped(&[GoldLabel::Float(0.5)]),
        "row 1: label 0.5 is not a whole number; known labels: \"no\", \"yes\"; labels are whole numbers or texts; to learn a value, set task = \"regression\""
    );
    assert_eq!(
        message(learn(Task::Sst2, &integers(&[0, -1]))),
        "row 2: label -1 is not a label; known labels: \"negative\", \"positive\"; GLUE's test parts have no gold labels: select the train or validation part"
    );
    assert_eq!(
        message(learn(Task::Classification, &[integers(&[1]), texts(&["b"])].concat())),
        "row 2: label \"b\" has another type than the labels before it; cast the column to one type in the query"
    );
    assert_eq!(
        message(learn(Task::Regression, &texts(&["3.5"]))),
        "row 1: label \"3.5\" is not a number; cast it in the query: `CAST(label AS DOUBLE)`"
    );
    assert_eq!(
        message(learn(Task::Regression, &[GoldLabel::Float(f64::NAN)])),
        "row 1: label NaN is not a finite number; leave the row out or fix its value in the query"
    );
    assert_eq!(
        message(learn(Task::Stsb, &[GoldLabel::Float(5.0), GoldLabel::Float(-1.0)])),
        "row 2: label -1.0 is not from 0 to 5; task stsb has no other values; GLUE's test parts have -1 where others have a label"
    );
    assert_eq!(mapped(&texts(&["1"])).split(';').next(), Some("row 1: label \"1\" is unknown"));
    assert_eq!(
        message(learn(Task::Multilabel, &texts(&["a"]))),
        "row 1: label \"a\" is not a list of texts; make it one in the query: `make_array(label)`"
    );
    assert_eq!(
        message(learn(Task::Classification, &[list(&["a"])])),
        "row 1: label [\"a\"] is a list; for rows with any number of labels, set task = \"multilabel\""
    );
    let sets = Labels::given(Task::Multilabel, names(&["red", "blue"])).unwrap();
    assert_eq!(
        sets.targets(&[list(&["red", "bleu"])]).unwrap_err().to_string(),
        "row 1: label [\"red\", \"bleu\"] has \"bleu\", which is unknown; known labels: \"red\", \"blue\"; did you mean \"blue\"? Map it in the query, leave the row out, or name all labels in `labels`"
    );
    let LabelError::Rows { rows, wrong, .. } = yes_no.targets(&vec![GoldLabel::Null; 9]).unwrap_err() else { panic!() };
    assert_eq!((rows.len(), wrong), (5, 9));
}

#[test]
fn too_few_labels_and_wrong_names_are_refused() {
    let learned = |task, rows: &[GoldLabel]| Labels::learn(task, rows).unwrap_err().to_string();
    assert_eq!(
        learned(Task::Classification, &texts(&["a", "a"])),
        "the label column has only the label \"a\"; a classification needs two different labels or more: look at the query that selects the training rows"
    );
    assert!(learned(Task::Classification, &[]).starts_with("the label column has no label"));
    assert_eq!(
        learned(Task::Multilabel, &[list(&[])]),
        "the label column has no label; a multilabel task needs one label or more: look at the query that selects the training rows"
    );
    for (task, given, problem) in [
        (Task::Classification, &["a", "b", "a"][..], "label \"a\" occurs twice"),
        (Task::Classification, &["a"], "task classification needs 2 labels or more"),
        (Task::Classification, &["a", ""], "a label has no name"),
        (Task::Regression, &["a"], "task regression predicts a value and has no labels"),
    ] {
        let error = Labels::given(task, names(given)).unwrap_err().to_string();
        assert_eq!(error, format!("labels = {given:?}: {problem}"));
    }
}
