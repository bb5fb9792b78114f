//! Deeply nested SQL, or SQL that expands small inputs greatly: the result or a clear error, never an abort.

use crate::support::{Job, couplet, stderr_of, stdout_of};

/// Runs a statement from stdin, because an argument has at most 128 KiB.
fn query(sql: &str) -> assert_cmd::Command {
    let mut query = couplet();
    query.args(["query", "--format", "csv", "-f", "-"]).write_stdin(sql.to_owned());
    query
}

/// Repeats `part` this many times, with `between` as the separator.
fn chain(part: &str, between: &str, times: usize) -> String {
    vec![part; times].join(between)
}

#[test]
fn a_long_chain_of_terms_is_executed() {
    for (sql, result) in [
        (format!("SELECT {} AS x", chain("1", "+", 200)), "200"),
        (format!("SELECT count(*) AS x FROM generate_series(1, 9) t(v) WHERE {}", chain("v = 3", " OR ", 200)), "1"),
        (format!("SELECT count(*) AS x FROM generate_series(1, 9) t(v) WHERE {}", chain("v < 3", " AND ", 200)), "2"),
        (format!("SELECT count(*) AS x FROM ({})", chain("SELECT 1", " UNION ALL ", 100)), "100"),
    ] {
        assert_eq!(stdout_of(&mut query(&sql)), format!("x\n{result}\n"), "{}", &sql[..60]);
    }
}

#[test]
fn sql_that_is_too_deep_is_refused() {
    let many = 50_000;
    let from_brackets = format!("SELECT * FROM {}t{}", "(".repeat(many), ")".repeat(many));
    for sql in [
        format!("SELECT {}", chain("1", "+", many)),
        format!("SELECT 1 WHERE {}", chain("1 = 1", " AND ", many)),
        format!("SELECT 1 WHERE {}", chain("1 = 2", " OR ", many)),
        chain("SELECT 1", " UNION ALL ", 10_000),
        chain("SELECT 1", " UNION ", 10_000),
        format!("SELECT {}1{}", "(".repeat(many), ")".repeat(many)),
        format!("SELECT {}1{}", "(SELECT ".repeat(many), ")".repeat(many)),
        format!("SELECT {} true", "NOT ".repeat(many)),
        format!("SELECT {}1", "- ".repeat(many)),
        format!("SELECT CAST(NULL AS {}INT{})", "ARRAY<".repeat(many), ">".repeat(many)),
        format!("SELECT [1]{}", "[1]".repeat(many)),
        from_brackets,
        format!("SELECT {}1 {}", "CASE WHEN true THEN ".repeat(5_000), "END ".repeat(5_000)),
    ] {
        let message = stderr_of(&mut query(&sql), 2);
        assert!(message.starts_with("error: stdin") && message.len() < 1_000, "{}: {message}", &sql[..60]);
    }
}

#[test]
fn sql_at_the_depth_limit_does_not_overflow_the_stack() {
    // The missing table is reported before the terms are planned, which takes long in a debug build.
    for (expression, known) in [
        (chain("1", "+", 4_900), "there is no table"),
        (chain("'a'", "||", 4_900), "there is no table"),
        (chain("x=1", " OR ", 2_400), "there is no table"),
        (format!("CAST(NULL AS {}INT{})", "ARRAY<".repeat(2_400), ">".repeat(2_400)), "error: "),
    ] {
        let message = stderr_of(&mut query(&format!("SELECT {expression} FROM nothing")), 2);
        assert!(message.contains(known), "{}: {message}", &expression[..60]);
    }
}

#[test]
fn long_lists_do_not_count_as_depth() {
    let values = chain("(1, 2, 'a')", ", ", 2_000);
    let sql = format!("SELECT count(*) AS x FROM (VALUES {values}) t(a, b, c)");
    assert_eq!(stdout_of(&mut query(&sql)), "x\n2000\n");
    let sql = format!("SELECT 7 IN ({}) AS x", (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", "));
    assert_eq!(stdout_of(&mut query(&sql)), "x\ntrue\n");
    let sql = format!("SELECT CASE {} ELSE 0 END AS x", "WHEN 1 = 2 THEN 3 + 4 ".repeat(1_000));
    assert_eq!(stdout_of(&mut query(&sql)), "x\n0\n");
}

