//! Describes every key of a pipeline file: its values, its default, an example and its meaning.

mod training;

pub(super) use training::FINETUNE;
use training::{EVALUATE, PRETRAIN};

use super::item::names;
use super::key::{Key, Kind, Section, optional, or, required};
use super::sections::{ERRORS, PRECISIONS, SINK_FORMATS, SINK_MODES};
use super::tables::KINDS;

const ANY_COUNT: Kind = Kind::Integer(1..=usize::MAX);
const MAX_LENGTH: Kind = Kind::Integer(3..=8192);
const COLUMN: Kind = Kind::Text;
const COLUMNS: Kind = Kind::Names(usize::MAX);
const TEXTS: Kind = Kind::Names(2);
const CHARACTER: Kind = Kind::Pattern(r"^[\u0000-\u0009\u000b\u000c\u000e-\u007f]$", "one ASCII character");

/// Describes the key of a query.
const fn sql(example: &'static str, doc: &'static str) -> Key {
    optional("sql", Kind::Sql, "required unless `file` is given", example, doc)
}

/// Describes the key of a file with a query.
const fn sql_file(example: &'static str) -> Key {
    optional("file", Kind::Path, "required unless `sql` is given", example, "A file with the query.")
}

/// The pattern allows the precisions 1 to 38.
static COLUMN_TYPE: Kind = Kind::Pattern(
    r"^(text|int|float|bool|date|timestamp|timestamptz|decimal\( *([1-9]|[12][0-9]|3[0-8]) *, *[0-9]+ *\))$",
    "`text`, `int`, `float`, `decimal(PRECISION, SCALE)`, `bool`, `date`, `timestamp` or `timestamptz`",
);

/// The whole file.
pub(super) static FILE: Section = Section {
    path: "",
    doc: "A pipeline file is TOML, of at most 1 MiB. Relative paths start at the folder of the file. `{NAME}` in a \
          path, a URI or SQL is replaced by the value of `--var NAME=VALUE`; write `{{NAME}}` for a literal `{NAME}`. \
          Unknown keys and unused variables are errors.",
    groups: &[&[
        required(
            "name",
            Kind::Pattern("^[A-Za-z0-9_-]+$", "letters, digits, `-` and `_`"),
            "\"nightly\"",
            "The name of the pipeline. In SQL it names the table of the pipeline's predictions.",
        ),
        optional(
            "tables",
            Kind::Tables(&TABLE),
            "no tables",
            "pairs = \"pairs.parquet\"",
            "The tables that SQL can name.",
        ),
        optional(
            "source",
            Kind::Section(&SOURCE),
            "required, unless the file only trains and evaluates",
            "sql = \"SELECT id, sentence1, sentence2 FROM pairs\"",
            "The rows to score.",
        ),
        optional(
            "model",
            Kind::Section(&MODEL),
            "required with [source]",
            "uri = \"models/mrpc\"",
            "The model that scores the rows.",
        ),
        optional(
            "score",
            Kind::Section(&SCORE),
            "the defaults of the section",
            "store = \"state/nightly\"",
            "The cache of scores, checkpoints, and rejected rows.",
        ),
        optional(
            "sink",
            Kind::Section(&SINK),
            "required with [source]",
            "uri = \"out/predictions.parquet\"",
            "The destination of the predictions.",
        ),
        optional(
            "run",
            Kind::Section(&RUN),
            "the defaults of the section",
            "memory = \"4GiB\"",
            "Threads, memory and batch sizes.",
        ),
        optional(
            "pretrain",
            Kind::Section(&PRETRAIN),
            "the stage is skipped",
            "sql = \"SELECT text FROM corpus\"",
            "The stage that pretrains an encoder on unlabelled text.",
        ),
        optional(
            "finetune",
            Kind::Section(&FINETUNE),
            "the stage is skipped",
            "task = \"mrpc\"",
            "The stage that fine-tunes an encoder for a task.",
        ),
        optional(
            "evaluate",
            Kind::Section(&EVALUATE),
            "the stage is skipped",
            "output = \"out/evaluation\"",
            "The stage that evaluates a model.",
        ),
    ]],
};

