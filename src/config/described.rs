//! Every key of a pipeline file: the one place where its values, its default, an example and its meaning are written.

mod training;

use training::{EVALUATE, FINETUNE, PRETRAIN};

use super::item::names;
use super::key::{Kind, Section, optional, or, required};
use super::sections::{ERRORS, PRECISIONS, SINK_FORMATS, SINK_MODES};
use super::tables::KINDS;

const ANY_COUNT: Kind = Kind::Integer(1..=usize::MAX);
const MAX_LENGTH: Kind = Kind::Integer(3..=8192);
const COLUMN: Kind = Kind::Text;
const COLUMNS: Kind = Kind::Names(usize::MAX);
const TEXTS: Kind = Kind::Names(2);
const CHARACTER: Kind = Kind::Pattern(r"^[\u0000-\u0009\u000b\u000c\u000e-\u007f]$", "one ASCII character");

/// The pattern has the precisions 1 to 38.
static COLUMN_TYPE: Kind = Kind::Pattern(
    r"^(text|int|float|bool|date|timestamp|timestamptz|decimal\( *([1-9]|[12][0-9]|3[0-8]) *, *[0-9]+ *\))$",
    "`text`, `int`, `float`, `decimal(PRECISION, SCALE)`, `bool`, `date`, `timestamp` or `timestamptz`",
);

/// The whole file.
pub(super) static FILE: Section = Section {
    path: "",
    doc: "A pipeline file is TOML. Paths start at the folder of the file. `{NAME}` in a path, a URI or SQL is replaced by \
          what `--var NAME=VALUE` gives; `{{NAME}}` stands for `{NAME}` itself. Keys that are not listed here are \
          mistakes, and so are variables that nothing uses. A file has at most 1 MiB.",
    groups: &[&[
        required(
            "name",
            Kind::Pattern("^[A-Za-z0-9_-]+$", "letters, digits, `-` and `_`"),
            "\"nightly\"",
            "The name of the pipeline. In SQL it is the table that the pipeline wrote.",
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
            "needed, unless the file only trains and evaluates",
            "sql = \"SELECT id, sentence1, sentence2 FROM pairs\"",
            "The rows that are scored.",
        ),
        optional(
            "model",
            Kind::Section(&MODEL),
            "needed where there is [source]",
            "uri = \"models/mrpc\"",
            "The model that scores them.",
        ),
        optional(
            "score",
            Kind::Section(&SCORE),
            "as if it were empty",
            "store = \"state/nightly\"",
            "What is remembered, and what happens to bad rows.",
        ),
        optional(
            "sink",
            Kind::Section(&SINK),
            "needed where there is [source]",
            "uri = \"out/predictions.parquet\"",
            "Where the predictions go.",
        ),
        optional("run", Kind::Section(&RUN), "as if it were empty", "memory = \"4GiB\"", "How the machine is used."),
        optional(
            "pretrain",
            Kind::Section(&PRETRAIN),
            "no such stage",
            "sql = \"SELECT text FROM corpus\"",
            "The stage that teaches an encoder a kind of text.",
        ),
        optional(
            "finetune",
            Kind::Section(&FINETUNE),
            "no such stage",
            "task = \"mrpc\"",
            "The stage that teaches an encoder a task.",
        ),
        optional(
            "evaluate",
            Kind::Section(&EVALUATE),
            "no such stage",
            "output = \"out/evaluation\"",
            "The stage that measures a model.",
        ),
    ]],
};

/// The values of `[tables]`, also where one stands on the command line.
pub(super) static TABLES: Kind = Kind::Tables(&TABLE);

static TABLE: Section = Section {
    path: "tables.NAME",
    doc: "Each key of `[tables]` is the name of a table: a letter or `_`, then letters, digits and `_`, and not the name \
          of the pipeline. Its value is a URI, whose extension tells the format (`.parquet`, `.csv`, `.tsv`, `.tab`, \
          `.json`, `.ndjson`, `.jsonl`, `.arrow`, `.feather`, `.ipc`; text also with `.gz` or `.zst` behind it; a folder \
          holds Parquet), or a table of these options.",
    groups: &[&[
        required("uri", Kind::Uri, "\"pairs.parquet\"", "A file, a folder or a glob, here or in a bucket."),
        optional("format", Kind::Choice(|| names(&KINDS)), "by the extension", "\"csv\"", "How the files are read."),
        optional(
            "delimiter",
            CHARACTER,
            "`,` for csv, a tabulator for tsv",
            "\";\"",
            "What stands between two fields. For csv and tsv only, as are the next four.",
        ),
        or("header", Kind::Boolean, "true", "false", "Whether the first line names the columns."),
        or(
            "quote",
            Kind::Either(&[Kind::Only(false), CHARACTER]),
            "'\"'",
            "false",
            "What stands around a field that contains the delimiter; false if no character does.",
        ),
        optional(
            "escape",
            CHARACTER,
            "a quotation mark in a field is doubled",
            "\"\\\\\"",
            "What stands before a quotation mark that belongs to the field, as Spark writes it.",
        ),
        optional("null", Kind::Text, "none", "\"NA\"", "The field that means NULL, besides the empty one."),
        optional(
            "types",
            Kind::Entries(&COLUMN_TYPE),
            "inferred",
            "{ zip = \"text\", price = \"decimal(12, 2)\" }",
            "Columns with the types that they are read as. For csv, tsv and json only. What is inferred is text wherever \
             another type would not print a value as it stands in the file.",
        ),
        optional(
            "partitions",
            COLUMNS,
            "none",
            "[\"dt\"]",
            "Columns that are read from names of folders, as in `dt=2026-01-01/`, the outermost first.",
        ),
        optional("version", Kind::Integer(0..=usize::MAX), "the newest", "3", "The version of a Delta table."),
    ]],
};

