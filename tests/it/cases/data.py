"""Reads every case of ../shared/cases/data with couplet and compares the rows with those that DuckDB or pyarrow read.

    data.py COUPLET CASES MODEL [NAME…]

A case is a line of `CASES`: its name, the table as `--table` takes it (`{}` stands for the folder of the cases), and
the expected result: `Sql` (the rows of a DuckDB query), `Rows` (the rows themselves) or `Refused` (words of the message,
exit code 2). Each readable case also runs through `init --from`, `plan` and `run`, and the written rows are compared too.
The sink is in turn a file, a Delta table or a folder of runs. All commands must refuse a refused case and write nothing.
The script fails if no line names a file of the cases.
"""

import datetime
import decimal
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid

import duckdb
import pyarrow.dataset

COUPLET, FOLDER, MODEL = sys.argv[1], pathlib.Path(sys.argv[2]), str(pathlib.Path(sys.argv[3]).resolve())
ONLY = sys.argv[4:]


class Sql:
    """The rows of a DuckDB query; `{}` stands for the folder of the cases. `ours` is the query of couplet, by default
    all columns."""

    def __init__(self, sql, ours="SELECT * FROM t", run=True):
        self.sql, self.ours, self.run = sql, ours, run

    def rows(self):
        found = duckdb.connect().execute("SET TimeZone = 'UTC'; " + self.sql.replace("{}", str(FOLDER)))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row)) for row in found.fetchall()]


class Rows:
    """The expected rows; `in_duckdb`: the rows as returned by DuckDB's Python module, if they differ."""

    def __init__(self, *rows, ours="SELECT * FROM t", run=True, in_duckdb=None):
        self.found, self.ours, self.run, self.in_duckdb = rows, ours, run, in_duckdb

    def rows(self):
        return list(self.found)


class Refused:
    """Words of the message of a command that ends with exit code 2. `found_out`: `init` detects the missing option."""

    def __init__(self, *words, ours="SELECT * FROM t", found_out=False):
        self.words, self.ours, self.found_out = words, ours, found_out


class Feather:
    """The rows of a folder of Arrow files, as pyarrow reads them."""

    def __init__(self, path):
        self.path, self.ours, self.run = path, "SELECT * FROM t", True

    def rows(self):
        return pyarrow.dataset.dataset(FOLDER / self.path, format="feather").to_table().to_pylist()


class Unwritable:
    """Words of the message of a `run` with a column that the sink cannot hold."""

    def __init__(self, *words):
        self.words = words


def csv(path, more=""):
    """All of the CSV files at a path as DuckDB reads them."""
    return Sql(f"SELECT * FROM read_csv('{{}}/{path}', header = true{more})")


def jsonl(path):
    """All of the JSON files at a path as DuckDB reads them."""
    return Sql(f"SELECT * FROM read_json('{{}}/{path}', format = 'newline_delimited')")


def parquet(path):
    """The Parquet files at a path as DuckDB reads them."""
    return Sql(f"SELECT * FROM read_parquet('{{}}/{path}')")


PAIRS = [
    {"id": 1, "sentence1": "one", "sentence2": "uno"},
    {"id": 2, "sentence1": "two", "sentence2": "dos"},
]
TEXTS = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]

HIVE = [
    ("2026-01-01", "a%2Fb", "'a/b'"),
    ("2026-01-01", "New%20York", "'New York'"),
    ("2026-01-02", "plain space", "'plain space'"),
    ("2026-01-02", "__HIVE_DEFAULT_PARTITION__", "NULL"),
    ("2026-01-02", "007", "'007'"),
    ("2026-01-02", "100%", "'100%'"),
    ("2026-01-02", "100%25", "'100%'"),
    ("2026-01-02", "k=v", "'k=v'"),
    ("2026-01-02", "München", "'München'"),
    ("2026-01-02", "a+b", "'a+b'"),
]

