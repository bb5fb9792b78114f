//! Metrics, calibration, thresholds and class weights equal scikit-learn and SciPy to 1e-6; intervals to their own
//! error.

use std::sync::LazyLock;

use couplet::train::sampling::ClassWeights;
use couplet::train::statistics::bootstrap::Bootstrap;
use couplet::train::statistics::calibration::Calibration;
use couplet::train::statistics::metrics::{
    Classes, Confusion, Correlation, DEFAULT_BINS, LabelSets, Metric, Metrics, Reliability, RowMeans, Sample, Sets,
    Values,
};
use couplet::train::statistics::slices::slices;
use couplet::train::statistics::temperature::Temperature;
use couplet::train::statistics::threshold::{Objective, Threshold, ThresholdError};
use serde_json::Value;

use crate::support::golden;

/// The largest accepted difference.
const TOLERANCE: f64 = 1e-6;

static GOLDENS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&std::fs::read_to_string(golden("metrics.json")).unwrap()).unwrap());

fn cases(family: &str) -> impl Iterator<Item = &'static Value> {
    let cases = GOLDENS[family].as_array().unwrap();
    assert!(!cases.is_empty());
    cases.iter()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn labels(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|number| number as u32).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    numbers(value).into_iter().map(|number| number == 1.0).collect()
}

fn singles(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|number| number as f32).collect()
}

/// Compares a metric with a golden value (null if undefined); large values by their relative difference.
fn check(case: &Value, name: &str, value: Option<f64>) {
    let expected = case.get(name).unwrap_or_else(|| panic!("no golden {name} in {}", case["name"])).as_f64();
    let equal = match (value, expected) {
        (Some(value), Some(expected)) => (value - expected).abs() <= TOLERANCE * expected.abs().max(1.0),
        (None, None) => true,
        _ => false,
    };
    assert!(equal, "{}: {name} is {value:?}, scikit-learn says {expected:?}", case["name"]);
}

/// Compares every metric of a report with its golden value.
fn check_all(case: &Value, metrics: &Metrics) {
    metrics.iter().for_each(|(metric, value)| check(case, metric.name(), value));
}

#[test]
fn single_label_metrics_match_scikit_learn() {
    for case in cases("classes") {
        let (gold, probabilities) = (labels(&case["gold"]), numbers(&case["probabilities"]));
        let k = case["labels"].as_u64().unwrap() as usize;
        let classes = Classes::new(k, gold.clone(), probabilities, None, DEFAULT_BINS).unwrap();
        let confusion = classes.confusion();
        let counts: Vec<f64> = (0..k * k).map(|i| confusion.count(i / k, i % k) as f64).collect();
        assert_eq!(counts, numbers(&case["confusion"]), "{}", case["name"]);
        for (label, expected) in case["classes"].as_array().unwrap().iter().enumerate() {
            let (scores, expected) = (confusion.class(label), numbers(expected));
            let scores = [scores.precision, scores.recall, scores.f1, scores.support as f64];
            assert!(scores.iter().zip(&expected).all(|(a, b)| (a - b).abs() < TOLERANCE), "{scores:?} {expected:?}");
        }
        check(case, "f1_macro", confusion.f1_macro());
        check(case, "f1_micro", confusion.accuracy());
        check(case, "f1_weighted", confusion.f1_weighted());
        let rows: u64 = classes.reliability().iter().map(|bin| bin.count).sum();
        assert_eq!(rows, gold.len() as u64);
        let metrics = Sample::Classes(classes).metrics();
        assert_eq!(metrics.has(Metric::F1), k == 2);
        check_all(case, &metrics);
    }
}

#[test]
fn regression_metrics_match_scipy() {
    for case in cases("values") {
        let (gold, predicted) = (numbers(&case["gold"]), numbers(&case["predicted"]));
        check_all(case, &Sample::Values(Values::new(gold, predicted).unwrap()).metrics());
    }
}

