"""What one row costs: bytes in the lake, in a twin and in Redis; seconds of smoothing, writing, gate and load.

    make bench-capacity            # minutes, 2 GB of disk, needs redis-server

`headwater plan` multiplies these. What a row costs is measured at two widths, the memory of a refresh at two sizes,
each run in a process of its own and on the product's own code: `jobs.refresh` for smoothing and the table,
`jobs.publication`'s way of writing it, the gate, the Arrow engine into a real Redis. `choices` are lists of users' own
items: their widths are items of a list, not floats. `log` reads, trains on and infers
from a simulated log. Seconds are
those of the processors (core seconds), which a busy machine changes less than those of the clock; samples and vectors
per second are by the clock, on one thread.
Afterwards `python -m benchmarks.capacity_tables` carries the results into the command and its page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.online import peak_gb

RESULTS = Path(__file__).parent / "results" / "capacity.json"
# Thousands of rows. The peak of memory of a refresh is the slope between its two sizes.
SIZES = {"refresh": (50, 200), "int8": (200,), "gate": (50,), "redis": (50,), "choices": (50,)}
RUNS = [(what, rows, dim) for dim in (64, 256) for what, sizes in SIZES.items() for rows in sizes]
WEEKS, TIMES = 8, 5  # of the simulated log, and how many times the events of it a larger one has
SEED, SMOOTHING = 7, 0.8


def main() -> None:
    """Measure all, print the records and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder for worlds and homes; kept and gone on with if given")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--what", nargs="*", choices=list(MEASURES), help="measure these alone, and keep the others")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one is not None:
        what, size, dim = chosen.one[0], int(chosen.one[1]), int(chosen.one[2])
        print(json.dumps(MEASURES[what](chosen.data, size, dim)), flush=True)
        return
    runs = [run for run in [*RUNS, ("log", WEEKS, 0)] if not chosen.what or run[0] in chosen.what]
    before = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.what else []
    records = [record for record in before if record["what"] not in chosen.what]
    with tempfile.TemporaryDirectory() if chosen.data is None else nullcontext(chosen.data) as folder:
        for what, size, dim in runs:
            command = [sys.executable, "-m", "benchmarks.capacity", "--one", what, str(size), str(dim)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*command, "--data", str(folder)], check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            records.append({"what": what, **json.loads(done.stdout.splitlines()[-1])})
            print(records[-1], file=sys.stderr, flush=True)
    chosen.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"written to {chosen.out}; now run python -m benchmarks.capacity_tables", file=sys.stderr)


def refresh(folder: Path, thousands: int, dim: int) -> dict[str, Any]:
    """Smooth vectors with the ones before, write snapshot and twin: what a refresh does but infer and judge."""
    import pyarrow.parquet as pq

    from feature_repo.stores import twin
    from jobs.publication import clocked
    from jobs.refresh import aligned, read_vectors, stabilize, vector_table

    rows = thousands * 1000
    ids, new, norms = _vectors(rows, dim)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        before, file = Path(name) / "before.parquet", Path(name) / "snapshot.parquet"
        moment = datetime(2024, 1, 1, tzinfo=UTC)
        _write(clocked(vector_table("user_id", ids, new[::-1], norms), moment), before)
        started = time.process_time()
        old, known = aligned(ids, *read_vectors(before, "user_id"))
        smooth = stabilize(new, old, known, SMOOTHING)
        smoothed = time.process_time() - started
        _write(clocked(vector_table("user_id", ids, smooth, norms), moment), file)
        twin.build(file, ["user_id"])
        seconds = time.process_time() - started
        assert pq.read_metadata(file).num_rows == rows
        return {
            "rows": rows,
            "dim": dim,
            "smooth_core_seconds": smoothed,
            "write_core_seconds": seconds - smoothed,
            "parquet_bytes": file.stat().st_size,
            "twin_bytes": twin.twin_path(file).stat().st_size,
            "peak_rss_gb": peak_gb(),
        }


