"""How long the gate takes and how much memory, beside Great Expectations on the vectors, and beside just reading.

Every engine runs in a process of its own, on the same files: random unit vectors of 64 floats as a refresh writes
them (zstd Parquet, row groups of 65,536), and a previous snapshot of the same entities. Imports are not timed.

- ``headwater``: all checks of a first snapshot. ``headwater with previous``: all checks against a previous one too.
- ``floor``: decodes every column of the same file(s) once with pyarrow, and does nothing with them.
- ``bytes``: reads the same file as bytes, without decoding; nothing can look at a value in that time.
- ``great expectations``: the per-row checks alone, by expectations over the vector column as a pandas data asset.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = Path(__file__).parent / "results" / "gate.json"
DIM, CHUNK = 64, 262_144
AS_OF, LAG, WEEK = datetime(2017, 8, 7, tzinfo=UTC), timedelta(hours=1), timedelta(days=7)
RUNS = [
    (1_000_000, "bytes"),
    (1_000_000, "floor"),
    (1_000_000, "floor with previous"),
    (1_000_000, "headwater"),
    (1_000_000, "headwater with previous"),
    (1_000_000, "great expectations"),
    (10_000_000, "bytes"),
    (10_000_000, "floor"),
    (10_000_000, "floor with previous"),
    (10_000_000, "headwater"),
    (10_000_000, "headwater with previous"),
]


def make_files(folder: Path, rows: int) -> None:
    """Write ``previous.parquet`` and ``snapshot.parquet``: the same entities, a week later and moved a little."""
    rng = np.random.default_rng(7)
    writers = [pq.ParquetWriter(folder / f"{name}.parquet", _schema(), compression="zstd") for name in FILES]
    for start in range(0, rows, CHUNK):
        ids = np.arange(start, min(start + CHUNK, rows))
        vectors = rng.standard_normal((len(ids), DIM), np.float32) + np.float32(0.2)
        for writer, at in zip(writers, (AS_OF - WEEK, AS_OF), strict=True):
            writer.write_table(_table(ids, vectors, at), row_group_size=65_536)
            vectors = vectors + np.float32(0.3) * rng.standard_normal((len(ids), DIM), np.float32)
    for writer in writers:
        writer.close()


FILES = ("previous", "snapshot")


def _schema() -> pa.Schema:
    clock = pa.timestamp("us", "UTC")
    return pa.schema(
        {
            "user_id": pa.int64(),
            "embedding": pa.list_(pa.float32()),
            "norm": pa.float32(),
            "available_us": pa.int64(),
            "event_timestamp": clock,
            "created": clock,
        }
    )


def _table(ids: np.ndarray, vectors: np.ndarray, as_of: datetime) -> pa.Table:
    norm = np.linalg.norm(vectors, axis=1)
    flat = (vectors / norm[:, None]).ravel()
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * DIM)
    moment = as_of + LAG
    columns = [
        pa.array(ids),
        pa.ListArray.from_arrays(offsets, pa.array(flat)),
        pa.array(norm),
        pa.array(np.full(len(ids), int(moment.timestamp()) * 1_000_000)),
        pa.array([moment] * len(ids), pa.timestamp("us", "UTC")),
        pa.array([moment] * len(ids), pa.timestamp("us", "UTC")),
    ]
    return pa.Table.from_arrays(columns, schema=_schema())


def _bytes(folder: Path) -> Callable[[], None]:
    def run() -> None:
        with open(folder / "snapshot.parquet", "rb", buffering=0) as handle:
            while handle.read(1 << 22):
                pass

    return run


def _floor(folder: Path, names: tuple[str, ...]) -> Callable[[], None]:
    def run() -> None:
        for name in names:
            with pq.ParquetFile(folder / f"{name}.parquet", memory_map=True, buffer_size=1 << 20) as file:
                for _ in file.iter_batches(batch_size=65_536):
                    pass

    return run


def _headwater(folder: Path, with_previous: bool) -> Callable[[], None]:
    from feature_repo.contracts.types import Verdict
    from validation.docs import page
    from validation.gate import Gate
    from validation.specs import SnapshotSpec

    gate = Gate()
    assert gate.runner  # imports Great Expectations
    page("imports the renderer", Verdict(False, ()), AS_OF)

    def run() -> None:
        previous = folder / "previous.parquet" if with_previous else None
        spec = SnapshotSpec("snapshot", "user", "int64", DIM, AS_OF, AS_OF + LAG, checked_at=datetime.now(UTC))
        with TemporaryDirectory() as scratch:
            verdict = gate.check(folder / "snapshot.parquet", spec, workdir=Path(scratch), previous=previous)
        if not verdict.accepted:
            raise SystemExit(f"the good snapshot was refused: {verdict.error} {verdict.failures()}")

    return run


def _great_expectations(folder: Path) -> Callable[[], None]:
    """Run the per-row checks as somebody would who knows Great Expectations and no vectors."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import ColumnMapExpectation
    from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial

    def condition(name: str, test: Callable[[np.ndarray], np.ndarray]) -> Any:
        """Return an expectation that asks `test` of all vectors (N, D) at once; row by row takes twice as long."""

        @column_condition_partial(engine=PandasExecutionEngine)
        def _pandas(cls: Any, column: Any, **_: Any) -> Any:
            return pd.Series(test(np.stack(column.to_numpy())), index=column.index)

        metric = f"column_values.{name}"
        type(f"Metric{name}", (ColumnMapMetricProvider,), {"condition_metric_name": metric, "_pandas": _pandas})
        return type(f"ExpectVector{name}", (ColumnMapExpectation,), {"map_metric": metric, "success_keys": ("mostly",)})

    tests = {
        "Length": lambda vectors: np.full(len(vectors), vectors.shape[1] == DIM),
        "Finite": lambda vectors: np.isfinite(vectors).all(axis=1),
        "NotZero": lambda vectors: vectors.any(axis=1),
        "Norm": lambda vectors: np.abs(np.linalg.norm(vectors, axis=1) - 1) <= 0.01,
    }
    vectors = [condition(name, test)(column="embedding") for name, test in tests.items()]
    context = gx.get_context(mode="ephemeral")

    def run() -> None:
        source = context.data_sources.add_pandas_filesystem("lake", base_directory=folder)
        batch = (
            source.add_parquet_asset("snapshot").add_batch_definition_path("one", path="snapshot.parquet").get_batch()
        )
        suite = gx.ExpectationSuite(
            name="naive",
            expectations=[
                gxe.ExpectColumnValuesToNotBeNull(column="user_id"),
                gxe.ExpectColumnValuesToBeUnique(column="user_id"),
                gxe.ExpectColumnValuesToNotBeNull(column="embedding"),
                gxe.ExpectColumnValuesToBeBetween(column="norm", min_value=0, strict_min=True),
                gxe.ExpectTableRowCountToBeBetween(min_value=1),
                *vectors,
            ],
        )
        if not batch.validate(suite, result_format="BASIC").success:
            raise SystemExit("Great Expectations refused the good snapshot")

    return run


