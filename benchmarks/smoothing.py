"""Does smoothing (0.8 old + 0.2 new) help over several retrains? Rankers with vectors smoothed, and as they are.

The paper reports 0.09% against 0.02% (arXiv 2509.04337). Three ways of living on are compared, each refreshed weekly:
one upstream model, and two that are trained on from their own weights every four weeks, with the loss that keeps
vectors near the old ones and without it. In each, one ranker learns on smoothed vectors and one on raw ones, with the
same rows, seeds and budget; both are held against the same ranker without vectors on the test rows. Vectors of a
moment are read from an hour after it on. Nothing goes through gate or ledger: this measures the vectors.

    make bench-smoothing                                        # all 2,469 households
    python -m benchmarks.smoothing --households 400 --seeds 3   # minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from benchmarks.periods import Told
from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.contracts.types import Space
from feature_repo.lake import replacing
from jobs import config as settings
from jobs import demo, train_upstream
from jobs.config import Config
from jobs.features.ranking import TrainingSet
from jobs.refresh import Upstream, aligned, stabilize
from jobs.train_downstream import LABELS, fit_config
from jobs.warm_start import ALIGNMENT
from jobs.workspace import Workspace
from models.bootstrap import bootstrap_lift
from models.downstream.fit import fit_ranker, predict

RESULTS = Path(__file__).parent / "results" / "smoothing.json"
KEEP, EVERY = 0.8, timedelta(days=28)
TASK = "ctr"
Vectors = dict[str, list[tuple[datetime, pl.Series, np.ndarray]]]


@dataclass(frozen=True)
class Step:
    """How far published vectors moved from one refresh to the next, mean cosine over entities and moments."""

    entity: str
    smoothed: float
    raw: float
    smoothed_at_retrains: float | None
    raw_at_retrains: float | None


def main() -> None:
    """Train the upstreams and the rankers, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--households", type=int, default=2469)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--home", type=Path, help="keep log, models and scores here, so that a killed run goes on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        record = measure(arguments.home or Path(scratch), arguments.households, arguments.seeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in record["lift"]:
        low, high = row["ci95"]
        print(f"{row['upstream']:24} {row['vectors']:10} {row['auc']:.5f} {row['lift']:+.3%} [{low:+.3%}, {high:+.3%}]")
    for row in record["smoothed_against_raw"]:
        low, high = row["ci95"]
        print(f"{row['upstream']:24} smoothed against raw: {row['lift']:+.3%} [{low:+.3%}, {high:+.3%}]")
    print(f"Written to {arguments.out}")


def measure(root: Path, households: int, seeds: int) -> dict[str, Any]:
    """Return every figure of the benchmark."""
    told, started = Told(), time.monotonic()
    if not (root / "lake" / "dataset.json").exists():
        demo.ingest_journey(root, households=households, progress=told)
    ws = Workspace.open(root)
    # What is measured is smoothing as the paper has it, of a model's own vectors.
    changed = {"upstreams": Config().upstreams[:1], "smoothing": Config().smoothing, "threads": 1}
    settings.save(demo.CONFIG.model_copy(update=changed), ws.home)
    ws = Workspace.open(root)
    ws.use_threads()
    own = train_upstream.run(ws, "v1", progress=told).space
    moments = ws.refresh_moments(ws.splits.upstream_end, ws.splits.end)
    near, loose = (_retrained(ws, own, alignment, told) for alignment in (ALIGNMENT, 0.0))
    times = f"retrained {len(near) - 1} times"
    chains = {"one model": [own], times: near, f"{times}, no alignment loss": loose}
    rows = _rows(ws)
    lift: list[dict[str, Any]] = []
    against: list[dict[str, Any]] = []
    steps: dict[str, list[dict[str, Any]]] = {}
    for name, chain in chains.items():
        raw = _refreshed(ws, chain, moments, told)
        smooth = {entity: smoothed(raw[entity]) for entity in ENTITIES}
        steps[name] = [asdict(_step(entity, smooth[entity], raw[entity], chain)) for entity in ENTITIES]
        logits: dict[str, np.ndarray] = {}
        for kind, vectors in (("smoothed", smooth), ("raw", raw)):
            told(f"rankers on {name} {kind}", 0, 1)
            scores = root / "scores" / f"{'-'.join(space.space_id for space in chain)}-{kind}"
            logits[kind], plain, test = _rankers(ws, rows, vectors, seeds, scores)
        facts = (test.label, test.weight, test.user)
        table = bootstrap_lift(*facts, plain, logits)
        lift += [_row(name, "none" if kind == "baseline" else kind, row) for kind, row in table.items()]
        pair = bootstrap_lift(*facts, logits["raw"], {"smoothed": logits["smoothed"]})
        against.append(_row(name, "smoothed", pair["smoothed"]))
    return {
        "households": households,
        "seeds": seeds,
        "test_rows": len(test.label),
        "retrained_at": [f"{model.train_end:%Y-%m-%d}" for model in near[1:]],
        "alignment": ALIGNMENT,
        "keep": KEEP,
        "seconds": round(time.monotonic() - started),
        "lift": lift,
        "smoothed_against_raw": against,
        "steps": steps,
    }


def _row(upstream: str, vectors: str, row: Any) -> dict[str, Any]:
    found = row.relative_auc_lift
    return {
        "upstream": upstream,
        "vectors": vectors,
        "auc": row.auc.value,
        "lift": found.value,
        "ci95": list(found.ci95),
        "seed_lifts": list(row.seed_auc_lifts),
    }


