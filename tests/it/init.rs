//! `couplet init`: the pipeline that it writes runs unchanged, its guesses are right, and it overwrites nothing.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use toml::de::DeTable;

use crate::support::{couplet, golden, quickstart_model, quickstart_pairs, rows_of, stderr_of, stdout_of, write};

fn at(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = couplet();
    command.current_dir(folder).args(arguments);
    command
}

/// Runs the pipeline in a folder and returns the report.
fn run(folder: &Path) -> Value {
    serde_json::from_str(&stdout_of(at(folder, &["run", "pipeline.toml"]).arg("--json"))).unwrap()
}

/// Runs `couplet init --from` with a tiny model, then the pipeline. Returns the output of init and the report.
fn from(folder: &Path, arguments: &[&str]) -> (String, Value) {
    let model = golden("tiny-distilbert");
    let mut command = at(folder, &["init", "--from"]);
    let message = stdout_of(command.args(arguments).args(["job", "--model"]).arg(model));
    (message, run(&folder.join("job")))
}

#[test]
fn a_new_project_runs_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let message = stdout_of(at(folder.path(), &["init", "my-job", "--model"]).arg(quickstart_model()));
    for expected in ["my-job/pipeline.toml", "my-job/pairs.csv", "my-job/.gitignore", "cd my-job", "couplet run"] {
        assert!(message.contains(expected), "{message}");
    }
    let job = folder.path().join("my-job");
    let report = run(&job);
    assert_eq!((&report["pipeline"], &report["rows"]["scored"]), (&"my-job".into(), &48.into()));
    assert_eq!(rows_of(&job.join("out/predictions.parquet")).len(), 48);
    let readme = std::fs::read_to_string(job.join("README.md")).unwrap();
    let query = readme.split('"').nth(1).unwrap();
    let counts = stdout_of(at(&job, &["query", "--pipeline", "pipeline.toml"]).arg(query));
    assert!(counts.contains("predicted_label"), "{counts}");
}

#[test]
fn the_bundled_model_is_found_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("pipelines/quickstart/model");
    write(&model.join("config.json"), "{}");
    std::fs::create_dir(folder.path().join("work")).unwrap();
    stdout_of(&mut at(&folder.path().join("work"), &["init", "job"]));
    let toml = std::fs::read_to_string(folder.path().join("work/job/pipeline.toml")).unwrap();
    assert!(toml.contains("uri = \"../../pipelines/quickstart/model\""), "{toml}");
}

#[test]
fn nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("job/notes.txt"), "mine");
    let model = golden("tiny-distilbert");
    let message = stderr_of(at(folder.path(), &["init", "job", "--model"]).arg(&model), 2);
    assert!(message.contains("not empty"), "{message}");
    assert_eq!(folder.path().join("job").read_dir().unwrap().count(), 1);
    let message = stderr_of(&mut at(folder.path(), &["init", "other", "--model", "no-model"]), 2);
    assert!(
        message.contains("--model no-model: no-model does not exist") && !folder.path().join("other").exists(),
        "{message}"
    );
}

#[test]
fn columns_of_a_parquet_file_of_pairs_are_detected() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = quickstart_pairs();
    let (message, report) = from(folder.path(), &[pairs.to_str().unwrap()]);
    assert!(message.contains("525 rows"), "{message}");
    assert!(message.contains("id     `id`: by its name; unique in all 525 rows"), "{message}");
    assert!(message.contains("text   `sentence1`, `sentence2`: a pair by their names"), "{message}");
    assert!(message.contains("label  `label`: by its name; 2 different values"), "{message}");
    assert_eq!((&report["rows"]["read"], &report["rows"]["rejected"]), (&525.into(), &0.into()));
    let first = &rows_of(&folder.path().join("job/out/predictions.parquet"))[0];
    assert!(first["category"].is_string() && first["label"].is_string(), "other columns come along: {first}");
}

