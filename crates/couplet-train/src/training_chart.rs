//! `training.svg`: a chart of a training, drawn from the contents of `training.json`.
//!
//! It has four panels: the loss, the learning rate, the scores after each epoch, and the reliability diagram or,
//! without probabilities, the norm of the gradient. The chart has its own background, so that it is readable on light
//! and dark pages.

use couplet_storage::words::grouped;
use plotters::prelude::{IntoDrawingArea, RGBColor, SVGBackend, Text};
use plotters::style::{FontDesc, FontFamily, FontStyle};
use serde_json::Value;

use crate::chart::{BACKGROUND, BLUE, COLOURS, FAINT, GREEN, INK, ORANGE, Panel, Series, SeriesStyle};

/// The width and height of the chart, in pixels.
const SIZE: (u32, u32) = (1120, 800);
/// The height of the title above the panels.
const HEADER: u32 = 72;

/// The number of points from which on a smoothed curve is drawn over the raw one.
const SMOOTHED_FROM: usize = 40;
/// The decay of the smoothed curve per point: about the last 20 points count.
const KEEP: f64 = 0.95;

/// Draws the contents of `training.json`. Logs a warning and returns none if that fails: a missing chart must not
/// prevent the publication of the model.
pub(super) fn of_training(json: &Value) -> Option<String> {
    let mut svg = String::new();
    let drawn = draw(json, &mut svg);
    drawn.inspect_err(|e| tracing::warn!("training.svg is not written: {e}")).ok()?;
    Some(svg)
}

fn draw(json: &Value, svg: &mut String) -> Result<(), String> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    root.fill(&BACKGROUND).map_err(|e| failed(&e))?;
    let (title, subtitle) = headline(json);
    let line = |text: String, at: (i32, i32), size: u32, style: FontStyle, colour: RGBColor| {
        root.draw(&Text::new(text, at, FontDesc::new(FontFamily::SansSerif, f64::from(size), style).color(&colour)))
    };
    line(title, (24, 18), 22, FontStyle::Bold, INK).map_err(|e| failed(&e))?;
    line(subtitle, (24, 46), 14, FontStyle::Normal, FAINT).map_err(|e| failed(&e))?;
    let (_, below) = root.split_vertically(HEADER);
    for (area, panel) in below.split_evenly((2, 2)).iter().zip(panels(json)) {
        panel.draw(area).map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}

/// Returns the four panels.
#[must_use]
pub fn panels(json: &Value) -> Vec<Panel> {
    if json["kind"] == "pretrain" { of_pretraining(json) } else { of_finetuning(json) }
}

/// Returns the title and the subtitle.
#[must_use]
pub fn headline(json: &Value) -> (String, String) {
    let count = |value: &Value| grouped(value.as_u64().unwrap_or(0));
    let base = json["base"].as_str().or(json["base"]["random"].as_str()).unwrap_or_default();
    let base = base.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default();
    let start = if json["base"].is_string() { format!("from {base}") } else { format!("from random weights ({base})") };
    let steps = format!("{start} · {} steps · the model is that of epoch {}", count(&json["steps"]), json["epoch"]);
    let rows = &json["rows"];
    if json["kind"] == "pretrain" {
        let masked = &json["settings"]["mask_probability"];
        let title = format!("Pretraining on {} texts, {masked} of the words masked", count(&rows["texts"]));
        return (title, format!("{steps} · {} sequences held out", count(&rows["validation"])));
    }
    let title =
        format!("Fine-tuning on {} rows: {}", count(&rows["training"]), json["task"].as_str().unwrap_or("task"));
    let metric = json["settings"]["metric"].as_str().unwrap_or_default();
    let measured = |key: &str| json[key]["metrics"][metric].as_f64();
    let held_out = count(&rows["validation"]);
    let measured = match (measured("evaluation"), measured("calibrated")) {
        (Some(raw), Some(value)) => {
            format!(" · {metric} {value:.4} on {held_out} held-out rows, calibrated ({raw:.4} before)")
        }
        (Some(value), None) => format!(" · {metric} {value:.4} on {held_out} held-out rows"),
        (None, _) => String::new(),
    };
    (title, steps + &measured)
}

