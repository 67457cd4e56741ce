"""What does each choice of the upstream bring? One choice changed at a time, all else as worlds have it for v1.

On a simulated world of 600,000 impressions (1,500 users, 600 items, 90 days), whose truth is known. For each setting
the upstream is trained anew, vectors are refreshed through gate and ledger for every week from its cut-off on, joined
point in time, and CTR rankers are trained with user and item vectors, four seeds. Every one is held against the ranker
without vectors, and against the default setting on the same resamples.

    make bench-ablations                                             # one to three minutes of one core per setting
    python -m benchmarks.quality_ablations --work DIR --only "contrastive loss off"

Killed, the same command goes on; records go into quality.json as each setting is done.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.periods import Told
from benchmarks.quality_homes import borrow, read_rows, scores
from benchmarks.quality_records import RESULTS, put
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.lake import Home
from jobs import apply, backfill, ingest, simulate, train_upstream, training_set
from jobs import config as settings
from jobs.config import Config, Consumer, Upstream
from jobs.truth import oracle_logits
from jobs.world import config as worlds
from models import presets
from models.bootstrap import bootstrap_lift
from models.upstream.derm import DERM

DATASET, COMMAND = "world-600k", "make bench-ablations"
WORLD = {"users": 1500, "items": 600, "days": 90, "seed": 7, "impressions": 600_000}
CONSUMER = Consumer(name="ctr_ranker", task="ctr", versions=("v1",))
DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One change: of the home's settings, of the upstream's, or of the model that the preset makes."""

    config: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, Any] = field(default_factory=dict)
    model: Callable[[DERM.Config], DERM.Config] | None = None


def pair(*modules: str) -> Callable[[DERM.Config], DERM.Config]:
    """Return a change that gives the DHEN of every tower these two modules."""

    def changed(tower: Any) -> Any:
        return replace(tower, dhen=replace(tower.dhen, modules=modules))

    def change(config: DERM.Config) -> DERM.Config:
        towers = (config.user, config.item, config.interaction)
        user, item, interaction = (changed(tower) for tower in towers)
        return replace(config, user=user, item=item, interaction=interaction)

    return change


