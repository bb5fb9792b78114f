"""Reads a Parquet file with DuckDB and pyarrow, and prints both results as JSON."""

import json
import sys

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq


def with_duckdb(path):
    predictions = duckdb.read_parquet(path)
    rows, score, errors, paraphrases = duckdb.sql(
        "SELECT count(*), sum(score::DOUBLE), count(*) FILTER (error IS NULL),"
        " count(*) FILTER (predicted_label = 'paraphrase' AND probabilities[2] > 0.5) FROM predictions"
    ).fetchall()[0]
    metadata = duckdb.execute("SELECT decode(key), decode(value) FROM parquet_kv_metadata(?)", [path]).fetchall()
    return {
        "rows": rows,
        "columns": {name: str(kind) for name, kind in zip(predictions.columns, predictions.types)},
        "sum_of_score": score,
        "null_errors": errors,
        "paraphrases": paraphrases,
        "first": duckdb.sql("SELECT sentence1 FROM predictions WHERE id = 'q0001'").fetchall()[0][0],
        "metadata": {key: value for key, value in metadata if key.startswith("couplet.")},
    }


def with_pyarrow(path):
    table = pq.read_table(path)
    # pyarrow cannot compare, sort and join every type that it reads.
    first = table.select(["id", "sentence1"]).filter(pc.field("id") == "q0001")
    first = first.join(table.select(["id", "score"]), "id")
    assert table.sort_by("sentence1").num_rows == table.num_rows
    second = pc.list_element(table["probabilities"], 1)
    paraphrases = pc.and_(pc.equal(table["predicted_label"], "paraphrase"), pc.greater(second, 0.5))
    metadata = {key.decode(): value.decode() for key, value in pq.read_metadata(path).metadata.items()}
    return {
        "rows": table.num_rows,
        "columns": {field.name: str(field.type) for field in table.schema},
        "sum_of_score": pc.sum(table["score"].cast("double")).as_py(),
        "null_errors": table["error"].null_count,
        "paraphrases": pc.sum(paraphrases).as_py(),
        "first": first["sentence1"][0].as_py(),
        "metadata": {key: value for key, value in metadata.items() if key.startswith("couplet.")},
    }


print(json.dumps({"duckdb": with_duckdb(sys.argv[1]), "pyarrow": with_pyarrow(sys.argv[1])}))
