//! A pipe or a device in place of a file: couplet never opens it, and no command waits for it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Job, finetune_stage, golden, quickstart_pairs, write};
use crate::tiny::Variant;

const PAIRS: &str = "id,a,b\n1,x,y\n2,p,q\n";

/// The time limit of a command that should end at once; a debug build on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Replaces the file at a path by a pipe.
fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).unwrap().file_type().is_fifo()
}

/// Kills a command that waits, and reports its arguments.
fn ended(mut command: Command) -> (i32, String, String) {
    command.env_remove("RUST_LOG").env("NO_COLOR", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the command waits: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn couplet(job: &Job, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
    command.current_dir(job.path("")).args(arguments).env("TMPDIR", job.path("tmp")).env("HOME", job.path("home"));
    command.stdin(Stdio::null());
    fs::create_dir_all(job.path("tmp")).unwrap();
    command
}

fn succeeds(job: &Job, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = ended(couplet(job, arguments));
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    stdout
}

/// Runs a command that must name the path in its error. Returns the exit code.
fn refuses(job: &Job, arguments: &[&str], path: &Path) -> i32 {
    let (code, _, stderr) = ended(couplet(job, arguments));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        code > 0 && stderr.contains(name) && (stderr.contains("pipe") || stderr.contains("not a regular file")),
        "{arguments:?} {code}: {stderr}"
    );
    assert!(!stderr.contains("panicked") && is_pipe(path), "{stderr}");
    code
}

/// The files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn pipes_among_temporary_files_block_no_command() {
    let job = Job::new(PAIRS);
    let among = [
        job.path("tmp/couplet-1.couplet-tmp"),
        job.path("out/.scores.parquet.1.couplet-tmp"),
        job.path("out/.scores.parquet.couplet-tmp"),
    ];
    among.iter().for_each(|path| pipe(path));
    let link = job.path("tmp/couplet-2.couplet-tmp");
    std::os::unix::fs::symlink(&among[0], &link).unwrap();
    assert!(succeeds(&job, &["query", "SELECT 1 AS one"]).contains('1'));
    succeeds(&job, &["run", "pipeline.toml"]);
    assert!(among.iter().all(|path| is_pipe(path)) && link.is_symlink());
}

#[test]
fn a_pipe_as_an_argument_is_refused() {
    let job = Job::new(PAIRS);
    let (pipeline, sql) = (job.path("other.toml"), job.path("query.sql"));
    pipe(&pipeline);
    pipe(&sql);
    for command in ["run", "plan", "runs", "report"] {
        assert_eq!(refuses(&job, &[command, "other.toml"], &pipeline), 2, "{command}");
    }
    assert_eq!(refuses(&job, &["query", "-f", "query.sql"], &sql), 2);
    let job = job.change("sql = \"SELECT id, a, b FROM pairs\"", "file = \"query.sql\"");
    assert_eq!(refuses(&job, &["run", "pipeline.toml"], &sql), 2);
}