def measure(engine: str, folder: Path) -> dict[str, float]:
    """Run one engine in this process and return its seconds and the peak of its memory (GB)."""
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "bytes": lambda: _bytes(folder),
        "floor": lambda: _floor(folder, FILES[1:]),
        "floor with previous": lambda: _floor(folder, FILES),
        "headwater": lambda: _headwater(folder, False),
        "headwater with previous": lambda: _headwater(folder, True),
        "great expectations": lambda: _great_expectations(folder),
    }
    work = makers[engine]()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "peak_rss_gb": round(_peak_gb(), 3)}


def _peak_gb() -> float:
    """Return the peak resident memory of this process. Not ru_maxrss: that one starts at the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def main() -> None:
    """Make the files, run every engine, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", help="run one engine in this process (used by the benchmark itself)")
    parser.add_argument("--folder", type=Path, help="folder of its files")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options.engine, options.folder)))
        return
    results: list[dict[str, Any]] = []
    for rows in options.rows:
        with TemporaryDirectory() as place:
            make_files(Path(place), rows)
            for engine in [name for size, name in RUNS if size == (rows if rows == 10_000_000 else 1_000_000)]:
                command = [sys.executable, "-m", "benchmarks.gate", "--engine", engine, "--folder", place]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append({"rows": rows, "engine": engine, **json.loads(answer.splitlines()[-1])})
                print(results[-1], file=sys.stderr)
    floors = {(row["rows"], row["engine"]): row["seconds"] for row in results}
    print(f"\n{'rows':>12}  {'engine':<26}{'seconds':>9}{'peak GB':>9}{'x floor':>9}")
    for row in results:
        floor = "floor with previous" if row["engine"].endswith("with previous") else "floor"
        row["ratio_to_floor"] = round(row["seconds"] / floors[row["rows"], floor], 2)
        print(
            f"{row['rows']:>12,}  {row['engine']:<26}{row['seconds']:>9.2f}{row['peak_rss_gb']:>9.2f}"
            f"{row['ratio_to_floor']:>9.2f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
