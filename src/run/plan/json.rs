//! JSON output of a plan.

use couplet_encoder::scorer::{PADDED_BATCH, Pace, Rejection};
use couplet_train::training_loop::JobStatus;
use serde_json::{Map, Value, json};

use super::{Lengths, Plan, PlannedEvaluation, PlannedScoring, PlannedTraining};

impl Plan {
    /// Returns the plan as a JSON document; `predicted` is the estimate for all rows.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "pipeline": self.pipeline,
            "file": self.file,
            "tables": self.tables,
            "memory": {
                "expected_bytes": self.memory,
                "spills_above_bytes": self.spills_above,
                "spill": self.spill,
            },
            "writes": self.writes,
            "notes": self.notes,
            "problems": self.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "planned_in_seconds": self.seconds,
        });
        for (key, stage) in [("pretrain", &self.pretrain), ("finetune", &self.finetune)] {
            if let Some(stage) = stage {
                json[key] = stage.to_json();
            }
        }
        if let Some(stage) = &self.evaluate {
            json["evaluate"] = stage.to_json();
        }
        if let Some(stage) = &self.score {
            json["score"] = stage.to_json();
            json["predicted"] = stage.of_all_rows();
        }
        if let Some(cluster) = &self.cluster {
            json["cluster"] = cluster.to_json();
        }
        if !self.explained.is_empty() {
            let plans = self.explained.iter().map(|(query, plan)| (query.clone(), Value::from(plan.as_str())));
            json["plans"] = Value::Object(plans.collect::<Map<_, _>>());
        }
        json
    }
}

impl PlannedTraining {
    fn to_json(&self) -> Value {
        let trial = self.trial.as_ref().map(|trial| {
            json!({
                "state": match trial.status {
                    JobStatus::New => "new",
                    JobStatus::Resumes(_) => "resumes",
                    JobStatus::Done => "unchanged",
                    JobStatus::ToCalibrate => "calibrates",
                    JobStatus::Rejected => "rejected_before",
                },
                "steps_done": match trial.status {
                    JobStatus::Resumes(steps) => Some(steps),
                    _ => None,
                },
                "rows": trial.rows,
                "held_out": trial.held_out,
                "labels": trial.labels,
                "steps": trial.total_steps,
                "tokens_of_an_epoch": trial.tokens,
                "truncated": trial.truncated,
                "tried": trial.pace.map(|pace| json!({
                    "steps": pace.steps,
                    "tokens": pace.tokens,
                    "seconds": pace.seconds,
                    "tokens_per_second": pace.tokens_per_second(),
                })),
                "seconds_of_measuring": trial.evaluation_seconds,
            })
        });
        json!({
            "output": self.output,
            "rows": self.rows,
            "held_out_in_training": self.shared,
            "epochs": self.epochs,
            "seconds": self.seconds(),
            "training": trial,
        })
    }
}

impl PlannedEvaluation {
    fn to_json(&self) -> Value {
        json!({
            "output": self.output,
            "rows": self.rows,
            "model": self.model,
            "tokens": self.lengths.to_json(self.rows as u64),
            "speed": self.pace.map(|pace| speed(pace, &self.lengths)),
            "seconds": self.seconds,
        })
    }
}

impl Lengths {
    fn to_json(&self, texts: u64) -> Value {
        let padding = self.scaled(self.padding, texts);
        json!({
            "sampled": self.sampled,
            "all": self.tokens_of(texts),
            "mean": self.mean,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "max": self.max,
            "max_length": self.max_length,
            "truncated": self.scaled(self.truncated, texts),
            "padding_avoided": padding,
            "padded_batch": PADDED_BATCH,
        })
    }
}

fn speed(pace: Pace, lengths: &Lengths) -> Value {
    json!({
        "batches": pace.batches,
        "tokens": pace.tokens,
        "seconds": pace.seconds,
        "threads": pace.threads,
        "tokens_per_second": pace.tokens_per_second,
        "rows_per_second": if lengths.mean > 0.0 { pace.tokens_per_second / lengths.mean } else { 0.0 },
    })
}

impl PlannedScoring {
    /// Estimate for all rows of the source; `null` if the number of rows is unknown.
    fn of_all_rows(&self) -> Value {
        let Some((texts, tokens)) = self.texts_and_tokens() else { return Value::Null };
        json!({
            "rows": texts,
            "tokens": tokens,
            "seconds": { "scoring": self.seconds.scoring, "all": self.seconds.all() },
        })
    }

    fn to_json(&self) -> Value {
        let mut seconds = json!(self.seconds);
        seconds["all"] = self.seconds.all().into();
        let rejected = Rejection::KINDS.iter().zip(self.rejected).filter(|(_, n)| *n > 0);
        json!({
            "columns": self.columns,
            "other_columns": self.other_columns,
            "rows": {
                "read": self.rows,
                "of": self.all_rows,
                "limited": self.limited,
                "to_score": self.texts,
                "remembered": self.remembered,
                "repeated": self.repeated,
                "rejected": self.rejected.iter().sum::<u64>(),
            },
            "rejected": rejected.map(|(kind, n)| ((*kind).to_owned(), n.into())).collect::<Map<_, _>>(),
            "labels": self.labels,
            "model": {
                "uri": self.model,
                "fingerprint": self.fingerprint.as_ref().ok(),
                "stands_for_it": self.fingerprint.as_ref().err(),
                "precision": self.precision,
            },
            "tokens": self.lengths.as_ref().map(|lengths| lengths.to_json(self.texts)),
            "speed": self.pace.zip(self.lengths.as_ref()).map(|(pace, lengths)| speed(pace, lengths)),
            "seconds": seconds,
            "temporary_bytes": self.temporary_bytes,
            "output_bytes": self.output_bytes,
        })
    }
}