fn of_finetuning(json: &Value) -> Vec<Panel> {
    let is_value = !json["epochs"][0]["scores"]["mse"].is_null();
    let (held_out, unit) = if is_value { ("mse", "squared error") } else { ("log_loss", "nats per row") };
    let held_out = epochs(json, held_out, |epoch| epoch["step"].as_f64());
    let metric = json["settings"]["metric"].as_str().unwrap_or_default();
    let is_share = |name: &str| !["log_loss", "brier", "mse", "rmse", "mae"].contains(&name);
    let scores = json["epochs"][0]["scores"].as_object();
    let others = ["accuracy", "f1", "f1_macro", "f1_micro", "matthews", "pearson", "spearman", "subset_accuracy"];
    let shown = std::iter::once(metric).chain(others.into_iter().filter(|name| *name != metric));
    let shown = shown.filter(|name| scores.is_some_and(|scores| scores.contains_key(*name)));
    // Only metrics that fit on the deciding metric's axis.
    let shown: Vec<&str> = shown.filter(|name| is_share(name) == is_share(metric)).take(COLOURS.len()).collect();
    let measured = shown.iter().zip(COLOURS).map(|(name, colour)| {
        Series::new(name, colour, SeriesStyle::Marked, epochs(json, name, |epoch| epoch["epoch"].as_f64()))
    });
    vec![
        loss(json, unit, Series::new("held out", ORANGE, SeriesStyle::Marked, held_out)),
        learning_rate(json),
        Panel::new("Held-out rows", "epoch", if is_share(metric) { "metric, up to 1" } else { metric })
            .with(measured.collect())
            .integer_x(),
        reliability(json).unwrap_or_else(|| gradient(json)),
    ]
}

