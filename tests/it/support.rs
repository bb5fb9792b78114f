//! Shared test code: paths, the program, models, pipelines in temporary folders, tables as JSON.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock};

use arrow::datatypes::SchemaRef;
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use assert_cmd::Command;
use couplet::session::Resources;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;
use serde_json::Value;

/// The folder of this checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The path of a file or folder in `goldens`.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/it/goldens").join(name)
}

/// The golden file of this name, with one JSON document per line.
pub fn golden_lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The bundled model.
pub fn quickstart_model() -> PathBuf {
    root().join("pipelines/quickstart/model")
}

/// The bundled pairs.
pub fn quickstart_pairs() -> PathBuf {
    root().join("pipelines/quickstart/pairs.parquet")
}

/// A file in `../shared`, which a clone does not have. If it is missing, reports the test as skipped and returns
/// `None`.
pub fn shared(test: &str, name: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("../shared/{name} is not there"));
    None
}

/// Reports a test as skipped. Writes to stderr directly, because the harness hides `eprintln!` of tests that pass.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// The built program, without the caller's settings.
pub fn couplet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Runs the program, expects it to succeed, and returns its stdout.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, expects it to end with `code`, and returns its stderr.
pub fn stderr_of(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

/// Free ports of loopback. They are below the ranges for ephemeral ports (IANA's begins at 49,152, Linux's at 32,768),
/// so that no connection and no other server takes one before it is used.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 6_000).unwrap();
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed)).take(6_000).filter(free);
    [(); N].map(|()| ports.next().expect("no port of loopback is free"))
}

/// Writes a file, creating its folders.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A `[finetune]` stage that learns the labels of those bundled pairs that are in the table `pairs`, into the folder
/// `model`; `more` are additional keys.
pub fn finetune_stage(rows: &str, more: &str) -> String {
    format!(
        r#"[finetune]
sql = "SELECT id, sentence1, sentence2, label FROM pairs WHERE {rows}"
id = "id"
text = ["sentence1", "sentence2"]
task = "classification"
model = {:?}
output = "model"
validation = 0.3
epochs = 1
max_length = 32
{more}"#,
        golden("tiny-distilbert")
    )
}

/// A temporary folder with a pipeline that reads `pairs.csv` (id, a, b) and writes `out/scores.parquet` with a tiny
/// model.
pub struct Job {
    folder: tempfile::TempDir,
    toml: String,
}

impl Job {
    /// Makes the folder with these pairs.
    pub fn new(pairs: impl AsRef<[u8]>) -> Self {
        let toml = format!(
            r#"
name = "demo"
[tables]
pairs = "pairs.csv"
[source]
sql = "SELECT id, a, b FROM pairs"
id = "id"
text = ["a", "b"]
[model]
uri = {:?}
[sink]
uri = "out/scores.parquet"
"#,
            golden("tiny-distilbert")
        );
        let job = Self { folder: tempfile::tempdir().unwrap(), toml: String::new() };
        write(&job.path("pairs.csv"), pairs);
        job.with_toml(toml)
    }

    /// Makes the folder with a pipeline over the bundled pairs.
    pub fn over_quickstart_pairs() -> Self {
        Self::new("")
            .change("\"pairs.csv\"", &format!("{:?}", quickstart_pairs()))
            .change("SELECT id, a, b FROM pairs", "SELECT id, sentence1 AS a, sentence2 AS b FROM pairs")
    }

    /// Replaces a part of the pipeline file.
    pub fn change(self, from: &str, to: &str) -> Self {
        assert!(self.toml.contains(from), "{from} is not in {}", self.toml);
        let toml = self.toml.replace(from, to);
        self.with_toml(toml)
    }

    /// Appends to the pipeline file.
    pub fn add(self, lines: &str) -> Self {
        let toml = format!("{}{lines}\n", self.toml);
        self.with_toml(toml)
    }

    fn with_toml(mut self, toml: String) -> Self {
        self.toml = toml;
        write(&self.path("pipeline.toml"), &self.toml);
        self
    }

