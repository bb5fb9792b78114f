//! Tables of text files and folders: the rows that were written are read, or the error names the file and the line.

use std::io::Write as _;

use crate::support::{Job, couplet, stderr_of, stdout_of, write};
use crate::tables::Files;

/// Rows as CSV, in the order of the files.
fn rows(files: &Files, table: &str, sql: &str) -> String {
    let mut command = couplet();
    command.current_dir(files.path("")).args(["query", "--format", "csv", sql, "--table", &format!("t={table}")]);
    stdout_of(&mut command)
}

/// The error of a query that fails with exit code 2.
fn refused(files: &Files, table: &str, sql: &str) -> String {
    files.failure(table, sql, 2)
}

const ALL: &str = "SELECT * FROM t";

#[test]
fn csv_columns_of_a_folder_are_matched_by_name() {
    let files = Files::new([
        ("d/a.csv", "id,a,b\n1,x,y\n".as_bytes()),
        ("d/b.csv", b"b,a,id\nY,X,2\n"),
        ("d/c.csv", b"\xEF\xBB\xBFa,id\nX,3\n"),
        ("d/d.csv", b""),
        ("d/e.csv", b"id,a,b,label\n5,x,y,z\n"),
        ("other/a.csv", b"id,a,b\n1,x,y\n"),
        ("other/b.csv", b"id,question,answer\n2,x,y\n"),
        ("bare/a.csv", b"1,x\n"),
        ("bare/b.csv", b"2,y,z\n"),
    ]);
    let d = r#"{ uri = "d/", format = "csv" }"#;
    assert_eq!(rows(&files, d, "SELECT * FROM t ORDER BY id"), "id,a,b,label\n1,x,y,\n2,X,Y,\n3,X,,\n5,x,y,z\n");
    assert_eq!(rows(&files, d, "SELECT b FROM t WHERE id = 2"), "b\nY\n");
    assert_eq!(rows(&files, d, "SELECT count(*) AS n FROM t"), "n\n4\n");
    let message = refused(&files, r#"{ uri = "other/", format = "csv" }"#, ALL);
    assert!(message.contains("DIR/other/b.csv: its columns `question`, `answer` are in no file before"), "{message}");
    let message = refused(&files, r#"{ uri = "bare/", format = "csv", header = false }"#, ALL);
    assert!(message.contains("DIR/bare/b.csv: it has 3 fields per line, and the files before it have 2"), "{message}");
}

#[test]
fn csv_values_keep_their_text() {
    let csv = "zip,id,plus,exp,big,u,price,when,zero,bool\n\
               01730,7,+5,5e10,123456789012345678901,18446744073709551615,0.5,2026-01-31,0000-00-00,true\n\
               10001,8,6,7,5,18446744073709551614,1.25,2026-02-01,2026-01-01,false\n";
    let files = Files::new([("t.csv", csv.as_bytes())]);
    assert_eq!(rows(&files, "t.csv", ALL), csv);
    let types = "SELECT arrow_typeof(zip) AS zip, arrow_typeof(id) AS id, arrow_typeof(exp) AS exp, arrow_typeof(u) AS u, \
                 arrow_typeof(price) AS price, arrow_typeof(\"when\") AS \"when\", arrow_typeof(zero) AS zero FROM t LIMIT 1";
    assert_eq!(
        rows(&files, "t.csv", types),
        "zip,id,exp,u,price,when,zero\nUtf8,Int64,Utf8,UInt64,Float64,Date32,Utf8\n"
    );
}

#[test]
fn a_table_can_set_the_types_of_its_columns() {
    let files = Files::new([
        ("t.csv", "id,zip,price\n7,01730,1.10\n8,10001,2.20\n".as_bytes()),
        ("t.jsonl", b"{\"id\":7,\"zip\":\"01730\",\"m\":{\"a\": 1}}\n{\"id\":8,\"zip\":\"10001\"}\n"),
    ]);
    let sql = "SELECT id || 'x' AS id, arrow_typeof(zip) AS zip, sum(price) OVER () AS price FROM t LIMIT 1";
    let table = r#"{ uri = "t.csv", types = { id = "text", zip = "int", price = "decimal(10, 2)" } }"#;
    assert_eq!(rows(&files, table, sql), "id,zip,price\n7x,Int64,3.30\n");
    let table = r#"{ uri = "t.jsonl", types = { id = "text", zip = "int", m = "text" } }"#;
    assert_eq!(
        rows(&files, table, "SELECT id || 'x' AS id, zip + 1 AS zip, m FROM t LIMIT 1"),
        "id,zip,m\n7x,1731,\"{\"\"a\"\": 1}\"\n"
    );
    let bools = Files::new([
        ("t.jsonl", "{\"x\":\"true\"}\n{\"x\":\"False\"}\n{\"x\":true}\n{\"x\":null}\n".as_bytes()),
        ("null.jsonl", b"{\"x\":true}\n{\"x\":\"null\"}\n"),
    ]);
    let of = |name: &str| format!("{{ uri = \"{name}\", types = {{ x = \"bool\" }} }}");
    assert_eq!(rows(&bools, &of("t.jsonl"), "SELECT x, 1 AS n FROM t"), "x,n\ntrue,1\nfalse,1\ntrue,1\n,1\n");
    let message = refused(&bools, &of("null.jsonl"), ALL);
    assert!(
        message.contains("DIR/null.jsonl:2: `types` declares `x` as bool, and this value is a text of 4"),
        "{message}"
    );
    let message = refused(&files, r#"{ uri = "t.csv", types = { zip = "date" } }"#, ALL);
    assert!(
        message.contains("DIR/t.csv:2: `types` declares `zip` as date, and this value is a number that begins with 0"),
        "{message}"
    );
    let message = refused(&files, r#"{ uri = "t.jsonl", types = { zip = "date" } }"#, ALL);
    assert!(message.contains("DIR/t.jsonl:1: `types` declares `zip` as date"), "{message}");
    for table in ["t.csv", "t.jsonl"] {
        let message = refused(&files, &format!("{{ uri = \"{table}\", types = {{ zpi = \"text\" }} }}"), ALL);
        assert!(message.contains("`types` names a column `zpi`, and there is none (columns: id, zip, "), "{message}");
    }
    let message = refused(&files, r#"{ uri = "t.csv", types = { zip = "string" } }"#, ALL);
    assert!(
        message.contains("`tables.t.types.zip` cannot be \"string\"") && message.contains("text, int, float"),
        "{message}"
    );
}

#[test]
fn the_escape_option_escapes_quotes() {
    let files =
        Files::new([("t.csv", "id,a,b\n1,\"He said \\\"hi, you\\\" now\",b\n2,\"x \\\"y\\\" z\",d\n".as_bytes())]);
    let message = refused(&files, "t.csv", ALL);
    assert!(
        message.contains("DIR/t.csv:2: field 2 continues after its closing quotation mark")
            && message.contains("escape = \"\\\\\""),
        "{message}"
    );
    let table = r#"{ uri = "t.csv", escape = "\\" }"#;
    assert_eq!(rows(&files, table, "SELECT a FROM t"), "a\n\"He said \"\"hi, you\"\" now\"\n\"x \"\"y\"\" z\"\n");
    let message = refused(&files, r#"{ uri = "t.csv", escape = "\\", quote = false }"#, ALL);
    assert!(message.contains("`escape` needs quoted fields"), "{message}");
}

/// A file whose beginning, from which types are inferred, has only numbers.
fn far_down(head: &str, line: impl Fn(usize) -> String, odd: &str) -> Vec<u8> {
    let mut text = head.as_bytes().to_vec();
    let mut id = 0;
    while text.len() < 66 << 20 {
        writeln!(text, "{}", line(id)).unwrap();
        id += 1;
    }
    text.extend_from_slice(odd.as_bytes());
    text
}

#[test]
fn a_value_that_does_not_fit_its_column_type_is_named_by_line() {
    let filler = "x".repeat(1000);
    let csv = far_down("id,a\n", |id| format!("{id},{filler}"), "secret-id,y\n");
    let lines = csv.iter().filter(|byte| **byte == b'\n').count();
    let json = far_down("", |id| format!("{{\"id\":{id},\"a\":\"{filler}\"}}"), "{\"id\":\"secret-id\"}\n");
    let key = far_down("", |id| format!("{{\"id\":{id},\"a\":\"{filler}\"}}"), "{\"id\":1,\"late\":1}\n");
    let json_lines = json.iter().filter(|byte| **byte == b'\n').count();
    let files = Files::new([("t.csv", &csv[..]), ("t.jsonl", &json), ("key.jsonl", &key)]);
    let message = refused(&files, "t.csv", "SELECT max(id) FROM t");
    assert!(message.contains(&format!("DIR/t.csv:{lines}: `id` was inferred as int, and this value is a text of 9 characters; {{ uri = \"…\", types = {{ id = \"text\" }} }} reads the column as text")), "{message}");
    assert!(!message.contains("secret"), "{message}");
    let message = refused(&files, "t.jsonl", "SELECT max(id) FROM t");
    assert!(
        message.contains(&format!("DIR/t.jsonl:{json_lines}: `id` was inferred as int")) && !message.contains("secret"),
        "{message}"
    );
    let message = refused(&files, "key.jsonl", "SELECT max(id) FROM t");
    assert!(
        message.contains(&format!("DIR/key.jsonl:{json_lines}: the key `late` was in none of the lines")),
        "{message}"
    );
    let table = r#"{ uri = "key.jsonl", types = { late = "int" } }"#;
    assert_eq!(rows(&files, table, "SELECT max(late) AS late FROM t"), "late\n1\n");
}

#[test]
fn csv_error_messages_do_not_contain_values() {
    let files = Files::new([("t.csv", b"id,a\n1,secret caf\xE9\n".as_slice()), ("u.csv", b"id,a\n1,x\n2,secret,y\n")]);
    for name in ["t.csv", "u.csv"] {
        let message = refused(&files, name, ALL);
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn a_json_key_that_first_appears_late_is_a_column() {
    let mut json: String = (0..150_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    json.push_str("{\"id\":-1,\"late\":{\"a\":[\"x\"]}}\n");
    let files = Files::new([("t.jsonl", json.as_bytes())]);
    assert_eq!(rows(&files, "t.jsonl", "SELECT late['a'][1] AS late FROM t WHERE late IS NOT NULL"), "late\nx\n");
}

#[test]
fn json_numbers_keep_their_digits() {
    let files = Files::new([
        ("u.jsonl", b"{\"id\":18446744073709551615}\n{\"id\":18446744073709551614}\n".as_slice()),
        ("big.jsonl", b"{\"id\":184467440737095516160}\n{\"id\":1}\n"),
        ("mix.jsonl", b"{\"id\":9007199254740993}\n{\"id\":1.5}\n"),
        ("float.jsonl", b"{\"id\":1}\n{\"id\":0.25}\n"),
    ]);
    assert_eq!(rows(&files, "u.jsonl", ALL), "id\n18446744073709551615\n18446744073709551614\n");
    assert_eq!(rows(&files, "big.jsonl", ALL), "id\n184467440737095516160\n1\n");
    assert_eq!(rows(&files, "mix.jsonl", ALL), "id\n9007199254740993\n1.5\n");
    assert_eq!(rows(&files, "float.jsonl", ALL), "id\n1.0\n0.25\n");
}

#[test]
fn json_escapes_are_decoded() {
    let files = Files::new([(
        "t.jsonl",
        br#"{"id":1,"\ud842\udfb7":"\ud842\udfb7 \ud83d\ude00 \u00fc \\ud842\\udfb7"}"#.as_slice(),
    )]);
    assert_eq!(rows(&files, "t.jsonl", "SELECT \"𠮷\" AS a FROM t"), "a\n𠮷 😀 ü \\ud842\\udfb7\n");
    let half = Files::new([("t.jsonl", b"{\"a\":\"x\"}\n{\"a\":\"\\ud83d here\"}\n".as_slice())]);
    let message = refused(&half, "t.jsonl", ALL);
    assert!(message.contains("DIR/t.jsonl:2: not a JSON object: an unpaired surrogate at column 7"), "{message}");
}

#[test]
fn json_values_of_mixed_types_are_text() {
    let files = Files::new([(
        "t.jsonl",
        "\u{feff}{\"id\":1,\"m\":{},\"n\":{\"a\":\"\\ud83d\\ude00\"},\"s\":1}\n{\"id\":2,\"m\":{},\"n\":[1, 2],\"s\":\"x\"}\n{\"id\":3,\"n\":\"y\",\"s\":true}\n"
            .as_bytes(),
    )]);
    assert_eq!(
        rows(&files, "t.jsonl", ALL),
        "id,m,n,s\n1,{},\"{\"\"a\"\":\"\"\\ud83d\\ude00\"\"}\",1\n2,{},\"[1, 2]\",x\n3,,y,true\n"
    );
    for (text, problem) in [
        ("{\"a\":1,\"a\":2}\n", "t.jsonl:1: not a JSON object: the key `a` occurs twice at column "),
        ("{\"a\":1}\n{\"a\":NaN}\n", "t.jsonl:2: not a JSON object: NaN and Infinity are not JSON; write null"),
        ("{\"a\":1} {\"a\":2}\n", "t.jsonl:1: not a JSON object: a second object on the line; write one per line"),
    ] {
        let files = Files::new([("t.jsonl", text.as_bytes())]);
        let message = refused(&files, "t.jsonl", ALL);
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn json_read_in_parallel_gives_the_same_rows() {
    let filler = "y".repeat(90);
    let json: String = (0..200_000).map(|id| format!("{{\"id\":{id},\"a\":\"{filler}\"}}\n")).collect();
    let files = Files::new([("t.jsonl", json.as_bytes())]);
    // A file of more than 10 MiB is read by several threads.
    let sql = "SELECT count(*) AS n, sum(id) AS s, count(DISTINCT id) AS d FROM t";
    assert_eq!(rows(&files, "t.jsonl", sql), "n,s,d\n200000,19999900000,200000\n");
    let broken = Files::new([("t.jsonl", format!("{json}{{\"id\":x}}\n").as_bytes())]);
    let message = refused(&broken, "t.jsonl", sql);
    assert!(message.contains("DIR/t.jsonl:200001: not a JSON object: expected a value at column 7"), "{message}");
}

#[test]
fn partition_folder_names_are_columns() {
    let files = Files::new([
        ("d/dt=2026-01-01/region=a%20b/p.csv", "id\n1\n".as_bytes()),
        ("d/dt=2026-01-02/region=__HIVE_DEFAULT_PARTITION__/p.csv", b"id\n2\n"),
        ("d/dt=2026-01-02/region=100%/p.csv", b"id,dt\n3,2000-01-01\n"),
        ("mixed/dt=1/p.csv", b"id\n1\n"),
        ("mixed/p.csv", b"id\n2\n"),
    ]);
    let d = r#"{ uri = "d/", format = "csv" }"#;
    assert_eq!(
        rows(&files, d, "SELECT id, dt, region FROM t ORDER BY id"),
        "id,dt,region\n1,2026-01-01,a b\n2,2026-01-02,\n3,2026-01-02,100%\n"
    );
    assert_eq!(rows(&files, d, "SELECT id FROM t WHERE region IS NULL"), "id\n2\n");
    assert_eq!(rows(&files, d, "SELECT id FROM t WHERE region = 'a b' AND dt < '2026-01-02'"), "id\n1\n");
    assert_eq!(rows(&files, d, "SELECT id FROM t WHERE dt = '2026-01-02' AND id < 3"), "id\n2\n");
    let message = refused(&files, r#"{ uri = "mixed/", format = "csv" }"#, ALL);
    assert!(message.contains("DIR/mixed/p.csv: "), "{message}");
    let message = refused(&files, r#"{ uri = "d/", format = "csv", partitions = ["day"] }"#, ALL);
    assert!(message.contains("DIR/d/dt=2026-01-01/region=a%20b/p.csv: it is not in a folder day=…/"), "{message}");
}

#[test]
fn a_folder_reports_the_files_that_it_skips() {
    let files = Files::new([
        ("d/a.csv", "id\n1\n".as_bytes()),
        ("d/B.CSV", b"id\n2\n"),
        ("d/._a.csv", b"\0\x05"),
        ("d/_part.csv", b"id\n7\n"),
        ("d/a.csv.part", b"id\n8\n"),
        ("d/c.jsonl", b"{\"id\":9}\n"),
        ("d/_SUCCESS", b""),
        ("d/.a.csv.crc", b"crc"),
        ("d/below/a.csv", b"id\n9\n"),
        ("hive/dt=1/a.csv", b"id\n1\n"),
        ("tabs/a.csv", b"id\tn\n1\t2\n"),
        ("plain/000000000000", b"id\n1\n"),
        ("plain/_SUCCESS", b""),
        ("json/a.jsonl", b"{\"id\":1}\n"),
        ("json/b.ndjson", b"{\"id\":2}\n"),
        ("json/c.json", b"{\"id\":3}\n"),
    ]);
    std::os::unix::fs::symlink(files.path("nowhere.csv"), files.path("d/link.csv")).unwrap();
    std::os::unix::fs::symlink(files.path("nowhere.csv"), files.path("hive/dt=1/link.csv")).unwrap();
    let d = r#"t={ uri = "d/", format = "csv" }"#;
    let mut query = couplet();
    query.current_dir(files.path("")).args(["query", "--format", "csv", "SELECT sum(id) AS s FROM t", "--table", d]);
    let output = query.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "s\n3\n");
    let message = String::from_utf8_lossy(&output.stderr);
    for part in [
        "._a.csv, _part.csv (hidden",
        "below/a.csv (in a folder",
        "a.csv.part, c.jsonl (with another extension)",
        "link.csv (a broken link)",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("_SUCCESS") && !message.contains(".crc"), "{message}");
    assert_eq!(rows(&files, r#"{ uri = "plain/", format = "csv" }"#, ALL), "id\n1\n");
    let tabs = r#"{ uri = "tabs/", format = "csv", delimiter = "\t" }"#;
    assert_eq!(rows(&files, tabs, ALL), "id,n\n1,2\n");
    let hive = r#"t={ uri = "hive/", format = "csv" }"#;
    let mut query = couplet();
    let message = stderr_of(query.current_dir(files.path("")).args(["query", "SELECT id FROM t", "--table", hive]), 0);
    assert!(message.contains("dt=1/link.csv (a broken link)"), "{message}");
    assert_eq!(rows(&files, r#"{ uri = "json/", format = "json" }"#, "SELECT sum(id) AS s FROM t"), "s\n6\n");
    let message = refused(&files, "json/", ALL);
    assert!(
        message.contains("folder json/ has no *.parquet file; it has ")
            && message.contains("format = \"json\" } reads"),
        "{message}"
    );
    let message = refused(&files, "d/link.csv", ALL);
    assert!(message.contains("d/link.csv is a link to ") && message.contains("which does not exist"), "{message}");
}

#[test]
fn paths_with_glob_characters_are_tried_as_paths_first() {
    for folder in ["data [v1]", "a%20b", "x?y*z", "{date} #1", "~it's"] {
        let files = Files::new([]);
        let path = files.path(folder);
        for name in ["t.csv", "t[1].csv", "100%.csv"] {
            write(&path.join(name), "id\n1\n");
        }
        let query = |table: &str| {
            let mut command = couplet();
            command.current_dir(&path).args([
                "query",
                "--format",
                "csv",
                "SELECT sum(id) AS s FROM t",
                "--table",
                table,
            ]);
            stdout_of(&mut command)
        };
        for (table, sum) in
            [("t.csv", 1), ("t[1].csv", 1), ("100%.csv", 1), ("*.csv", 3), ("{ uri = \".\", format = \"csv\" }", 3)]
        {
            assert_eq!(query(&format!("t={table}")), format!("s\n{sum}\n"), "{folder} {table}");
        }
        let absolute = path.join("t.csv");
        assert_eq!(query(&format!("t={}", absolute.display())), "s\n1\n", "{folder}");
    }
}

#[test]
fn a_pipeline_in_a_folder_with_special_characters_runs() {
    let job = Job::new("").change("uri = \"out/scores.parquet\"", "uri = \"out/100%25 scores\"\nformat = \"delta\"");
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    for name in ["data [v1] #1", "a%20b", "100%"] {
        let folder = job.path(name);
        write(&folder.join("pairs.csv"), "id,a,b\n1,x,y\n");
        write(&folder.join("pipeline.toml"), &toml);
        let couplet_there = |arguments: &[&str]| {
            let mut command = couplet();
            stdout_of(command.current_dir(&folder).args(arguments))
        };
        for _ in 0..2 {
            couplet_there(&["run", "pipeline.toml"]);
        }
        assert!(folder.join("out/100%25 scores/_delta_log").is_dir(), "{name}");
        let rows = "SELECT (SELECT count(*) FROM demo) AS rows, (SELECT count(*) FROM runs) AS runs";
        let query = ["query", "--pipeline", "pipeline.toml", "--format", "csv", rows];
        assert_eq!(couplet_there(&query), "rows,runs\n1,2\n", "{name}");
    }
}

#[test]
fn runs_and_spills_in_a_folder_with_special_characters_work() {
    let job = Job::new("")
        .change("uri = \"out/scores.parquet\"", "uri = \"out\"\nformat = \"parquet\"\nmode = \"append\"")
        .add("[run]\nspill = \"spill\"");
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    for name in ["data [v1] #1", "what? *", "100%"] {
        let folder = job.path(name);
        let pipeline = folder.join("pipeline.toml");
        write(&pipeline, &toml);
        for night in 1..=2 {
            write(&folder.join("pairs.csv"), format!("id,a,b\n{night},x,y\n"));
            stdout_of(couplet().current_dir(&folder).arg("run").arg(&pipeline));
        }
        let count = |source: &[&str], table: &str| {
            let sql = format!("SELECT count(*) AS n FROM {table}");
            let mut command = couplet();
            command.current_dir(&folder).arg("query").args(source).args(["--format", "csv", &sql]);
            stdout_of(&mut command)
        };
        assert_eq!(count(&["--pipeline", "pipeline.toml"], "demo"), "n\n2\n", "{name}");
        assert_eq!(count(&["--pipeline", pipeline.to_str().unwrap()], "demo"), "n\n2\n", "{name}");
        // The newest run of the folder.
        let table = format!("t={}", folder.join("out").display());
        assert_eq!(count(&["--table", &table], "t"), "n\n1\n", "{name}");
    }
}

#[test]
fn a_truncated_gz_file_is_reported_as_broken() {
    let files = Files::new([]);
    let rows: String = (0..20_000).map(|id| format!("{id},{}\n", id * 7919 % 10_007)).collect();
    write(&files.path("u.csv"), format!("id,a\n{rows}"));
    let status = std::process::Command::new("gzip").arg("-k").arg(files.path("u.csv")).status().unwrap();
    assert!(status.success());
    let whole = std::fs::read(files.path("u.csv.gz")).unwrap();
    write(&files.path("cut.csv.gz"), &whole[..whole.len() / 2]);
    let message = refused(&files, "cut.csv.gz", ALL);
    assert!(
        message.contains("DIR/cut.csv.gz: it cannot be decompressed: ") && message.contains("was it cut off"),
        "{message}"
    );
    write(&files.path("named.csv"), &whole);
    let message = refused(&files, "named.csv", ALL);
    assert!(message.contains("DIR/named.csv: it is compressed with gzip"), "{message}");
}