CASES = [
    # CSV: files.
    ("csv/backslash.csv", "{}/csv/backslash.csv", Refused("backslash.csv:2: field 2", 'escape = "\\\\"', found_out=True)),
    ("csv/backslash.csv, escape", '{ uri = "{}/csv/backslash.csv", escape = "\\\\" }', Rows({"id": 1, "sentence1": 'a "quoted" word', "sentence2": "uno"}, PAIRS[1])),
    ("csv/bigint.csv", "{}/csv/bigint.csv", csv("csv/bigint.csv", ", types = {'id': 'UBIGINT'}")),
    ("csv/blanklines.csv", "{}/csv/blanklines.csv", Rows(*PAIRS)),
    ("csv/bom.csv", "{}/csv/bom.csv", csv("csv/bom.csv")),
    ("csv/bomquoted.csv", "{}/csv/bomquoted.csv", csv("csv/bomquoted.csv")),
    ("csv/bool.csv", "{}/csv/bool.csv", csv("csv/bool.csv")),
    ("csv/comment.csv", "{}/csv/comment.csv", Refused("comment.csv:2: 3 fields where the first line has 1")),
    ("csv/cr.csv", "{}/csv/cr.csv", csv("csv/cr.csv")),
    ("csv/crlf.csv", "{}/csv/crlf.csv", csv("csv/crlf.csv")),
    ("csv/dates.csv", "{}/csv/dates.csv", csv("csv/dates.csv", ", all_varchar = true, types = {'id': 'BIGINT'}")),
    ("csv/datesbad.csv", "{}/csv/datesbad.csv", csv("csv/datesbad.csv", ", types = {'when': 'VARCHAR'}")),
    ("csv/duphead.csv", "{}/csv/duphead.csv", Refused('both named "text"')),
    ("csv/emptyhead.csv", "{}/csv/emptyhead.csv", Rows({"id": 1, "column_2": "one", "text": "uno"}, {"id": 2, "column_2": "two", "text": "dos"})),
    ("csv/fakegz.csv", "{}/csv/fakegz.csv", Refused("fakegz.csv: it is compressed with gzip")),
    ("csv/floats.csv", "{}/csv/floats.csv", csv("csv/floats.csv", ", types = {'v': 'VARCHAR'}")),
    ("csv/headeronly.csv", "{}/csv/headeronly.csv", Rows(run=False)),
    ("csv/latin1.csv", "{}/csv/latin1.csv", Refused("latin1.csv:2: field 2 is not valid UTF-8")),
    ("csv/multi.csv.gz", "{}/csv/multi.csv.gz", csv("csv/multi.csv.gz")),
    ("csv/noeol.csv", "{}/csv/noeol.csv", csv("csv/noeol.csv")),
    ("csv/notgz.csv.gz", "{}/csv/notgz.csv.gz", Refused("notgz.csv.gz: it cannot be decompressed")),
    ("csv/nulbyte.csv", "{}/csv/nulbyte.csv", Rows({"id": 1, "sentence1": "on\0e", "sentence2": "uno"})),
    ("csv/null.csv", "{}/csv/null.csv", Sql("SELECT id, nullif(sentence1, '') AS sentence1, sentence2 FROM read_csv('{}/csv/null.csv', header = true, types = {'sentence1': 'VARCHAR'}, quote = '\"')")),
    ("csv/numtext.csv", "{}/csv/numtext.csv", csv("csv/numtext.csv")),
    ("csv/pipe.csv", '{ uri = "{}/csv/pipe.csv", delimiter = "|" }', csv("csv/pipe.csv", ", delim = '|'")),
    ("csv/quotes.csv", "{}/csv/quotes.csv", csv("csv/quotes.csv")),
    ("csv/semicolon.csv", '{ uri = "{}/csv/semicolon.csv", delimiter = ";" }', csv("csv/semicolon.csv", ", delim = ';'")),
    ("csv/sepline.csv", '{ uri = "{}/csv/sepline.csv", delimiter = ";" }', Refused("sepline.csv:2: 3 fields where the first line has 2")),
    ("csv/spaces.csv", "{}/csv/spaces.csv", Rows(*({"id": row["id"], " sentence1": " " + row["sentence1"], " sentence2": " " + row["sentence2"]} for row in PAIRS))),
    ("csv/trailing.csv", "{}/csv/trailing.csv", Rows(*({**row, "column_4": None} for row in PAIRS))),
    ("csv/trailing_rows.csv", "{}/csv/trailing_rows.csv", Refused("trailing_rows.csv:2: 4 fields where the first line has 3")),
    ("csv/truncated.csv.gz", "{}/csv/truncated.csv.gz", Refused("truncated.csv.gz: it cannot be decompressed", "cut off")),
    ("csv/twoempty.csv", "{}/csv/twoempty.csv", Rows(*({"id": row["id"], "text": row["text"], "column_3": None, "column_4": None} for row in TEXTS))),
    ("csv/tz.csv", "{}/csv/tz.csv", csv("csv/tz.csv", ", types = {'when': 'VARCHAR'}")),
    ("csv/tz2.csv", "{}/csv/tz2.csv", csv("csv/tz2.csv", ", types = {'when': 'VARCHAR'}")),
    ("csv/tz2.csv, timestamptz", '{ uri = "{}/csv/tz2.csv", types = { when = "timestamptz" } }', csv("csv/tz2.csv", ", types = {'when': 'TIMESTAMPTZ'}")),
    ("csv/utf16.csv", "{}/csv/utf16.csv", Refused("utf16.csv:1: it is UTF-16")),
    ("csv/X.CSV", "{}/csv/X.CSV", csv("csv/X.CSV")),
    ("csv/X.CSV.GZ", "{}/csv/X.CSV.GZ", csv("csv/X.CSV.GZ", ", compression = 'gzip'")),
    ("csv/x.csv.bz2", "{}/csv/x.csv.bz2", Refused("x.csv.bz2")),
    ("csv/x.csv.gz", "{}/csv/x.csv.gz", csv("csv/x.csv.gz")),
    ("csv/x.csv.zst", "{}/csv/x.csv.zst", csv("csv/x.csv.zst")),
    ("csv/zeros.csv", "{}/csv/zeros.csv", csv("csv/zeros.csv", ", types = {'id': 'VARCHAR', 'zip': 'VARCHAR'}")),
    ("csv/zeros.csv, int", '{ uri = "{}/csv/zeros.csv", types = { id = "int" } }', csv("csv/zeros.csv", ", types = {'id': 'BIGINT', 'zip': 'VARCHAR'}")),
    # CSV: folders.
    ("csvempty", '{ uri = "{}/csvempty/", format = "csv" }', csv("csvempty/a.csv")),
    ("csvextra", '{ uri = "{}/csvextra/", format = "csv" }', csv("csvextra/*.csv", ", union_by_name = true")),
    ("csvgz", '{ uri = "{}/csvgz/", format = "csv" }', csv("csvgz/*.csv.gz")),
    ("csvhivegz", '{ uri = "{}/csvhivegz/", format = "csv" }', csv("csvhivegz/*/*.csv.gz", ", hive_partitioning = true, hive_types_autocast = 0")),
    ("csvmiss", '{ uri = "{}/csvmiss/", format = "csv" }', csv("csvmiss/*.csv", ", union_by_name = true")),
    ("csvmixgz", '{ uri = "{}/csvmixgz/", format = "csv" }', Sql("SELECT * FROM read_csv(['{}/csvmixgz/a.csv', '{}/csvmixgz/b.csv.gz', '{}/csvmixgz/c.CSV'], header = true)")),
    ("csvrename", '{ uri = "{}/csvrename/", format = "csv" }', Refused("csvrename/b.csv: its columns `question`, `answer`", "lacks `sentence1`, `sentence2`")),
    ("csvtypes", '{ uri = "{}/csvtypes/", format = "csv" }', csv("csvtypes/*.csv", ", types = {'id': 'VARCHAR'}")),
    ("spark.csv", "{}/spark.csv", Refused("part-00000-abc-c000.csv:2: field 2", 'escape = "\\\\"', found_out=True)),
    ("spark.csv, escape", '{ uri = "{}/spark.csv", escape = "\\\\" }', csv("spark.csv/part-00000-abc-c000.csv", ", escape = '\\', quote = '\"'")),
    # JSON: files.
    ("json/allnull.jsonl", "{}/json/allnull.jsonl", jsonl("json/allnull.jsonl")),
    ("json/array.json", "{}/json/array.json", Refused("array.json: it is one JSON array")),
    ("json/bigint.jsonl", "{}/json/bigint.jsonl", jsonl("json/bigint.jsonl")),
    ("json/bigint53.jsonl", "{}/json/bigint53.jsonl", jsonl("json/bigint53.jsonl")),
    ("json/bigmix.jsonl", "{}/json/bigmix.jsonl", Rows({"id": "9007199254740993", "text": "one"}, {"id": "1.5", "text": "two"})),
    ("json/bom.jsonl", "{}/json/bom.jsonl", Rows(*TEXTS)),
    ("json/crlf.jsonl", "{}/json/crlf.jsonl", jsonl("json/crlf.jsonl")),
    ("json/dupkey.jsonl", "{}/json/dupkey.jsonl", Refused("dupkey.jsonl:1:", "the key `text` occurs twice")),
    ("json/emptylist.jsonl", "{}/json/emptylist.jsonl", jsonl("json/emptylist.jsonl")),
    ("json/emptyobj.jsonl", "{}/json/emptyobj.jsonl", Rows(*({**row, "m": "{}"} for row in TEXTS))),
    ("json/escapes.jsonl", "{}/json/escapes.jsonl", jsonl("json/escapes.jsonl")),
    ("json/gz.json.gz", "{}/json/gz.json.gz", jsonl("json/gz.json.gz")),
    ("json/gz.jsonl.gz", "{}/json/gz.jsonl.gz", jsonl("json/gz.jsonl.gz")),
    ("json/int_float.jsonl", "{}/json/int_float.jsonl", jsonl("json/int_float.jsonl")),
    ("json/missing.jsonl", "{}/json/missing.jsonl", jsonl("json/missing.jsonl")),
    ("json/mixid.jsonl", "{}/json/mixid.jsonl", Rows({"id": "1", "text": "one"}, {"id": "a2", "text": "two"})),
    ("json/mixlist.jsonl", "{}/json/mixlist.jsonl", Rows({"id": 1, "text": "one", "tags": '["a", "b"]'}, {"id": 2, "text": "two", "tags": "c"}, {"id": 3, "text": "three", "tags": None})),
    ("json/mixobj.jsonl", "{}/json/mixobj.jsonl", Rows({"id": 1, "text": "one", "m": '{"a": 1}'}, {"id": 2, "text": "two", "m": "x"})),
    ("json/mixtext.jsonl", "{}/json/mixtext.jsonl", Rows({"id": 1, "text": "one"}, {"id": 2, "text": "42"}, {"id": 3, "text": "true"})),
    ("json/mongo.jsonl", "{}/json/mongo.jsonl", jsonl("json/mongo.jsonl")),
    ("json/nan.jsonl", "{}/json/nan.jsonl", Refused("nan.jsonl:1:", "NaN")),
    ("json/nested.jsonl", "{}/json/nested.jsonl", jsonl("json/nested.jsonl")),
    ("json/pretty.json", "{}/json/pretty.json", Refused("pretty.json:1:", "each line must hold a complete object")),
    ("json/surrogate.jsonl", "{}/json/surrogate.jsonl", Refused("surrogate.jsonl:1:", "an unpaired surrogate")),
    ("json/two_on_line.jsonl", "{}/json/two_on_line.jsonl", Refused("two_on_line.jsonl:1:", "a second object on the line")),
    # JSON: folders.
    ("jsonhive", '{ uri = "{}/jsonhive/", format = "json" }', Sql("SELECT * FROM read_json('{}/jsonhive/*/*.json', hive_partitioning = true, hive_types_autocast = 0)")),
    ("jsonldir", '{ uri = "{}/jsonldir/", format = "json" }', jsonl("jsonldir/*")),
    ("jsonmixdir", '{ uri = "{}/jsonmixdir/", format = "json" }', jsonl("jsonmixdir/*")),
    ("jsontypes", '{ uri = "{}/jsontypes/", format = "json" }', Rows({"id": "1", "text": "one"}, {"id": "A2", "text": "two"})),
    # Hive partition folders.
    # DuckDB accepts no `=` in a value, so the folders are read one by one.
    ("hive", "{}/hive/", Sql(" UNION ALL ".join(f"SELECT *, '{dt}' AS dt, {region} AS region FROM read_parquet('{{}}/hive/dt={dt}/region={folder}/*.parquet', hive_partitioning = false)" for dt, folder, region in HIVE))),
    ("duckhive", "{}/duckhive/", Sql("SELECT * FROM read_parquet('{}/duckhive/**/*.parquet', hive_partitioning = true, hive_types_autocast = 0)")),
    ("duckhive2", "{}/duckhive2/", Sql("SELECT * FROM read_parquet('{}/duckhive2/**/*.parquet', hive_partitioning = true, hive_types_autocast = 0)")),
    ("pahive", "{}/pahive/", Sql("SELECT * FROM read_parquet('{}/pahive/**/*.parquet', hive_partitioning = true, hive_types_autocast = 0)")),
    ("polarshive", "{}/polarshive/", Sql("SELECT * REPLACE (CAST(dt AS VARCHAR) AS dt) FROM read_parquet('{}/polarshive/**/*.parquet', hive_partitioning = true, hive_types_autocast = 0)")),
    ("hivemix", "{}/hivemix/", Refused("hivemix/part-0.parquet")),
    # Folders and names.
    ("hidden", "{}/hidden/", parquet("hidden/part-0.parquet")),
    ("hidden2", "{}/hidden2/", parquet("hidden2/part-0.parquet")),
    ("bq", "{}/bq/", parquet("bq/000000000000")),
    ("featherdir", '{ uri = "{}/featherdir/", format = "arrow" }', Feather("featherdir")),
    ("broken", "{}/broken/", parquet("broken/a.parquet")),
]

