//! What several areas need: paths, the program, models, small files.

use std::io::Write;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The folder of this checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file or folder among the golden files.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/it/goldens").join(name)
}

/// The bundled model.
pub fn quickstart_model() -> PathBuf {
    root().join("pipelines/quickstart/model")
}

/// A file beside the checkout that a clone does not have; says on stderr, past the test harness, what is skipped without it.
pub fn shared(test: &str, name: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("../shared/{name} is not there"));
    None
}

/// Says that a test did not run; `eprintln!` would be swallowed with the output of tests that pass.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// The built program, without the caller's settings.
pub fn couplet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Runs the program, expects it to succeed, and returns what it printed.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, expects it to end with `code`, and returns what it said on stderr.
pub fn stderr_of(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

/// Writes a file, making its folders.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
