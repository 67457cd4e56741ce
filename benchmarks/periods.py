"""Does the lift hold in another part of the year? The demo's chain with the same settings, on other splits.

The demo's test period was looked at while the log's mapping and the models were made; the period below was not, apart
from retrieval windows in September (see docs/data.md). Everything but the splits is as in the demo. The upstream learns
from 14 weeks instead of 24.

    make bench-periods          # on the demo's ingested log, about eight minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feature_repo.lake import Home
from jobs import chain
from jobs import config as settings
from jobs.config import Splits
from jobs.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "periods.json"


def at(month: int, day: int) -> datetime:
    """Return a midnight of 2017, the year of the demo's log."""
    return datetime(2017, month, day, tzinfo=UTC)


PERIODS = {"spring": Splits(upstream_end=at(5, 14), train_end=at(7, 23), valid_end=at(8, 6), end=at(10, 1))}


def main() -> None:
    """Run every period in a home folder of its own and keep the numbers of its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--home", type=Path, default=Path(".headwater"), help="home folder with the demo's ingested log"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    source = Home(arguments.home.resolve())
    records: dict[str, Any] = {}
    for name, splits in PERIODS.items():
        with TemporaryDirectory() as folder:
            home = Home(Path(folder))
            for path in ("events", "users.parquet", "items.parquet", "dataset.json"):
                _copy(source.lake / path, home.lake / path)
            changed = {"splits": splits, "processes": arguments.processes}
            settings.save(settings.load(source).model_copy(update=changed), home)
            ws = Workspace.open(home.root)
            for dataset in Workspace.open(source.root).ledger.datasets():
                ws.ledger.put_dataset(**dataset)
            summary = chain.run(ws, progress=Told()).summary
        kept = ("splits", "lift", "retrieval", "retrieval_setup", "gate", "timings_s")
        records[name] = {key: summary[key] for key in kept}
        records[name]["gate"] = {key: summary["gate"][key] for key in ("accepted", "refused")}
        for row in summary["lift"]:
            low, high = row["ci95"]
            lift = row["relative_auc_lift"]
            print(
                f"{name} {row['task']} {row['embeddings']}: {100 * lift:+.3f}% [{100 * low:+.3f}%, {100 * high:+.3f}%]"
            )
        for row in summary["retrieval"]:
            print(f"{name} {row['model']}: recall@100 {row['recall_at_100']:.4f}")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(records, indent=1) + "\n")
    print(f"Written to {arguments.out}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


class Told:
    """Print each stage once, with the seconds since the start."""

    def __init__(self) -> None:
        self._started, self._last = time.monotonic(), ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take one report of progress."""
        stage = what.split(":")[0]
        if stage != self._last:
            self._last = stage
            print(f"[{time.monotonic() - self._started:6.0f} s] {stage}", flush=True)


if __name__ == "__main__":
    main()