# Names with special characters of shells, URLs or globs; each file has the same rows.
for path in sorted((FOLDER / "paths").iterdir()):
    CASES.append((f"paths/{path.name}", "{}/paths/" + path.name, Sql(f"SELECT * FROM read_parquet(['{{}}/paths/a b.parquet'])")))

NSUS = [{"id": 1, "ns": 1}, {"id": 2, "ns": 2}, {"id": 3, "ns": 1000}, {"id": 4, "ns": 2000}]

# Cases of Parquet, Arrow and Delta: by name, type and value.
CASES += [
    ("int96", "{}/int96/", parquet("int96/*.parquet")),
    ("intfloat", "{}/intfloat/", Sql("SELECT * FROM read_parquet('{}/intfloat/*.parquet', union_by_name = true)")),
    ("i32i64", "{}/i32i64/", Sql("SELECT * FROM read_parquet('{}/i32i64/*.parquet', union_by_name = true)")),
    ("nsus", "{}/nsus/", Rows(*NSUS, ours="SELECT id, CAST(ts AS BIGINT) AS ns FROM t")),
    ("mixcat", "{}/mixcat/", Sql("SELECT * FROM read_parquet('{}/mixcat/*.parquet', union_by_name = true)")),
    ("nullfirst", "{}/nullfirst/", Sql("SELECT * FROM read_parquet('{}/nullfirst/*.parquet', union_by_name = true)")),
    ("structevo", "{}/structevo/", Sql("SELECT * FROM read_parquet('{}/structevo/*.parquet', union_by_name = true)")),
    ("polars_enum", "{}/polars_enum/", parquet("polars_enum/*.parquet")),
    ("casediff", "{}/casediff/", Refused("column `ID` of ", "p2.parquet is `id` in ", "p1.parquet")),
    ("iv.parquet", "{}/iv.parquet", parquet("iv.parquet")),
    ("agg.parquet", "{}/agg.parquet", parquet("agg.parquet")),
    ("delta_cm", "{}/delta_cm/", Rows({"n": 12}, ours="SELECT count(*) AS n FROM t", run=False)),
]
for path in sorted((FOLDER / "ids").iterdir()):
    CASES.append((f"ids/{path.name}", "{}/ids/" + path.name, parquet(f"ids/{path.name}")))
