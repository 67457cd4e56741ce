"""Samples per second of upstream training in one process and in several that share out every batch.

    make bench-ddp
    python -m benchmarks.ddp --ranks 1 2 4 --steps 40 --data FOLDER

One simulated log is made and prepared once; each engine is torchrun with so many processes, one thread each, that
train the demo's preset through `models.training.fit` from the mapped files. The first step is left out of the rate.
Records go into `benchmarks/results/scale.json` (`engine, size, seconds, rows_per_s, peak_rss_gb`), by engine and size;
memory is that of all processes together, `loss_of_later_half` the training loss of rows before they were learned from.
Two processes on a machine of two cores show what sharing costs, not how it scales.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.capacity import WEEKS, _size
from benchmarks.online import peak_gb
from benchmarks.scale import RESULTS, merge


def main() -> None:
    """Measure, print the records and merge them into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", type=Path, help="folder for the world and its home; kept and gone on with if given")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        train(chosen.data, chosen.steps, chosen.out)
        return
    from benchmarks.train import prepare, world

    with tempfile.TemporaryDirectory() if chosen.data is None else nullcontext(chosen.data) as name:
        folder, size = Path(name).resolve(), _size(WEEKS)
        if not (folder / f"artifact-{size.name}" / "encoder.json").exists():
            world(size, folder)
            prepare(size, folder)
        records = [measure(folder, ranks, chosen.steps) for ranks in chosen.ranks]
    merge(records, chosen.out)
    for record in records:
        print(record)


def measure(folder: Path, ranks: int, steps: int) -> dict[str, Any]:
    """Return the record of a training in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = ["-m", "benchmarks.ddp", "--one", "--data", str(folder), "--steps", str(steps), "--out", out]
        subprocess.run([*torchrun, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        parts = [json.loads(file.read_text()) for file in sorted(Path(out).glob("rank-*.json"))]
    seconds = max(part["seconds"] for part in parts)
    rows = sum(part["rows"] for part in parts)
    return {
        "engine": f"training, DDP (gloo), {ranks} process{'es' if ranks > 1 else ''} of one thread",
        "size": f"{steps - 1} steps, {rows:,} rows, preset small",
        "seconds": seconds,
        "rows_per_s": rows / seconds,
        "peak_rss_gb": sum(part["peak_rss_gb"] for part in parts),
        "loss_of_later_half": parts[0]["loss"],
    }


def train(folder: Path, steps: int, out: Path) -> None:
    """Train as one rank and write how long all steps but the first took."""
    from dataclasses import replace

    import torch

    from benchmarks.train import _model
    from jobs.prepare_upstream import AHEAD
    from models import ranks
    from models.training import fit

    torch.set_num_threads(1)
    with ranks.joined("cpu"):
        model, training, preset = _model(_size(WEEKS), folder)
        shard, counts, times = (ranks.rank(), ranks.world()), [], [time.perf_counter()]

        def epoch(number: int) -> Any:
            for batch in training.epoch(number, batch_rows=preset.batch_rows, seed=0, shard=shard):
                counts.append(len(batch.click))
                yield batch

        history = fit(
            model,
            epoch,
            config=replace(preset.train, epochs=1, ahead=AHEAD, log_every=5),
            steps_per_epoch=steps,
            progress=lambda done, total, metrics: times.append(time.perf_counter()),
        )
        # Every row is new to the model when its loss is taken: the later half says how well it has learned so far.
        losses = history.curve("total")[len(history.records) // 2 :]
        told = {
            "loss": sum(losses) / len(losses),
            "seconds": times[-1] - times[1],
            "rows": sum(counts[1:steps]),
            "peak_rss_gb": peak_gb(),
        }
        (out / f"rank-{ranks.rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
