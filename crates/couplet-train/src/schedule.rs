//! Learning-rate schedules.

use serde::Serialize;

/// The learning-rate schedule after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// A straight line to 0 at the last step.
    Linear,
    /// Half a cosine, to 0 at the last step.
    Cosine,
    /// No decay.
    Constant,
}

impl Shape {
    /// The names of the shapes in pipelines and reports, in the order of the variants.
    pub const NAMED: [(&'static str, Self); 3] =
        [("linear", Self::Linear), ("cosine", Self::Cosine), ("constant", Self::Constant)];

    /// Returns the name of the shape.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMED[self as usize].0
    }
}

/// The learning rate of each step: a linear warm-up from 0, then [`Shape`].
///
/// **Units**: steps, counted from 0.
/// **Source**: `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` (half a cycle) and
/// `get_constant_schedule_with_warmup` of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// The number of warm-up steps.
    pub warmup_steps: u64,
    /// The number of steps of the whole training.
    pub total_steps: u64,
    /// The decay after the warm-up.
    pub shape: Shape,
}

impl Schedule {
    /// Returns a schedule with the same learning rate at every step.
    #[must_use]
    pub fn constant(rate: f64) -> Self {
        Self { peak: rate, warmup_steps: 0, total_steps: 0, shape: Shape::Constant }
    }

    /// Returns the learning rate of a step.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        let Self { peak, warmup_steps, total_steps, shape } = *self;
        if step < warmup_steps {
            return peak * step as f64 / warmup_steps as f64;
        }
        let decay_steps = total_steps.saturating_sub(warmup_steps).max(1) as f64;
        peak * match shape {
            Shape::Linear => total_steps.saturating_sub(step) as f64 / decay_steps,
            Shape::Cosine => {
                let progress = (step - warmup_steps) as f64 / decay_steps;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            Shape::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_zero() {
        for shape in [Shape::Linear, Shape::Cosine] {
            let schedule = Schedule { peak: 2.0, warmup_steps: 4, total_steps: 12, shape };
            let rates = [0, 2, 4, 8, 12].map(|step| schedule.rate(step));
            assert!(rates.iter().zip([0.0, 1.0, 2.0, 1.0, 0.0]).all(|(x, y)| (x - y).abs() < 1e-12), "{rates:?}");
        }
        assert!((Schedule::constant(0.5).rate(1_000) - 0.5).abs() < 1e-12);
    }
}