def floats(count: int) -> Callable[[DERM.Config], DERM.Config]:
    """Return a change that makes vectors of so many floats, in as many tokens as before."""
    return lambda config: replace(config, out_dim=count // config.out_tokens)


SETTINGS = {
    DEFAULT: Setting(),  # contrastive loss on, masknet + mlp, 192 floats, 90 days, outcomes folded in, no smoothing
    "contrastive loss off": Setting(upstream={"contrastive_weight": 0.0}),
    "masknet + transformer": Setting(model=pair("masknet", "transformer")),
    "transformer + mlp": Setting(model=pair("transformer", "mlp")),
    "64 floats": Setting(model=floats(64)),
    "coverage 28 days": Setting(config={"coverage_days": 28}),
    "smoothing 0.8": Setting(config={"smoothing": 0.8}),
    "nothing folded in": Setting(upstream={"fold_in": None, "fold_in_of": None}),
}


def main() -> None:
    """Measure every setting that has no scores yet, print the table, write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".ablations"), help="world, homes and scores, kept")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--impressions", type=int, default=WORLD["impressions"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    told = Told()
    work = arguments.work.resolve()
    world = WORLD | {"impressions": arguments.impressions}
    base = ingested(work, world, told)
    found: dict[str, Scored] = {}
    for name in dict.fromkeys((DEFAULT, *arguments.only)):
        told(f"setting {name}", 0, 1)
        started = time.process_time()
        found[name] = measure(base, work, name, arguments.seeds, told)
        records = records_of(found, arguments.seeds, arguments.impressions)
        put(records, arguments.out)
        print(line(records[-1]), f"({time.process_time() - started:.0f} s of CPU)", flush=True)
    print(f"Written to {arguments.out}")


def ingested(work: Path, world: dict[str, int], told: Any) -> Path:
    """Return a home folder with the world's log and nothing else."""
    folder, home = work / "world", work / "base"
    simulate.run(worlds.checked(**world), folder, progress=told)
    if not (home / "lake" / "dataset.json").exists():
        ingest.run(
            ingest.IngestConfig(
                home=home,
                name=DATASET,
                events=(str(folder / "events"),),
                users=(str(folder / "users.parquet"),),
                items=(str(folder / "items.parquet"),),
                now=datetime.now(UTC),
            )
        )
    settings.save(settings.read(folder / "config.yaml"), Home(home))
    return home


@dataclass(frozen=True)
class Scored:
    """The test rows of a setting, and the logits of its rankers, of those without vectors and of the truth."""

    facts: tuple[np.ndarray, np.ndarray, np.ndarray]
    none: np.ndarray
    logits: np.ndarray
    oracle: np.ndarray


def measure(base: Path, work: Path, name: str, seeds: int, told: Any) -> Scored:
    """Train a setting's upstream, refresh, join, train its rankers; what an earlier run finished is kept."""
    setting, place = SETTINGS[name], work / name.replace(" ", "-")
    known = settings.load(Home(base))
    upstream = Upstream(**(simulate.UPSTREAMS[0].model_dump(exclude_unset=True) | setting.upstream))
    changes = {"upstreams": (upstream,), "consumers": (CONSUMER,), "processes": 1, "refresh_days": 7, **setting.config}
    ws = borrow(base, place / "home", lake_only=True, config=Config(**(dict(known) | changes)))
    done = place / "scores.npz"
    if not done.exists():
        with preset_changed(setting.model):
            train_upstream.run(ws, "v1", progress=told)
        backfill.run(ws, progress=told)
        apply.run(ws)
        training_set.run(ws, CONSUMER.name, progress=told)
        rows = read_rows(ws, CONSUMER.name)
        views = tuple(embedding_view(entity, "v1") for entity in ENTITIES)
        logits = scores(rows, views, seeds, place / "user-item", told)
        # Without vectors every setting has the same rows: trained once, for the default.
        none = scores(rows, (), seeds, work / DEFAULT / "none", told)
        ids = test_impressions(ws)
        np.savez(
            done,
            label=rows.test.label,
            weight=rows.test.weight,
            user=rows.test.user,
            none=none,
            logits=logits,
            oracle=oracle_logits(work / "world" / "truth", "ctr", ids),
        )
    kept = np.load(done)
    return Scored((kept["label"], kept["weight"], kept["user"]), kept["none"], kept["logits"], kept["oracle"])


def test_impressions(ws: Any) -> Any:
    """Return the ids of the test impressions, in the order of the scores."""
    import polars as pl

    rows = pl.read_parquet(
        sorted((ws.home.training_sets / CONSUMER.name).glob("part-*.parquet")),
        columns=["event_timestamp", "impression_id"],
    )
    return rows.filter(pl.col("event_timestamp") >= ws.splits.valid_end)["impression_id"]


@contextlib.contextmanager
def preset_changed(change: Callable[[DERM.Config], DERM.Config] | None) -> Iterator[None]:
    """Make the preset `small` build another model for a while; training runs in this process."""
    original = presets.small
    if change is not None:
        made = original()
        presets.small = lambda: replace(made, model=lambda inputs: change(made.model(inputs)))
    try:
        yield
    finally:
        presets.small = original


def records_of(found: dict[str, Scored], seeds: int, impressions: int) -> list[dict[str, Any]]:
    """Return the records of all settings measured so far, the default's first."""
    facts, none, default = found[DEFAULT].facts, found[DEFAULT].none, found[DEFAULT].logits
    others = {name: scored.logits for name, scored in found.items()}
    table = bootstrap_lift(*facts, none, others, oracle=found[DEFAULT].oracle)
    against = bootstrap_lift(*facts, default, others)
    size = "" if impressions == WORLD["impressions"] else f" --impressions {impressions}"
    shared = {
        "dataset": DATASET if not size else f"world-{impressions // 1000}k",
        "task": "ctr",
        "recall_at_100": None,
        "ranking_cost": None,
        "seeds": seeds,
        "rows": len(facts[0]),
        "positives": int(facts[0].sum()),
        "command": COMMAND if not size else f"python -m benchmarks.quality_ablations{size}",
        "baseline": "the ranker without embeddings",
    }
    records = []
    for key, model, embeddings in (
        ("baseline", "ranker", "none"),
        *((name, f"ranker, upstream: {name}", "user+item") for name in found),
    ):
        row, share = table[key], table[key].share_of_possible_gain
        records.append(
            shared
            | {
                "model": model,
                "embeddings": embeddings,
                "auc": row.auc.value,
                "log_loss": row.log_loss.value,
                "normalized_entropy": row.normalized_entropy.value,
                "relative_auc_lift": row.relative_auc_lift.value if key != "baseline" else None,
                "ci95": list(row.relative_auc_lift.ci95) if key != "baseline" else None,
                "share_of_possible_gain": share.value if share and key != "baseline" else None,
                "share_ci95": list(share.ci95) if share and key != "baseline" else None,
            }
        )
        if key not in ("baseline", DEFAULT):
            change = against[key].relative_auc_lift
            records[-1] |= {"against_default": change.value, "against_default_ci95": list(change.ci95)}
    return records


def line(record: dict[str, Any]) -> str:
    """Return a record as a line for a person."""
    low, high = record["ci95"]
    text = f"{record['model']}: {record['relative_auc_lift']:+.3%} [{low:+.3%}, {high:+.3%}]"
    if "against_default" in record:
        low, high = record["against_default_ci95"]
        text += f", against the default {record['against_default']:+.3%} [{low:+.3%}, {high:+.3%}]"
    return text


if __name__ == "__main__":
    main()