/// The values of `[tables]`, also used for tables on the command line.
pub(super) static TABLES: Kind = Kind::Tables(&TABLE);

static TABLE: Section = Section {
    path: "tables.NAME",
    doc: "Each key of `[tables]` is the name of a table: a letter or `_`, then letters, digits and `_`. It must differ \
          from the name of the pipeline. Its value is a URI, or a TOML table of the options below. The extension of \
          the URI selects the format: `.parquet`, `.csv`, `.tsv`, `.tab`, `.json`, `.ndjson`, `.jsonl`, `.arrow`, \
          `.feather` or `.ipc`. Text formats may be compressed (`.gz`, `.zst`). A folder is read as Parquet.",
    groups: &[&[
        required("uri", Kind::Uri, "\"pairs.parquet\"", "A file, a folder or a glob, local or in a bucket."),
        optional(
            "format",
            Kind::Choice(|| names(&KINDS)),
            "inferred from the extension",
            "\"csv\"",
            "The format of the files.",
        ),
        optional(
            "delimiter",
            CHARACTER,
            "`,` for csv, a tab for tsv",
            "\";\"",
            "The character between two fields. `delimiter`, `header`, `quote`, `escape` and `null` apply to csv and \
             tsv only.",
        ),
        or("header", Kind::Boolean, "true", "false", "True if the first line holds the column names."),
        or(
            "quote",
            Kind::Either(&[Kind::Only(false), CHARACTER]),
            "'\"'",
            "false",
            "The character around a field that contains the delimiter; false to disable quoting.",
        ),
        optional(
            "escape",
            CHARACTER,
            "a quote in a quoted field is doubled",
            "\"\\\\\"",
            "The character before a literal quote in a quoted field, as Spark writes it.",
        ),
        optional(
            "null",
            Kind::Text,
            "none",
            "\"NA\"",
            "A field value that is read as NULL, in addition to the empty field.",
        ),
        optional(
            "types",
            Kind::Entries(&COLUMN_TYPE),
            "inferred",
            "{ zip = \"text\", price = \"decimal(12, 2)\" }",
            "Column types, for csv, tsv and json only. Other columns are inferred; a column is inferred as text if any \
             other type would print one of its values differently from the file.",
        ),
        optional(
            "partitions",
            COLUMNS,
            "none",
            "[\"dt\"]",
            "Partition columns, read from folder names such as `dt=2026-01-01/`, outermost first.",
        ),
        optional("version", Kind::Integer(0..=usize::MAX), "the newest", "3", "The version of a Delta table."),
    ]],
};

static SOURCE: Section = Section {
    path: "source",
    doc: "The rows to score: one SELECT, in `sql` or in a file. Statements that write or change anything are rejected. \
          All its columns (at most 1,000) are copied to the output, followed by the columns that couplet adds: \
          `predicted_label`, `score`, `probabilities`, `truncated`, `error`, `raw_probabilities` and `model`.",
    groups: &[&[
        sql("\"SELECT id, sentence1, sentence2 FROM pairs\"", "The query. It may call `predict()`."),
        sql_file("\"pairs.sql\""),
        required("id", COLUMNS, "[\"id\"]", "The column or columns that identify a row; their values must be unique."),
        required(
            "text",
            TEXTS,
            "[\"sentence1\", \"sentence2\"]",
            "The text column, or two for pairs. A text of more than 1 MiB is not scored; its row gets an error.",
        ),
        optional("label", COLUMN, "none", "\"label\"", "The column of gold labels, for queries on the output."),
    ]],
};

