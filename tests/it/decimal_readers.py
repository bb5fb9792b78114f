"""Counts the rows of a Delta table with a decimal of at least 818565974.1 in other programs; prints JSON."""

import decimal
import json
import os
import sys

import polars
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable, QueryBuilder

table = DeltaTable(sys.argv[1])
price = decimal.Decimal("818565974.1")
sql = "SELECT id FROM t WHERE v >= CAST('818565974.1' AS DECIMAL(38, 10))"
scalar = pa.scalar(price, pa.decimal128(38, 10))
found = {
    "delta-rs": QueryBuilder().register("t", table).execute(sql).read_all().num_rows,
    "polars": polars.scan_delta(sys.argv[1]).filter(polars.col("v") >= price).collect().height,
    "pyarrow": table.to_pyarrow_dataset().to_table(filter=ds.field("v") >= scalar).num_rows,
}
print(json.dumps(found), flush=True)
# Threads of these libraries can abort the interpreter during its shutdown.
os._exit(0)