# The id columns that `init` must choose.
IDS = {name: "event_id" if name == "ids/ts.parquet" else "id" for name, _, _ in CASES if name.startswith("ids/")}
for path in sorted((FOLDER / "enc").iterdir()):
    CASES.append((f"enc/{path.name}", "{}/enc/" + path.name, Refused("it is an encrypted Parquet file")))
# Python cannot represent these dates, and DuckDB cannot print them; Parquet has no types for JSON and zoned times.
FAR = {"date_bc": "-0043-03-15", "date_far": "+290000-01-01", "date_inf": "+5881580-07-11", "ts_far": "+290000-01-01T00:00:00", "ts_inf": "+294247-01-10T04:00:54.775807"}
OWN = {"interval": "1 days 2 hours", "ts_ns": "2024-01-01T00:00:00.123456789", "uuid": "cfcd2084-95d5-65ef-66e7-dff9f98764da", "timetz": "23:02:03", "time": "01:02:03.500"} | FAR
for path in sorted((FOLDER / "duck").iterdir()):
    name, row = path.stem, {"id": 1, "sentence1": "a b c", "sentence2": "d e f"}
    ours = "SELECT id, sentence1, sentence2, CAST(v AS VARCHAR) AS v FROM t" if name == "interval" else "SELECT * FROM t"
    by_duckdb = parquet(f"duck/{path.name}")
    right = Rows({**row, "v": OWN[name]}, ours=ours, in_duckdb=by_duckdb if name in FAR or name in ("time", "ts_ns") else None) if name in OWN else by_duckdb
    CASES.append((f"duck/{path.name}", "{}/duck/" + path.name, right))
