//! The JSON Schema and the reference of the pipeline file match the program.

use std::collections::BTreeMap;
use std::path::Path;

use couplet::config::{parse, reference, schema};
use jsonschema::Validator;
use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use crate::support::{couplet, root, stdout_of};

fn json_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::Boolean(value) => json!(value),
        DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
            Ok(value) => json!(value),
            Err(_) => json!(value.as_str().parse::<f64>().unwrap()),
        },
        DeValue::Float(value) => json!(value.as_str().parse::<f64>().unwrap()),
        DeValue::String(value) => json!(value),
        DeValue::Datetime(value) => json!(value.to_string()),
        DeValue::Array(values) => values.iter().map(|value| json_of(value.get_ref())).collect(),
        DeValue::Table(table) => object(table),
    }
}

fn object(table: &DeTable<'_>) -> Value {
    Value::Object(table.iter().map(|(key, value)| (key.get_ref().to_string(), json_of(value.get_ref()))).collect())
}

fn document(toml: &str) -> Option<Value> {
    Some(object(DeTable::parse(toml).ok()?.get_ref()))
}

fn validator() -> Validator {
    let schema = schema();
    assert!(jsonschema::meta::is_valid(&schema));
    jsonschema::draft202012::new(&schema).unwrap()
}

/// The TOML files of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn every_valid_file_satisfies_the_schema() {
    let validator = validator();
    let mut seen = 0;
    for folder in ["tests/it/config", "pipelines", "pipelines/quickstart"] {
        for (name, text) in files(&root().join(folder)) {
            if folder != "tests/it/config" || name.starts_with("valid_") {
                let errors: Vec<_> = validator.iter_errors(&document(&text).unwrap()).map(|e| e.to_string()).collect();
                assert!(errors.is_empty(), "{folder}/{name}: {errors:?}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
fn every_pipeline_in_the_guides_satisfies_the_schema() {
    let validator = validator();
    let docs = root().join("docs").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for page in docs.chain([root().join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks = text.split("```toml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
        for pipeline in blocks.filter(|block| block.starts_with("name = ")) {
            let errors: Vec<_> = validator.iter_errors(&document(pipeline).unwrap()).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
}

/// Rules that only the program checks: conflicting keys, the meaning of a text, and command-line arguments.
const NOT_SEEN: [&str; 64] = [
    "evaluate_output_is_a_file",
    "evaluate_text_missing",
    "finetune_calibrate_objective_unknown",
    "finetune_calibrate_of_a_value",
    "finetune_calibrate_precision_alone",
    "finetune_calibrate_threshold_for_sets",
    "finetune_calibrate_threshold_for_three",
    "finetune_metric_near_miss",
    "finetune_metric_of_another_task",
    "finetune_promote_if_metric_near_miss",
    "finetune_promote_if_no_condition",
    "finetune_promote_if_percent",
    "finetune_task_near_miss",
    "finetune_task_unknown",
    "finetune_text_missing",
    "model_hub",
    "model_scheme",
    "pretrain_output_is_its_base",
    "run_float_for_integer",
    "run_number_too_large",
    "sink_append_to_one_file",
    "sink_delta_in_a_file",
    "sink_folder_with_extension",
    "sink_glob",
    "sink_in_a_remote_table_folder",
    "sink_in_a_remote_table_glob",
    "sink_in_a_table_folder",
    "sink_in_a_table_glob",
    "sink_in_the_model",
    "sink_in_the_store",
    "sink_is_a_table",
    "sink_keep_of_one_file",
    "sink_merge_of_parquet",
    "sink_not_parquet",
    "sink_partitions_of_parquet",
    "sink_scheme",
    "source_column_of_the_output",
    "source_file_remote",
    "source_file_scheme",
    "source_label_is_id",
    "source_label_is_text",
    "table_escape_is_delimiter",
    "table_escape_without_quote",
    "table_extension_unknown",
    "table_json_with_csv_options",
    "table_name_is_pipeline_name",
    "table_name_twice_to_sql",
    "table_parquet_compressed",
    "table_parquet_with_csv_options",
    "table_partitions_of_one_file",
    "table_quote_is_delimiter",
    "table_remote_bucket",
    "table_remote_credentials",
    "table_remote_key",
    "table_scheme",
    "table_types_of_parquet",
    "table_version_of_parquet",
    "variable_behind_an_escape",
    "variable_for_a_file_without_any",
    "variable_in_sink_and_model",
    "variable_near_miss",
    "variable_not_given",
    "variable_unused",
    "variables_in_multiline_sql",
];

#[test]
fn files_with_structural_mistakes_violate_the_schema() {
    let validator = validator();
    let fixtures = files(&root().join("tests/it/config"));
    let wrong = fixtures.iter().filter(|(name, _)| !name.starts_with("valid_"));
    let passed: Vec<_> = wrong
        .filter(|(_, text)| document(text).is_some_and(|document| validator.is_valid(&document)))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(passed, NOT_SEEN);
}

/// A key of the schema with its section, default values and example.
#[test]
fn defaults_and_examples_satisfy_the_schema() {
    fn visit(schema: &Value, path: &str, seen: &mut usize) {
        let own = jsonschema::draft202012::new(schema).unwrap();
        for key in ["default", "examples"] {
            let values = match &schema[key] {
                Value::Null => continue,
                Value::Array(examples) if key == "examples" => examples.clone(),
                default => vec![default.clone()],
            };
            for value in values {
                assert!(own.is_valid(&value), "{path}: {key} {value}");
                *seen += 1;
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            visit(inner, &format!("{path}.{name}"), seen);
        }
        for inner in schema["anyOf"].as_array().into_iter().flatten() {
            visit(inner, path, seen);
        }
    }
    let mut seen = 0;
    visit(&schema(), "", &mut seen);
    assert!(seen > 80, "{seen}");
}

#[test]
fn a_default_that_is_written_out_changes_nothing() {
    let parse = |text: &str| parse(Path::new("pipeline.toml"), text, &BTreeMap::new()).unwrap();
    let written = |section: &Value, skip: &[&str]| -> String {
        let keys = section["properties"].as_object().unwrap().iter();
        let defaults = keys.filter(|(name, key)| !key["default"].is_null() && !skip.contains(&&***name));
        // Numbers, texts and booleans are the same in JSON and TOML.
        defaults.map(|(name, key)| format!("{name} = {}\n", key["default"])).collect()
    };
    let schema = schema();
    let section = |name: &str| &schema["properties"][name];
    let scoring = |model: &str, score: &str, sink: &str, run: &str| {
        format!(
            "name = \"a\"\n[source]\nsql = \"SELECT 1\"\nid = \"id\"\ntext = \"text\"\n[model]\nuri = \"m\"\n{model}\n\
             [score]\n{score}\n[sink]\nuri = \"a.parquet\"\n{sink}\n[run]\n{run}\n"
        )
    };
    assert_eq!(
        parse(&scoring("", "", "", "")),
        parse(&scoring(
            &written(section("model"), &[]),
            &written(section("score"), &[]),
            &written(section("sink"), &[]),
            &written(section("run"), &[])
        ))
    );
    // A table without options has the defaults of one with them.
    let csv = |table: &str| parse(&(scoring("", "", "", "") + "[tables]\n" + table)).tables;
    let options = written(&section("tables")["additionalProperties"]["anyOf"][1], &[]);
    assert_eq!(csv("t = \"a.csv\"\n"), csv(&format!("[tables.t]\nuri = \"a.csv\"\n{options}")));
    // A query in a separate file: positions in an inline one would move with longer sections.
    let training = |pretrain: &str, finetune: &str, evaluate: &str| {
        format!(
            "name = \"a\"\n[pretrain]\nfile = \"a.sql\"\nmodel = \"m\"\noutput = \"n\"\n{pretrain}\n[finetune]\nfile = \
             \"a.sql\"\ntask = \"mrpc\"\nmodel = \"n\"\noutput = \"o\"\n{finetune}\n[evaluate]\nfile = \"a.sql\"\n\
             output = \"p\"\n{evaluate}\n"
        )
    };
    assert_eq!(
        parse(&training("", "", "")),
        parse(&training(
            &written(section("pretrain"), &[]),
            &written(section("finetune"), &[]),
            &written(section("evaluate"), &[])
        ))
    );
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = root().join("docs/reference.md");
    let page = reference();
    if std::env::var_os("COUPLET_UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/reference.md is not what the table of keys says: COUPLET_UPDATE_REFERENCE=1 cargo test reference, then \
         look at the difference"
    );
    assert_eq!(stdout_of(couplet().args(["schema", "--markdown"])), page);
    let printed: Value = serde_json::from_str(&stdout_of(couplet().arg("schema"))).unwrap();
    assert_eq!(printed, schema());
}
