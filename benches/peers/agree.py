"""Compares the probabilities of two Parquet outputs, row by row: agree.py REFERENCE OUT. Prints JSON."""

import json
import sys

import numpy
import pyarrow.parquet


def read(path):
    table = pyarrow.parquet.read_table(path, columns=["id", "probabilities"]).sort_by("id")
    return table["id"].to_pylist(), numpy.array(table["probabilities"].to_pylist(), dtype=numpy.float64)


ids, expected = read(sys.argv[1])
scored, probabilities = read(sys.argv[2])
if scored != ids:
    sys.exit(f"{sys.argv[2]}: {len(scored)} rows where {len(ids)} were expected, or other ids")
print(json.dumps({
    "max_delta": float(abs(probabilities - expected).max()),
    "labels_differ": int((probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum()),
}))
