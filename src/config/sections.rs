//! Reads the sections of a pipeline file, one function per section and one line per key. The keys and their defaults
//! are described in [`described`](super::described).

use std::collections::BTreeMap;
use std::path::Path;

use couplet_encoder::scorer::{DeviceSetting, Precision, PrecisionSetting};
use couplet_storage::place::{Place, Problem, is_glob};
use couplet_tables::source::OUTPUT_COLUMNS;
use couplet_tables::tables::{Location, Table, TableFormat};

use super::described::RUN;
use super::evaluating;
use super::item::{Choice, Item};
use super::key::EMPTY;
use super::learning;
use super::pipeline::{
    Errors, LocalPath, ModelSettings, Pipeline, Query, RunSettings, ScoreSettings, Scoring, Sink, SinkFormat, SinkMode,
    Source,
};
use super::reader::{Keys, Read, Reader};
use super::separate;
use super::syntax::Syntax;
use super::tables::tables;

pub(super) const PRECISIONS: [Choice<PrecisionSetting>; 5] = [
    ("auto", PrecisionSetting::Auto),
    named(Precision::F32),
    named(Precision::Int16),
    named(Precision::F16),
    named(Precision::Bf16),
];
pub(super) const ERRORS: [Choice<Errors>; 2] = [("column", Errors::Column), ("quarantine", Errors::Quarantine)];
pub(super) const SINK_FORMATS: [Choice<SinkFormat>; 2] =
    [("parquet", SinkFormat::Parquet), ("delta", SinkFormat::Delta)];
pub(super) const SINK_MODES: [Choice<SinkMode>; 3] =
    [("overwrite", SinkMode::Overwrite), ("append", SinkMode::Append), ("merge", SinkMode::Merge)];

const fn named(precision: Precision) -> Choice<PrecisionSetting> {
    (precision.name(), PrecisionSetting::Of(precision))
}

/// Reads the whole file.
pub(super) fn pipeline(keys: &mut Keys<'_>, path: &Path) -> Read<Pipeline> {
    let name = keys.required("name", pipeline_name);
    let tables = keys.optional("tables", |section| tables(section, name.as_deref().ok()));
    let tables = tables.map(Option::unwrap_or_default);
    let pretrain = keys.optional("pretrain", |section| section.table(learning::pretrain));
    let finetune = keys.optional("finetune", |section| section.table(learning::finetune));
    // A file that only trains and evaluates needs no source, model or sink.
    let to_score = ["source", "model", "sink", "score"];
    let only_trains = ["pretrain", "finetune", "evaluate"].iter().any(|stage| keys.item(stage).is_some())
        && to_score.iter().all(|stage| keys.item(stage).is_none());
    let scoring = if only_trains {
        keys.none_of(&to_score);
        Ok(None)
    } else {
        let source = keys.section("source", source);
        let model = keys.section("model", model);
        let store = default_store(keys.reader.folder, name.as_deref().unwrap_or_default());
        let score = keys.section_or_empty("score", |keys| score(keys, store));
        let sink = keys.section("sink", |keys| sink(keys, tables.as_deref().unwrap_or(&[])));
        source.and_then(|source| Ok(Some(Scoring { source, model: model?, score: score?, sink: sink? })))
    };
    let evaluate = keys.optional("evaluate", |section| {
        let finetune = finetune.as_ref().map(Option::as_ref).map_err(|reported| *reported);
        let scoring = scoring.as_ref().map(Option::as_ref).map_err(|reported| *reported);
        section.table(|keys| evaluating::evaluate(keys, finetune, scoring))
    });
    let run = keys.section_or_empty("run", run);
    let later = keys.not_yet("cluster", "remove the section: this version runs on one machine");
    // An SQL file may use variables that this file does not use.
    let unused_variables = keys.reader.unused_variables();
    if !["pretrain", "finetune", "evaluate", "source"]
        .iter()
        .any(|stage| keys.item(stage).is_some_and(|item| item.has("file")))
    {
        for name in &unused_variables {
            keys.reader.report_unused(name);
        }
    }
    let (pretrain, finetune, evaluate, scoring) = (pretrain?, finetune?, evaluate?, scoring?);
    later?;
    let pipeline = Pipeline {
        name: name?.to_owned(),
        path: path.to_owned(),
        tables: tables?,
        pretrain,
        finetune,
        evaluate,
        scoring,
        run: run?,
        unused_variables,
    };
    separate::check(keys, &pipeline)?;
    Ok(pipeline)
}

fn pipeline_name<'r>(item: &Item<'r>) -> Read<&'r str> {
    let is_allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    let name = item.non_blank()?;
    if name.chars().all(is_allowed) {
        return Ok(name);
    }
    let suggestion: String = name.chars().map(|char| if is_allowed(char) { char } else { '-' }).collect();
    let problem = Problem::new(format!("\"{name}\" cannot be the name of a pipeline"), "not a name");
    Err(item.refuse(
        problem
            .allowed("letters, digits, `-` and `_`, as a table gets this name")
            .help(format!("write for example `{suggestion}`")),
    ))
}

