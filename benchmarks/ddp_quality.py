"""Whether an upstream that two processes trained is as good as one that a single process trained.

    make bench-ddp-quality       # on the demo's home folder, two to three minutes per training

Each seed is trained by one process and by two, as `headwater train-upstream v1 --ranks N` does it: the ranks read their
windows of the log from Parquet and share out every batch. Scored as in `benchmarks.upstream`: recall@100 of what users
chose in the 28 days after two moments, both before the test period. What seeds make of it says what a difference means.
Records go to `benchmarks/results/ddp_quality.json`; a training that stands there is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.upstream import WINDOWS, score
from feature_repo.contracts.types import Space

RESULTS = Path(__file__).parent / "results" / "ddp_quality.json"
RANKS = (1, 2)


def main() -> None:
    """Train all seeds with all numbers of ranks; print and keep each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"), help="home folder with an ingested log")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    home = chosen.home.resolve()
    if chosen.one is not None:
        train(home, chosen.one, chosen.out)
        return
    records: list[dict[str, Any]] = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    for seed in chosen.seeds:
        for ranks in RANKS:
            if all((record["seed"], record["ranks"]) != (seed, ranks) for record in records):
                records.append(measure(home, ranks, seed))
                chosen.out.write_text(json.dumps(records, indent=1) + "\n")
                print(records[-1], flush=True)
    print(summary(records))


def measure(home: Path, ranks: int, seed: int) -> dict[str, Any]:
    """Return the record of a training in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with TemporaryDirectory() as name:
        out = Path(name) / "found.json"
        arguments = ["-m", "benchmarks.ddp_quality", "--one", str(seed), "--home", str(home), "--out", str(out)]
        subprocess.run([*torchrun, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return {"ranks": ranks, "seed": seed, **json.loads(out.read_text())}


def train(home: Path, seed: int, out: Path) -> None:
    """Train v1 with a seed as one rank of those that torchrun started; rank 0 writes what came of it."""
    from jobs import train_ranks
    from jobs.refresh import Upstream
    from jobs.train_upstream import fit_upstream
    from jobs.workspace import Workspace
    from models import presets

    ws, started = Workspace.open(home), time.monotonic()
    settings = ws.config.upstream("v1").model_copy(update={"seed": seed})
    preset = presets.by_name(ws.config.preset)
    fitted = train_ranks.together(ws, "cpu", lambda: fit_upstream(ws, settings, preset))
    if fitted is None:
        return
    seconds = time.monotonic() - started
    with TemporaryDirectory() as folder:
        fitted.save(Path(folder))
        space = Space("trial", fitted.model.dim, ws.splits.upstream_end, ws.log.fingerprint, folder, {})
        upstream = Upstream(ws, space)
        scores = [score(ws, upstream, ws.splits.valid_end - window) for window in WINDOWS]
    losses = [record["total"] for record in fitted.curve]
    later = losses[len(losses) // 2 :]
    out.write_text(
        json.dumps(
            {"rows": fitted.rows, "seconds": seconds, "loss_of_later_half": sum(later) / len(later), "windows": scores}
        )
    )


def summary(records: list[dict[str, Any]]) -> str:
    """Return means and standard deviations over the seeds, and the difference seed by seed."""
    lines = []
    for place, _ in enumerate(WINDOWS):
        recall = {
            ranks: np.array(
                [
                    r["windows"][place]["recall_at_100"]
                    for r in sorted(records, key=lambda r: r["seed"])
                    if r["ranks"] == ranks
                ]
            )
            for ranks in RANKS
        }
        told = ", ".join(f"{ranks} ranks {v.mean():.4f} (sd {v.std(ddof=1):.4f})" for ranks, v in recall.items())
        step = recall[2] - recall[1]
        error = step.std(ddof=1) / len(step) ** 0.5
        lines.append(
            f"{records[0]['windows'][place]['as_of'][:10]}: recall@100 {told}; "
            f"difference {step.mean():+.4f} (standard error {error:.4f}, {len(step)} seeds)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