def int8(folder: Path, thousands: int, dim: int) -> dict[str, Any]:
    """Write vectors rounded to 255 steps: the lake keeps them as float32, and its compression finds them."""
    from jobs.publication import clocked
    from jobs.refresh import vector_table

    ids, vectors, norms = _vectors(thousands * 1000, dim)
    largest = abs(vectors).max(axis=1, keepdims=True)
    rounded = ((vectors / largest * 127).round() / 127 * largest).astype("float32")
    # One scale for all rows, so that equal steps are equal floats.
    common = ((vectors / largest.max() * 127).round() / 127 * largest.max()).astype("float32")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        sizes = {}
        for key, values in (("parquet_bytes_own_scale", rounded), ("parquet_bytes_common_scale", common)):
            file = Path(name) / f"{key}.parquet"
            _write(clocked(vector_table("user_id", ids, values, norms), datetime(2024, 1, 1, tzinfo=UTC)), file)
            sizes[key] = file.stat().st_size
    return {"rows": thousands * 1000, "dim": dim, **sizes}


def gate(folder: Path, thousands: int, dim: int) -> dict[str, Any]:
    """Judge a good snapshot beside the previous one, with a warm gate."""
    from benchmarks import gate as bench

    bench.DIM = dim
    with tempfile.TemporaryDirectory(dir=folder) as name:
        bench.make_files(Path(name), thousands * 1000)
        run = bench._headwater(Path(name), True)
        run()
        return {"rows": thousands * 1000, "dim": dim, "core_seconds": _best(run), "peak_rss_gb": peak_gb()}


def redis(folder: Path, thousands: int, dim: int) -> dict[str, Any]:
    """Load a snapshot into an empty Redis and ask how much memory its rows take."""
    from benchmarks import online_engines
    from benchmarks.online import redis_server

    rows, online_engines.DIM = thousands * 1000, dim
    with tempfile.TemporaryDirectory(dir=folder) as name, redis_server(Path(name)) as port:
        online_engines.prepare(Path(name), rows)
        load = online_engines.load_by("ours")(Path(name), "redis", port, rows)
        return {"rows": rows, "dim": dim, **_loaded(load, port), "peak_rss_gb": peak_gb()}


def choices(folder: Path, thousands: int, listed: int) -> dict[str, Any]:
    """Write, judge and load lists of so many own items per user, as `jobs.refresh_plain` publishes them."""
    import pyarrow as pa

    from benchmarks import online_engines
    from benchmarks.online import redis_server
    from feature_repo.stores import twin
    from validation.gate import default_gate
    from validation.specs import FeatureSpec

    rows, moment = thousands * 1000, online_engines.MOMENT
    kinds = {"items": "list<int64>", "strengths": "list<float>", "available_us": "int64"}
    columns = {"items": pa.list_(pa.int64()), "strengths": pa.list_(pa.float32()), "available_us": pa.int64()}
    with tempfile.TemporaryDirectory(dir=folder) as name, redis_server(Path(name)) as port:
        for size in (online_engines.WARM_ROWS, rows):
            file = Path(name) / f"items_{size}.parquet"
            table = _lists(size, listed)
            started = time.process_time()
            _write(table, file)
            twin.build(file, ["item_id"])
        written = time.process_time() - started
        spec = FeatureSpec("choices", "item", "int64", columns, moment, moment, distinct=frozenset(["items"]))
        judge = default_gate().check_features
        assert judge(file, spec, workdir=Path(name), previous=file).accepted
        judged = _best(lambda: judge(file, spec, workdir=Path(name), previous=file))
        load = online_engines.load_by("ours", kinds)(Path(name), "redis", port, rows)
        return {
            "rows": rows,
            "dim": listed,
            "write_core_seconds": written,
            "gate_core_seconds": judged,
            "parquet_bytes": file.stat().st_size,
            "twin_bytes": twin.twin_path(file).stat().st_size,
            **_loaded(load, port),
        }


def log(folder: Path, weeks: int, _: int) -> dict[str, Any]:
    """Simulate a log, train on it and infer: bytes per event, samples and vectors per second.

    What is read before is measured on a log of several times the events as well: what it keeps grows with them.
    """
    from benchmarks import train

    size = _size(weeks)
    made = train.world(size, folder)
    prepared = train.prepare(size, folder)
    lake = folder / f"home-{size.name}" / "lake"
    larger = _size(weeks, TIMES)
    train.world(larger, folder)
    train.prepare(larger, folder)
    record: dict[str, Any] = {
        "weeks": weeks,
        "users": size.users,
        "items": size.items,
        "impressions": made["impressions"],
        "events": json.loads((lake / "dataset.json").read_text())["rows"],
        "larger_events": json.loads((folder / f"home-{larger.name}" / "lake" / "dataset.json").read_text())["rows"],
        "event_bytes": sum(file.stat().st_size for file in (lake / "events").rglob("*.parquet")),
        "prepare_seconds": prepared["seconds"],
    }
    engines = (
        ("read", read, 1),
        ("larger_read", read, TIMES),
        ("infer", train.refresh, 1),
        ("train", train.our_loop, 1),
    )
    for name, engine, times in engines:
        # In a process of its own, whose memory and time are then those of the engine alone.
        module = __spec__.name if engine is read else engine.__module__  # not __main__
        call = f"from {module} import {engine.__name__} as f"
        code = f"import json; from pathlib import Path; from benchmarks.capacity import _size; {call}; "
        code += f"print(json.dumps(f(_size({weeks}, {times}), Path({str(folder)!r}))))"
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        record |= {f"{name}_{key}": value for key, value in found.items()}
    return record