def _retrained(ws: Workspace, own: Space, alignment: float, told: Told) -> list[Space]:
    """Return a model and what it is trained on to every four weeks, each from the weights before it."""
    models, cut = [own], ws.splits.upstream_end + EVERY
    while cut < ws.splits.valid_end + EVERY and cut < ws.splits.end - EVERY:
        changes = {"version": "v2", "train_end": cut, "start_from": models[-1].space_id, "alignment": alignment}
        upstream = ws.config.upstream("v1").model_copy(update=changes)
        models.append(train_upstream.train(ws, upstream, progress=told).space)
        cut += EVERY
    return models


def _refreshed(ws: Workspace, chain: list[Space], moments: list[datetime], told: Told) -> Vectors:
    """Return what the latest model of each moment says of every entity: ids and unit vectors, in order of time."""
    found: Vectors = {entity: [] for entity in ENTITIES}
    models = [Upstream(ws, chain[0])]
    models += [Upstream(ws, space, models[0]) for space in chain[1:]]
    for step, moment in enumerate(moments):
        told("refresh", step, len(moments))
        model = [item for item in models if item.since <= moment][-1]
        for entity in ENTITIES:
            ids, vectors, _ = model.infer(entity, moment)
            found[entity].append((moment, ids, vectors))
    return found


def smoothed(refreshes: list[tuple[datetime, pl.Series, np.ndarray]]) -> list[tuple[datetime, pl.Series, np.ndarray]]:
    """Return the same refreshes, each mixed with the one before as a refresh of the platform is."""
    found: list[tuple[datetime, pl.Series, np.ndarray]] = []
    for moment, ids, vectors in refreshes:
        if found:
            earlier, known = aligned(ids, found[-1][1], found[-1][2])
            vectors = stabilize(vectors, earlier, known, KEEP)
        found.append((moment, ids, vectors))
    return found


def _step(entity: str, smooth: Any, raw: Any, chain: list[Space]) -> Step:
    retrains = {space.train_end for space in chain[1:]}

    def mean(refreshes: Any, at: set[datetime] | None) -> float | None:
        found = []
        for (_, ids, old), (moment, new_ids, new) in itertools.pairwise(refreshes):
            if at is None or moment in at:
                earlier, known = aligned(new_ids, ids, old)
                found.append(float(np.einsum("nd,nd->n", new[known], earlier[known]).mean()))
        return float(np.mean(found)) if found else None

    moved = (mean(smooth, None), mean(raw, None), mean(smooth, retrains), mean(raw, retrains))
    return Step(entity, *moved)  # type: ignore[arg-type]


def _rows(ws: Workspace) -> Path:
    """Write the ranker's rows without vectors as a training set does: counts and attributes as of each label."""
    from jobs import apply, backfill, training_set

    consumer = settings.Consumer(name="ctr_ranker", task=TASK, versions=("v1",))
    settings.save(ws.config.model_copy(update={"consumers": (consumer,)}), ws.home)
    ready = Workspace.open(ws.home.root)
    backfill.run(ready)
    apply.run(ready)
    return training_set.run(ready, "ctr_ranker").folder


def _rankers(
    ws: Workspace, folder: Path, vectors: Vectors, seeds: int, scores: Path
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Fit rankers with the given vectors and without any; return the test logits [S, N] of both, and the rows.

    What was scored before lies in the folder `scores`, or beside it, and is read.
    """
    from dataclasses import replace

    source, splits = TrainingSet(folder, LABELS[TASK]), ws.splits
    chosen = source.between(splits.upstream_end, splits.train_end)
    encoder = source.encoder(ws.log, ("v1",), chosen)
    tables = {
        embedding_view(entity, "v1"): joined(vectors[entity], source.frame[join_key(entity)], source, ws)
        for entity in ENTITIES
    }
    data = source.data(encoder, tables)
    train = replace(data, label=source.known_by(splits.train_end)).take(chosen)
    valid = replace(data, label=source.known_by(splits.valid_end)).take(
        source.between(splits.train_end, splits.valid_end)
    )
    test = data.take(source.between(splits.valid_end, None))
    spec, config = encoder.spec({view: table.shape[1] for view, (table, _) in tables.items()}), fit_config(len(data))

    def logits(views: list[str], seed: int, file: Path) -> np.ndarray:
        if not file.exists():
            fitted = fit_ranker(train, valid, spec.with_embeddings(tuple(views)), config, seed)
            with replacing(file) as staged, staged.open("wb") as out:
                np.save(out, predict(fitted.model, test) + fitted.offset)
        found: np.ndarray = np.load(file)
        return found

    own, none = (
        np.stack([logits(views, seed, place / f"{seed}.npy") for seed in range(seeds)])
        for views, place in ((list(tables), scores), ([], scores.with_name("none")))
    )
    return own, none, test


def joined(
    refreshes: list[tuple[datetime, pl.Series, np.ndarray]], ids: pl.Series, source: TrainingSet, ws: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Return all vectors [V, D] and, for each row, the place of the latest one that could be read, or -1."""
    clocks = [
        pl.DataFrame({"id": known, "time": pl.repeat(moment + ws.config.availability_lag, len(known), eager=True)})
        for moment, known, _ in refreshes
    ]
    stored = pl.concat(clocks).with_row_index("at").with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
    asked = pl.DataFrame({"id": ids, "time": source.frame["event_timestamp"].cast(pl.Datetime("us", "UTC"))})
    found = (
        asked.with_row_index("row")
        .sort("time")
        .join_asof(
            stored.sort("time"),
            on="time",
            by="id",
            strategy="backward",
            tolerance=ws.config.ttl,
            check_sortedness=False,
        )
    )
    places = found.sort("row")["at"].cast(pl.Int64).fill_null(-1).to_numpy()
    return np.concatenate([vectors for _, _, vectors in refreshes]), places


if __name__ == "__main__":
    main()
