"""How fast an upstream trains and infers, beside bare loops of the same model over tensors that are in memory already.

    make bench-train                                   # 1M and 10M impressions: minutes, 4 GB of disk
    python -m benchmarks.train --small                 # a minute or two, to see that it works

A world of `headwater simulate` is made and ingested; both sizes have the same users, items and days. Training takes a
capped number of steps of the demo's preset on one thread. Every engine runs in a process of its own, the engines of a
size in turns, and the best of its runs counts: a shared machine only ever makes a run slower.

- `prepare`: what a training does before its first step: log read, encodings learned, rows written to files.
- `our loop`: `models.training.fit` over `TrainingRows`: batches gathered from the mapped files, learning curve,
  clipping, schedule, checkpoint. `bare loop`: forward, backward, clipping and step over the same batches, made before.
- `refresh`: `jobs.refresh.Upstream.infer`, users and items of the last moment. `bare inference`: the model over tensors
  made beforehand.

The first step of a training is left out of its rate and stands by itself (`start_seconds`): it holds the epoch's plan.
`cpu_seconds` is what all threads of the process worked meanwhile, which other work on the machine disturbs less;
`cpu_ratio` compares engines by it. Reading ahead hides work from the seconds, not from the CPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "train.json"
START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Size:
    """One world, and how much of it is trained on."""

    name: str
    impressions: int
    users: int
    items: int
    days: int
    steps: int
    preset: str = "small"


SIZES = [Size("1M", 1_000_000, 20_000, 5_000, 84, 40), Size("10M", 10_000_000, 20_000, 5_000, 84, 40)]
SMALL = [Size("small", 60_000, 1_000, 400, 56, 6)]
# The engines that are compared, and how `our loop` is varied at the first size.
TRAINING = ("bare loop", "our loop")
VARIANTS: dict[str, dict[str, Any]] = {
    "our loop, not read ahead": {"ahead": 0},
    "our loop, bfloat16": {"precision": "bfloat16"},
    "our loop, compiled": {"compile": True},
}
INFERENCE = ("bare inference", "refresh")


def main() -> None:
    """Measure, print the table and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one small world; the results are only printed")
    parser.add_argument("--sizes", nargs="*", help="names of the sizes to run; all by default")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, help="steps per training instead of the size's own")
    parser.add_argument("--no-variants", action="store_true", help="leave out mixed precision and the compiler")
    parser.add_argument("--data", type=Path, help="folder for worlds and homes; kept and gone on with if given")
    parser.add_argument("--out", type=Path, help="where the records go; by default only a whole run is kept")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = [replace(size, steps=chosen.steps or size.steps) for size in (SMALL if chosen.small else SIZES)]
    if chosen.run is not None:
        size = next(size for size in sizes if size.name == chosen.size)
        print(json.dumps(engines()[chosen.run](size, chosen.data)), flush=True)
        return
    sizes = [size for size in sizes if chosen.sizes is None or size.name in chosen.sizes]
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() if chosen.data is None else nullcontext(chosen.data) as folder:
        for number, size in enumerate(sizes):
            variants = () if chosen.no_variants or number else tuple(VARIANTS)
            records += measure(size, Path(folder).resolve(), chosen.repeats, variants, [*(["--small"] * chosen.small)])
    print(table(records))
    whole = not chosen.small and chosen.sizes is None and chosen.steps is None and not chosen.no_variants
    out = chosen.out or (RESULTS if whole else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        print(f"written to {out}", file=sys.stderr)


def measure(
    size: Size, folder: Path, repeats: int, variants: tuple[str, ...], arguments: list[str]
) -> list[dict[str, Any]]:
    """Return one record per engine of a size."""

    def run(engine: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.train", "--run", engine, "--size", size.name, *arguments]
        command += ["--data", str(folder), "--steps", str(size.steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_one_thread())
        record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(f"{size.name}, {engine}: {record}", file=sys.stderr, flush=True)
        return record

    made = run("world")
    best: dict[str, dict[str, Any]] = {"prepare": run("prepare")}
    rounds = [(*TRAINING, *INFERENCE)] * repeats + [variants]
    for engine in (engine for engines in rounds for engine in engines):
        found = run(engine)
        if engine not in best or found["per_s"] > best[engine]["per_s"]:
            best[engine] = found
    floors = {**dict.fromkeys(("our loop", *variants), "bare loop"), "refresh": "bare inference"}
    for engine, floor in floors.items():
        ours, bare = best[engine], best[floor]
        ours["ratio_to_bare"] = ours["per_s"] / bare["per_s"]
        ours["cpu_ratio"] = (ours["done"] / ours["cpu_seconds"]) / (bare["done"] / bare["cpu_seconds"])
    common = {"size": size.name, **made, "threads": 1, "machine": {"cores": os.cpu_count(), **_versions()}}
    return [{"engine": engine, **common, **record} for engine, record in best.items()]


def engines() -> dict[str, Callable[[Size, Path], dict[str, Any]]]:
    """Return what a process can be asked to do, by name."""
    varied = {
        name: lambda size, folder, change=change: our_loop(size, folder, **change) for name, change in VARIANTS.items()
    }
    return {
        "world": world,
        "prepare": prepare,
        "our loop": our_loop,
        "bare loop": bare_loop,
        "refresh": refresh,
        "bare inference": bare_inference,
        **varied,
    }


def world(size: Size, folder: Path) -> dict[str, Any]:
    """Make the world and ingest it, where it is not there yet."""
    from jobs import ingest, simulate
    from jobs.world.config import checked

    made, home = folder / f"world-{size.name}", folder / f"home-{size.name}"
    started = time.perf_counter()
    result = simulate.run(
        checked(users=size.users, items=size.items, days=size.days, impressions=size.impressions), made
    )
    simulated = time.perf_counter() - started
    ingest.run(
        ingest.IngestConfig(
            home=home,
            name="world",
            events=(str(made / "events"),),
            users=(str(made / "users.parquet"),),
            items=(str(made / "items.parquet"),),
            now=START + timedelta(days=size.days + 60),
        )
    )
    return {
        "impressions": result.summary["counts"]["impression"],
        "users": size.users,
        "items": size.items,
        "days": size.days,
        "simulate_seconds": round(simulated, 1),
        "ingest_seconds": round(time.perf_counter() - started - simulated, 1),
    }


def prepare(size: Size, folder: Path) -> dict[str, Any]:
    """Do what a training does before its first step, and keep it for the engines."""
    from jobs.prepare_upstream import prepare as ready_for
    from models import presets
    from models.upstream.derm import DERM

    ws, rows = _workspace(size, folder), folder / f"rows-{size.name}"
    started = time.perf_counter()
    ready = ready_for(ws, ws.config.upstream("v1"), presets.by_name(size.preset), rows)
    seconds = time.perf_counter() - started
    artifact = folder / f"artifact-{size.name}"
    DERM(ready.model).save(artifact)
    ready.encoder.save(artifact / "encoder.json")
    megabytes = sum(file.stat().st_size for file in rows.iterdir()) / 1e6
    return {
        "seconds": seconds,
        "rows": ready.rows.rows,
        "per_s": ready.rows.rows / seconds,
        "mb_of_files": round(megabytes),
        "peak_rss_mb": _peak_mb(),
    }


def our_loop(size: Size, folder: Path, **change: Any) -> dict[str, Any]:
    """Train through `fit`, from the files to the checkpoint."""
    import torch

    from jobs.prepare_upstream import AHEAD
    from models.training import fit

    torch.set_num_threads(1)
    model, training, preset = _model(size, folder)
    train = replace(preset.train, **{"epochs": 1, "ahead": AHEAD, **change})
    counts: list[int] = []

    def epoch(number: int) -> Any:
        for batch in training.epoch(number, batch_rows=preset.batch_rows, seed=0):
            counts.append(len(batch.click))
            yield batch

    times, spent = [time.perf_counter()], [time.process_time()]

    def stamp(*_: Any) -> None:
        times.append(time.perf_counter())
        spent.append(time.process_time())

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fit(
            model,
            epoch,
            config=train,
            steps_per_epoch=size.steps,
            progress=stamp,
            checkpoint_dir=Path(scratch) / "checkpoint",
        )
    return _rate(counts[: size.steps], times, spent)


def bare_loop(size: Size, folder: Path) -> dict[str, Any]:
    """Train over the same batches, all of them in memory beforehand."""
    from itertools import islice

    import torch

    from models.training import build_optimizer

    torch.set_num_threads(1)
    model, training, preset = _model(size, folder)
    batches = list(islice(training.epoch(0, batch_rows=preset.batch_rows, seed=0), size.steps))
    optimizer = build_optimizer(model.train(), preset.train)
    times, spent = [time.perf_counter()], [time.process_time()]
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        model(batch).losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.train.gradient_clip)
        optimizer.step()
        times.append(time.perf_counter())
        spent.append(time.process_time())
    return _rate([len(batch.click) for batch in batches], times, spent)


def refresh(size: Size, folder: Path) -> dict[str, Any]:
    """Infer as a refresh does, three times; log and tables of the moment are read beforehand and timed apart."""
    from feature_repo.contracts.types import Space
    from jobs.refresh import Upstream
    from models.upstream.derm import DERM

    ws = _workspace(size, folder)
    ws.use_threads()
    dim = DERM.load(folder / f"artifact-{size.name}").dim
    space = Space("trial", dim, ws.config.upstream("v1").train_end, "", str(folder / f"artifact-{size.name}"), {})  # type: ignore[arg-type]
    started = time.perf_counter()
    upstream = Upstream(ws, space)
    as_of = _last_moment(size)
    for entity in ("user", "item"):
        upstream.ids(entity, as_of)  # type: ignore[arg-type]
    tables = time.perf_counter() - started
    found = _best(lambda: sum(len(upstream.infer(entity, as_of)[1]) for entity in ("user", "item")))  # type: ignore[arg-type]
    return {**found, "start_seconds": tables, "peak_rss_mb": _peak_mb()}


def bare_inference(size: Size, folder: Path) -> dict[str, Any]:
    """Run the model over the same users and items as tensors in memory, three times."""
    import numpy as np
    import torch

    from jobs.features.batches import item_batch, user_batch
    from jobs.refresh import INFERENCE_ROWS

    torch.set_num_threads(1)
    model, training, _ = _model(size, folder)
    model.eval()
    part = training._slices[-1]

    def cut(count: int) -> list[Any]:
        return np.array_split(np.arange(count), max(1, -(-count // INFERENCE_ROWS)))

    users = [user_batch(training._codes, part.users, rows) for rows in cut(len(part.users.code))]
    items = [item_batch(part.items, rows) for rows in cut(len(part.items.code))]

    def infer() -> int:
        with torch.inference_mode():
            found = [model.user_vectors(batch)[0] for batch in users] + [
                model.item_vectors(batch)[0] for batch in items
            ]
        return sum(len(vectors) for vectors in found)

    return {**_best(infer), "peak_rss_mb": _peak_mb()}


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table."""
    lines = [
        "| impressions | engine | seconds | samples or vectors/s | of bare | of bare, by CPU | before the first, s "
        "| peak RSS, MB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        ratio, by_cpu, start = (record.get(name) for name in ("ratio_to_bare", "cpu_ratio", "start_seconds"))
        cells = [
            f"{record['impressions']:,}",
            record["engine"],
            f"{record['seconds']:.1f}",
            f"{record['per_s']:,.0f}",
            "-" if ratio is None else f"{ratio:.2f}",
            "-" if by_cpu is None else f"{by_cpu:.2f}",
            "-" if start is None else f"{start:.1f}",
            f"{record['peak_rss_mb']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _workspace(size: Size, folder: Path) -> Any:
    from feature_repo.lake import Home
    from jobs.config import Config, Upstream
    from jobs.workspace import Workspace

    upstream = Upstream(version="v1", train_end=START + timedelta(days=size.days))
    config = Config(preset=size.preset, upstreams=(upstream,), consumers=())  # type: ignore[arg-type]
    return Workspace(Home(folder / f"home-{size.name}"), config)


def _last_moment(size: Size) -> datetime:
    from jobs.prepare_upstream import WARM_UP

    weeks = (timedelta(days=size.days) - WARM_UP - timedelta(seconds=1)) // timedelta(days=7)
    return START + WARM_UP + weeks * timedelta(days=7)


def _model(size: Size, folder: Path) -> Any:
    from jobs.features.batches import TrainingRows
    from models import presets
    from models.upstream.derm import DERM

    training = TrainingRows(folder / f"rows-{size.name}", positives="conversion")
    return DERM.load(folder / f"artifact-{size.name}"), training, presets.by_name(size.preset)


def _rate(counts: list[int], times: list[float], spent: list[float]) -> dict[str, Any]:
    """Return samples per second of all steps but the first."""
    seconds = times[-1] - times[1]
    return {
        "seconds": seconds,
        "cpu_seconds": spent[-1] - spent[1],
        "done": sum(counts[1:]),
        "per_s": sum(counts[1:]) / seconds,
        "start_seconds": times[1] - times[0],
        "peak_rss_mb": _peak_mb(),
    }


def _best(work: Callable[[], int]) -> dict[str, Any]:
    """Return the least seconds and CPU seconds of three runs, and what a run gave."""
    wall, cpu = [], []
    for _ in range(3):
        started, spent = time.perf_counter(), time.process_time()
        count = work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
    return {"seconds": min(wall), "cpu_seconds": min(cpu), "done": count, "per_s": count / min(wall)}


def _peak_mb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _versions() -> dict[str, str]:
    import importlib.metadata

    return {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}


if __name__ == "__main__":
    main()