def read(size: Any, folder: Path) -> dict[str, Any]:
    """Read the log as a refresh does before it infers: core seconds, and how far that raises the peak of memory."""
    from benchmarks.train import _last_moment, _workspace
    from jobs.features.batches import item_batch  # noqa: F401 (imports are no part of the reading)
    from jobs.features.encode import Encoder
    from jobs.features.tables import Tables

    ws = _workspace(size, folder)
    ws.use_threads()
    encoder = Encoder.load(folder / f"artifact-{size.name}" / "encoder.json")
    before, started = peak_gb(), time.process_time()
    tables = Tables(ws.log, encoder, ws.config.history_actions, ws.config.coverage, ws.config.min_item_events)
    rows = len(tables.users(_last_moment(size)).code) + len(tables.items(_last_moment(size)).code)
    seconds = time.process_time() - started
    return {"core_seconds": seconds, "memory_bytes": (peak_gb() - before) * 1e9, "rows": rows}


def _size(weeks: int, times: int = 1) -> Any:
    from benchmarks import train

    name = f"{weeks} weeks" if times == 1 else f"{weeks} weeks of {times} times the events"
    return train.Size(name, weeks * 50_000 * times, 4_000, 1_000, weeks * 7, 30)


def _vectors(rows: int, dim: int) -> tuple[Any, Any, Any]:
    import numpy as np
    import polars as pl

    vectors = np.random.default_rng(SEED).standard_normal((rows, dim), np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    return pl.Series(np.arange(rows)), vectors / norms[:, None], norms


def _loaded(load: Callable[[], None], port: int) -> dict[str, Any]:
    """Load into a Redis; return core seconds of both sides, and what it took of memory and network."""
    from redis import Redis

    before = Redis(port=port).info()
    started = time.process_time()
    load()
    seconds = time.process_time() - started
    told = Redis(port=port).info()
    return {
        "core_seconds": seconds,
        "server_core_seconds": sum(told[kind] - before[kind] for kind in ("used_cpu_sys", "used_cpu_user")),
        "memory_bytes": told["used_memory"] - before["used_memory"],
        "network_bytes": told["total_net_input_bytes"] - before["total_net_input_bytes"],
    }


def _lists(rows: int, listed: int) -> Any:
    """Return lists of own items out of 100,000, strongest first: most were chosen once, some day of two years."""
    import numpy as np
    import pyarrow as pa

    from benchmarks.online_engines import MOMENT
    from jobs.publication import clocked

    draw = np.random.default_rng(rows + listed)
    step = 100_000 // listed  # so that no item is twice in a list
    items = np.arange(listed) * step + draw.integers(step, size=(rows, listed))
    times = draw.geometric(0.6, size=(rows, listed))
    strengths = -np.sort(-times * np.exp2(-draw.integers(720, size=(rows, listed)) / 180.0), axis=1)
    values = {
        "items": (draw.permuted(items, axis=1), pa.int64()),
        "strengths": (strengths.astype(np.float32), pa.float32()),
    }
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1), kind), listed).cast(pa.list_(kind))
        for name, (part, kind) in values.items()
    }
    return clocked(pa.table({"item_id": pa.array(draw.permutation(rows)), **arrays}), MOMENT)


def _write(table: Any, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file, compression="zstd", row_group_size=64 * 1024)  # as jobs.publication does


def _best(work: Callable[[], Any]) -> float:
    found = []
    for _ in range(2):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


MEASURES: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "refresh": refresh,
    "int8": int8,
    "gate": gate,
    "redis": redis,
    "choices": choices,
    "log": log,
}


if __name__ == "__main__":
    main()
