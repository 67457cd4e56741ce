"""From a Spark source into Redis: Feast's Spark engine beside the Arrow engine, and whether all leave the same bytes.

    make bench-spark-load

One snapshot of 64 floats per item, as in benchmarks/online.py; each engine in a process of its own, after a small view
was loaded. The Arrow engine loads from the driver, and with its rows shared out among Spark's workers. Records go into
`benchmarks/results/scale.json`. Spark on all cores of one machine shows what it costs there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.online import redis_server
from benchmarks.online_engines import DIM, MOMENT, prepare, store_with
from benchmarks.scale import RESULTS, SPARK_CONF, Peak, merge

SIZES = (20_000, 200_000, 2_000_000)
ARROW = "feature_repo.stores.engine.ArrowComputeEngine"
ENGINES = {
    "feast, Spark engine": {"type": "spark.engine"},
    "headwater, Arrow engine": {"type": ARROW},
    "headwater, Arrow engine, per partition": {"type": ARROW, "spark_from_rows": 0},
}


def load(folder: Path, engine: str, size: int, port: int) -> dict[str, Any]:
    """Load one view in this process and return seconds and memory."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    # Feast's engine leaves to Spark which Python its workers run: the first python3 of the path.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "registry": str(folder / f"registry_{engine}.db"),
        "online_store": {"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        "offline_store": {"type": "spark", "spark_conf": {**SPARK_CONF, "spark.sql.session.timeZone": "UTC"}},
        "batch_engine": ENGINES[engine],
        "repo_path": folder,
    }
    store = store_with(settings, folder, size, partial(SparkSource, file_format="parquet"))
    span = (MOMENT - timedelta(days=1), MOMENT + timedelta(days=1))
    with Peak() as peak, contextlib.redirect_stdout(io.StringIO()):
        store.materialize(*span, feature_views=["warm"])
        started = time.perf_counter()
        store.materialize(*span, feature_views=["items"])
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows_per_s": size / seconds, "peak_rss_gb": peak.bytes / 1e9}


def contents(port: int) -> dict[bytes, bytes]:
    """Return the digest of every hash of the server, and empty it."""
    import redis

    client, found = redis.Redis(port=port), {}
    keys = list(client.scan_iter(count=10_000))
    for start in range(0, len(keys), 10_000):
        part, pipe = keys[start : start + 10_000], client.pipeline(transaction=False)
        for key in part:
            pipe.hgetall(key)
        for key, fields in zip(part, pipe.execute(), strict=True):
            found[key] = hashlib.blake2b(repr(sorted(fields.items())).encode(), digest_size=16).digest()
    client.flushall()
    return found


def main() -> None:
    """Measure, compare and write the results; exit code 1 where bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        folder, engine, size, port = chosen.one
        print(json.dumps(load(Path(folder), engine, int(size), int(port))))
        return
    same = True
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as port:
        for size in chosen.sizes:
            prepare(Path(name), size)
            stored = []
            for engine in ENGINES:
                command = [sys.executable, "-m", "benchmarks.spark_load", "--one", name, engine, str(size), str(port)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                record = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
                record = {"engine": engine, "size": f"{size:,} vectors of {DIM} floats into Redis", **record}
                merge([record], chosen.out)
                stored.append(contents(port))
                print(record, flush=True)
            equal = len(stored[0]) == size and all(one == stored[0] for one in stored)
            same = same and equal
            print(f"{size:,} vectors: {'the same bytes' if equal else 'THE BYTES DIFFER'} in {len(stored[0]):,} hashes")
    if not same:
        sys.exit("The engines stored different bytes.")


if __name__ == "__main__":
    main()
