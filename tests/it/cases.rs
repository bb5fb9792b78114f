//! The files of `../shared/cases`, written by other programs: couplet reads the same rows as DuckDB, or reports the
//! problem.

use std::process::Command;

use crate::support::{golden, root, shared, skip};
use crate::venv;

const PACKAGES: [&str; 3] = ["duckdb==2.0.0", "pyarrow==26.0.1", "pytz==2026.2"];

#[test]
fn files_of_other_programs_read_the_same_as_in_duckdb() {
    let test = "files_of_other_programs_read_the_same_as_in_duckdb";
    let Some(cases) = shared(test, "cases/data") else { return };
    let python = match venv::program("cases-venv", &PACKAGES, "python") {
        Ok(python) => python,
        Err(why) => return skip(test, &why),
    };
    let mut script = Command::new(python);
    script.arg(root().join("tests/it/cases/data.py")).arg(env!("CARGO_BIN_EXE_couplet"));
    let output = script.arg(cases.canonicalize().unwrap()).arg(golden("tiny-distilbert")).output().unwrap();
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{message}{}", String::from_utf8_lossy(&output.stderr));
}
