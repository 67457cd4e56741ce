"""Which upstream settings find what users choose next: recall on windows that end before the test period.

Every variant is the demo's preset with one or two changes, trained on an ingested home folder before the upstream
cut-off and scored, as `headwater train-downstream retrieval` scores it, on two windows of 28 days that end where the
test period begins. The test period is not read, so a setting can be chosen here and judged there.

    make bench-upstream          # on the demo's home folder, about two minutes per variant on 2 cores
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from feature_repo.contracts.types import Space
from jobs import retrieve_questions
from jobs.refresh import Upstream
from jobs.train_upstream import fit_upstream
from jobs.workspace import Workspace
from models import presets
from models.presets import Preset

RESULTS = Path(__file__).parent / "results" / "upstream.json"
WINDOWS = (timedelta(days=28), timedelta(days=56))


def width(out_dim: int) -> Callable[[Preset], Preset]:
    """Return the change to vectors of four tokens of that many floats."""
    return lambda preset: replace(preset, model=lambda spec: replace(preset.model(spec), out_dim=out_dim))


def temperature(value: float) -> Callable[[Preset], Preset]:
    """Return the change to another start of the contrastive loss's temperature."""

    def change(preset: Preset) -> Preset:
        def model(spec: Any) -> Any:
            config = preset.model(spec)
            return replace(config, losses=replace(config.losses, temperature=value))

        return replace(preset, model=model)

    return change


VARIANTS: dict[str, Callable[[Preset], Preset]] = {
    "as it is": lambda preset: preset,
    "64 floats": width(16),
    "128 floats": width(32),
    "256 floats": width(64),
    "no own items": lambda preset: replace(preset, top_items=1),
    "64 own items": lambda preset: replace(preset, top_items=64),
    "128 activities": lambda preset: replace(preset, sequence_length=128),
    "temperature 0.03": temperature(0.03),
    "temperature 0.1": temperature(0.1),
    "two passes": lambda preset: replace(preset, train=replace(preset.train, epochs=2)),
    "table rate 0.01": lambda preset: replace(preset, train=replace(preset.train, embedding_learning_rate=1e-2)),
}


def main() -> None:
    """Train the chosen variants one after the other; print and keep each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"), help="home folder with an ingested log")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ws = Workspace.open(arguments.home.resolve())
    ws.use_threads()
    records: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.variants:
        records[name] = measure(ws, VARIANTS[name](presets.by_name(ws.config.preset)))
        shown = ", ".join(f"{w['as_of'][:10]}: {w['recall_at_100']:.4f} = {w['ratio']:.3f} x" for w in records[name])
        print(f"{name}: {shown}", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(records, indent=1) + "\n")
    print(f"Written to {arguments.out}")


def measure(ws: Workspace, preset: Preset) -> list[dict[str, Any]]:
    """Train one variant of v1 and return one record per window."""
    started = time.monotonic()
    fitted = fit_upstream(ws, ws.config.upstream("v1"), preset)
    seconds = time.monotonic() - started
    with TemporaryDirectory() as folder:
        fitted.save(Path(folder))
        space = Space("trial", fitted.model.dim, ws.splits.upstream_end, ws.log.fingerprint, folder, {})
        upstream = Upstream(ws, space)
        return [
            {"dim": fitted.model.dim, "train_seconds": seconds, **score(ws, upstream, ws.splits.valid_end - window)}
            for window in WINDOWS
        ]


def score(ws: Workspace, upstream: Upstream, as_of: datetime) -> dict[str, Any]:
    """Return recall@100 of the vectors as of one moment, and its ratio to popularity."""
    (user_ids, users, _), (item_ids, items, _) = (upstream.infer(entity, as_of) for entity in ("user", "item"))
    question = retrieve_questions.question(ws, user_ids, item_ids, as_of)
    if question is None:
        raise SystemExit(f"Nobody chose a known item within 28 days from {as_of}.")
    found = question.rank(users, items)
    ratio = question.score(found)
    return {
        "as_of": as_of.isoformat(),
        "recall_at_100": ratio.recall[100].value,
        "ratio": ratio.ratio[100].value,
        "ratio_ci95": list(ratio.ratio[100].ci95),
        "users": int(np.size(question.asked)),
    }


if __name__ == "__main__":
    main()