# Values of pyarrow's types, by file name. Parquet cannot hold some of them, which `run` reports.
ZOO = {
    "d32": [1.5] * 6, "d64": ["2024-01-01"] * 6, "dict_int": [10, 20] * 3, "json_ext": ['{"a":1}'] * 6, "t32": ["01:02:03"] * 6,
    "l_ls": [["x", "y"]] * 6, "l_sv": [["x", "y"]] * 6, "lv": [["x", "y"]] * 6, "lb": ["00ff"] * 6, "ree": [*"aaabbb"],
    "st_ls": [{"a": "x", "b": "y"}] * 6, "st_dict": [{"d": "q"}, {"d": "r"}] * 3, "st_null": [{}] * 6, "l_null": [[None], []] * 3,
    "m_int": [[2.5]] * 6,
    "uuid_ext": [str(uuid.UUID(bytes=bytes([i] * 16))) for i in range(6)],
}
for path in sorted((FOLDER / "zoo3").iterdir()):
    table, right = "{}/zoo3/" + path.name, Unwritable(f"column `{path.stem}` is ", "which no Parquet file can hold; CAST it")
    if path.stem in ZOO:
        rows = ({"id": i, "sentence1": f"The fox {i} ran.", "sentence2": f"A fox {i} went.", path.stem: ZOO[path.stem][i]} for i in range(6))
        # JSON keys cannot be numbers.
        ours = "SELECT id, sentence1, sentence2, map_values(m_int) AS m_int FROM t" if path.stem == "m_int" else "SELECT * FROM t"
        right = Rows(*rows, ours=ours)
    CASES.append((f"zoo3/{path.name}", table, right))

