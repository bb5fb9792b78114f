//! `couplet runs` and `couplet store`: run history and cached scores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use couplet_storage::words::counted;

use super::{Variables, at_least, name_and_value, print, print_as, read, read_pipeline};
use crate::config::{Pipeline, Query, variables_in};
use crate::error::Error;
use crate::history;

#[derive(Debug, Args)]
pub(super) struct Runs {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// The maximum number of runs to list
    #[arg(long, short = 'n', default_value_t = 20, value_parser = at_least(1))]
    limit: u64,
    /// Print the runs as one JSON document
    #[arg(long)]
    json: bool,
}

impl Runs {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let pipeline = read_pipeline(&self.pipeline, &self.variables.to_map()?)?;
        print_as(
            &history::runs(&pipeline, usize::try_from(self.limit).unwrap_or(usize::MAX), self.json).await?,
            self.json,
        )
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Delete cached scores of models that none of these pipelines uses, and files that are no longer referenced
    #[command(after_help = "Examples:
  couplet store gc pipelines/quickstart/pipeline.toml --dry-run
  couplet store gc pipelines/quickstart/pipeline.toml")]
    Gc {
        /// All pipelines that share the store
        #[arg(required = true)]
        pipelines: Vec<PathBuf>,
        /// Set a value of the variable {NAME}; repeat it for each value that a pipeline runs with
        #[arg(long = "var", value_name = "NAME=VALUE", value_parser = name_and_value)]
        variables: Vec<(String, String)>,
        /// Show what would be deleted, without changing anything
        #[arg(long)]
        dry_run: bool,
    },
}

impl StoreCommand {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let Self::Gc { pipelines: paths, variables, dry_run } = self;
        let mut given = Given::new();
        for (name, value) in variables {
            given.entry(name).or_default().insert(value);
        }
        let mut pipelines = Vec::new();
        let mut unused: BTreeSet<&str> = given.keys().map(String::as_str).collect();
        for path in &paths {
            let text = read(path)?;
            let used = variables_in(&text);
            unused.retain(|name| !used.contains(name));
            for variables in combinations(&given, &used) {
                pipelines.push(read_pipeline(path, &variables)?);
            }
        }
        // SQL files may use further variables, which do not matter here.
        let has_files = pipelines.iter().flat_map(Pipeline::queries).any(|(_, query)| matches!(query, Query::File(_)));
        if let Some(name) = unused.first().filter(|_| !has_files) {
            return Err(Error::Usage(format!("--var {name}=…: no pipeline uses this variable")));
        }
        let garbage = history::collect(&pipelines, dry_run).await?;
        let (done, removed) = if dry_run { ("would be deleted", "would be removed") } else { ("deleted", "removed") };
        let mut summary = format!(
            "{} of {} {done}; {} {removed}\n",
            counted(garbage.scores, "score"),
            counted(garbage.models as u64, "model"),
            counted(garbage.files as u64, "file")
        );
        if garbage.models > 0 {
            summary.extend(variable_model_notes(&pipelines, &given));
        }
        print(&summary)
    }
}

/// The given values of each variable.
type Given = BTreeMap<String, BTreeSet<String>>;

/// Returns all combinations of the values of the variables that a pipeline uses.
fn combinations(given: &Given, used: &BTreeSet<&str>) -> Vec<BTreeMap<String, String>> {
    let used = given.iter().filter(|(name, _)| used.contains(name.as_str()));
    used.fold(vec![BTreeMap::new()], |all, (name, values)| {
        let with = |some: &BTreeMap<String, String>, value: &String| {
            let mut more = some.clone();
            more.insert(name.clone(), value.clone());
            more
        };
        all.iter().flat_map(|some| values.iter().map(move |value| with(some, value))).collect()
    })
}

/// Returns a note for each pipeline whose model URI contains a variable: models of other values count as unused.
fn variable_model_notes(pipelines: &[Pipeline], given: &Given) -> BTreeSet<String> {
    let models = pipelines.iter().filter_map(|pipeline| Some((pipeline, &pipeline.scoring.as_ref()?.model.location)));
    let noted = models.flat_map(|(pipeline, model)| {
        variables_in(&model.written).into_iter().map(move |name| {
            let values = given.get(name).into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!(
                "note: {}: [model] uri = \"{model}\" has {{{name}}}: only the scores of its models for {name} = {values} are \
                 kept; give --var {name}=VALUE once for each value that it still runs with\n",
                pipeline.path.display()
            )
        })
    });
    noted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_of_a_variable_gives_a_combination() {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
        let given = Given::from([("a".into(), values(&["1", "2"])), ("b".into(), values(&["x", "y"]))]);
        let all = |used: &[&str]| combinations(&given, &used.iter().copied().collect()).len();
        assert_eq!([all(&[]), all(&["a"]), all(&["a", "b", "c"])], [1, 2, 4]);
    }
}