#[test]
fn multilabel_metrics_match_scikit_learn() {
    for case in cases("sets") {
        let k = case["labels"].as_u64().unwrap() as usize;
        check_all(
            case,
            &Sample::Sets(Sets::new(k, flags(&case["gold"]), &numbers(&case["probabilities"])).unwrap()).metrics(),
        );
    }
}

#[test]
fn nan_and_empty_inputs_are_refused_everywhere() {
    let nan = f64::NAN;
    assert!(Classes::new(2, vec![0], vec![nan, nan], None, 10).is_err());
    assert!(Values::new(vec![0.0, 1.0], vec![0.0, nan]).is_err());
    assert!(Values::new(vec![0.0, nan], vec![0.0, 1.0]).is_err());
    assert!(Sets::new(1, vec![true], &[nan]).is_err());
    assert!(Correlation::new(&[nan], &[1.0]).is_err());
    assert!(Reliability::new(10, 2, &[0], &[nan, 1.0]).is_err());
    assert!(RowMeans::log_loss(2, &[0], &[1.0, nan]).is_err());
    assert!(Confusion::new(2, &[], &[]).is_err());
    assert!(LabelSets::new(1, &[], &[]).is_err());
}

#[test]
fn a_temperature_matches_scipy() {
    for case in cases("temperatures") {
        let (k, logits) = (case["labels"].as_u64().unwrap() as usize, singles(&case["logits"]));
        let calibration = if case["multi"] == true {
            Calibration::fit_sets(k, &logits, &flags(&case["gold"]))
        } else {
            Calibration::fit(k, &logits, &labels(&case["gold"]), None)
        };
        let Temperature { value, bound, before, after } = calibration.unwrap().temperature;
        assert_eq!(bound, None);
        let expected = case["temperature"].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-4, "{}: {value} {expected}", case["name"]);
        check(case, "before", Some(before));
        check(case, "after", Some(after));
    }
}

#[test]
fn a_threshold_reaches_the_best_possible_value() {
    for case in cases("thresholds") {
        let (positive, scores) = (flags(&case["gold"]), singles(&case["scores"]));
        for (objective, best) in case["best"].as_object().unwrap() {
            let objective = Objective::parse(objective).unwrap();
            let fitted = Threshold::fit(1, objective, &scores, &positive);
            let Some(best) = best.as_f64() else {
                assert!(matches!(fitted, Err(ThresholdError::Unreachable { .. })), "{objective}: {fitted:?}");
                continue;
            };
            let fitted = fitted.unwrap();
            assert!((fitted.reached - best).abs() < TOLERANCE, "{}, {objective}: {fitted:?} {best}", case["name"]);
            assert!(fitted.from <= fitted.value && fitted.value <= fitted.to);
            // Predictions with the threshold reach the reported value.
            let gold: Vec<u32> = positive.iter().map(|positive| u32::from(*positive)).collect();
            let predicted: Vec<u32> = scores.iter().map(|score| u32::from(f64::from(*score) >= fitted.value)).collect();
            let confusion = Confusion::new(2, &gold, &predicted).unwrap();
            let class = confusion.class(1);
            let again = match objective {
                Objective::F1 => class.f1,
                Objective::Accuracy => confusion.accuracy().unwrap(),
                Objective::Matthews => confusion.matthews().unwrap(),
                Objective::Precision(least) => {
                    if class.precision >= least {
                        class.recall
                    } else {
                        -1.0
                    }
                }
                Objective::Recall(least) => {
                    if class.recall >= least {
                        class.precision
                    } else {
                        -1.0
                    }
                }
            };
            assert!((again - best).abs() < TOLERANCE, "{}, {objective}: {fitted:?} gives {again}", case["name"]);
        }
    }
}

