//! `couplet query` without SQL: statements from stdin, and a shell on a terminal emulated in Python.

use std::path::Path;
use std::process::Command;

use crate::support::{QUICKSTART, couplet, golden, quickstart_pairs, root, skip, stderr_of, stdout_of, write};

fn from_stdin(statements: &str, arguments: &[&str]) -> assert_cmd::Command {
    let mut command = couplet();
    command.arg("query").args(arguments).write_stdin(statements);
    command
}

#[test]
fn statements_come_from_stdin() {
    let csv = ["--format", "csv"];
    let text = "-- two of them\nCREATE VIEW v AS SELECT 1 AS x;\nSELECT x + 1 AS y, ';' AS z FROM v";
    assert_eq!(stdout_of(&mut from_stdin(text, &csv)), "y,z\n2,;\n");
    let pairs = format!("pairs={}", quickstart_pairs().display());
    let counted = from_stdin("SELECT count(*) AS n FROM pairs;", &["--format", "csv", "--table", &pairs]);
    assert_eq!(stdout_of(&mut { counted }), "n\n525\n");
}

#[test]
fn shell_commands_come_from_stdin_too() {
    let folder = tempfile::tempdir().unwrap();
    let (result, file) = (folder.path().join("a b.csv"), folder.path().join("more.sql"));
    write(&file, "\\d v\nSELECT x * 2 AS x FROM v;");
    write(&folder.path().join("c.csv"), "id,text\n1,a\n");
    let text = format!(
        "CREATE VIEW v AS SELECT 21 AS x;\n\\o '{}'\nSELECT x FROM v;\n\\i {}\n\\d '{}'\n\\q\nSELECT 'never';",
        result.display(),
        file.display(),
        folder.path().join("c.csv").display()
    );
    let printed = stdout_of(&mut from_stdin(&text, &[]));
    let printed = printed.replace(folder.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(printed, @r"
    +--------+-------+----------+
    | column | type  | nullable |
    +--------+-------+----------+
    | x      | Int64 | no       |
    +--------+-------+----------+
    +----+
    | x  |
    +----+
    | 42 |
    +----+
    +--------+-------+----------+
    | column | type  | nullable |
    +--------+-------+----------+
    | id     | Int64 | yes      |
    | text   | Utf8  | yes      |
    +--------+-------+----------+
    ");
    assert_eq!(std::fs::read_to_string(result).unwrap(), "x\n21\n");
}

#[test]
fn errors_on_stdin_look_like_those_of_one_statement() {
    let pairs = format!("pairs={}", quickstart_pairs().display());
    let problem = |text: &str| {
        let message = stderr_of(&mut from_stdin(text, &["--table", &pairs]), 2);
        message.lines().filter(|line| !line.contains(" INFO ")).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(problem(""), @"error: stdin: there is no SQL");
    insta::assert_snapshot!(problem("SELECT * FROM pears;"), @r"error: stdin: there is no table `pears` (tables: pairs); did you mean `pairs`?");
    insta::assert_snapshot!(problem("SELECT 1;\nSELEC 2;"), @r"error: stdin: Expected: an SQL statement, found: SELEC at Line: 2, Column: 1");
    insta::assert_snapshot!(problem("INSERT INTO pairs VALUES (1);"), @r"error: stdin: Inconsistent data length across values list: got 1 values in row 0 but expected 5");
    insta::assert_snapshot!(problem("\\timing\nSELECT 1;\nSELECT * FROM pears;"), @r"error: stdin, line 3: there is no table `pears` (tables: pairs); did you mean `pairs`?");
    insta::assert_snapshot!(problem("\\d pears"), @r"error: there is no table `pears` (tables: pairs); did you mean `pairs`?");
    insta::assert_snapshot!(problem("\\d pears.csv"), @r"error: \d pears.csv: table `pears.csv`: pears.csv does not exist");
    insta::assert_snapshot!(problem("\\dx"), @r"error: there is no command \dx; did you mean \d? (\? lists them)");
    insta::assert_snapshot!(problem("\\o result.doc"), @r"error: -o result.doc: the extension implies no format (csv, tsv, json, jsonl, parquet, txt); add --format");
    insta::assert_snapshot!(problem("\\i none.sql"), @r"error: cannot read none.sql: No such file or directory (os error 2)");
}

#[test]
fn parameters_are_bound_in_the_statements_that_use_them() {
    let with = |text: &str, parameters: &[&str]| {
        let mut arguments = vec!["--format", "csv"];
        arguments.extend(parameters.iter().flat_map(|parameter| ["--param", *parameter]));
        from_stdin(text, &arguments)
    };
    let csv = |text: &str, parameters: &[&str]| stdout_of(&mut with(text, parameters));
    assert_eq!(csv("SELECT $x AS x;", &["x=12345678901234567890"]), "x\n12345678901234567890\n");
    assert_eq!(csv("SELECT $x AS x; SELECT $y AS y;", &["x=007", "y=0.1"]), "x\n007\ny\n0.1\n");
    // The comments before a statement declare its parameters, at any place in the script.
    let text = "-- $n = 3   how many\nSELECT $n AS n;\n\\timing off\n-- x; y\n-- $n = 4\nSELECT $n AS n; -- $n = 5\nSELECT $n AS n;";
    assert_eq!(csv(text, &["n=9"]), "n\n9\nn\n9\nn\n9\n");
    let message = stderr_of(&mut with(text, &[]), 2);
    assert!(message.contains("stdin, line 7: $n has no value: add --param n=VALUE"), "{message}");
    let message = stderr_of(&mut with("SELECT $x AS x;", &["y=1", "x=1"]), 2);
    assert!(message.contains("--param y=1: the SQL has no $y (its parameters are $x)"), "{message}");
}

#[test]
fn positions_in_errors_are_those_of_the_script() {
    let problem = |text: &str| {
        let message = stderr_of(&mut from_stdin(text, &[]), 2);
        message.lines().find(|line| line.starts_with("error: ")).unwrap().to_owned()
    };
    let text = "\\timing on\n-- it's; a comment\nSELECT 'é'; /* a /* b; */ */ SELEC 2;";
    insta::assert_snapshot!(problem(text), @"error: stdin: Expected: an SQL statement, found: SELEC at Line: 3, Column: 30");
    insta::assert_snapshot!(problem("SELECT 1;\r\n\r\n  SELEC 2;\r\n"), @"error: stdin: Expected: an SQL statement, found: SELEC at Line: 3, Column: 3");
    insta::assert_snapshot!(problem("SELECT 1;\n\nSELECT * FROM none;\n"), @"error: stdin, line 3: there is no table `none`, and no tables are defined: name one with --table none=URI or --pipeline FILE, or read a file with FROM 'FILE'");
    insta::assert_snapshot!(problem("\\timing maybe"), @r"error: \timing maybe: expected on or off");
    // Commands of other shells.
    let printed =
        stdout_of(&mut from_stdin("CREATE VIEW v AS SELECT 1 AS x;\n.schema v\n.timer off\n.quit\nSELECT 2;", &[]));
    assert!(printed.contains("| x ") && !printed.contains("| 2 "), "{printed}");
}

#[test]
fn a_table_longer_than_a_page_is_complete() {
    let text = stdout_of(couplet().args(["query", "SELECT value AS n FROM generate_series(1, 25000)"]));
    let rows: Vec<u64> = text.lines().filter_map(|line| line.trim_matches(['|', ' ']).parse().ok()).collect();
    assert_eq!(rows, (1..=25_000).collect::<Vec<u64>>());
    assert_eq!(text.matches("| n ").count(), 1);
}

/// Peak memory of a query of ten million rows, in MB; needs Linux.
#[cfg(target_os = "linux")]
#[test]
fn ten_million_rows_need_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let sql = "SELECT value AS id, 'row ' || value AS text FROM generate_series(1, 10000000)";
    let mut child = Command::new(env!("CARGO_BIN_EXE_couplet"))
        .args(["query", sql, "-o", "rows.csv"])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kb.unwrap_or(0) / 1024);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(child.wait().unwrap().success());
    let bytes = std::fs::metadata(folder.path().join("rows.csv")).unwrap().len();
    assert!(bytes > 190_000_000, "{bytes} bytes");
    assert!(peak > 0 && peak < 400, "{peak} MB");
}

/// Types keys into the shell, on a terminal emulated in Python.
pub fn session(test: &str, arguments: &[&str], home: &Path, steps: &str) -> Option<String> {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/it/shell.py")).arg(env!("CARGO_BIN_EXE_couplet")).arg("query").args(arguments);
    command.env("SHELL_STEPS", steps).env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
    let output = match command.current_dir(home).output() {
        Ok(output) => output,
        Err(e) => {
            skip(test, &format!("python3: {e}"));
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn the_shell_has_history_completion_and_survives_errors() {
    let home = tempfile::tempdir().unwrap();
    let test = "the_shell_has_history_completion_and_survives_errors";
    let pairs = format!("pairs={}", quickstart_pairs().display());
    // Each step: keys to press, a tab, and the expected text.
    let steps = r#"[
        ["", "tables: pairs"],
        ["SELECT count(*) AS n\r", null],
        ["FROM pairs;\r", "| 525 |"],
        ["SELECT * FROM pears;\r", "did you mean `pairs`?"],
        ["\\d\r", "| pairs | table | 5"],
        ["\\d pairs\r", "sentence1"],
        ["\\df predict\r", "predict(model, text [, text_pair])"],
        ["SELECT count(sentence1) + 1 AS m FROM pai\t", "FROM pairs"],
        [";\r", "| 526 |"],
        ["garbage that nobody means", null],
        ["\u0003", "couplet> "],
        ["SELECT 40 + 2 AS x;\r", "| 42 |"],
        ["-- only a remark\r", "couplet> "],
        [";\r", "couplet> "],
        ["\\timing on\r", "timing is on"],
        ["SELECT value FROM generate_series(1, 5000);\r", "the first 1,000 rows"],
        ["\\o all.csv\r", "the next result goes to all.csv"],
        ["SELECT value FROM generate_series(1, 5000);\r", "all.csv: 5,000 rows"],
        ["INSERT INTO pairs SELECT * FROM pairs;\r", "a query only reads"],
        ["CREATE VIEW w AS SELECT 7 AS seven;\r", null],
        ["SLEEP", null],
        ["SELECT sev\t", "SELECT seven"],
        [" FROM w;\r", "| 7 "],
        ["\u0004", "END"]
    ]"#;
    let Some(_) = session(test, &["--table", &pairs], home.path(), steps) else { return };
    assert_eq!(std::fs::read_to_string(home.path().join("all.csv")).unwrap().lines().count(), 5001);
    let history = std::fs::read_to_string(home.path().join("state/couplet/history")).unwrap();
    assert!(history.contains("FROM pairs;") && !history.contains("garbage"), "{history}");
    // The last statement of the last session, through the up arrow.
    let steps = r#"[["", "no tables"], ["\u001b[A", "FROM w;"], ["\u0003", "couplet> "], ["\\q\r", "END"]]"#;
    session(test, &[], home.path(), steps);
}

#[test]
fn ctrl_c_cancels_a_statement_but_not_the_shell() {
    let home = tempfile::tempdir().unwrap();
    let steps = r#"[
        ["", "no tables"],
        ["SELECT count(*) FROM generate_series(1, 3000000) a, generate_series(1, 3000000) b;\r", null],
        ["SLEEP", null],
        ["\u0003", "interrupted"],
        ["SELECT 40 + 2 AS x;\r", "| 42 |"],
        ["exit\r", "END"]
    ]"#;
    session("ctrl_c_cancels_a_statement_but_not_the_shell", &[], home.path(), steps);
}

#[test]
fn the_shell_has_the_tables_of_a_pipeline_and_its_runs() {
    let home = tempfile::tempdir().unwrap();
    let model = golden("tiny-distilbert");
    let steps = format!(
        r#"[
        ["", "predictions"],
        ["SELECT count(*) AS n FROM predictions;\r", "| 525 |"],
        ["SELECT outcome FROM runs LIMIT 1;\r", "done"],
        ["SELECT predict('{}', 'No.', 'Yes.')['score'] > 0 AS scored;\r", "| true "],
        ["\\q\r", "END"]
    ]"#,
        model.display()
    );
    let pipeline = QUICKSTART.pipeline.display().to_string();
    session("the_shell_has_the_tables_of_a_pipeline_and_its_runs", &["--pipeline", &pipeline], home.path(), &steps);
}
