//! Other programs read the output of a run: DuckDB and pyarrow find in it what couplet does.
//!
//! Both come from PyPI into the target folder; without Python 3 or a network the test is skipped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{QUICKSTART, couplet, root, skip, stdout_of};

const PACKAGES: [&str; 2] = ["duckdb==2.0.0", "pyarrow==26.0.1"];

/// A Python that has the packages, or why there is none.
fn python() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let venv = target.join("readers-venv");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    // Another test process may be installing; the lock ends with the file.
    let lock = File::create(target.join("readers-venv.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    // Written last, so that an installation that was cut short is made again.
    let complete = venv.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|packages| packages == PACKAGES.join(" ")) {
        return Ok(python);
    }
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
    succeed(Command::new(&python).args(pip).args(PACKAGES))?;
    std::fs::write(complete, PACKAGES.join(" ")).map_err(|e| e.to_string())?;
    Ok(python)
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", stderr.lines().last().unwrap_or("failed")))
    }
}

fn first_row(sql: &str) -> Value {
    let mut query = couplet();
    query.args(["query", "--format", "json", sql, "--pipeline"]).arg(&QUICKSTART.pipeline);
    let mut rows: Vec<Value> = serde_json::from_str(&stdout_of(&mut query)).unwrap();
    rows.swap_remove(0)
}

#[test]
fn duckdb_and_pyarrow_read_the_output_of_a_run() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip("duckdb_and_pyarrow_read_the_output_of_a_run", &why),
    };
    let output = Command::new(python).arg(root().join("tests/it/readers.py")).arg(&QUICKSTART.output).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    let ours = first_row(
        "SELECT count(*) AS rows, sum(CAST(score AS DOUBLE)) AS sum_of_score, \
         count(*) FILTER (WHERE error IS NULL) AS null_errors, \
         count(*) FILTER (WHERE predicted_label = 'paraphrase' AND probabilities[2] > 0.5) AS paraphrases, \
         max(CASE WHEN id = 'q0001' THEN sentence1 END) AS first FROM predictions",
    );
    for reader in ["duckdb", "pyarrow"] {
        let theirs = &found[reader];
        for name in ["rows", "null_errors", "paraphrases", "first"] {
            assert_eq!(theirs[name], ours[name], "{name} by {reader}");
        }
        let sum = |value: &Value| value["sum_of_score"].as_f64().unwrap();
        assert!((sum(theirs) - sum(&ours)).abs() < 1e-9, "{theirs}");
        let metadata = &theirs["metadata"];
        assert_eq!(metadata["couplet.model"], report["model"]["fingerprint"], "{reader}");
        assert_eq!(metadata["couplet.pipeline"], "quickstart", "{reader}");
        assert_eq!(metadata["couplet.version"], env!("CARGO_PKG_VERSION"), "{reader}");
        assert_eq!(metadata["couplet.max_length"], "128", "{reader}");
    }
    assert_eq!(found["duckdb"]["metadata"], found["pyarrow"]["metadata"]);
    insta::assert_snapshot!(columns(&found["duckdb"]), @r"
    category VARCHAR
    error VARCHAR
    id VARCHAR
    label VARCHAR
    model VARCHAR
    predicted_label VARCHAR
    probabilities FLOAT[]
    raw_probabilities FLOAT[]
    score FLOAT
    sentence1 VARCHAR
    sentence2 VARCHAR
    truncated BOOLEAN
    ");
    insta::assert_snapshot!(columns(&found["pyarrow"]), @r"
    category string
    error string
    id string
    label string
    model string
    predicted_label string
    probabilities list<item: float not null>
    raw_probabilities list<item: float not null>
    score float
    sentence1 string
    sentence2 string
    truncated bool
    ");
}

fn columns(found: &Value) -> String {
    let columns = found["columns"].as_object().unwrap().iter();
    columns.map(|(name, kind)| format!("{name} {}", kind.as_str().unwrap())).collect::<Vec<_>>().join("\n")
}
