//! `couplet init`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use couplet_storage::words::counted;

use super::print;
use crate::error::Error;
use crate::init::{self, Guess, ModelChoice, Wanted};
use crate::logging::Messages;

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The folder to create, which must be new or empty (default with --from: a name made from the data's name)
    #[arg(required_unless_present = "from")]
    folder: Option<PathBuf>,
    /// Create the pipeline for this data: a file, a folder or a glob, local or in a bucket (s3://…), or a table of
    /// options as in `[tables]`: '{ uri = "a.csv", quote = false }'
    #[arg(long, value_name = "DATA")]
    from: Option<String>,
    /// The format of the data, if it cannot be inferred from the name: parquet, csv, tsv, json, arrow, delta
    #[arg(long, requires = "from")]
    format: Option<String>,
    /// The columns that identify a row, instead of a guess
    #[arg(long, requires = "from", value_delimiter = ',', value_name = "COLUMN")]
    id: Vec<String>,
    /// The text column, or the two columns of a pair, instead of a guess
    #[arg(long, requires = "from", value_delimiter = ',', value_name = "COLUMN")]
    text: Vec<String>,
    /// The column of labels, instead of a guess
    #[arg(long, requires = "from", value_name = "COLUMN")]
    label: Option<String>,
    /// Do not guess a column of labels
    #[arg(long, requires = "from", conflicts_with = "label")]
    no_label: bool,
    /// The model: a folder, local or in a bucket (s3://…), or a model on a hub (hf://…)
    #[arg(long, value_name = "URI")]
    model: Option<String>,
}

impl Init {
    pub(super) async fn execute(self, messages: Messages) -> Result<(), Error> {
        let looked = match &self.from {
            Some(from) => Some(init::look(from, self.format.as_deref()).await?),
            None => None,
        };
        let folder = match (&self.folder, &looked) {
            (Some(folder), _) => folder.clone(),
            (None, Some(table)) => folder_for(&table.uri),
            (None, None) => return Err(Error::Usage("name the folder to create".into())),
        };
        if self.from.is_none() {
            init::check_folder(&folder)?;
        }
        let model = init::choose_model(self.model.as_deref(), &folder)?;
        let name = init::name_of(&folder);
        let mut summary = String::new();
        let files = match &looked {
            None => init::sample(&name, &model),
            Some(table) => {
                let uri = &table.uri;
                let wanted = Wanted { id: self.id, text: self.text, label: self.label, no_label: self.no_label };
                let guess = Guess::new(table, &wanted).await?;
                let _ = writeln!(
                    summary,
                    "{uri}: {}, {}",
                    counted(table.rows, "row"),
                    counted(table.columns.len() as u64, "column")
                );
                summary.push_str(&guesses(&guess));
                init::over(init::pipeline_over(&name, &init::table_uri(&folder, uri), table, &guess, &model))
            }
        };
        let written = init::write(&folder, &files)?;
        let _ = writeln!(summary, "  {:<6} {}: {}", "model", model.uri, model.why);
        let _ = writeln!(summary, "written:");
        for path in &written {
            let _ = writeln!(summary, "  {}", path.display());
        }
        summary.push_str(&next(&folder, &model));
        if messages.is_quiet() { Ok(()) } else { print(&summary) }
    }
}

/// Returns a folder name made from the name of the data.
fn folder_for(uri: &str) -> PathBuf {
    let name = uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = name.split(['.', '*', '?']).find(|part| !part.is_empty()).unwrap_or("my-job");
    PathBuf::from(format!("{stem}-job"))
}

fn guesses(guess: &Guess) -> String {
    let named = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut summary = String::new();
    let mut line = |what: &str, names: String, why: &str| {
        let _ = writeln!(summary, "  {what:<6} {names}: {why}");
    };
    let id = if guess.id.is_empty() { "none".to_owned() } else { named(&guess.id) };
    line("id", id, &guess.why_id);
    line("text", named(&guess.text), &guess.why_text);
    line("label", guess.label.as_ref().map_or_else(|| "none".into(), |label| format!("`{label}`")), &guess.why_label);
    summary
}

fn next(folder: &Path, model: &ModelChoice) -> String {
    let fetched = if model.here { "" } else { "    # downloads the model the first time" };
    let folder = in_shell(&folder.display().to_string());
    format!("next:\n  cd {folder}\n  couplet plan pipeline.toml{fetched}\n  couplet run pipeline.toml\n")
}

/// Quotes a path for a shell.
fn in_shell(path: &str) -> String {
    let is_plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+@:,".contains(c)) && !path.starts_with('-');
    if is_plain { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_as_one_shell_word() {
        assert_eq!(in_shell("work/my-job"), "work/my-job");
        assert_eq!(in_shell("it's here; $(rm)"), "'it'\\''s here; $(rm)'");
    }
}