fn source(keys: &mut Keys<'_>) -> Read<Source> {
    let id = keys.required("id", column_names);
    let text = keys.required("text", text_columns);
    let label = keys.optional("label", column_name);

    let query = query(keys);
    let (id, text, label) = (id?, text?, label?);
    if let Some(label) = label.as_ref().filter(|label| id.contains(label) || text.contains(label)) {
        let role = if id.contains(label) { "id" } else { "text" };
        let problem = Problem::new(format!("column \"{label}\" is both `label` and `{role}`"), "already taken");
        return Err(keys.refuse("label", problem.help("name the column of the gold labels, or remove `label`")));
    }
    Ok(Source { query: query?, id, text, label })
}

/// Reads the query from `sql` or `file`; exactly one of them must be present.
pub(super) fn query(keys: &mut Keys<'_>) -> Read<Query> {
    let sql = keys.optional("sql", Item::sql);
    let file = keys.optional("file", Item::local_path);
    if let (Some(sql), Some(file)) = (keys.item("sql"), keys.item("file")) {
        let section = sql.path.trim_end_matches(".sql");
        let problem = Problem::new(format!("[{section}] has both `sql` and `file`"), "one query").at(sql.key.span());
        let problem = problem.related(file.key.span(), "another query");
        return Err(sql.refuse(problem.help("remove one of the two")));
    }
    let query = sql?.map(Query::Sql).or(file?.map(Query::File));
    query.ok_or_else(|| keys.lacks("sql", "`sql` or `file`"))
}

/// Reads a list of columns whose names do not clash with the columns that couplet adds.
fn column_names(item: &Item<'_>) -> Read<Vec<String>> {
    for element in item.elements()? {
        check_column(&element)?;
    }
    item.names()
}

fn column_name(item: &Item<'_>) -> Read<String> {
    check_column(item)?;
    Ok(item.non_blank()?.to_owned())
}

fn text_columns(item: &Item<'_>) -> Read<Vec<String>> {
    let columns = column_names(item)?;
    if columns.len() > 2 {
        let problem = Problem::new(format!("`{}` names {} columns", item.path, columns.len()), "too many");
        let help = "join columns in SQL, for example `title || ' ' || body AS text`";
        return Err(item.refuse(problem.allowed("one column, or two for pairs").help(help)));
    }
    Ok(columns)
}

