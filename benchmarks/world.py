"""Time, size and memory of `headwater simulate`, and that memory does not grow with the length of the log.

Every size is made in a process of its own, with the same users and items and the same impressions per day, so that only
the number of days differs; its files are removed when it is measured. `--verify` reads them all once more and holds the
clicks against their true probabilities.

    make bench-world                                    # 1M and 20M impressions, minutes and 1 GB of disk
    python -m benchmarks.world --sizes 100000000        # a hundred million: 4 GB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "world.json"
PER_DAY = 500_000
USERS, ITEMS = 100_000, 20_000


def main() -> None:
    """Make every size, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 20_000_000], help="impressions")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--verify", action="store_true", help="hold the files against their truth before removing them")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.users, arguments.items, arguments.verify)))
        return
    records: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    print(f"{'impressions':>13}{'seconds':>9}{'per second':>12}{'peak MB':>9}{'MB of files':>12}")
    for size in arguments.sizes:
        command = [sys.executable, "-m", "benchmarks.world", "--one", str(size), "--users", str(arguments.users)]
        command += ["--items", str(arguments.items), *(["--verify"] if arguments.verify else [])]
        record = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        records[str(size)] = record
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(records, indent=2) + "\n")
        print(
            f"{record['impressions']:>13,}{record['seconds']:>9.1f}{record['impressions_per_s']:>12,.0f}"
            f"{record['peak_rss_mb']:>9,.0f}{record['mb_of_files']:>12,.0f}"
        )


def measure(size: int, users: int, items: int, verify: bool) -> dict[str, Any]:
    """Make one world in this process and return what it took."""
    from jobs import simulate
    from jobs.world.config import checked

    days = max(2, size // PER_DAY)
    with tempfile.TemporaryDirectory() as folder:
        cpu = sum(os.times()[:2])
        result = simulate.run(checked(users=users, items=items, days=days, impressions=size), Path(folder) / "world")
        record: dict[str, Any] = {
            "impressions": result.summary["counts"]["impression"],
            "counts": result.summary["counts"],
            "users": users,
            "items": items,
            "days": days,
            "seconds": round(result.seconds, 1),
            "cpu_seconds": round(sum(os.times()[:2]) - cpu, 1),
            "impressions_per_s": round(result.rows_per_s or 0),
            "peak_rss_mb": _peak_mb(),
            "mb_of_files": round(sum(f.stat().st_size for f in result.folder.rglob("*.parquet")) / 1e6),
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
        }
        if verify:
            record["clicks_over_expected"] = _clicks_over_expected(result.folder)
    return record


def _clicks_over_expected(folder: Path) -> float:
    """Return the clicks of all files over the sum of their true probabilities, read a file at a time."""
    import polars as pl

    clicks = expected = 0.0
    for file in sorted((folder / "truth").glob("*.parquet")):
        expected += pl.read_parquet(file, columns=["p_click"]).select(pl.col("p_click").cast(pl.Float64).sum()).item()
        kinds = pl.read_parquet(folder / "events" / file.name, columns=["event_type"])
        clicks += kinds.filter(event_type="click").height
    return clicks / expected


def _peak_mb() -> int:
    """Return the peak resident memory of this process. Not ru_maxrss: that one starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


if __name__ == "__main__":
    main()