def couplet(*arguments, folder):
    return subprocess.run([COUPLET, *arguments], cwd=folder, capture_output=True, text=True, env={"NO_COLOR": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)})


def plain(value):
    """Normalizes a value, so that couplet and DuckDB give the same."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime.datetime):
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None) if value.tzinfo else value
        return value.isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str):
        return value.removesuffix("Z")
    return value


def sorted_rows(rows):
    rows = [{key: plain(value) for key, value in row.items()} for row in rows]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def check(name, table, right, folder, turn):
    """Returns the problem of a case, or None."""
    table = table.replace("{}", str(FOLDER))
    if isinstance(right, Unwritable):
        couplet("init", "job", "--from", table, "--model", MODEL, folder=folder)
        return refusal(couplet("run", "job/pipeline.toml", folder=folder), right.words) or leftovers(folder)
    read = couplet("query", "--format", "json", "--table", "t=" + table, right.ours, folder=folder)
    if isinstance(right, Refused):
        return refusal(read, right.words) or refused(table, right, folder)
    if read.returncode != 0:
        return read.stderr
    found, wanted = sorted_rows(json.loads(read.stdout or "[]")), sorted_rows(right.rows())
    if found != wanted:
        return f"couplet: {found}\n    right:   {wanted}"
    return run(name, table, right, folder, turn) if right.run else None


def refusal(done, words):
    """Returns the problem if a command did not fail as expected, or None."""
    if done.returncode != 2:
        return f"{done.args[1]}: exit code {done.returncode}, 2 is right: {done.stderr or done.stdout}"
    lacking = [word for word in words if word not in done.stderr]
    return f"{done.args[1]}: {lacking} is not in: {done.stderr}" if lacking else None


def leftovers(folder):
    """Returns the files that a refused run has written, or None."""
    written = sorted(str(path.relative_to(folder)) for path in folder.glob("**/out/**/*"))
    return f"was written, although refused: {written}" if written else None


def refused(table, right, folder):
    """Checks that `init`, `plan` and `run` refuse a table."""
    init = couplet("init", "job", "--from", table, "--model", MODEL, folder=folder)
    if right.found_out:
        if init.returncode != 0:
            return f"init: exit code {init.returncode}: {init.stderr}"
    else:
        problem = refusal(init, right.words)
        if problem or (folder / "job").exists():
            return problem or "init wrote a folder, although it refused"
    entry = table if table.startswith("{") else json.dumps(table)
    sql = "SELECT row_number() OVER () AS own_id, 'a' AS own_text, * FROM data"
    pipeline = f"""name = "refused"