#[test]
fn a_tsv_file_with_unusual_names_and_quotes_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n".to_owned();
    for row in 0..60 {
        text += &format!(
            "{}\t{}\t{}\tHe called \"number {row}\" the witness of it all.\t\"Number {row}, he said, was a witness.\n",
            row % 2,
            row / 2,
            row % 7 + 100
        );
    }
    write(&folder.path().join("pairs.txt"), text);
    let (message, report) = from(folder.path(), &["pairs.txt"]);
    assert!(message.contains("`#1 ID`, `#2 ID`: by their names; only together unique"), "{message}");
    assert!(message.contains("`#1 String`, `#2 String`"), "{message}");
    assert!(message.contains("`Quality`: by its name"), "{message}");
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("data = { uri = \"../pairs.txt\", format = \"tsv\", quote = false }"), "{toml}");
    assert_eq!((&report["rows"]["read"], &report["rows"]["scored"]), (&60.into(), &60.into()));
}

#[test]
fn a_file_without_header_and_ids_gets_row_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for row in 0..80 {
        text += &format!("A man of {row} is riding a horse.,Some man rides a horse.,{:.2}\n", f64::from(row % 5));
    }
    write(&folder.path().join("data/a.csv"), &text);
    write(&folder.path().join("data/b.csv"), &text);
    let (message, report) = from(folder.path(), &["data/a.csv"]);
    assert!(message.contains("id     none: no column that looks like an id is unique"), "{message}");
    assert!(message.contains("label  `column_3`: the only other column with few different values"), "{message}");
    assert_eq!(report["rows"]["read"], 80);
    assert_eq!(rows_of(&folder.path().join("job/out/predictions.parquet"))[79]["id"], 80);

    let message = stdout_of(
        at(folder.path(), &["init", "--from", "data", "whole", "--text", "column_1", "--label", "column_3", "--model"])
            .arg(golden("tiny-distilbert")),
    );
    assert!(message.contains("text   `column_1`: as requested"), "{message}");
    let toml = std::fs::read_to_string(folder.path().join("whole/pipeline.toml")).unwrap();
    assert!(toml.contains("format = \"csv\"") && toml.contains("task = \"regression\""), "{toml}");
}

#[test]
fn the_delimiter_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..40).map(|row| format!("{row};It is good, {row} times.\n")).collect();
    write(&folder.path().join("reviews.csv"), format!("id;review\n{rows}"));
    let (message, report) = from(folder.path(), &["reviews.csv"]);
    assert!(message.contains("40 rows, 2 columns") && message.contains("text   `review`"), "{message}");
    assert_eq!(report["rows"]["scored"], 40);
    write(&folder.path().join("none.csv"), "id,review\n");
    let model = golden("tiny-distilbert");
    let message = stderr_of(at(folder.path(), &["init", "--from", "none.csv", "none", "--model"]).arg(&model), 2);
    assert!(message.contains("the data has no rows"), "{message}");
    write(&folder.path().join("pairs.html"), "<p>");
    let message = stderr_of(at(folder.path(), &["init", "--from", "pairs.html", "none", "--model"]).arg(&model), 2);
    assert!(message.contains("name the format with --format csv"), "{message}");
}

#[test]
fn guesses_can_be_overridden_and_wrong_overrides_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for row in 0..40 {
        lines += &format!(
            "{{\"key\": \"k{row}\", \"order\": {row}, \"model\": \"m\", \"review\": \"It is good, {row} times.\", \"stars\": {}}}\n",
            row % 5
        );
    }
    write(&folder.path().join("reviews.jsonl"), lines);
    let model = golden("tiny-distilbert");
    let wrong = |arguments: &[&str]| {
        let mut command = at(folder.path(), &["init", "--from", "reviews.jsonl", "wrong", "--model"]);
        let message = stderr_of(command.arg(&model).args(arguments), 2);
        assert!(!folder.path().join("wrong").exists());
        message
    };
    assert!(wrong(&["--text", "reviw"]).contains("did you mean `review`?"));
    assert!(wrong(&["--id", "stars"]).contains("the same value as another row"));
    let (message, report) = from(folder.path(), &["reviews.jsonl", "--id", "order"]);
    assert!(message.contains("id     `order`: as requested") && message.contains("label  `stars`"), "{message}");
    assert!(message.contains("text   `review`"), "{message}");
    assert_eq!(report["rows"]["scored"], 40);
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("model AS source_model") && toml.contains("\"order\""), "{toml}");
    let none = ["init", "--from", "reviews.jsonl", "none", "--no-label", "--model"];
    let message = stdout_of(at(folder.path(), &none).arg(&model));
    assert!(message.contains("label  none: as requested"), "{message}");
    let toml = std::fs::read_to_string(folder.path().join("none/pipeline.toml")).unwrap();
    assert!(toml.lines().any(|line| line.starts_with("# label = \"…\"")), "{toml}");
}