#[test]
fn a_threshold_is_the_middle_of_the_widest_interval() {
    let rows = [(0.1, false), (0.2, false), (0.4, true), (0.45, false), (0.7, true), (0.9, true)];
    let fit = |rows: &[(f32, bool)], objective| {
        let (scores, positive): (Vec<f32>, Vec<bool>) = rows.iter().copied().unzip();
        Threshold::fit(1, objective, &scores, &positive).unwrap()
    };
    // Accuracy is 5/6 above 0.2 up to 0.4, and above 0.45 up to 0.7, which is wider.
    let fitted = fit(&rows, Objective::Accuracy);
    assert!((fitted.value - 0.575).abs() < 1e-6 && (fitted.reached - 5.0 / 6.0).abs() < 1e-12, "{fitted:?}");
    let mut turned = rows;
    turned.reverse();
    assert_eq!(fit(&turned, Objective::Accuracy), fitted);
    // F1 is best with all three positives and one false positive.
    assert!((fit(&rows, Objective::F1).value - 0.3).abs() < 1e-6);
    // Every threshold above 0.45 has precision 1; the lowest finds two of three.
    let fitted = fit(&rows, Objective::Precision(0.9));
    assert!((fitted.value - 0.575).abs() < 1e-6 && (fitted.reached - 2.0 / 3.0).abs() < 1e-12, "{fitted:?}");
}

/// Probabilities are always of the second label; for the first label, the rows and the probabilities are swapped.
#[test]
fn a_threshold_may_be_for_the_first_label() {
    let rows = [(0.1_f32, false), (0.2, false), (0.4, true), (0.45, false), (0.7, true), (0.9, true)];
    let (scores, second): (Vec<f32>, Vec<bool>) = rows.iter().copied().unzip();
    let (turned_scores, first): (Vec<f32>, Vec<bool>) = rows.iter().map(|(p, second)| (1.0 - p, !second)).unzip();
    for objective in ["f1", "accuracy", "matthews", "precision >= 0.9", "recall >= 0.9"] {
        let objective = Objective::parse(objective).unwrap();
        let fitted = Threshold::fit(1, objective, &scores, &second).unwrap();
        let turned = Threshold::fit(0, objective, &turned_scores, &first).unwrap();
        assert!((turned.reached - fitted.reached).abs() < 1e-12, "{objective}: {turned:?} {fitted:?}");
        for (probability, turned_probability) in scores.iter().zip(&turned_scores) {
            // Below the threshold a row has the first label.
            let is_first = f64::from(*turned_probability) < turned.value;
            assert_eq!(is_first, f64::from(*probability) >= fitted.value, "{objective}: {turned:?} {fitted:?}");
        }
    }
    let of_first = Threshold::fit(0, Objective::F1, &scores, &second).unwrap();
    assert_ne!(of_first.value.to_bits(), Threshold::fit(1, Objective::F1, &scores, &second).unwrap().value.to_bits());
    let error = Threshold::fit(0, Objective::Precision(0.9), &[0.9, 0.1, 0.2], &[false, true, true]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no threshold reaches precision >= 0.9 on the validation rows: the best precision is 0.3333, at recall 1.0000; lower \
         the requirement"
    );
}

#[test]
fn impossible_threshold_objectives_are_errors() {
    let message = |objective: &str, scores: &[f32], positive: &[bool]| {
        Threshold::fit(1, Objective::parse(objective).unwrap(), scores, positive).unwrap_err().to_string()
    };
    assert_eq!(
        message("precision >= 0.9", &[0.9, 0.8, 0.1], &[false, true, true]),
        "no threshold reaches precision >= 0.9 on the validation rows: the best precision is 0.6667, at recall 1.0000; lower the requirement"
    );
    assert_eq!(
        message("f1", &[0.9, 0.8], &[true, true]),
        "all 2 validation rows have the second label; a threshold needs rows of both"
    );
    assert_eq!(
        message("f1", &[1.5, 0.8], &[true, false]),
        "row 1: a probability is 1.5, expected a number from 0 to 1"
    );
    for (written, problem) in [
        ("best", ""),
        ("precision", ": it needs a minimum, as an extreme threshold always maximizes it alone"),
        ("recall >= 90", ": the number must be above 0 and at most 1"),
        ("f1 >= 0.9", ""),
    ] {
        assert_eq!(
            Objective::parse(written).unwrap_err().to_string(),
            format!(
                "unknown objective {written:?}{problem}; known are \"f1\", \"accuracy\", \"matthews\", \"precision >= 0.9\" and \"recall >= 0.9\", with any share"
            )
        );
    }
}