[tables]
data = {entry}
[source]
sql = {json.dumps(sql)}
id = "own_id"
text = "own_text"
[model]
uri = {json.dumps(MODEL)}
[sink]
uri = "out/predictions.parquet"
"""
    (folder / "refused.toml").write_text(pipeline)
    for command in ("plan", "run"):
        problem = refusal(couplet(command, "refused.toml", folder=folder), right.words)
        if problem:
            return problem
    return leftovers(folder)


# Integers beyond the range of Delta tables.
BEYOND_DELTA = {"ids/u64.parquet"}
# The TOML of each sink, and its Parquet files.
SINKS = [
    ('"out/predictions.parquet"', "out/predictions.parquet"),
    ('"out"\nformat = "delta"\nmode = "append"', "out/*.parquet"),
    ('"out"\nformat = "parquet"\nmode = "append"', "out/*/*.parquet"),
]


def run(name, table, right, folder, turn):
    """Runs the table through a pipeline from `init`, and compares the rows that `run` writes."""
    rows, place = right.rows(), folder / "job"
    init = couplet("init", str(place), "--from", table, "--model", MODEL, folder=folder)
    if init.returncode == 2 and "no column looks like text" in init.stderr:
        # Any column can be the text; prefer a string column other than the id.
        text = max(rows[0], key=lambda column: (column != "id", isinstance(rows[0][column], str)))
        init = couplet("init", str(place), "--from", table, "--model", MODEL, "--text", text, folder=folder)
    if init.returncode != 0:
        return f"init: {init.stderr}"
    path = place / "pipeline.toml"
    pipeline = tomllib.loads(path.read_text())
    if name in IDS and pipeline["source"]["id"] != IDS[name]:
        return f"init chose the id {pipeline['source']['id']!r}, and {IDS[name]!r} is right"
    in_file = SINKS[0][0]
    sink, files = SINKS[0 if name in BEYOND_DELTA else turn % len(SINKS)]
    path.write_text(path.read_text().replace(in_file, sink, 1))
    plan = couplet("plan", str(path), folder=folder)
    if plan.returncode == 2 and "which no Delta table can hold; CAST it" in plan.stderr:
        path.write_text(path.read_text().replace(sink, in_file, 1))
        sink, files = SINKS[0]
        plan = couplet("plan", str(path), folder=folder)
    if plan.returncode != 0:
        return f"plan into {sink}: {plan.stderr}"
    done = couplet("run", str(path), folder=folder)
    if done.returncode != 0:
        return f"run into {sink}: {done.stderr}"
    written = duckdb.connect().execute("SET TimeZone = 'UTC'").execute("SELECT * FROM read_parquet(?, hive_partitioning = false)", [str(place / files)])
    names = [column[0] for column in written.description]
    written = [dict(zip(names, row)) for row in written.fetchall()]
    if len(written) != len(rows):
        return f"{len(written)} rows of {len(rows)} were written into {sink}"
    if right.ours != "SELECT * FROM t":
        return None
    columns = selected(pipeline["source"]["sql"])
    # `init` casts at most two columns to text.
    if len(columns) < len(rows[0]) - 2:
        return f"init selects {columns} of {list(rows[0])}"
    found = sorted_rows([{column: row[name] for column, name in columns.items()} for row in written])
    known = getattr(right, "in_duckdb", None)
    wanted = sorted_rows([{column: row[column] for column in columns} for row in (known.rows() if known else rows)])
    return None if found == wanted else f"written into {sink}: {found}\n    right:   {wanted}"


def selected(sql):
    """The columns that a query of `init` selects, with their aliases, except those cast to text."""
    identifier = r'("(?:[^"]|"")*"|\w+)'
    line = re.compile(rf"  {identifier}(?: AS {identifier})?,?")
    unquoted = lambda name: name[1:-1].replace('""', '"') if name.startswith('"') else name
    found = (line.fullmatch(text) for text in sql.replace("{{", "{").replace("}}", "}").split("\n"))
    return {unquoted(match[1]): unquoted(match[2] or match[1]) for match in found if match}


def main():
    wrong, seen = 0, set()
    for turn, (name, table, right) in enumerate(CASES):
        seen.add(name.split(", ")[0].split("/")[0] if "/" not in name else name.split(", ")[0])
        if ONLY and not any(name.startswith(only) for only in ONLY):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                problem = check(name, table, right, pathlib.Path(folder).resolve(), turn)
            except duckdb.Error as error:
                problem = f"DuckDB: {error}"
        if problem:
            wrong += 1
            print(f"{name}: {problem}")
    for path in sorted(FOLDER.iterdir()):
        names = {path.name} if path.name not in ("csv", "json", "paths", "zoo3", "duck", "ids", "enc") else {f"{path.name}/{inner.name}" for inner in path.iterdir()}
        for name in sorted(names - seen):
            if not ONLY:
                wrong += 1
                print(f"{name}: no case reads it")
    print(f"{len(CASES)} cases, {wrong} wrong")
    sys.exit(1 if wrong else 0)


main()
