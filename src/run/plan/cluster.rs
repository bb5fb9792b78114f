//! The part of a plan about the cluster that would score.

use couplet_cluster::{self as cluster, Address, ExecutorInfo};
use couplet_storage::place::Place;
use couplet_storage::words::{counted, grouped};
use serde_json::{Value, json};

use crate::config::{Pipeline, Scoring};
use crate::error::Error;

/// State of a cluster at the time of planning.
#[derive(Debug, Clone)]
pub struct PlannedCluster {
    /// The address of the scheduler.
    pub address: String,
    /// The registered executors.
    pub executors: Vec<ExecutorInfo>,
    /// The minimum number of tasks; `None` if the number of texts is unknown.
    pub tasks: Option<u64>,
    /// The maximum number of tokens per task.
    pub task_tokens: u64,
    /// Local folders of the pipeline that each executor must have under the same path: the kind and the path.
    pub folders: Vec<(&'static str, String)>,
}

impl PlannedCluster {
    /// Queries the scheduler. `tokens` is the number of tokens to score.
    ///
    /// # Errors
    /// A scheduler that does not answer.
    pub(super) async fn look(
        address: &Address,
        pipeline: &Pipeline,
        scoring: &Scoring,
        tokens: Option<u64>,
    ) -> Result<Self, Error> {
        let executors = cluster::list_executors(address).await?;
        let task_tokens = pipeline.run.task_tokens as u64;
        let places = [("the model", &scoring.model.location.place), ("score.store", &scoring.score.store.place)];
        let folders = places.into_iter().filter_map(|(what, place)| match place {
            Place::Local(path) => Some((what, path.display().to_string())),
            _ => None,
        });
        Ok(Self {
            address: address.to_string(),
            executors,
            tasks: tokens.map(|tokens| tokens.div_ceil(task_tokens)),
            task_tokens,
            folders: folders.collect(),
        })
    }

    /// Returns notes for the user.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.executors.is_empty() {
            notes.push(format!(
                "{} has no executor: a run waits a minute for one (`couplet executor --scheduler {0}`)",
                self.address
            ));
        }
        if !self.folders.is_empty() {
            let folders = self.folders.iter().map(|(what, path)| format!("{what}, {path}"));
            notes.push(format!(
                "each executor must have these folders under the same paths: {}",
                folders.collect::<Vec<_>>().join("; ")
            ));
        }
        notes.push("speed and time are measured on this machine only".into());
        notes
    }

    pub(super) fn in_words(&self) -> Vec<String> {
        let slots = self.executors.iter().map(|executor| executor.slots).sum();
        let tasks = self.tasks.map_or_else(String::new, |tasks| format!(" · {} or more", counted(tasks, "task")));
        let mut lines = vec![format!(
            "{} · {} with {}{tasks}, of {} tokens at most",
            self.address,
            counted(self.executors.len() as u64, "executor"),
            counted(slots, "slot"),
            grouped(self.task_tokens),
        )];
        lines.extend(
            self.executors.iter().map(|executor| {
                format!("{} on {} · {}", executor.name, executor.host, counted(executor.slots, "slot"))
            }),
        );
        lines
    }

    pub(super) fn to_json(&self) -> Value {
        let executors = self
            .executors
            .iter()
            .map(|executor| json!({ "executor": executor.name, "host": executor.host, "slots": executor.slots }));
        json!({
            "scheduler": self.address,
            "executors": executors.collect::<Vec<_>>(),
            "tasks_at_least": self.tasks,
            "task_tokens": self.task_tokens,
            "folders_of_executors": self.folders.iter().map(|(_, path)| path).collect::<Vec<_>>(),
        })
    }
}