#[test]
fn names_and_paths_with_any_characters_are_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let odd = "it's \"odd\" {date} ''' # \\";
    let names = ["'''\nid = 1 # ", "\"\"\" -- ;", "tab\tand\u{1}\r\n", "back\\slash {date} {{x}}", "é\u{85}"];
    let mut lines = String::new();
    for row in 0..40 {
        let mut object = serde_json::Map::new();
        object.insert("id".into(), row.into());
        object.insert(names[0].into(), format!("A man rides horse {row}.").into());
        object.insert(names[1].into(), format!("Horse {row} is ridden by a man.").into());
        object.insert(names[2].into(), ["yes", "no"][row % 2].into());
        object.insert(names[3].into(), (row * row).into());
        object.insert(names[4].into(), row.into());
        lines += &format!("{}\n", Value::Object(object));
    }
    let data = format!("{odd}/pairs.jsonl");
    write(&folder.path().join(&data), lines);
    let (message, report) = from(folder.path(), &[&data]);
    assert_eq!((&report["rows"]["scored"], &report["rows"]["rejected"]), (&40.into(), &0.into()), "{message}");
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.chars().all(|char| char == '\n' || !char.is_control()), "{toml:?}");
    let rows = rows_of(&folder.path().join("job/out/predictions.parquet"));
    let row = rows[3].as_object().unwrap();
    assert!(row.values().any(|value| *value == 9) && row.values().any(|value| *value == "no"), "{row:?}");
    // Sections that are commented out are valid once their marks are removed.
    let (_, commented) = toml.split_once("# [finetune]").unwrap();
    let uncommented =
        commented.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let (learns, scores) = (DeTable::parse(&uncommented).unwrap(), DeTable::parse(&toml).unwrap());
    let source = scores.get_ref()["source"].get_ref().as_table().unwrap();
    assert_eq!(learns.get_ref()["sql"].get_ref().as_str(), source["sql"].get_ref().as_str());
}

#[test]
fn a_model_in_a_folder_with_braces_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("models/{name} \"x\"");
    std::fs::create_dir_all(&model).unwrap();
    for file in golden("tiny-distilbert").read_dir().unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    stdout_of(at(folder.path(), &["init", "job", "--model"]).arg(&model));
    assert_eq!(run(&folder.path().join("job"))["rows"]["scored"], 48);
}

#[test]
fn non_text_columns_are_cast_and_formats_are_detected() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..40).map(|row| format!("{row},{}\n", row * 7)).collect();
    write(&folder.path().join("codes.csv"), format!("id,postcode\n{rows}"));
    let (_, report) = from(folder.path(), &["codes.csv", "--text", "postcode"]);
    assert_eq!(report["rows"]["scored"], 40);
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("CAST(postcode AS VARCHAR) AS postcode"), "{toml}");

    // A Parquet file with an unusual extension, and couplet's own output, whose columns are not taken for texts or
    // labels.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(quickstart_pairs(), folder.path().join("pairs.blob")).unwrap();
    let (_, report) = from(folder.path(), &["pairs.blob"]);
    assert_eq!(report["rows"]["read"], 525);
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("format = \"parquet\""), "{toml}");
    let output = folder.path().join("scored.parquet");
    let sql = "SELECT id, sentence1, predicted_label, score, probabilities, truncated, \
               'the tokenizer refused this one for once' AS error, model FROM t";
    let table = format!("t={}", folder.path().join("job/out/predictions.parquet").display());
    stdout_of(at(folder.path(), &["query", "-t", &table, sql, "-o"]).arg(&output));
    let mut command = at(folder.path(), &["init", "--from", "scored.parquet", "again", "--model"]);
    let message = stdout_of(command.arg(golden("tiny-distilbert")));
    assert!(message.contains("text   `sentence1`") && message.contains("label  none"), "{message}");
    let mut quiet = at(folder.path(), &["-q", "init", "--from", "scored.parquet", "quiet", "--model"]);
    assert_eq!(stdout_of(quiet.arg(golden("tiny-distilbert"))), "");
}