pub(super) static MODEL: Section = Section {
    path: "model",
    doc: "The model that scores.",
    groups: &[&[
        required("uri", Kind::Uri, "\"models/mrpc\"", "A Hugging Face model folder, local or in a bucket."),
        or(
            "max_length",
            MAX_LENGTH,
            "128",
            "256",
            "The maximum length of an input, in tokens; longer inputs are truncated, in a pair the longer text first.",
        ),
        or(
            "precision",
            Kind::Choice(|| names(&PRECISIONS)),
            "\"f32\"",
            "\"auto\"",
            "The numeric precision of the encoder. f16 and bf16 need a GPU; int16 needs x86-64; auto selects the \
             fastest precision that passes a self-check.",
        ),
        or(
            "device",
            Kind::Pattern("^(auto|cpu|metal|cuda:[0-9]+)$", "`auto`, `cpu`, `metal` or `cuda:N`"),
            "\"auto\"",
            "\"cuda:0\"",
            "The device that runs the model. A GPU needs a build with the feature `cuda` or `metal`.",
        ),
    ]],
};

static SCORE: Section = Section {
    path: "score",
    doc: "The cache of scores, checkpoints, and rows that cannot be scored.",
    groups: &[&[
        optional(
            "store",
            Kind::Uri,
            "`.couplet/NAME` in the folder of the file",
            "\"state/nightly\"",
            "The folder that caches scores and records runs; couplet creates it. Pipelines may share it.",
        ),
        or("checkpoint", Kind::Duration, "\"60s\"", "\"5m\"", "The most scoring work lost if the process is killed."),
        or("max_errors", Kind::Share, "1.0", "0.001", "The share of rejected rows above which the run fails."),
        or(
            "errors",
            Kind::Choice(|| names(&ERRORS)),
            "\"column\"",
            "\"quarantine\"",
            "The destination of rejected rows. column: the output, with the reason in `error`. quarantine: a table \
             next to the sink, …_rejected.",
        ),
    ]],
};

static SINK: Section = Section {
    path: "sink",
    doc: "The destination of the predictions.",
    groups: &[&[
        required("uri", Kind::Uri, "\"out/predictions.parquet\"", "A file that ends in .parquet, or a folder."),
        or(
            "format",
            Kind::Choice(|| names(&SINK_FORMATS)),
            "\"parquet\"",
            "\"delta\"",
            "With parquet and a folder as `uri`, each run writes a subfolder; the newest complete one is the current \
             result.",
        ),
        or(
            "mode",
            Kind::Choice(|| names(&SINK_MODES)),
            "\"overwrite\"",
            "\"merge\"",
            "Replace, extend or upsert the rows of earlier runs. A single file allows only overwrite; merge matches \
             rows by id and needs delta.",
        ),
        optional("partition_by", COLUMNS, "none", "[\"dt\"]", "Partition columns of a Delta table."),
        optional("keep", ANY_COUNT, "all", "7", "The number of runs kept in a folder of Parquet files."),
    ]],
};

pub(super) static RUN: Section = Section {
    path: "run",
    doc: "Threads, memory and batch sizes. They do not affect the results.",
    groups: &[&[
        optional("threads", ANY_COUNT, "one per core", "4", "The number of inference threads."),
        or("window", ANY_COUNT, "8192", "4096", "The number of rows that are sorted by length and packed together."),
        optional(
            "batch_tokens",
            Kind::Integer(16..=usize::MAX),
            "depends on the model",
            "1024",
            "The number of tokens in a packed batch, which one thread runs at a time.",
        ),
        or(
            "task_tokens",
            Kind::Integer(1024..=usize::MAX),
            "500000",
            "2000000",
            "The maximum number of tokens in a cluster task. The default takes one executor a minute or a few. If an \
             executor is lost, its tasks are repeated. Only with --cluster.",
        ),
        or(
            "memory",
            Kind::Bytes,
            "\"2GiB\"",
            "\"4GiB\"",
            "The memory for joins, DISTINCT and sorts, at least 16 MiB; the rest is spilled to disk. The model's \
             memory is extra.",
        ),
        optional(
            "spill",
            Kind::Path,
            "the system's temporary folder",
            "\"/var/tmp\"",
            "The folder for the source rows during a run, and for data that does not fit into memory.",
        ),
    ]],
};