fn check_column(item: &Item<'_>) -> Read<()> {
    let name = item.non_blank()?;
    if !OUTPUT_COLUMNS.iter().any(|column| column.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    let problem = Problem::new(format!("column \"{name}\" of `{}` is one that couplet writes", item.path), "taken")
        .help(format!(
            "rename it in SQL, for example `{name} AS source_{name}`; couplet writes {}",
            OUTPUT_COLUMNS.join(", ")
        ));
    Err(item.refuse(problem))
}

fn model(keys: &mut Keys<'_>) -> Read<ModelSettings> {
    let location = keys.required("uri", Item::model);
    let max_length = keys.or("max_length", Item::integer);
    let precision = keys.or("precision", |item| item.choice(&PRECISIONS));
    let device = keys.or("device", device);
    Ok(ModelSettings { location: location?, max_length: max_length?, precision: precision?, device: device? })
}

fn device(item: &Item<'_>) -> Read<DeviceSetting> {
    let text = item.string()?;
    text.parse().map_err(|allowed: String| {
        let problem = Problem::new(format!("`{}` cannot be \"{text}\"", item.path), "unknown device");
        item.refuse(problem.suggest(text, ["auto", "cpu", "cuda:0", "metal"]).allowed(&allowed))
    })
}

fn score(keys: &mut Keys<'_>, default_store: Location) -> Read<ScoreSettings> {
    let store = keys.optional("store", Item::location);
    let checkpoint = keys.or("checkpoint", Item::duration);
    let max_errors = keys.or("max_errors", Item::share);
    let errors = keys.or("errors", |item| item.choice(&ERRORS));
    let store = store?.unwrap_or(default_store);
    if is_pattern(keys, &store.place) {
        let problem = Problem::new(format!("the store `{store}` is a pattern"), "not one folder");
        return Err(keys.refuse("store", problem.help("name a folder, for example `state/scores`")));
    }
    Ok(ScoreSettings { store, checkpoint: checkpoint?, max_errors: max_errors?, errors: errors? })
}

/// Returns the default location of the store.
fn default_store(folder: &Path, name: &str) -> Location {
    let written = format!(".couplet/{name}");
    Location { place: Place::Local(folder.join(&written)), written }
}

fn sink(keys: &mut Keys<'_>, tables: &[Table]) -> Read<Sink> {
    let location = keys.required("uri", Item::location);
    let format = keys.or("format", |item| item.choice(&SINK_FORMATS));
    let mode = keys.or("mode", |item| item.choice(&SINK_MODES));
    let partition_by = keys.optional("partition_by", Item::names);
    let keep = keys.optional("keep", Item::integer);

    let partition_by = partition_by?.unwrap_or_default();
    let sink = Sink { location: location?, format: format?, mode: mode?, partition_by, keep: keep? };
    check_kind(keys, &sink)?;
    let Sink { location, .. } = &sink;
    let place = &location.place;
    let read = |table: &&Table| match table.format {
        TableFormat::Parquet | TableFormat::Delta { .. } | TableFormat::Runs { .. } => {
            table.location.place.covers(place) || !sink.is_one_file() && place.covers(&table.location.place)
        }
        _ => table.location.place.is_same(place),
    };
    if let Some(table) = tables.iter().find(read) {
        let message = format!("the sink `{location}` is read by table `{}`, \"{}\"", table.name, table.location);
        let problem = Problem::new(message, "would overwrite its own source");
        return Err(keys.refuse("uri", problem.help("write the predictions to another place")));
    }
    Ok(sink)
}

/// Returns true if a place is a pattern. Only the part relative to the pipeline file counts, since the folder of the
/// file may have any name.
fn is_pattern(keys: &Keys<'_>, place: &Place) -> bool {
    is_glob(place.as_path().strip_prefix(keys.reader.folder).unwrap_or(place.as_path()))
}

/// Checks that the location and the options suit the format of the sink.
fn check_kind(keys: &Keys<'_>, sink: &Sink) -> Read<()> {
    let location = &sink.location;
    let place = &location.place;
    let is_file = sink.is_one_file() && !place.is_folder();
    let is_folder = place.is_folder() && place.extension() != Some("parquet");
    if is_pattern(keys, place) || !(is_file || is_folder) {
        let (problem, help) = match sink.format {
            SinkFormat::Parquet => (
                "neither a Parquet file nor a folder",
                "name a file that ends in .parquet, for example `out/predictions.parquet`, or a folder, in which each \
                 run gets a folder of its own",
            ),
            SinkFormat::Delta => ("not a folder", "a Delta table is a folder, for example `out/predictions`"),
        };
        return Err(keys.refuse("uri", Problem::new(format!("the sink `{location}` is {problem}"), problem).help(help)));
    }
    let refuse = |key: &str, message: &str, label: &str, help: &str| {
        Err(keys.refuse(key, Problem::new(message.to_owned(), label.to_owned()).help(help)))
    };
    let delta = "add `format = \"delta\"`, with a folder as `uri`";
    match (sink.format, sink.mode) {
        (SinkFormat::Parquet, SinkMode::Merge) => {
            refuse("mode", "rows can be merged by their id in a Delta table only", "not for Parquet files", delta)
        }
        (SinkFormat::Parquet, _) if !sink.partition_by.is_empty() => {
            refuse("partition_by", "only a Delta table has partitions", "not for Parquet files", delta)
        }
        (SinkFormat::Parquet, SinkMode::Append) if sink.is_one_file() => refuse(
            "mode",
            "one Parquet file cannot be appended to",
            "not for one file",
            "name a folder instead of the file, or add `format = \"delta\"`",
        ),
        _ if sink.keep.is_some() && (sink.format == SinkFormat::Delta || sink.is_one_file()) => refuse(
            "keep",
            "`sink.keep` says how many runs stay in a folder of Parquet files",
            "nothing to keep here",
            "remove it",
        ),
        _ => Ok(()),
    }
}

fn run(keys: &mut Keys<'_>) -> Read<RunSettings> {
    let threads = keys.optional("threads", Item::integer);
    let window = keys.or("window", Item::integer);
    let batch_tokens = keys.optional("batch_tokens", Item::integer);
    let task_tokens = keys.or("task_tokens", Item::integer);
    let memory = keys.or("memory", Item::bytes);
    let spill = keys.optional("spill", Item::local_path);
    Ok(RunSettings {
        threads: threads?,
        window: window?,
        batch_tokens: batch_tokens?,
        task_tokens: task_tokens?,
        memory: memory?,
        spill: spill?.map_or_else(std::env::temp_dir, |spill: LocalPath| spill.path),
    })
}

impl Default for RunSettings {
    /// Returns the settings of a file without `[run]`.
    fn default() -> Self {
        let (variables, syntax) = (BTreeMap::new(), Syntax::new("", &EMPTY, &[]));
        let reader = Reader::new(Path::new(""), "", &variables, &syntax);
        Keys::read(&reader, &RUN, "run".to_owned(), 0..0, &EMPTY, run).expect("the defaults are valid")
    }
}