#[test]
fn confidence_intervals_match_scipy_within_their_error() {
    let case = &GOLDENS["intervals"];
    let sample = Sample::Values(Values::new(numbers(&case["gold"]), numbers(&case["predicted"])).unwrap());
    let bootstrap = Bootstrap::try_new(20_000, 0.95, 1).unwrap();
    let intervals = bootstrap.intervals(&sample);
    assert_eq!(intervals, bootstrap.intervals(&sample));
    let measured = sample.metrics();
    let mut compared = 0;
    for (metric, interval) in intervals {
        let (interval, value) = (interval.unwrap(), measured.get(metric).unwrap());
        assert!(interval.low < value && value < interval.high && interval.defined == 20_000);
        let Some(expected) = case.get(metric.name()).map(numbers) else { continue };
        // An end of an interval from 20,000 resamples is uncertain by about a hundredth of the interval.
        let width = expected[1] - expected[0];
        let error = (interval.low - expected[0]).abs().max((interval.high - expected[1]).abs());
        assert!(error < 0.03 * width, "{metric}: {interval:?} {expected:?}");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn every_kind_of_metric_has_an_interval() {
    let positive = |i: u32| i.is_multiple_of(3);
    let gold: Vec<u32> = (0..200).map(|i| u32::from(positive(i))).collect();
    let score = |i: u32| (f64::from(i * 37 % 101) / 101.0 + if positive(i) { 0.5 } else { 0.0 }) / 1.5;
    let probabilities = (0..200).flat_map(|i| [1.0 - score(i), score(i)]).collect();
    let sample = Sample::Classes(Classes::new(2, gold, probabilities, None, DEFAULT_BINS).unwrap());
    let measured = sample.metrics();
    let intervals = Bootstrap::usual(3).intervals(&sample);
    assert_eq!(intervals.len(), 11);
    for (metric, interval) in intervals {
        let (interval, value) = (interval.unwrap(), measured.get(metric).unwrap());
        // Resampling increases the calibration error: its interval lies above the point estimate.
        assert!(interval.low < interval.high && value < interval.high, "{metric}: {value} {interval:?}");
        assert!(metric == Metric::CalibrationError || interval.low < value, "{metric}: {value} {interval:?}");
    }
}

#[test]
fn balanced_class_weights_match_scikit_learn() {
    let case = &GOLDENS["class_weights"];
    let rows: Vec<u64> = numbers(&case["rows"]).into_iter().map(|rows| rows as u64).collect();
    let names = ["a", "b", "c"].map(String::from);
    let weights = ClassWeights::Balanced.weights(&names, &rows).unwrap();
    assert!(weights.iter().zip(numbers(&case["weights"])).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
}

#[test]
fn slice_metrics_are_those_of_their_rows() {
    let case = cases("classes").next().unwrap();
    let (gold, probabilities) = (labels(&case["gold"]), numbers(&case["probabilities"]));
    let sample =
        |gold, probabilities| Sample::Classes(Classes::new(2, gold, probabilities, None, DEFAULT_BINS).unwrap());
    let keys: Vec<Option<&str>> = (0..gold.len()).map(|row| (row < 20).then_some("first")).collect();
    let slices = slices(&sample(gold.clone(), probabilities.clone()), &keys).unwrap();
    let first = sample(gold[..20].to_vec(), probabilities[..40].to_vec()).metrics();
    let shown: Vec<_> = slices.iter().map(|slice| (slice.key.as_deref(), slice.rows)).collect();
    assert_eq!(shown, [(None, 40), (Some("first"), 20)]);
    assert_eq!(slices[1].metrics, first);
}
