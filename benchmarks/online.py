"""How fast vectors get into an online store and out of it: ours beside Feast's, and the floor, in one run.

    python -m benchmarks.online --small      # a minute: 20,000 rows only
    make bench-online                        # the sizes of the documentation, a quarter of an hour
    python -m benchmarks.online --loads      # the loads of 20,000 rows alone, put into the results
    python -m benchmarks.online --table      # write the tables of docs/online.md anew from the results

Each engine runs in a process of its own. Redis is a server of the benchmark's own that keeps nothing on disk and is
emptied before each engine; SQLite is a file. Materialization is wall time of ``store.materialize`` of one view with
one vector per item, after a small view was loaded (imports, first connection); of 20,000 rows, which take moments,
the median of five processes, one engine after the other in each round. Reads are p50 and p99 of single calls
in one process after a warm-up, ids drawn anew for each call, all of them found.

The floor of materialization is the store's own client with bytes that are ready: a redis-py pipeline of HSET without
a look at what is stored, ``executemany`` of SQLite in key order. The floor of reads is MGET of the same vectors packed
one per key (Redis) and one SELECT per call (SQLite), neither with a clock, a lookup of the view or a decision.

What is measured over HTTP, and of recommendations and the index, is said in benchmarks/online_http.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import online_http
from benchmarks.online_engines import LOADERS, READERS, prepare

RESULTS = Path(__file__).parent / "results" / "online.json"
PAGE = Path(__file__).parent.parent / "docs" / "online.md"
BEGIN, END = "<!-- made by benchmarks/online.py -->\n", "<!-- end -->\n"
MEASURED = ("p50_ms", "p99_ms", "rows_per_s", "peak_rss_gb")
CANDIDATES = (1, 100, 500, 1_000)
READ_ROWS = 20_000
FEW_ROWS, FEW_ROUNDS = 20_000, 5
FEAST_CALLS, CALLS = 100, 500


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Run a Redis server and yield its port."""
    if shutil.which("redis-server") is None:
        sys.exit("redis-server is not installed: apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def peak_gb() -> float:
    """Return the peak resident memory of this process; getrusage would count its parent's before the start."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e9


def timed(call: Callable[[int], Any], calls: int) -> dict[str, float]:
    """Return percentiles of single calls, in milliseconds, and how many were answered per second, one after another."""
    import numpy as np

    for number in range(10):
        call(number)
    taken = []
    for number in range(calls):
        started = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - started) * 1e3)
    percentiles = {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}
    return {**percentiles, "calls_per_s": calls / sum(taken) * 1e3}


def one(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one engine in this process: one load, or reads of every number of candidates."""
    folder, store, port = Path(arguments.folder), arguments.store, arguments.port
    # Feast prints what it materializes.
    with contextlib.redirect_stdout(io.StringIO()):
        if arguments.what == "materialize":
            load = LOADERS[arguments.engine](folder, store, port, arguments.size)
            started = time.perf_counter()
            load()
            seconds = time.perf_counter() - started
            return [{"size": arguments.size, "rows_per_s": arguments.size / seconds, "peak_rss_gb": peak_gb()}]
        prepared = READERS[arguments.engine](folder, store, port, READ_ROWS)
        found = []
        for size in CANDIDATES:
            taken = timed(prepared(size), FEAST_CALLS if arguments.engine == "feast" else CALLS)
            found.append({"size": size, **taken, "peak_rss_gb": peak_gb()})
        return found


def in_own_process(what: str, store: str, size: int, engine: str, folder: Path, port: int) -> list[dict[str, Any]]:
    """Run one engine in a process of its own; a failure is a result too."""
    values = {"what": what, "store": store, "size": size, "engine": engine, "folder": folder, "port": port}
    options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.online", "--one", *options], capture_output=True, text=True, timeout=3600
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    failed = [{"size": size, "error": (done.stderr.strip().splitlines() or ["nothing"])[-1][:200]}]
    rows = [
        {"what": what, "store": store, "engine": engine, **found}
        for found in (json.loads(lines[-1]) if lines else failed)
    ]
    for row in rows:
        print(row, file=sys.stderr, flush=True)
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times faster than Feast, and how many times slower than the floor, each row is."""
    for row in rows:
        if "calls_per_s" in row:
            # The index answers one question per call, whatever its size.
            row["rows_per_s"] = row["calls_per_s"] * (1 if row["what"] == "retrieve" else row["size"])
        row |= {name: row.get(name) for name in MEASURED}
        peers = {
            peer["engine"]: peer for peer in rows if all(peer[name] == row[name] for name in ("what", "store", "size"))
        }
        for name, engine, slower in (("ratio_to_feast", "feast", False), ("ratio_to_floor", "floor", True)):
            peer, own = _speed(peers.get(engine, {})), _speed(row)
            row[name] = (peer / own if slower else own / peer) if peer and own else None
    return rows


def _speed(row: dict[str, Any]) -> float | None:
    """Return what ratios compare: of single calls the median, which a disturbance moves least."""
    median, rate = row.get("p50_ms"), row.get("rows_per_s")
    return 1 / median if median else rate


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        "| what | store | size | engine | p50, ms | p99, ms | rows/s | peak RSS, GB | x Feast | x floor |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['what']} | {row['store']} | {row['size']:,} | {row['engine']} "
            f"| {row.get('error') or text(row.get('p50_ms'), '.3f')} | {text(row.get('p99_ms'), '.3f')} "
            f"| {text(row.get('rows_per_s'), ',.0f')} | {text(row.get('peak_rss_gb'), '.2f')} "
            f"| {text(row['ratio_to_feast'], '.1f')} | {text(row['ratio_to_floor'], '.2f')} |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the targets with what was reached, as a Markdown table."""

    def of(what: str, store: str, size: int, engine: str, value: str) -> float | None:
        wanted = {"what": what, "store": store, "size": size, "engine": engine}
        found: Iterator[Any] = (row.get(value) for row in rows if wanted.items() <= row.items())
        return next(found, None)

    ratio = "ratio_to_feast"
    lines = [
        ("load 20,000 into SQLite, x Feast", "15", of("materialize", "sqlite", 20_000, "ours", ratio), ".1f"),
        ("load 1,000,000 into SQLite, x Feast", "15", of("materialize", "sqlite", 1_000_000, "ours", ratio), ".1f"),
        ("load 20,000 into Redis, x Feast", "10", of("materialize", "redis", 20_000, "ours", ratio), ".1f"),
        ("load 1,000,000 into Redis, x Feast", "10", of("materialize", "redis", 1_000_000, "ours", ratio), ".1f"),
        ("read 500 from Redis, x Feast's SDK", "6", of("read", "redis", 500, "ours", ratio), ".1f"),
        ("read 500 from SQLite, x Feast's SDK", "-", of("read", "sqlite", 500, "ours", ratio), ".1f"),
        ("read 500 from the bank, p50, ms", "under 1", of("read", "redis", 500, "ours, bank", "p50_ms"), ".2f"),
        ("read 500 over HTTP, x Feast's server", "-", of("http read", "sqlite", 500, "ours", ratio), ".1f"),
        ("recommend, p99, ms", "under 25", of("recommend", "sqlite", 500, "ours", "p99_ms"), ".1f"),
        ("the two models alone, p99, ms", "-", of("recommend", "sqlite", 500, "floor", "p99_ms"), ".1f"),
        ("recall@100 at 1,000,000 items", "0.98", of("retrieve", "index", 1_000_000, "ours", "recall_at_100"), ".4f"),
        ("100 of 1,000,000 items, p50, ms", "-", of("retrieve", "index", 1_000_000, "ours", "p50_ms"), ".2f"),
        ("the same by exact search, p50, ms", "-", of("retrieve", "index", 1_000_000, "floor", "p50_ms"), ".2f"),
        ("its index built, s", "-", of("retrieve", "index", 1_000_000, "ours", "build_s"), ".0f"),
    ]
    texts = [
        f"| {what} | {target} | {'not measured' if value is None else format(value, form)} |"
        for what, target, value, form in lines
    ]
    return "\n".join(["| what | target | reached |", "|---|---:|---:|", *texts])


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write the tables of the documentation anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} lacks the lines {BEGIN!r} and {END!r} between which its tables stand.")
    PAGE.write_text(f"{before}{BEGIN}\n{summary(rows)}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")