    /// A file or folder in the job's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of the predictions.
    pub fn output(&self) -> PathBuf {
        self.path("out/scores.parquet")
    }

    /// The command `couplet ARGUMENTS` in the job's folder.
    pub fn couplet(&self, arguments: &[&str]) -> Command {
        let mut command = couplet();
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    /// The command `couplet run` of the pipeline.
    pub fn run(&self) -> Command {
        self.couplet(&["run", "pipeline.toml"])
    }

    /// Runs the pipeline and returns the report.
    pub fn report(&self) -> Value {
        serde_json::from_str(&stdout_of(self.run().arg("--json"))).unwrap()
    }

    /// Runs the pipeline and returns the rows that it wrote.
    pub fn rows(&self) -> Vec<Value> {
        self.report();
        rows_of(&self.output())
    }

    /// Runs the pipeline, expects it to end with `code`, and returns its stderr with paths replaced.
    pub fn error(&self, code: i32) -> String {
        self.error_of(&mut self.run(), code)
    }

    /// Runs a command, expects it to end with `code`, and returns its stderr with paths replaced.
    pub fn error_of(&self, command: &mut Command, code: i32) -> String {
        self.without_paths(&stderr_of(command, code))
    }

    /// Replaces this job's folder by `DIR` and that of the checkout by `ROOT`.
    pub fn without_paths(&self, text: &str) -> String {
        let text = text.replace(self.folder.path().to_str().unwrap(), "DIR");
        text.replace(root().to_str().unwrap(), "ROOT").trim_end().to_owned()
    }

    /// The names of the files in the output's folder.
    pub fn output_files(&self) -> Vec<String> {
        let Ok(entries) = self.path("out").read_dir() else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The quickstart, run once for all tests that read its output.
pub struct Quickstart {
    /// The pipeline file, whose sink is in the target folder.
    pub pipeline: PathBuf,
    /// The output file.
    pub output: PathBuf,
    /// The report, from `--json`.
    pub stdout: String,
    /// The messages on stderr.
    pub stderr: String,
}

/// Runs the bundled pipeline unchanged except for the sink.
pub static QUICKSTART: LazyLock<Quickstart> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quickstart");
    let pipeline = folder.join("pipeline.toml");
    let output = folder.join("quickstart.parquet");
    let mut toml = std::fs::read_to_string(root().join("pipelines/quickstart/pipeline.toml")).unwrap();
    for (written, path) in [
        ("\"pairs.parquet\"", quickstart_pairs()),
        ("\"model\"", quickstart_model()),
        ("\"../../out/quickstart.parquet\"", output.clone()),
    ] {
        assert!(toml.contains(written), "{written} is not in the quickstart");
        toml = toml.replace(written, &format!("{path:?}"));
    }
    write(&pipeline, toml);
    // Scores of earlier test runs must not be reused.
    let _ = std::fs::remove_dir_all(folder.join(".couplet"));
    let result = couplet().arg("run").arg(&pipeline).arg("--json").output().unwrap();
    let stderr = String::from_utf8(result.stderr).unwrap();
    assert!(result.status.success(), "{stderr}");
    Quickstart { pipeline, output, stdout: String::from_utf8(result.stdout).unwrap(), stderr }
});

/// The resources of a test's session.
pub fn resources() -> Resources {
    Resources::new(1 << 30, &std::env::temp_dir()).unwrap()
}

/// The rows of a Parquet file, NULLs included.
pub fn rows_of(path: &Path) -> Vec<Value> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut json = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    for batch in reader.build().unwrap() {
        json.write(&batch.unwrap()).unwrap();
    }
    json.finish().unwrap();
    serde_json::from_slice(&json.into_inner()).unwrap()
}

/// The columns and the footer of a Parquet file.
pub fn footer_of(path: &Path) -> (SchemaRef, Arc<ParquetMetaData>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    (Arc::clone(reader.schema()), Arc::clone(reader.metadata()))
}
