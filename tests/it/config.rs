//! Pipeline files: one fixture per rule, with a snapshot of the rendered message, and the meaning of valid files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use couplet::config::{
    ConfigErrors, Errors, LocalPath, ModelSettings, Pipeline, Query, RunSettings, ScoreSettings, Scoring, Sink,
    SinkFormat, SinkMode, Source, Sql, Start, parse,
};
use couplet::place::Place;
use couplet::scorer::{DeviceSetting, Precision, PrecisionSetting};
use couplet::session::DEFAULT_MEMORY;
use couplet::tables::{CsvOptions, Location, Table, TableFormat, table_from_uri};
use couplet::train::finetune::Calibrate;
use couplet::train::sampling::ClassWeights;
use couplet::train::statistics::task::Task;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/config");

/// The name and the text of every fixture, sorted by name.
fn fixtures() -> Vec<(String, String)> {
    let files = fs::read_dir(FIXTURES).unwrap().map(|entry| entry.unwrap().path());
    let mut fixtures: Vec<_> = files
        .map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(file).unwrap()))
        .collect();
    fixtures.sort();
    fixtures
}

fn fixture(name: &str) -> String {
    fs::read_to_string(Path::new(FIXTURES).join(name).with_extension("toml")).unwrap()
}

/// Parses a text as the file `pipelines/NAME.toml`. Comment lines `# --var name=value` give the variables.
fn parse_as(name: &str, text: &str) -> Result<Pipeline, ConfigErrors> {
    let variables: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# --var ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    parse(&PathBuf::from(format!("pipelines/{name}.toml")), text, &variables)
}

#[test]
fn every_broken_rule_has_a_helpful_message() {
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _settings = settings.bind_to_scope();
    for (name, text) in fixtures() {
        if name.starts_with("valid_") {
            continue;
        }
        let Err(errors) = parse_as(&name, &text) else { panic!("{name}.toml is valid") };
        insta::assert_snapshot!(format!("config__{name}"), errors.render(false, 100));
    }
}

#[test]
fn a_full_file_is_parsed_completely() {
    let pipeline = parse_as("full", &fixture("valid_full")).unwrap();
    let at = |written: &str, path: &str| Location { written: written.to_owned(), place: Place::Local(path.into()) };
    let table = |name: &str, location, format| Table { name: name.to_owned(), location, format, partitions: vec![] };
    let tsv = CsvOptions {
        delimiter: b'\t',
        header: true,
        quote: None,
        escape: None,
        null: Some("NA".to_owned()),
        types: Vec::new(),
    };
    let csv_gz = CsvOptions { delimiter: b',', quote: Some(b'"'), null: None, ..tsv.clone() };
    let expected = Pipeline {
        name: "mrpc-nightly".to_owned(),
        path: PathBuf::from("pipelines/full.toml"),
        tables: vec![
            table(
                "pairs",
                at("pairs/dt={date}/*.parquet", "pipelines/pairs/dt=2026-01-01/*.parquet"),
                TableFormat::Parquet,
            ),
            table("gold", at("gold.tsv", "pipelines/gold.tsv"), TableFormat::Csv(tsv)),
            table("names", at("/data/names.csv.gz", "/data/names.csv.gz"), TableFormat::Csv(csv_gz)),
            table("log", at("file:///data/log.jsonl", "/data/log.jsonl"), TableFormat::Json { types: Vec::new() }),
            Table {
                partitions: vec!["dt".to_owned()],
                ..table("history", at("../history/", "pipelines/../history/"), TableFormat::Parquet)
            },
        ],
        pretrain: None,
        finetune: None,
        evaluate: None,
        scoring: Some(Scoring {
            source: Source {
                query: Query::Sql(Sql {
                    text: "SELECT id, sentence1, sentence2, label FROM pairs WHERE dt = '2026-01-01'\n".to_owned(),
                    line: 15,
                    column: 0,
                }),
                id: vec!["id".to_owned()],
                text: vec!["sentence1".to_owned(), "sentence2".to_owned()],
                label: Some("label".to_owned()),
            },
            model: ModelSettings {
                location: at("models/mrpc", "pipelines/models/mrpc"),
                max_length: 256,
                precision: PrecisionSetting::Of(Precision::F32),
                device: DeviceSetting::Cuda(1),
            },
            score: ScoreSettings {
                store: at("state/{date}", "pipelines/state/2026-01-01"),
                checkpoint: Duration::from_secs(90),
                max_errors: 0.001,
                errors: Errors::Quarantine,
            },
            sink: Sink {
                location: at("out/{date}", "pipelines/out/2026-01-01"),
                format: SinkFormat::Delta,
                mode: SinkMode::Merge,
                partition_by: vec!["split".to_owned()],
                keep: None,
            },
        }),
        run: RunSettings {
            threads: Some(4),
            window: 4096,
            batch_tokens: Some(2048),
            task_tokens: 500_000,
            memory: 4 << 30,
            spill: "pipelines/spill".into(),
        },
        unused_variables: [].into(),
    };
    assert_eq!(pipeline, expected);
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let pipeline = parse_as("minimal", &fixture("valid_minimal")).unwrap();
    assert_eq!(pipeline.tables, []);
    let scoring = pipeline.scoring.unwrap();
    assert_eq!(scoring.source.id, ["id"]);
    assert_eq!(scoring.source.text, ["text"]);
    assert_eq!(scoring.source.label, None);
    assert_eq!(scoring.model.max_length, 128);
    assert_eq!(scoring.model.precision, PrecisionSetting::default());
    assert_eq!(scoring.model.device, DeviceSetting::Auto);
    assert_eq!(scoring.score.store.written, ".couplet/one");
    assert_eq!(scoring.score.checkpoint, Duration::from_secs(60));
    assert_eq!((scoring.score.max_errors, scoring.score.errors), (1.0, Errors::Column));
    let Sink { format, mode, ref partition_by, keep, .. } = scoring.sink;
    assert_eq!((format, mode, partition_by.len(), keep), (SinkFormat::Parquet, SinkMode::Overwrite, 0, None));
    assert_eq!(pipeline.run, RunSettings::default());
    assert_eq!((pipeline.run.window, pipeline.run.memory), (8192, DEFAULT_MEMORY));
}