static SOURCE: Section = Section {
    path: "source",
    doc: "The rows that are scored: one SELECT, in `sql` or in a file. It only reads; statements that write or change \
          anything are refused. Its columns, at most 1,000, all come into the output, before couplet's own: \
          `predicted_label`, `score`, `probabilities`, `truncated`, `error`, `raw_probabilities` and `model`.",
    groups: &[&[
        optional(
            "sql",
            Kind::Sql,
            "`file` is given",
            "\"SELECT id, sentence1, sentence2 FROM pairs\"",
            "The query. It may call `predict()`.",
        ),
        optional("file", Kind::Path, "`sql` is given", "\"pairs.sql\"", "A file with the query."),
        required("id", COLUMNS, "[\"id\"]", "The column, or the columns, that name each row once."),
        required(
            "text",
            TEXTS,
            "[\"sentence1\", \"sentence2\"]",
            "The column of texts, or two for pairs. A text of more than 1 MiB is not scored and gets an error.",
        ),
        optional("label", COLUMN, "none", "\"label\"", "The column of what people said, for queries on the output."),
    ]],
};

static MODEL: Section = Section {
    path: "model",
    doc: "The model that scores.",
    groups: &[&[
        required("uri", Kind::Uri, "\"models/mrpc\"", "A Hugging Face folder, here or in a bucket."),
        or(
            "max_length",
            MAX_LENGTH,
            "128",
            "256",
            "The length at which an input is cut, in tokens; of a pair the longer text first.",
        ),
        or(
            "precision",
            Kind::Choice(|| names(&PRECISIONS)),
            "\"f32\"",
            "\"auto\"",
            "In which numbers the encoder multiplies. f16 and bf16 are for GPUs; int16 needs x86-64; auto takes the \
             quickest that a self-check lets pass.",
        ),
        or(
            "device",
            Kind::Pattern("^(auto|cpu|metal|cuda:[0-9]+)$", "`auto`, `cpu`, `metal` or `cuda:N`"),
            "\"auto\"",
            "\"cuda:0\"",
            "Where it runs. GPUs need a build with the feature `cuda` or `metal`.",
        ),
    ]],
};

static SCORE: Section = Section {
    path: "score",
    doc: "What is remembered, and what happens to rows that cannot be scored.",
    groups: &[&[
        optional(
            "store",
            Kind::Uri,
            "`.couplet/NAME` beside the file",
            "\"state/nightly\"",
            "The folder in which scores and runs are remembered; couplet makes it. Pipelines may share one.",
        ),
        or("checkpoint", Kind::Duration, "\"60s\"", "\"5m\"", "How much scoring a kill may cost."),
        or("max_errors", Kind::Share, "1.0", "0.001", "The share of bad rows above which the run fails."),
        or(
            "errors",
            Kind::Choice(|| names(&ERRORS)),
            "\"column\"",
            "\"quarantine\"",
            "Where bad rows go: to the others, with the reason in `error`, or to a table beside the sink, …_rejected.",
        ),
    ]],
};

static SINK: Section = Section {
    path: "sink",
    doc: "Where the predictions go.",
    groups: &[&[
        required("uri", Kind::Uri, "\"out/predictions.parquet\"", "A file that ends in .parquet, or a folder."),
        or(
            "format",
            Kind::Choice(|| names(&SINK_FORMATS)),
            "\"parquet\"",
            "\"delta\"",
            "With parquet, a folder gets a folder for each run, and its newest complete one counts.",
        ),
        or(
            "mode",
            Kind::Choice(|| names(&SINK_MODES)),
            "\"overwrite\"",
            "\"merge\"",
            "What becomes of the rows of earlier runs. A single file is overwritten; merge, on the id, needs delta.",
        ),
        optional("partition_by", COLUMNS, "none", "[\"dt\"]", "Columns whose values make folders of a Delta table."),
        optional("keep", ANY_COUNT, "all", "7", "How many runs stay in a folder of Parquet files."),
    ]],
};

static RUN: Section = Section {
    path: "run",
    doc: "How the machine is used. Results do not depend on it.",
    groups: &[&[
        optional("threads", ANY_COUNT, "one a core", "4", "Inference threads."),
        or("window", ANY_COUNT, "8192", "4096", "Rows that are sorted by length and packed together."),
        optional(
            "batch_tokens",
            Kind::Integer(16..=usize::MAX),
            "chosen by the model",
            "1024",
            "Tokens that one thread runs at a time.",
        ),
        or(
            "task_tokens",
            Kind::Integer(1024..=usize::MAX),
            "500000",
            "2000000",
            "Tokens of a task that a cluster hands out, at most: a minute or a few of one executor's time. A lost executor \
             costs the tasks that it had. Only with --cluster.",
        ),
        or(
            "memory",
            Kind::Bytes,
            "\"2GiB\"",
            "\"4GiB\"",
            "For joins, distinct and sorts, at least 16 MiB; what does not fit is spilled. The model comes on top.",
        ),
        optional(
            "spill",
            Kind::Path,
            "the system's folder for temporary files",
            "\"/var/tmp\"",
            "Where a run keeps the rows of its source while it lasts, and what does not fit into memory.",
        ),
    ]],
};