fn of_pretraining(json: &Value) -> Vec<Panel> {
    let by_step = |epoch: &Value| epoch["step"].as_f64();
    let shares = json["held_out"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shares = || shares.iter().filter_map(|measured| measured["mask_probability"].as_f64()).enumerate();
    let score = |name: &str, place: usize, share: f64| match place {
        0 => name.to_owned(),
        _ => format!("{name}_at_{share}"),
    };
    let series = |name: &str| {
        let one = |(place, share): (usize, f64)| {
            let points = epochs(json, &score(name, place, share), by_step);
            Series::new(&format!("{share} masked"), COLOURS[place % COLOURS.len()], SeriesStyle::Marked, points)
        };
        shares().map(one).collect::<Vec<_>>()
    };
    let held_out = epochs(json, "loss", by_step);
    vec![
        loss(json, "nats per masked word", Series::new("held out", ORANGE, SeriesStyle::Marked, held_out)),
        learning_rate(json),
        Panel::new("Perplexity of masked words, held-out texts", "step", "perplexity").with(series("perplexity")),
        Panel::new("Masked words predicted correctly, held-out texts", "step", "share").with(series("masked_accuracy")),
    ]
}

/// Returns the panel of the training loss, smoothed if there are many points, with the held-out loss.
fn loss(json: &Value, unit: &str, held_out: Series) -> Panel {
    let points = curve(json, "loss");
    let mut series = Vec::new();
    if points.len() >= SMOOTHED_FROM {
        let (mut sum, mut weight) = (0.0, 0.0);
        let smoothed = points.iter().map(|(step, loss)| {
            (sum, weight) = (KEEP * sum + loss, KEEP * weight + 1.0);
            (*step, sum / weight)
        });
        let smoothed = smoothed.collect();
        series.push(Series::new("training", BLUE, SeriesStyle::Faint, points));
        series.push(Series::new("training, smoothed", BLUE, SeriesStyle::Line, smoothed));
    } else {
        series.push(Series::new("training", BLUE, SeriesStyle::Line, points));
    }
    if !held_out.is_empty() {
        series.push(held_out);
    }
    Panel::new("Loss", "step", unit).with(series)
}

fn learning_rate(json: &Value) -> Panel {
    let series = Series::new("learning rate", GREEN, SeriesStyle::Line, curve(json, "learning_rate"));
    Panel::new("Learning rate", "step", "learning rate").with(vec![series]).starting_at_zero()
}

fn gradient(json: &Value) -> Panel {
    let series = Series::new("before clipping", BLUE, SeriesStyle::Line, curve(json, "grad_norm"));
    Panel::new("Gradient norm", "step", "norm").with(vec![series]).starting_at_zero()
}

/// Returns the reliability diagram: the share of correct rows by confidence. None without probabilities.
fn reliability(json: &Value) -> Option<Panel> {
    let mut series = Vec::new();
    for (key, name, colour) in [("evaluation", "uncalibrated", BLUE), ("calibrated", "calibrated", ORANGE)] {
        let bins = json[key]["reliability"].as_array().map(Vec::as_slice).unwrap_or_default();
        let point = |bin: &Value| Some((bin["confidence"].as_f64()?, bin["accuracy"].as_f64()?));
        let points: Vec<(f64, f64)> = bins.iter().filter_map(point).collect();
        if points.is_empty() {
            continue;
        }
        let counts = bins.iter().filter_map(|bin| bin["rows"].as_f64().filter(|rows| *rows > 0.0)).collect();
        let error = json[key]["metrics"]["calibration_error"].as_f64();
        let name = error.map_or_else(|| name.to_owned(), |error| format!("{name}: off by {error:.3} on average"));
        series.push(Series::new(&name, colour, SeriesStyle::Sized(counts), points));
    }
    if series.is_empty() {
        return None;
    }
    Some(Panel::new("Reliability, held-out rows", "confidence", "share that is correct").with(series).diagonal())
}

/// Returns a column of the curve, by step.
fn curve(json: &Value, name: &str) -> Vec<(f64, f64)> {
    let column = |name: &str| json["curve"][name].as_array().map(Vec::as_slice).unwrap_or_default();
    let points = column("step").iter().zip(column(name));
    points.filter_map(|(step, value)| Some((step.as_f64()?, value.as_f64()?))).collect()
}

/// Returns a score after each epoch.
fn epochs(json: &Value, score: &str, x: impl Fn(&Value) -> Option<f64>) -> Vec<(f64, f64)> {
    let epochs = json["epochs"].as_array().map(Vec::as_slice).unwrap_or_default();
    epochs.iter().filter_map(|epoch| Some((x(epoch)?, epoch["scores"][score].as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chart_is_drawn_for_all_kinds_of_reports() {
        let bins = json!([
            { "above": 0.8, "up_to": 0.9, "rows": 0, "confidence": null, "accuracy": null },
            { "above": 0.9, "up_to": 1.0, "rows": 3, "confidence": 0.95, "accuracy": 1.0 },
        ]);
        let mut json = json!({
            "kind": "finetune", "task": "mrpc <&>", "base": "models/base", "steps": 1, "epoch": 1,
            "rows": { "training": 3, "validation": 0 }, "settings": { "metric": "accuracy" },
            "curve": { "step": [1], "loss": [0.7], "grad_norm": [1.0], "learning_rate": [0.0] },
            "epochs": [{ "epoch": 1, "step": 1, "scores": { "accuracy": 0.5, "f1": null } }],
            "evaluation": { "metrics": { "accuracy": 0.5, "calibration_error": 0.05 }, "reliability": bins },
        });
        let svg = of_training(&json).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("Reliability"), "{svg}");
        assert!(svg.contains("mrpc &lt;&amp;&gt;") && !svg.contains("NaN"), "{svg}");
        // No scores and no curve.
        json["evaluation"] = Value::Null;
        json["epochs"] = json!([]);
        json["curve"] = json!({});
        assert!(of_training(&json).unwrap().contains("Gradient norm"));
        json["kind"] = "pretrain".into();
        json["base"] = json!({ "random": "configs/tiny.json" });
        json["held_out"] = json!([{ "mask_probability": 0.5 }]);
        assert!(of_training(&json).unwrap().contains("random weights (tiny.json)"));
    }
}