#[test]
fn evaluation_defaults_are_those_of_training() {
    let pipeline = parse_as("learning", &fixture("valid_learning")).unwrap();
    assert!(pipeline.scoring.is_none());
    let at = |written: &str, path: &str| LocalPath { written: written.to_owned(), path: PathBuf::from(path) };
    let pretrain = pipeline.pretrain.unwrap();
    let (config, tokenizer) =
        (at("configs/tiny.json", "pipelines/configs/tiny.json"), at("models/base", "pipelines/models/base"));
    assert_eq!(pretrain.start, Start::Random { config, tokenizer });
    assert_eq!((pretrain.mask_probability, &pretrain.measure_at[..]), (0.5, &[0.15, 0.5][..]));
    let finetune = pipeline.finetune.unwrap();
    assert_eq!(finetune.text, ["premise", "hypothesis"]);
    let weights = [("entailment", 2.0), ("neutral", 1.0), ("contradiction", 0.5)];
    let weights = weights.map(|(label, weight)| (label.to_owned(), weight)).into();
    assert_eq!(finetune.class_weights, ClassWeights::Given(weights));
    assert_eq!(finetune.calibrate, Calibrate::Temperature);
    let evaluate = pipeline.evaluate.unwrap();
    assert_eq!((evaluate.task, &evaluate.text), (Some(Task::Mnli), &finetune.text));
    assert_eq!((evaluate.id, &*evaluate.label), (Some(vec!["id".to_owned()]), "gold"));
    assert_eq!(evaluate.model.location, at("models/{date}", "pipelines/models/2026-01-01").into());
    assert_eq!((evaluate.model.max_length, evaluate.model.precision), (64, PrecisionSetting::default()));
    assert_eq!(
        (&evaluate.slices[..], evaluate.resamples, evaluate.level),
        (&["genre".into(), "dt".into()][..], 1000, 0.95)
    );
}

#[test]
fn a_variable_may_be_used_by_the_sql_file_alone() {
    let pipeline = parse_as("sql_file", &fixture("valid_sql_file")).unwrap();
    let query = pipeline.scoring.unwrap().source.query;
    let Query::File(file) = query else { panic!("not a file: {query:?}") };
    assert_eq!(file.path, Path::new("pipelines/../sql/pairs.sql"));
    assert_eq!(pipeline.unused_variables, ["date".to_owned()].into());
}