#[test]
fn sql_can_be_read_from_a_file_descriptor() {
    let job = Job::new(PAIRS);
    let mut command = couplet(&job, &["query", "-f", "/dev/stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"SELECT 41 + 1 AS n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("42"));
    let mut shell = Command::new("bash");
    let line = format!("{} query -f <(echo 'SELECT 41 + 2 AS n')", env!("CARGO_BIN_EXE_couplet"));
    let (code, stdout, stderr) = ended({
        shell.args(["-c", &line]).current_dir(job.path(""));
        shell
    });
    assert!(code == 0 && stdout.contains("43"), "{stderr}");
}

#[test]
fn a_pipe_as_a_source_file_is_refused() {
    for (name, format) in [("p.csv", "csv"), ("p.parquet", "parquet"), ("p.jsonl", "json"), ("p.arrow", "arrow")] {
        let job = Job::new(PAIRS).change("\"pairs.csv\"", &format!("\"{name}\""));
        pipe(&job.path(name));
        refuses(&job, &["run", "pipeline.toml"], &job.path(name));
        let sql = format!("SELECT count(*) FROM '{name}'");
        refuses(&job, &["query", &sql], &job.path(name));
        // In a folder, a pipe is not one of the table's files.
        pipe(&job.path(&format!("folder/{name}")));
        let job = job.change(&format!("\"{name}\""), &format!("{{ uri = \"folder\", format = \"{format}\" }}"));
        let (code, _, stderr) = ended(couplet(&job, &["run", "pipeline.toml"]));
        assert!(code > 0 && stderr.contains("folder"), "{stderr}");
    }
    let job = Job::new(PAIRS).change("\"pairs.csv\"", "\"/dev/zero\"");
    let (code, _, stderr) = ended(couplet(&job, &["run", "pipeline.toml"]));
    assert!(code > 0 && stderr.contains("/dev/zero"), "{stderr}");
}

#[test]
fn a_pipe_as_a_file_of_a_model_is_refused() {
    let uri = format!("{:?}", golden("tiny-distilbert"));
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "calibration.json"];
    for name in names {
        let model = Variant::of("tiny-distilbert");
        let job = Job::new(PAIRS).change(&uri, &format!("{:?}", model.folder()));
        let path = model.path(name);
        pipe(&path);
        let folder = model.folder().to_str().unwrap();
        assert_eq!(refuses(&job, &["run", "pipeline.toml"], &path), 2);
        assert_eq!(refuses(&job, &["model", "show", folder], &path), 2);
        assert_eq!(refuses(&job, &["model", "import", folder, "imported"], &path), 2);
        assert_eq!(refuses(&job, &["predict", "--model", folder, "a", "b"], &path), 2);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let (code, _, stderr) = ended(couplet(&job, &["run", "pipeline.toml"]));
        assert!(code == 2 && stderr.contains(name), "{stderr}");
    }
    let model = Variant::of("tiny-bert");
    pipe(&model.path("vocab.txt"));
    let job = Job::new(PAIRS).change(&uri, &format!("{:?}", model.folder()));
    assert_eq!(refuses(&job, &["run", "pipeline.toml"], &model.path("vocab.txt")), 2);
    // Unneeded files are not checked.
    let model = Variant::of("tiny-distilbert");
    ["README.md", "training.json", "evaluation.json"].iter().for_each(|name| pipe(&model.path(name)));
    succeeds(&job, &["model", "show", model.folder().to_str().unwrap()]);
}

#[test]
fn a_pipe_in_a_store_or_sink_is_refused() {
    let job = Job::new(PAIRS).change("\"out/scores.parquet\"", "\"out/scores\"\nmode = \"append\"");
    succeeds(&job, &["run", "pipeline.toml"]);
    let files = [files_below(&job.path(".couplet")), files_below(&job.path("out"))].concat();
    assert!(files.iter().any(|path| path.ends_with("lock.json")) && files.len() > 4, "{files:?}");
    for path in files {
        let content = fs::read(&path).unwrap();
        pipe(&path);
        // Not every command reads every file, but none may wait.
        for command in [&["run", "pipeline.toml"][..], &["plan", "pipeline.toml"], &["runs", "pipeline.toml"]] {
            let (code, _, stderr) = ended(couplet(&job, command));
            assert!([0, 1, 2].contains(&code) && !stderr.contains("panicked"), "{path:?} {command:?}: {stderr}");
        }
        let _ = fs::remove_file(&path);
        fs::write(&path, content).unwrap();
    }
    let lock = job.path(".couplet/demo/lock.json");
    pipe(&lock);
    refuses(&job, &["run", "pipeline.toml"], &lock);
}

#[test]
fn a_pipe_in_the_state_of_a_training_is_refused() {
    let toml =
        format!("name = \"demo\"\n[tables]\npairs = {:?}\n{}", quickstart_pairs(), finetune_stage("id < 40", ""));
    let job = Job::new("");
    write(&job.path("learn.toml"), toml);
    for name in ["lock", "state.safetensors"] {
        let path = job.path(&format!("model.training/{name}"));
        pipe(&path);
        let (code, _, stderr) = ended(couplet(&job, &["run", "learn.toml", "--only", "finetune"]));
        assert!([0, 1, 2].contains(&code) && !stderr.contains("panicked"), "{name}: {stderr}");
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn a_pipe_as_an_output_is_refused() {
    let job = Job::new(PAIRS);
    for name in ["out/scores.parquet", "metrics.prom", "result.csv"] {
        pipe(&job.path(name));
    }
    refuses(&job, &["run", "pipeline.toml"], &job.path("out/scores.parquet"));
    fs::remove_file(job.path("out/scores.parquet")).unwrap();
    let (code, _, stderr) = ended(couplet(&job, &["run", "pipeline.toml", "--metrics", "metrics.prom"]));
    assert!(code == 0 && stderr.contains("metrics.prom"), "{code}: {stderr}");
    refuses(&job, &["query", "SELECT 1", "-o", "result.csv"], &job.path("result.csv"));
}
