//! Tables: every format, option and layout gives the rows of the files, and an error in a file is reported with its
//! position.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use couplet::config::parse;
use couplet::predict::Models;
use couplet::scorer::Pool;
use couplet::session;
use datafusion::prelude::SessionContext;

use crate::support::{Job, couplet, resources, rows_of, stdout_of, write};

/// A folder of files for `[tables]`.
pub struct Files(tempfile::TempDir);

impl Files {
    /// Makes the folder.
    pub fn new<const N: usize>(files: [(&str, &[u8]); N]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            write(&folder.path(name), bytes);
        }
        folder
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Opens the lines of a section `[tables]` and executes SQL on them.
    async fn sql(&self, tables: &str, sql: &str) -> String {
        let toml = format!(
            "name = 'p'\n[tables]\n{tables}\n[source]\nsql = 'SELECT 1'\nid = 'i'\ntext = 't'\n\
             [model]\nuri = 'm'\n[sink]\nuri = 'o.parquet'\n"
        );
        let pipeline = parse(&self.path("p.toml"), &toml, &BTreeMap::new());
        let pipeline = pipeline.unwrap_or_else(|errors| panic!("{}", errors.render(false, 100)));
        let models = Arc::new(Models::new(Pool::new(Some(1)).unwrap(), PathBuf::new()));
        let opened = session::open(&pipeline.tables, models, 8192, 1, &resources()).await;
        let context = opened.unwrap_or_else(|errors| panic!("{errors:?}"));
        let frame = context.sql(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        pretty_format_batches(&frame.collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"))).unwrap().to_string()
    }

    /// The error for an unreadable table, with this folder's path replaced.
    fn refusal(&self, uri: &str) -> String {
        self.failure(uri, "SELECT * FROM t", 2)
    }

    /// The error of a failing command, with this folder's path replaced.
    fn error(&self, command: &mut assert_cmd::Command, code: i32) -> String {
        let message = crate::support::stderr_of(command, code);
        message.replace(self.0.path().to_str().unwrap(), "DIR").trim_end().to_owned()
    }

    /// The error of a query of the table `t` with this exit code, with this folder's path replaced.
    pub fn failure(&self, uri: &str, sql: &str, code: i32) -> String {
        let mut command = couplet();
        command.current_dir(self.0.path()).args(["query", sql, "--table", &format!("t={uri}")]);
        self.error(&mut command, code)
    }

    /// Writes the rows of a query in formats that the tests cannot write themselves.
    async fn copy(&self, sql: &str, name: &str, options: &str) {
        let path = self.path(name);
        let copy = format!("COPY ({sql}) TO '{}' {options}", path.display());
        SessionContext::new().sql(&copy).await.unwrap().collect().await.unwrap();
        assert!(path.is_file());
    }
}

/// Two rows with a NULL, a quote, a comma and a non-ASCII letter.
const TWO_ROWS: &str = "SELECT * FROM (VALUES (1, 'é, \"x\"', 0.5), (2, NULL, 1.5)) AS v(id, text, x) ORDER BY id";

#[tokio::test(flavor = "multi_thread")]
async fn every_format_gives_the_same_rows() {
    let files = Files::new([]);
    files.copy(TWO_ROWS, "rows.parquet", "STORED AS PARQUET").await;
    files.copy(TWO_ROWS, "rows.arrow", "STORED AS ARROW").await;
    files.copy(TWO_ROWS, "rows.ndjson", "STORED AS JSON").await;
    files.copy(TWO_ROWS, "rows.csv", "STORED AS CSV OPTIONS ('format.has_header' 'true')").await;
    let tsv = "STORED AS CSV OPTIONS ('format.has_header' 'true', 'format.delimiter' '\t')";
    files.copy(TWO_ROWS, "rows.tsv", tsv).await;
    for name in ["rows.parquet", "rows.arrow", "rows.ndjson", "rows.csv", "rows.tsv"] {
        // JSON columns are in alphabetical order.
        let rows = files.sql(&format!("t = '{name}'"), "SELECT id, text, x FROM t WHERE x > 0 ORDER BY id").await;
        insta::allow_duplicates! { insta::assert_snapshot!(rows, @r#"
        +----+--------+-----+
        | id | text   | x   |
        +----+--------+-----+
        | 1  | é, "x" | 0.5 |
        | 2  |        | 1.5 |
        +----+--------+-----+
        "#); }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_read_through_gzip_and_zstd() {
    let files = Files::new([]);
    for (extension, how) in [("gz", "gzip"), ("zst", "zstd")] {
        let csv = format!("STORED AS CSV OPTIONS ('format.has_header' 'true', 'format.compression' '{how}')");
        files.copy(TWO_ROWS, &format!("rows.csv.{extension}"), &csv).await;
        let json = format!("STORED AS JSON OPTIONS ('format.compression' '{how}')");
        files.copy(TWO_ROWS, &format!("rows.ndjson.{extension}"), &json).await;
        for name in ["rows.csv", "rows.ndjson"] {
            let sql = "SELECT count(*) AS n, sum(id) AS s, sum(length(text)) AS l FROM t";
            let counted = files.sql(&format!("t = '{name}.{extension}'"), sql).await;
            assert!(counted.contains("| 2 | 3 | 6 |"), "{counted}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arrow_streams_are_read_like_arrow_files() {
    let files = Files::new([]);
    files.copy(TWO_ROWS, "rows.parquet", "STORED AS PARQUET").await;
    let context = SessionContext::new();
    let batches = context
        .read_parquet(files.path("rows.parquet").to_str().unwrap(), Default::default())
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let stream = File::create(files.path("rows.ipc")).unwrap();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(stream, &batches[0].schema()).unwrap();
    writer.write(&batches[0]).unwrap();
    writer.finish().unwrap();
    let counted = files.sql("t = 'rows.ipc'", "SELECT count(*) AS n, sum(id) AS s FROM t").await;
    insta::assert_snapshot!(counted, @r"
    +---+---+
    | n | s |
    +---+---+
    | 2 | 3 |
    +---+---+
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn delimiter_quote_and_null_are_options() {
    let files = Files::new([("t.csv", b"id;a;b\n1;'x;y';NA\n2;it\"s;\n3;NAN;'q''r'\n")]);
    let table = r#"t = { uri = "t.csv", delimiter = ";", quote = "'", null = "NA" }"#;
    insta::assert_snapshot!(files.sql(table, "SELECT id, a, b, b IS NULL AS none FROM t").await, @r#"
    +----+------+-----+-------+
    | id | a    | b   | none  |
    +----+------+-----+-------+
    | 1  | x;y  |     | true  |
    | 2  | it"s |     | true  |
    | 3  | NAN  | q'r | false |
    +----+------+-----+-------+
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_marker_works_in_columns_of_every_type() {
    let files = Files::new([("t.csv", b"NA,n,x,d\n1,NA,0.5,2026-11-24\nNA,2,NA,NA\n".as_slice())]);
    let table = r#"t = { uri = "t.csv", null = "NA" }"#;
    let sql = "SELECT arrow_typeof(n) AS type, sum(n) AS n, sum(x) AS x, max(d) AS d, count(*) AS rows, count(\"NA\") AS a \
               FROM t GROUP BY type";
    insta::assert_snapshot!(files.sql(table, sql).await, @r"
    +-------+---+-----+------------+------+---+
    | type  | n | x   | d          | rows | a |
    +-------+---+-----+------------+------+---+
    | Int64 | 2 | 0.5 | 2026-11-24 | 2    | 1 |
    +-------+---+-----+------------+------+---+
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_header_has_numbered_columns() {
    let files = Files::new([("t.csv", b"1,x\n2,y\n")]);
    let table = r#"t = { uri = "t.csv", header = false }"#;
    insta::assert_snapshot!(files.sql(table, "SELECT column_1 AS id, column_2 AS a FROM t").await, @r"
    +----+---+
    | id | a |
    +----+---+
    | 1  | x |
    | 2  | y |
    +----+---+
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_break_between_quotes_is_part_of_the_value() {
    let files = Files::new([("t.csv", b"id,a\r\n1,\"x\r\ny\"\r\n2,z\r\n")]);
    let sql = "SELECT id, length(a) AS characters FROM t ORDER BY id";
    insta::assert_snapshot!(files.sql("t = 't.csv'", sql).await, @r"
    +----+------------+
    | id | characters |
    +----+------------+
    | 1  | 4          |
    | 2  | 1          |
    +----+------------+
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn quotes_can_be_turned_off_for_a_table() {
    // MRPC as published: a byte order mark, `#` in column names, unbalanced quotes.
    let files = Files::new([(
        "t.txt",
        b"\xEF\xBB\xBFQuality\t#1 ID\t#1 String\n1\t7\t\"He said,\n0\t8\tshe \"said\"\n1\t9\t\"\n".as_slice(),
    )]);
    let table = r#"t = { uri = "t.txt", format = "tsv", quote = false }"#;
    let sql = r##"SELECT "Quality", "#1 ID" AS id, "#1 String" AS text FROM t"##;
    insta::assert_snapshot!(files.sql(table, sql).await, @r#"
    +---------+----+------------+
    | Quality | id | text       |
    +---------+----+------------+
    | 1       | 7  | "He said,  |
    | 0       | 8  | she "said" |
    | 1       | 9  | "          |
    +---------+----+------------+
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_is_not_part_of_a_name_or_value() {
    let files =
        Files::new([("t.csv", b"\xEF\xBB\xBFid,a\nx,1\ny,2\n".as_slice()), ("bare.csv", b"\xEF\xBB\xBFx,1\ny,2\n")]);
    let named = files.sql("t = 't.csv'", "SELECT id, a FROM t WHERE id IN ('x', 'y')").await;
    let bare = "t = { uri = 'bare.csv', header = false }";
    let sql = "SELECT column_1 AS id, column_2 AS a FROM t WHERE column_1 IN ('x', 'y')";
    assert_eq!(files.sql(bare, sql).await, named);
    assert_eq!(named.lines().count(), 6, "{named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_rows_may_lack_fields_and_have_blank_lines_between_them() {
    let files = Files::new([("t.jsonl", "{\"id\":1,\"a\":\"é\\n\"}\n\n{\"id\":2}\n".as_bytes())]);
    let sql = "SELECT id, length(a) AS characters FROM t ORDER BY id";
    insta::assert_snapshot!(files.sql("t = 't.jsonl'", sql).await, @r"
    +----+------------+
    | id | characters |
    +----+------------+
    | 1  | 2          |
    | 2  |            |
    +----+------------+
    ");
}

/// Files in nested folders.
fn nested() -> Files {
    Files::new([
        ("days/dt=2026-01-01/a.csv", b"id\n1\n2\n".as_slice()),
        ("days/dt=2026-01-02/a.csv", b"id\n3\n"),
        ("days/dt=2026-01-02/notes.txt", b"not a table"),
        ("lists/one/a.csv", b"id\n1\n2\n"),
        ("lists/c.csv", b"id\n4\n"),
        ("lists/d.csv", b"id\n5\n"),
    ])
}

const COUNT: &str = "SELECT count(*) AS n, sum(id) AS s FROM t";

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_the_union_of_its_files() {
    let counted = nested().sql("t = { uri = 'lists/', format = 'csv' }", COUNT).await;
    insta::assert_snapshot!(counted, @r"
    +---+---+
    | n | s |
    +---+---+
    | 2 | 9 |
    +---+---+
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_matches_the_names_of_files_in_one_folder() {
    let files = nested();
    for (pattern, sum) in [("*.csv", 9), ("c*.csv", 4), ("[de].csv", 5), ("?.csv", 9), ("one/*", 3)] {
        let counted = files.sql(&format!("t = {{ uri = 'lists/{pattern}', format = 'csv' }}"), COUNT).await;
        assert!(counted.contains(&format!("| {sum} ")), "{pattern}\n{counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hive_partition_folders_become_columns() {
    let files = nested();
    let sql = "SELECT dt, count(*) AS n, sum(id) AS s FROM t WHERE dt >= '2026-01-01' GROUP BY dt ORDER BY dt";
    let by_folder = files.sql("t = { uri = 'days/', format = 'csv' }", sql).await;
    insta::assert_snapshot!(by_folder, @r"
    +------------+---+---+
    | dt         | n | s |
    +------------+---+---+
    | 2026-01-01 | 2 | 3 |
    | 2026-01-02 | 1 | 3 |
    +------------+---+---+
    ");
    let named = files.sql("t = { uri = 'days/', format = 'csv', partitions = ['dt'] }", sql).await;
    assert_eq!(named, by_folder);
    let one = files.sql("t = { uri = 'days/', format = 'csv' }", "SELECT id FROM t WHERE dt = '2026-01-02'").await;
    insta::assert_snapshot!(one, @r"
    +----+
    | id |
    +----+
    | 3  |
    +----+
    ");
    // A partition folder that is spelled out in the path is an ordinary folder.
    assert_eq!(files.sql("t = 'days/dt=2026-01-02/*.csv'", "SELECT id FROM t").await, one);
}

#[test]
fn a_pattern_for_folders_is_refused_with_a_suggestion() {
    insta::assert_snapshot!(nested().refusal("days/dt=*/*.csv"), @"error: table `t`: days/dt=*/*.csv: only the name of a file can be a pattern, and `dt=*` stands for folders; name the folder days/ instead, whose folders of the form key=value are read as columns to filter by");
    insta::assert_snapshot!(nested().refusal("lists/**/*.csv"), @"error: table `t`: lists/**/*.csv: only the name of a file can be a pattern, and `**` stands for folders; name the folder lists/ instead, whose folders of the form key=value are read as columns to filter by");
}

#[tokio::test(flavor = "multi_thread")]
async fn table_names_match_exactly_or_in_lower_case() {
    let files = Files::new([("t.csv", b"id\n1\n")]);
    for name in ["Pairs", "PAIRS", "\"Pairs\"", "pairs"] {
        files.sql("Pairs = 't.csv'", &format!("SELECT id FROM {name}")).await;
    }
}

#[test]
fn missing_files_are_named_with_the_pattern_searched() {
    let files = Files::new([("data/pairs.csv", b"id\n1\n"), ("empty/readme.md", b"nothing")]);
    insta::assert_snapshot!(files.refusal("data/pair.csv"), @"error: table `t`: data/pair.csv does not exist; did you mean data/pairs.csv?");
    insta::assert_snapshot!(files.refusal("date/pairs.csv"), @"error: table `t`: date/pairs.csv does not exist, nor does its folder date");
    insta::assert_snapshot!(files.refusal("data/*.tsv"), @"error: table `t`: no file matches data/*.tsv");
    insta::assert_snapshot!(files.refusal("empty/"), @"error: table `t`: folder empty/ has no *.parquet file; left out: readme.md (with another extension)");
}

#[test]
fn invalid_utf8_is_refused_with_file_line_and_field() {
    let files = Files::new([
        ("t.csv", b"id,a\n1,\"x\ny\"\n2,caf\xE9\n".as_slice()),
        ("t.jsonl", b"{\"id\":1}\n{\"id\":\"\xE9\"}\n"),
        ("utf16.csv", b"\xFF\xFEi\x00d\x00\n\x001\x00\n\x00"),
    ]);
    insta::assert_snapshot!(files.refusal("t.csv"), @"error: table `t`: DIR/t.csv:4: field 2 is not valid UTF-8; convert the file, for example with iconv");
    insta::assert_snapshot!(files.refusal("t.jsonl"), @"error: table `t`: DIR/t.jsonl:2: not valid UTF-8; convert the file, for example with iconv");
    insta::assert_snapshot!(files.refusal("utf16.csv"), @"error: table `t`: DIR/utf16.csv:1: it is UTF-16, and couplet reads UTF-8; convert the file, for example with iconv");
}

#[test]
fn ragged_lines_are_refused_with_file_and_line() {
    let files = Files::new([
        ("wide.csv", b"id,a\n1,x\n2,y,z\n".as_slice()),
        ("narrow.csv", b"id,a\n1,x\n2\n"),
        ("quote.csv", b"id,a,b\n1,\"x,y\n2,p,q\n3,r,s\n"),
    ]);
    insta::assert_snapshot!(files.refusal("wide.csv"), @r#"error: table `t`: DIR/wide.csv:3: 3 fields where the first line has 2; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
    insta::assert_snapshot!(files.refusal("narrow.csv"), @r#"error: table `t`: DIR/narrow.csv:3: 1 field where the first line has 2; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
    insta::assert_snapshot!(files.refusal("quote.csv"), @r#"error: table `t`: DIR/quote.csv:2: a quotation mark (") is never closed; { uri = "…", quote = false } reads them as text"#);
}

#[test]
fn the_broken_file_among_many_is_named() {
    let files = Files::new([("d/a.csv", b"id,a\n1,x\n".as_slice()), ("d/b.csv", b"id,a\n1,x\n2,y,z\n")]);
    insta::assert_snapshot!(files.refusal("d/*.csv"), @r#"error: table `t`: DIR/d/b.csv:3: 3 fields where the first line has 2; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
}

#[test]
fn a_broken_line_beyond_the_sample_is_named_when_read() {
    let mut csv = String::from("id,a\n");
    for id in 0..100_000 {
        csv.push_str(&format!("{id},x\n"));
    }
    let files = Files::new([("t.csv", format!("{csv}100000,x,y\n").as_bytes())]);
    insta::assert_snapshot!(files.failure("t.csv", COUNT, 2), @r#"error: table `t`: DIR/t.csv:100002: 3 fields where the first line has 2; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
}

#[tokio::test]
async fn the_quote_option_applies_everywhere_in_a_file() {
    // Files are read in chunks of 8 KiB; quotes may be on both sides of every chunk boundary.
    let filler = "a plain text of some length that says nothing in particular";
    let rows = |odd: &str| -> String {
        let lines = (0..600).map(|id| format!("{id}\t{}{filler}\n", if id % 7 == 0 { odd } else { "" }));
        std::iter::once("id\ta\n".to_owned()).chain(lines).collect()
    };
    for odd in ["5\" pipe ", "\\alpha \" ", "\"said \\\" "] {
        let files = Files::new([("t.tsv", rows(odd).as_bytes())]);
        let table = r#"t = { uri = "t.tsv", quote = false }"#;
        let answer = files
            .sql(table, "SELECT count(*) AS n, sum(id) AS s, count(*) FILTER (WHERE a LIKE '%\"%') AS q FROM t")
            .await;
        assert!(answer.contains("600") && answer.contains("179700") && answer.contains("86"), "{odd}: {answer}");
    }
    // In a CSV a backslash escapes nothing, and a quote within a field is an ordinary character.
    let csv: String = (0..600).map(|id| format!("{id},\\{filler} 5\" wide,\"one\nand \"\"two\"\"\"\n")).collect();
    let files = Files::new([("t.csv", format!("id,a,b\n{csv}").as_bytes())]);
    let answer = files.sql(r#"t = "t.csv""#, "SELECT count(*) AS n, sum(id) AS s, min(b) AS b FROM t").await;
    assert!(answer.contains("600") && answer.contains("179700") && answer.contains("and \"two\""), "{answer}");
}

#[test]
fn broken_json_is_refused_with_file_line_and_column() {
    let files = Files::new([
        ("cut.jsonl", b"{\"id\":1}\n{\"id\":2,\"a\":\n".as_slice()),
        ("list.jsonl", b"[1, 2]\n"),
        ("pretty.json", b"{\n  \"id\": 1\n}\n"),
    ]);
    insta::assert_snapshot!(files.refusal("cut.jsonl"), @"error: table `t`: DIR/cut.jsonl:2: the line ends within a JSON object; each line must hold a complete object");
    insta::assert_snapshot!(files.refusal("list.jsonl"), @"error: table `t`: DIR/list.jsonl: it is one JSON array, and couplet reads JSON Lines, one object per line: `jq -c '.[]' FILE > FILE.jsonl` converts it, and `couplet query … -o FILE.jsonl` writes them");
    insta::assert_snapshot!(files.refusal("pretty.json"), @"error: table `t`: DIR/pretty.json:1: the line ends within a JSON object; each line must hold a complete object");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_parquet_and_arrow_files_are_refused() {
    let files = Files::new([("empty.parquet", b""), ("text.parquet", b"id,a\n1,x\n")]);
    for (name, format) in [("t.parquet", "PARQUET"), ("t.arrow", "ARROW")] {
        files.copy(TWO_ROWS, name, &format!("STORED AS {format}")).await;
        let whole = std::fs::read(files.path(name)).unwrap();
        write(&files.path(name), &whole[..200]);
    }
    insta::assert_snapshot!(files.refusal("t.parquet"), @"error: table `t`: DIR/t.parquet: not a whole Parquet file (200 bytes): Parquet error: Invalid Parquet file. Corrupt footer; was it cut off while it was written or copied?");
    insta::assert_snapshot!(files.refusal("empty.parquet"), @"error: table `t`: DIR/empty.parquet is empty; was it cut off while it was written or copied?");
    insta::assert_snapshot!(files.refusal("text.parquet"), @r#"error: table `t`: DIR/text.parquet: it is not a Parquet file: it begins with "id,a"; name its format, as in { uri = "…", format = "csv" }"#);
    insta::assert_snapshot!(files.refusal("t.arrow"), @"error: table `t`: DIR/t.arrow: neither a complete Arrow file nor a complete Arrow stream: it does not end like an Arrow file");
}

#[test]
fn a_sink_that_aliases_a_source_is_refused() {
    let job = Job::new("").change("pairs.csv", "pairs.parquet");
    let rows = "SELECT 1 AS id, 'a' AS a, 'b' AS b";
    stdout_of(job.couplet(&["query", rows, "-o"]).arg(job.path("pairs.parquet")));
    let link = job.path("link");
    std::os::unix::fs::symlink(job.path(""), &link).unwrap();
    let folder = job.path("").canonicalize().unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let absolute = folder.join("pairs.parquet").display().to_string();
    for uri in [
        absolute.clone(),
        format!("file://{absolute}"),
        format!("/{absolute}"),
        link.join("pairs.parquet").display().to_string(),
        format!("../{name}/pairs.parquet"),
    ] {
        let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
        let sink = toml.lines().find(|line| line.contains("out/scores.parquet")).unwrap();
        write(&job.path("sink.toml"), toml.replace(sink, &format!("uri = \"{uri}\"")));
        for command in ["run", "plan"] {
            let message = job.error_of(&mut job.couplet(&[command, "sink.toml"]), 2);
            assert!(message.contains("would overwrite its own source"), "{command} {uri}: {message}");
        }
        assert_eq!(rows_of(&job.path("pairs.parquet")).len(), 1);
    }
}

#[test]
fn outputs_replace_only_regular_files_and_keep_links() {
    let files = Files::new([("old.csv", "x\n".as_bytes())]);
    std::os::unix::fs::symlink(files.path("old.csv"), files.path("link.csv")).unwrap();
    let pipe = files.path("pipe.csv");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let query = |output: &str| {
        let mut command = couplet();
        command.current_dir(files.path("")).args(["query", "SELECT 1 AS x", "--format", "csv", "-o", output]);
        command
    };
    stdout_of(&mut query("link.csv"));
    assert!(files.path("link.csv").is_symlink());
    assert_eq!(std::fs::read_to_string(files.path("old.csv")).unwrap(), "x\n1\n");
    for device in ["pipe.csv", "/dev/null"] {
        let message = files.error(&mut query(device), 1);
        assert!(message.contains("it is a device or a pipe, and only a file can be replaced"), "{message}");
        assert!(!files.path(device).is_file());
    }
}

#[tokio::test]
async fn files_that_change_during_a_read_are_detected() {
    let files = Files::new([("one.csv", "id,a\n1,x\n".as_bytes()), ("parts/p-1.csv", b"id,a\n1,x\n")]);
    for (uri, more) in [("one.csv", None), ("parts", Some("parts/p-2.csv")), ("parts/*.csv", Some("parts/p-3.csv"))] {
        let uri = files.path(uri).display().to_string();
        let table = couplet::config::table_from_uri_as("t", &uri, Some("csv")).unwrap();
        let models = Arc::new(Models::new(Pool::new(Some(1)).unwrap(), PathBuf::new()));
        let tables = [table];
        let context = session::open(&tables, models, 8192, 1, &resources()).await.unwrap();
        let now = async || couplet::tables::source_files(&context, &tables).await.unwrap();
        let before = now().await;
        context.sql("SELECT * FROM t").await.unwrap().collect().await.unwrap();
        assert_eq!(now().await, before, "{uri}");
        let changed = if more.is_none() { "one.csv" } else { "parts/p-1.csv" };
        write(&files.path(changed), format!("{}2,y\n", std::fs::read_to_string(files.path(changed)).unwrap()));
        let after = now().await;
        assert!(after.len() == before.len() && after != before, "{uri}");
        if let Some(more) = more {
            write(&files.path(more), "id,a\n3,z\n");
            assert_eq!(now().await.len(), before.len() + 1, "{uri}");
        }
    }
}

/// A pipeline whose Parquet source has an unreadable page after some readable ones.
async fn job_with_a_corrupt_page() -> Job {
    let job = Job::new("").change("pairs.csv", "pairs.parquet");
    let pairs = job.path("pairs.parquet");
    let rows = "SELECT value AS id, concat('a ', value) AS a, concat('b ', value) AS b FROM generate_series(1, 4000)";
    let copy = format!(
        "COPY ({rows}) TO '{}' STORED AS PARQUET OPTIONS ('format.max_row_group_size' '1000')",
        pairs.display()
    );
    SessionContext::new().sql(&copy).await.unwrap().collect().await.unwrap();
    let mut bytes = std::fs::read(&pairs).unwrap();
    let groups = crate::support::footer_of(&pairs).1;
    let page = usize::try_from(groups.row_group(2).column(1).byte_range().0).unwrap();
    bytes[page..page + 300].fill(0xFF);
    write(&pairs, bytes);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_page_fails_a_run_and_keeps_the_old_output() {
    let job = job_with_a_corrupt_page().await;
    write(&job.output(), "what was there");
    insta::assert_snapshot!(job.error(2), @"error: DIR/pairs.parquet: a page after row 1024 cannot be read (4 row groups): Parquet argument error: Parquet error: Unexpected struct field type 15; nothing was written");
    assert_eq!(std::fs::read(job.output()).unwrap(), b"what was there");
    assert_eq!(job.output_files(), ["scores.parquet"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_page_fails_a_query_with_file_and_row() {
    let job = job_with_a_corrupt_page().await;
    let query = ["query", "--pipeline", "pipeline.toml", "SELECT max(length(a)) FROM pairs"];
    insta::assert_snapshot!(job.error_of(&mut job.couplet(&query), 2), @"error: DIR/pairs.parquet: a page after row 1024 cannot be read (4 row groups): Parquet argument error: Parquet error: Unexpected struct field type 15; the output is not complete");
    let message = job.error_of(job.couplet(&query).args(["-o", "out/x.csv"]), 2);
    assert!(message.ends_with("; no output was written"), "{message}");
    assert!(job.output_files().is_empty());
    for sql in ["SELECT max(length(a)) FROM 'pairs.parquet'", "SELECT 1;\nSELECT max(length(a)) FROM 'pairs.parquet';"]
    {
        let by_place = job.error_of(job.couplet(&["query"]).write_stdin(sql), 2);
        assert!(by_place.contains("DIR/pairs.parquet: a page after row 1024 cannot be read"), "{by_place}");
    }
}

#[test]
fn a_query_can_name_files_by_path() {
    let files = Files::new([
        ("t.csv", "id,a\n1,x\n2,y\n".as_bytes()),
        ("parts/p-1.csv", b"id,a\n3,z\n"),
        ("parts/p-2.csv", b"id,a\n4,z\n"),
    ]);
    let query = |sql: &str, arguments: &[&str]| {
        let mut command = couplet();
        command.current_dir(files.path("")).args(["query", "--format", "csv", sql]).args(arguments);
        command
    };
    let rows = |sql: &str, arguments: &[&str]| stdout_of(&mut query(sql, arguments));
    assert_eq!(rows("SELECT a FROM 't.csv' ORDER BY id", &[]), "a\nx\ny\n");
    assert_eq!(rows("SELECT a FROM \"t.csv\" ORDER BY id", &[]), "a\nx\ny\n");
    assert_eq!(rows("SELECT sum(id) AS ids FROM 'parts/*.csv'", &[]), "ids\n7\n");
    let absolute = files.path("t.csv");
    assert_eq!(rows(&format!("SELECT count(*) AS n FROM '{}'", absolute.display()), &[]), "n\n2\n");
    assert_eq!(rows("SELECT r.a FROM 't.csv' l JOIN 't.csv' r ON l.id + 1 = r.id", &[]), "a\ny\n");
    // A declared table takes precedence over a file of its name, and parameters are bound as usual.
    assert_eq!(
        rows(
            "SELECT t.a, l.a AS b FROM t JOIN 't.csv' l ON t.id = l.id + $more",
            &["--table", "t=parts/p-1.csv", "--param", "more=2"]
        ),
        "a,b\nz,x\n"
    );
    let refusal = |sql: &str| files.error(&mut query(sql, &[]), 2);
    insta::assert_snapshot!(refusal("SELECT a FROM 'u.csv'"), @"error: SQL: table `u.csv`: u.csv does not exist; did you mean t.csv?");
    insta::assert_snapshot!(refusal("SELECT a FROM 'parts/*.parquet'"), @"error: SQL: table `parts/*.parquet`: no file matches parts/*.parquet");
    insta::assert_snapshot!(refusal("SELECT a FROM 't.html'"), @r#"error: SQL: table `t.html`: cannot infer the format of `t.html`; write a table with its format: `{ uri = "…", format = "csv" }`"#);
    insta::assert_snapshot!(refusal("SELECT b FROM 't.csv'"), @"error: SQL: there is no column `b` (columns: id, a)");
    // The query is read-only.
    insta::assert_snapshot!(refusal("INSERT INTO 't.csv' VALUES (5, 'v')"), @"error: SQL: a query only reads; to write its result, use -o FILE instead of COPY or INSERT");
}

#[test]
fn a_pipeline_reads_its_named_tables() {
    let job = Job::new("id,a,b\n1,x,y\n").change("FROM pairs", "FROM 'pairs.csv'");
    insta::assert_snapshot!(job.error(2), @"error: pipeline.toml: the source query: there is no table `pairs.csv` (tables: pairs); did you mean `pairs`?");
}

#[test]
fn a_broken_csv_fails_a_run_and_writes_nothing() {
    let job = Job::new("id,a,b\n1,x,y\n2,\"p,q\n3,r,s\n");
    insta::assert_snapshot!(job.error(2), @r#"error: table `pairs`: DIR/pairs.csv:3: a quotation mark (") is never closed; { uri = "…", quote = false } reads them as text"#);
    assert!(job.output_files().is_empty());
}

#[test]
fn query_output_can_be_read_back() {
    let files = Files::new([("t.csv", "id,a\n1,\"é, \"\"x\"\"\"\n2,\n".as_bytes())]);
    for name in ["copy.parquet", "copy.csv"] {
        let mut command = couplet();
        command.current_dir(files.0.path()).args(["query", "SELECT * FROM t", "--table", "t=t.csv", "-o", name]);
        assert_eq!(stdout_of(&mut command), "");
    }
    assert_eq!(std::fs::read(files.path("copy.csv")).unwrap(), std::fs::read(files.path("t.csv")).unwrap());
    let rows = rows_of(&files.path("copy.parquet"));
    assert_eq!(rows[0]["a"], "é, \"x\"");
    assert!(rows[1]["a"].is_null());
}