#[test]
fn a_pipeline_with_sql_that_is_too_deep_is_refused() {
    let deep = format!("SELECT id, a, b FROM pairs WHERE {}", chain("id = 1", " OR ", 50_000));
    let job = Job::new("id,a,b\n1,x,y\n").change("SELECT id, a, b FROM pairs", &deep);
    for command in ["run", "plan"] {
        let message = job.error_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
        assert!(message.contains("the query of source: an expression has more than"), "{message}");
    }
    let long = format!("SELECT id, a, b FROM pairs WHERE {}", chain("id = 1", " OR ", 200));
    let job = Job::new("id,a,b\n1,x,y\n2,x,y\n").change("SELECT id, a, b FROM pairs", &long);
    assert_eq!(job.rows().len(), 1);
}

#[test]
fn a_function_that_would_exceed_the_memory_is_refused() {
    let job = Job::new("id,a,b\n1,x,y\n2,x,y\n").add("[run]\nmemory = \"64MiB\"");
    for call in [
        "length(repeat('a', 2000000000))",
        "length(repeat(a, 50000000))",
        "length(lpad(a, 2000000000))",
        "length(rpad(a, 2000000000, b))",
        "length(replace(repeat(a, 10000), 'x', repeat(b, 100000)))",
        "length(regexp_replace(repeat(a, 10000), 'x', repeat(b, 100000), 'g'))",
        "length(regexp_replace(repeat(a, 1000000), '^.*$', '\\0\\0\\0\\0\\0\\0\\0\\0\\0'))",
        "length(array_to_string(array_repeat(a, 1000), repeat(b, 100000)))",
        "length(concat(repeat(a, 6000000), repeat(b, 6000000)))",
        "length(concat_ws(repeat(a, 6000000), b, b, b))",
        "cardinality(array_repeat(1, 2000000000))",
        "cardinality(array_resize([1], 2000000000, 2))",
        "cardinality(range(1000000000000))",
        "cardinality(range(0, -1000000000000, -1))",
        "cardinality(generate_series(id, 1000000000000))",
        "cardinality(generate_series(DATE '2000-01-01', DATE '2500-01-01', INTERVAL '1' SECOND))",
        "cardinality(generate_series(TIMESTAMP '2000-01-01', TIMESTAMP '2200-01-01', INTERVAL '1' SECOND))",
    ] {
        let sql = format!("SELECT id, {call} AS x FROM pairs");
        let message = job.error_of(&mut job.couplet(&["query", "-p", "pipeline.toml", &sql]), 2);
        assert!(
            message.contains("in one batch of rows, and a quarter of run.memory is 16,777,216;"),
            "{call}: {message}"
        );
    }
    let sql = "SELECT sum(length(repeat(a, 1000)) + length(lpad(b, 7)) + cardinality(range(0, 10, 3)) + \
               length(replace(a, 'x', 'zz')) + cardinality(array_repeat(a, 3)) + cardinality(list_resize([a], 4)) + \
               cardinality(generate_series(DATE '2000-01-01', DATE '2000-03-01', INTERVAL '1' MONTH))) AS x FROM pairs";
    let mut query = job.couplet(&["query", "-p", "pipeline.toml", "--format", "csv", sql]);
    assert_eq!(stdout_of(&mut query), format!("x\n{}\n", 2 * (1000 + 7 + 4 + 2 + 3 + 4 + 3)));
    let sql = "SELECT sum(length(regexp_replace(a, '(x)', '<\\1>', 'g')) + length(array_to_string([a, b], ', ')) + \
               length(concat(a, b, 'z')) + length(concat_ws('-', a, b)) + \
               length(regexp_replace(repeat(a, 4000000), 'y', repeat(b, 10), 'g')) + \
               length(replace(repeat(a, 4000000), 'y', repeat(b, 10)))) AS x FROM pairs";
    let mut query = job.couplet(&["query", "-p", "pipeline.toml", "--format", "csv", sql]);
    // The replacement of all matches would be too large; the actual result is not.
    assert_eq!(stdout_of(&mut query), format!("x\n{}\n", 2 * (3 + 4 + 3 + 3 + 4_000_000 + 4_000_000)));
    let job = job.change("SELECT id, a, b FROM pairs", "SELECT id, repeat(a, 2000000000) AS a, b FROM pairs");
    assert!(job.error(2).contains("repeat() would produce about 4,000,000,000 bytes"), "{}", job.error(2));
}
