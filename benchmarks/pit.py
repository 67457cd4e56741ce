"""How fast and in how much memory point-in-time joins run: ours beside Feast's stores, Polars, DuckDB and the floor.

    python -m benchmarks.pit --scale 0.02      # a minute, to see that it works
    make bench-pit                             # the sizes of the documentation: half an hour, 30 GB of disk

Each engine runs in a process of its own, twice, or three times within 20 seconds, of which the best counts. Seconds
are wall time from labels in memory to an Arrow table in memory (the streamed size: from file to file); `cpu_seconds`
is what all its threads worked, which other work on the machine disturbs less. `peak_rss_gb` is the process's, so it
holds imports, labels, the result and mapped pages. `ratio_to_feast_duckdb` says how many times faster than Feast's
DuckDB store, `ratio_to_floor` how many times slower than the floor of the same layout.

The floor: every label's row is known beforehand; what is left is to read the vectors that are needed and to write
the result. ``twins`` are memory-mapped copies beside the Parquet files (docs/point-in-time.md), ``plain Parquet``
are the same files without them, which is what all other engines read.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.pit_data import Size, prepare

RESULTS = Path(__file__).parent / "results" / "pit.json"
SIZES = [
    Size("5k labels x 30 snapshots, 2 views", 5_000, 1_000, 200, 30, 2),
    Size("1M labels x 30 snapshots, 2 views", 1_000_000, 100_000, 20_000, 30, 2),
    Size("1M labels x 30 snapshots, 6 views", 1_000_000, 100_000, 20_000, 30, 6),
    Size("1M labels x 300 snapshots, 2 views", 1_000_000, 100_000, 20_000, 300, 2),
    Size("10M labels x 30 snapshots, 2 views, streamed", 10_000_000, 100_000, 20_000, 30, 2),
]
FEAST = "feast duckdb"
# The best of so many runs, of two where they take long: a shared machine only ever makes a run slower, and the first
# one of a size also reads the disk.
LEAST, RUNS, ENOUGH = 2, 3, 20.0
MEMORY_CAP = 12 * 10**9


def engines_of(size: Size) -> list[str]:
    """Return the engines that run at a size: Dask at the small one only, streaming ones at the streamed one."""
    from benchmarks.pit_engines import ENGINES, STREAMED

    if "streamed" in size.name:
        return list(STREAMED)
    return [name for name in ENGINES if name != "feast dask" or size.name.startswith("5k")]


def measure(engine: str, size: Size, folder: Path) -> dict[str, Any]:
    """Run one engine in this process."""
    from benchmarks.pit_engines import ENGINES, STREAMED

    # An engine that wants more than this fails alone instead of taking the machine down with it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_CAP, MEMORY_CAP))
    run = (STREAMED if "streamed" in size.name else ENGINES)[engine](size, folder)
    seconds, cpu, rows, begun = [], [], 0, time.perf_counter()
    while len(seconds) < LEAST or (len(seconds) < RUNS and time.perf_counter() - begun < ENOUGH):
        started, spent = time.perf_counter(), time.process_time()
        rows = run()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": min(seconds), "cpu_seconds": min(cpu), "rows": rows, "peak_rss_gb": peak}


def in_own_process(module: str, engine: str, index: int, scale: float, folder: Path, timeout: float) -> dict[str, Any]:
    """Run one engine of a benchmark in a process of its own; a failure is a result too."""
    arguments = ["--run", engine, "--size", str(index), "--scale", str(scale), "--data", str(folder)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            return dict(json.loads(line))
    told = [line for line in done.stderr.splitlines() if re.search("memory|Error|Exception", line, re.I)]
    return {"error": f"failed: {(told or [f'exit code {done.returncode}'])[0].strip()[:160]}"}


def records(size: Size, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record per engine of a size, with its ratios."""
    feast = found.get(FEAST, {}).get("seconds")
    result = []
    for engine, value in found.items():
        floor = found.get("floor, twins" if "twins" in engine else "floor, plain Parquet", {}).get("seconds")
        seconds = value.get("seconds")
        result.append(
            {
                "engine": engine,
                "size": size.name,
                "seconds": seconds,
                "cpu_seconds": value.get("cpu_seconds"),
                "rows_per_s": value["rows"] / seconds if seconds else None,
                "peak_rss_gb": value.get("peak_rss_gb"),
                "ratio_to_feast_duckdb": feast / seconds if seconds and feast else None,
                "ratio_to_floor": seconds / floor if seconds and floor else None,
                **({"error": value["error"]} if "error" in value else {}),
            }
        )
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        "| size | engine | seconds | CPU s | rows/s | peak RSS, GB | x Feast DuckDB | x floor |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row["size"],
            row["engine"],
            row.get("error") or text(row["seconds"], ".2f"),
            text(row["cpu_seconds"], ".2f"),
            text(row["rows_per_s"], ",.0f"),
            text(row["peak_rss_gb"], ".2f"),
            text(row["ratio_to_feast_duckdb"], ".1f"),
            text(row["ratio_to_floor"], ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="times the labels and entities")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the sizes to run")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per engine and size")
    parser.add_argument("--data", type=Path, help="folder for the files; kept and gone on with if given")
    parser.add_argument("--engines", nargs="*", help="run only these; all by default")
    parser.add_argument("--out", type=Path, help="where the results go; by default only a whole run at scale 1 is kept")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run is not None:
        print(json.dumps(measure(chosen.run, SIZES[chosen.size].scaled(chosen.scale), chosen.data)), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.data or Path(scratch)).resolve()
        kept = folder / f"measured-{chosen.scale:g}.json"
        measured: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
        sizes = [SIZES[i].scaled(chosen.scale) for i in chosen.only or range(len(SIZES))]
        for size in sizes:
            print(f"{size.name}: files", file=sys.stderr, flush=True)
            prepare(size, folder)
            found = measured.setdefault(size.name, {})
            for engine in engines_of(size):
                if engine in found or (chosen.engines and engine not in chosen.engines):
                    continue
                index = next(i for i, known in enumerate(SIZES) if known.name == size.name)
                found[engine] = in_own_process("benchmarks.pit", engine, index, chosen.scale, folder, chosen.timeout)
                print(f"  {engine}: {found[engine]}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps(measured), encoding="utf-8")
        rows = [row for size in SIZES if size.name in measured for row in records(size, measured[size.name])]
    print(table(rows))
    out = chosen.out or (RESULTS if chosen.scale == 1 and chosen.only is None else None)
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print(f"written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
