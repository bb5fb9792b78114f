//! Untrusted text on a terminal (column names, values, labels, keys of a pipeline file): control characters are
//! escaped.

use serde_json::Value;

use crate::support::{Job, stderr_of, stdout_of, write};
use crate::tiny::Variant;

/// Clears the screen, sets the title, repeats that with 8-bit controls, and reverses the text direction.
const ACTIVE: &str = "\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\u{202e}";
const SHOWN: &str = r"\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\u{202e}";

fn is_active(char: char) -> bool {
    char.is_control() && char != '\n' || char == '\u{202e}'
}

fn quiet(text: &str) {
    assert!(!text.contains(is_active), "{text:?}");
}

#[test]
fn control_characters_in_tables_are_escaped() {
    let job = Job::new(format!("id,\"a{ACTIVE}\"\n1,\"b{ACTIVE}\"\n"));
    let query = |arguments: &[&str]| {
        let mut command = job.couplet(&["query", "--table", "t=pairs.csv"]);
        command.args(arguments);
        command
    };
    let table = stdout_of(&mut query(&["SELECT * FROM t"]));
    quiet(&table);
    assert!(table.contains(&format!("a{SHOWN}")) && table.contains(&format!("b{SHOWN}")), "{table}");
    let rows: Value = serde_json::from_str(&stdout_of(&mut query(&["--format", "json", "SELECT * FROM t"]))).unwrap();
    assert_eq!(rows[0][format!("a{ACTIVE}")], format!("b{ACTIVE}"));
    let csv = stdout_of(&mut query(&["--format", "csv", "SELECT * FROM t"]));
    assert!(csv.contains(&format!("b{ACTIVE}")), "the data is as it is: {csv:?}");
    let error = stderr_of(&mut query(&["SELECT c FROM t"]), 2);
    quiet(&error);
    assert!(error.contains(&format!("a{SHOWN}")), "{error}");
    let error = stderr_of(&mut query(&[&format!("SELECT \"{ACTIVE}\" FROM t")]), 2);
    quiet(&error);
    let mut command = query(&["SELECT c FROM t", "--log-format", "json"]);
    quiet(&stderr_of(&mut command, 2));
}

#[test]
fn control_characters_in_a_pipeline_file_are_escaped() {
    // Escaped in a TOML string; raw in a comment beside an error.
    let job = Job::new("id,a,b\n1,x,y\n").add(&format!("[{:?}]\nx = 1", "run\u{9b}2J"));
    let error = job.error_of(&mut job.couplet(&["run", "pipeline.toml"]), 2);
    quiet(&error);
    let job = Job::new("id,a,b\n1,x,y\n").add(&format!("[runn] # {ACTIVE}\nthreads = 1"));
    let error = job.error_of(&mut job.couplet(&["run", "pipeline.toml"]), 2);
    quiet(&error);
    let job = Job::new("id,a,b\n1,x,y\n").add("[score]\n\"max\\u001b[2J\" = 1");
    let error = job.error_of(&mut job.couplet(&["run", "pipeline.toml"]), 2);
    quiet(&error);
    assert!(error.contains(r"max\u{1b}[2J"), "{error}");
    // Recorded texts are escaped too.
    let job = Job::new(format!("id,\"a{ACTIVE}\",b\n1,x,y\n"));
    quiet(&job.error(2));
    quiet(&stdout_of(&mut job.couplet(&["runs", "pipeline.toml"])));
}

#[test]
fn line_breaks_in_labels_of_a_model_are_escaped() {
    let label = format!("yes{ACTIVE}\n  licence       MIT");
    let variant = Variant::of("tiny-distilbert").with_json("config.json", |config| {
        config["id2label"]["1"] = label.clone().into();
        config["label2id"] = serde_json::json!({ "not_paraphrase": 0, (&label): 1 });
    });
    let show = |arguments: &[&str]| {
        let mut command = crate::support::couplet();
        stdout_of(command.args(["model", "show"]).arg(variant.folder()).args(arguments))
    };
    let card = show(&[]);
    quiet(&card);
    assert!(card.contains(&format!("yes{SHOWN}\\n  licence")), "{card}");
    assert!(!card.lines().any(|line| line.starts_with("  licence")), "{card}");
    let json = show(&["--json"]);
    quiet(&json);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["labels"][1], label);
    write(&variant.path("training.json"), r#"{"task": "x\n  licence       MIT"}"#);
    let card = show(&[]);
    assert!(!card.lines().any(|line| line.starts_with("  licence")), "{card}");
    let mut command = crate::support::couplet();
    let message = stdout_of(command.args(["predict", "one", "two", "--model"]).arg(variant.folder()));
    quiet(&message);
    assert_eq!(message.lines().count(), 3, "{message}");
}
