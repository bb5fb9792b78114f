//! `couplet report`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use couplet_storage::files::AtomicFile;
use couplet_storage::words::size;

use super::{Variables, print, print_as, print_document, read_pipeline};
use crate::config::Pipeline;
use crate::error::Error;
use crate::history;
use crate::page;
use crate::prometheus::{self, Facts, timestamp};

/// The format of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A self-contained HTML page
    Html,
    /// The contents of the page as one JSON document
    Json,
    /// The metrics of the run, for Prometheus' textfile collector
    Prometheus,
}

#[derive(Debug, Args)]
pub(super) struct Report {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// The file to write; - is stdout (default: NAME-report.html for html, stdout for other formats)
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The format (default: by the extension of the output file, else html)
    #[arg(long)]
    format: Option<Format>,
    /// The id of the run, or a prefix of it (default: the newest run)
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

impl Report {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let pipeline = read_pipeline(&self.pipeline, &self.variables.to_map()?)?;
        let format = match (self.format, self.output.as_deref()) {
            (Some(format), _) => format,
            (None, Some(path)) if path != Path::new("-") => of_extension(path)?,
            (None, _) => Format::Html,
        };
        let text = match format {
            Format::Html => page::html(&page::collect(&pipeline, self.run.as_deref()).await?),
            Format::Json => {
                let page = page::collect(&pipeline, self.run.as_deref()).await?;
                let json = serde_json::to_string_pretty(&page);
                let json = json.map_err(|e| Error::Io { context: "writing the report".into(), error: e.into() })?;
                format!("{json}\n")
            }
            Format::Prometheus => metrics(&pipeline, self.run.as_deref()).await?,
        };
        let output = match self.output {
            Some(path) if path == Path::new("-") => None,
            None if format == Format::Html => Some(PathBuf::from(format!("{}-report.html", pipeline.name))),
            output => output,
        };
        let Some(path) = output else {
            return if format == Format::Json { print_as(&text, true) } else { print_document(&text) };
        };
        let written = AtomicFile::create(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.publish()
        });
        let bytes =
            written.map_err(|error| Error::Io { context: format!("cannot write {}", path.display()), error })?;
        print(&format!("{} ({})\n", path.display(), size(bytes)))
    }
}

fn of_extension(path: &Path) -> Result<Format, Error> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        Some("prom") => Ok(Format::Prometheus),
        _ => Err(Error::Usage(format!(
            "--output {}: the extension must be html, json or prom; or set the format with --format",
            path.display()
        ))),
    }
}

/// Returns the metrics of a run, in the form that `couplet run --metrics` writes.
async fn metrics(pipeline: &Pipeline, run: Option<&str>) -> Result<String, Error> {
    let (record, all) = page::run_of(pipeline, run).await?;
    let drift =
        history::before(&all, &record).and_then(|before| record.scores.as_ref()?.drift_from(before.scores.as_ref()?));
    let last_success = history::last_success(pipeline).await?.map(timestamp);
    Ok(prometheus::text(&Facts { last_success, drift, ..Facts::of(record) }))
}