#[test]
fn a_file_that_is_too_large_gives_one_problem() {
    let text = "# a line of a file that is no pipeline\n".repeat(30_000);
    let errors = parse(Path::new("big.toml"), &text, &BTreeMap::new()).unwrap_err();
    insta::assert_snapshot!(errors.render(false, 100), @r#"
  × the file has 1170000 bytes, too many for a pipeline file
  help: allowed: at most 1048576 bytes

couplet: 1 problem in big.toml
"#);
}

#[test]
fn a_file_of_another_kind_gives_a_short_message() {
    for line in ["1,\"a text\",{another},[1\n", "KEY_ = \"a\", 1 = 2\n", "<html lang='en'>\n"] {
        let errors = parse(Path::new("pairs.csv"), &line.repeat(20_000), &BTreeMap::new()).unwrap_err();
        assert!(errors.problems().len() <= 40, "{}", errors.problems().len());
    }
    let keys: String = (0..10_000).map(|key| format!("key{key} = 1\n")).collect();
    let report = parse(Path::new("x.toml"), &keys, &BTreeMap::new()).unwrap_err().render(false, 100);
    assert!(report.ends_with("couplet: 10004 problems in x.toml, the first 100 above\n"), "{report}");
}

#[test]
fn display_gives_one_line_per_problem() {
    let errors = parse(Path::new("x.toml"), "name = 3\n[run]\nthread = 2\n", &BTreeMap::new()).unwrap_err();
    insta::assert_snapshot!(errors, @r#"
x.toml:1:1: the file has no [source]
x.toml:1:1: the file has no [model]
x.toml:1:1: the file has no [sink]
x.toml:1:8: `name` must be a string, not the integer 3
x.toml:3:1: unknown key `thread` in [run]
"#);
}

#[test]
fn color_is_used_only_on_request() {
    let errors = parse_as("x", "name = 3").unwrap_err();
    assert!(errors.render(true, 80).contains("\u{1b}["));
    assert!(!errors.render(false, 80).contains('\u{1b}'));
}

#[test]
fn a_command_line_table_gets_its_format_from_the_extension() {
    let table = table_from_uri("pairs", "data/pairs.ndjson.zst").unwrap();
    assert_eq!(table.location.place, Place::Local("data/pairs.ndjson.zst".into()));
    assert_eq!(table.format, TableFormat::Json { types: Vec::new() });
    for uri in ["data/", "data", "data/*.parquet"] {
        assert_eq!(table_from_uri("t", uri).unwrap().format, TableFormat::Parquet, "{uri}");
    }
    insta::assert_snapshot!(table_from_uri("my-pairs", "a.csv").unwrap_err(), @r#""my-pairs" cannot be the name of a table; write for example `my_pairs`"#);
    insta::assert_snapshot!(table_from_uri("pairs", "a.txt").unwrap_err(), @r#"cannot infer the format of `a.txt`; write a table with its format: `{ uri = "…", format = "csv" }`"#);
    let table = table_from_uri("pairs", "s3://a/b.csv.gz").unwrap();
    assert_eq!(table.location.place.to_string(), "s3://a/b.csv.gz");
    assert!(matches!(table.format, TableFormat::Csv(CsvOptions { delimiter: b',', .. })));
    for uri in ["s3://a", "s3://a/", "s3://a/b", "gs://a/b/", "az://a/b/*.parquet"] {
        assert_eq!(table_from_uri("t", uri).unwrap().format, TableFormat::Parquet, "{uri}");
    }
    insta::assert_snapshot!(table_from_uri("pairs", "s4://a/b.csv").unwrap_err());
}

#[test]
fn tables_model_and_sink_may_be_in_buckets() {
    let text = "# --var date=2026-01-01\n".to_owned() + &fixture("valid_minimal");
    let text = text.replace("\"model\"", "\"s3a://models/m\"").replace("one.parquet", "gs://out/dt={date}.parquet");
    let text = text + "[tables]\nt = \"s3://b/t/dt={date}/*.csv\"\nw = \"s3://b\"\n";
    let pipeline = parse_as("remote", &text).unwrap();
    let scoring = pipeline.scoring.unwrap();
    let places = pipeline.tables.iter().map(|table| &table.location);
    let places: Vec<String> = places
        .chain([&scoring.model.location, &scoring.sink.location])
        .map(|location| format!("{location} is {}", location.place))
        .collect();
    insta::assert_snapshot!(places.join("\n"));
}

/// Cuts, removes and changes parts of a file: every error is a message, never a panic.
#[test]
fn errors_of_damaged_files_can_always_be_rendered() {
    for name in ["many_problems", "valid_full", "syntax_sql_not_closed"] {
        let text = fixture(name);
        let places = text.char_indices().map(|(place, char)| (place, place + char.len_utf8()));
        for (start, end) in places {
            let damaged = [
                text[..start].to_owned(),
                format!("{}{}", &text[..start], &text[end..]),
                format!("{}é\"{}", &text[..start], &text[end..]),
                format!("{}[{}", &text[..start], &text[start..]),
                format!("{}\r\n{}", &text[..start], &text[start..]),
            ];
            for text in damaged {
                if let Err(errors) = parse_as(name, &text) {
                    assert!(!errors.problems().is_empty(), "an error without a problem:\n{text}");
                    assert!(errors.render(false, 60).contains(" in pipelines/"));
                    assert!(!errors.to_string().is_empty());
                }
            }
        }
    }
}