#[test]
fn data_may_be_given_with_table_options() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..40).map(|row| format!("{row};He said \"yes, {row} times.\n")).collect();
    write(&folder.path().join("reviews.csv"), format!("id;review\n{rows}"));
    let (_, report) = from(folder.path(), &["{ uri = \"reviews.csv\", quote = false }"]);
    assert_eq!(report["rows"]["scored"], 40);
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("{ uri = \"../reviews.csv\", quote = false, delimiter = \";\" }"), "{toml}");
}

#[test]
fn dictionary_and_binary_columns_are_detected_as_text_and_id() {
    let folder = tempfile::tempdir().unwrap();
    for (file, id, text) in [
        ("codes", "arrow_cast('k' || value, 'Dictionary(Int32, Utf8)')", "'Dictionary(Int32, Utf8)'"),
        ("bytes", "arrow_cast('k' || value, 'Binary')", "'LargeUtf8'"),
    ] {
        let sql = format!(
            "SELECT {id} AS id, arrow_cast('Here is a text, ' || value, {text}) AS text FROM generate_series(1, 40)"
        );
        let data = format!("{file}.parquet");
        stdout_of(&mut at(folder.path(), &["query", &sql, "-o", &data]));
        let mut init = at(folder.path(), &["init", "--from", &data, file, "--model"]);
        let message = stdout_of(init.arg(golden("tiny-distilbert")));
        assert!(
            message.contains("id     `id`: by its name") && message.contains("text   `text`: by its name"),
            "{message}"
        );
        assert_eq!(run(&folder.path().join(file))["rows"]["scored"], 40);
    }
}

#[test]
fn empty_label_columns_are_ignored_and_null_labels_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String =
        (0..40).map(|row| format!("{row},Here is text {row},{},\n", ["yes", "no", ""][row % 3])).collect();
    write(&folder.path().join("some.csv"), format!("id,text,gold,label\n{rows}"));
    let (message, report) = from(folder.path(), &["some.csv"]);
    assert!(message.contains("label  `gold`: by its name; 2 different values"), "{message}");
    assert_eq!(report["rows"]["scored"], 40);
    let toml = std::fs::read_to_string(folder.path().join("job/pipeline.toml")).unwrap();
    assert!(toml.contains("\n# FROM data\n# WHERE gold IS NOT NULL\n"), "{toml}");
}

#[test]
fn a_comma_in_a_name_hides_no_other_delimiter() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..40).map(|row| format!("{row};It is good, {row} times;{}\n", row % 2)).collect();
    write(&folder.path().join("reviews.csv"), format!("id;text, as it was;label\n{rows}").replace("good, ", "good "));
    let (message, report) = from(folder.path(), &["reviews.csv"]);
    assert!(message.contains("40 rows, 3 columns") && message.contains("text   `text, as it was`"), "{message}");
    assert_eq!(report["rows"]["scored"], 40);
    // A semicolon in a name is not the delimiter if commas are.
    let rows: String = (0..40).map(|row| format!("{row},\"It is good, {row} times\"\n")).collect();
    write(&folder.path().join("commas.csv"), format!("id,text;note\n{rows}"));
    let mut init = at(folder.path(), &["init", "--from", "commas.csv", "commas", "--model"]);
    let message = stdout_of(init.arg(golden("tiny-distilbert")));
    assert!(message.contains("40 rows, 2 columns") && message.contains("text   `text;note`"), "{message}");
}

#[test]
fn duplicate_and_missing_options_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("pairs.csv"), "id,a,b\n1,A man walks.,A man is walking.\n");
    let message = |arguments: &[&str]| {
        let mut init = at(folder.path(), &["init", "job", "--model"]);
        let message = stderr_of(init.arg(golden("tiny-distilbert")).args(arguments), 2);
        assert!(!folder.path().join("job").exists());
        message
    };
    insta::assert_snapshot!(message(&["--from", "pairs.csv", "--id", "id,id"]), @"error: --id id,id: `id` is given twice");
    insta::assert_snapshot!(message(&["--from", "pairs.csv", "--text", "a,a"]), @"error: --text a,a: `a` is given twice");
    insta::assert_snapshot!(message(&["--from", ""]), @"error: --from names no data; name a file, a folder or a glob");
}