def loads(size: int, folder: Path, port: int) -> list[dict[str, Any]]:
    """Load a view with every engine, and return the median round of each."""
    prepare(folder, size)
    rows = []
    for store in ("sqlite", "redis"):
        taken: dict[str, list[dict[str, Any]]] = {engine: [] for engine in LOADERS}
        for _ in range(FEW_ROUNDS if size <= FEW_ROWS else 1):
            for engine, found in taken.items():
                found += in_own_process("materialize", store, size, engine, folder, port)
        for found in taken.values():
            rows.append(sorted(found, key=lambda row: row.get("rows_per_s", 0.0))[len(found) // 2])
    return rows


def again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results with the loads of few rows measured anew."""
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as port:
        found = loads(FEW_ROWS, Path(name), port)
    return found + [row for row in rows if (row["what"], row["size"]) != ("materialize", FEW_ROWS)]


def run(sizes: list[int]) -> list[dict[str, Any]]:
    """Run every engine, one after another."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as port:
        folder = Path(name)
        for size in sizes:
            rows += loads(size, folder, port)
        prepare(folder, READ_ROWS)
        for store in ("sqlite", "redis"):
            in_own_process("materialize", store, READ_ROWS, "ours", folder, port)
            found = [row for engine in READERS for row in in_own_process("read", store, 0, engine, folder, port)]
            rows += sorted(found, key=lambda row: row["size"])
        rows += online_http.run(folder, timed, small=len(sizes) == 1)
    return with_ratios(rows)


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="20,000 rows only, and write nothing")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the documentation's tables anew")
    parser.add_argument("--loads", action="store_true", help="load 20,000 rows again and put that into the results")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    for name, kind in (("what", str), ("store", str), ("size", int), ("engine", str), ("folder", str), ("port", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments)))
        return
    if arguments.table:
        write_page(with_ratios(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    if arguments.loads:
        rows = with_ratios(again(json.loads(RESULTS.read_text(encoding="utf-8"))))
    else:
        rows = run([FEW_ROWS] if arguments.small else [FEW_ROWS, 1_000_000])
    print(f"{summary(rows)}\n\n{table(rows)}")
    if not arguments.small:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_page(rows)


if __name__ == "__main__":
    main()
