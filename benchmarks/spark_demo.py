"""The demo's training sets made by Spark, held against those that the demo made with DuckDB: row for row, bit for bit.

    make same-on-spark                                   # the home folder of `make demo`, ctr and cvr
    python -m benchmarks.spark_demo --home elsewhere --services cvr_ranker

Shards are written as `headwater --profile spark training-set` writes them. `cpu_s` is what this process, the Java
machine and the Python workers spent together: unlike seconds, it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.pit import RESULTS
from feature_repo.profile import VARIABLE


def cpu_seconds() -> float:
    """Return the processor time of this process and those below it."""
    me = psutil.Process()
    spent = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def difference(ours: Path, sparks: Path) -> str | None:
    """Return what two files of a training set differ in, bits and order included; None if in nothing."""
    one, other = pq.read_table(ours), pq.read_table(sparks)
    if not one.schema.equals(other.schema):
        return "the columns"
    if one.num_rows != other.num_rows:
        return f"the rows: {one.num_rows:,} and {other.num_rows:,}"
    differing = [
        name for name in one.column_names if not same(one[name].combine_chunks(), other[name].combine_chunks())
    ]
    return f"the values of {', '.join(differing)}" if differing else None


def same(one: pa.Array, other: pa.Array) -> bool:
    """Return whether two columns of one type hold the same, floats by their bits."""
    if not one.is_null().equals(other.is_null()):
        return False
    one, other = one.drop_null(), other.drop_null()
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and same(one.flatten(), other.flatten())
    if pa.types.is_floating(one.type):
        unsigned = f"u{one.type.bit_width // 8}"
        return np.array_equal(one.to_numpy().view(unsigned), other.to_numpy().view(unsigned))
    return bool(one.equals(other))


def measure(home: Path, service: str, scratch: Path) -> dict[str, Any]:
    """Make one training set on Spark and compare it."""
    from jobs.store import open_store
    from jobs.training_set import SHARD_ROWS
    from jobs.workspace import Workspace

    made = home / "training_sets" / service
    features = open_store(Workspace.open(home).home).get_feature_service(service)
    started, spent = time.perf_counter(), cpu_seconds()
    job: Any = open_store(Workspace.open(home).home).get_historical_features(
        str((made / "labels.parquet").resolve()), features=features, full_feature_names=True
    )
    files = job.to_shards(scratch / service, SHARD_ROWS)
    seconds, spent = time.perf_counter() - started, cpu_seconds() - spent
    expected = sorted(made.glob("part-*.parquet"))
    found: dict[str, str] = {}
    if [file.name for file in files] != [file.name for file in expected]:
        found["files"] = f"{len(files)} and {len(expected)}"
    for ours, sparks in zip(expected, files, strict=False):
        told = difference(ours, sparks)
        if told is not None:
            found[ours.name] = told
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    return {
        "service": service,
        "rows": job.rows,
        "duckdb_s": manifest["seconds"],
        "spark_s": seconds,
        "spark_cpu_s": spent,
        "rows_per_s": job.rows / seconds,
        "differences": found,
    }


def main() -> None:
    """Compare, print a table and write the results; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"))
    parser.add_argument("--services", nargs="*", default=["cvr_ranker", "ctr_ranker"])
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "spark_demo.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ[VARIABLE] = "spark"
    from jobs import apply
    from jobs.workspace import Workspace

    apply.run(Workspace.open(chosen.home))
    print(
        "| service | rows | DuckDB, s | Spark, s | Spark, CPU s | rows/s | equal |\n|---|---:|---:|---:|---:|---:|---|"
    )
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        for service in chosen.services:
            record = measure(chosen.home, service, Path(scratch))
            records.append(record)
            figures = "{service} | {rows:,} | {duckdb_s:.1f} | {spark_s:.1f} | {spark_cpu_s:.1f} | {rows_per_s:,.0f}"
            print(f"| {figures.format(**record)} | {record['differences'] or 'bit for bit'} |", flush=True)
    chosen.out.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    if any(record["differences"] for record in records):
        sys.exit("The training sets differ.")


if __name__ == "__main__":
    main()
