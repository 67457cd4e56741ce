"""Can the evaluation tell? Three experiments whose outcome is known beforehand, on a home folder that ran before.

- Shuffled labels: outcomes (with their weights) are dealt anew to the rows of each period, ten times. Nothing is to be
  learned, so the mean ROC-AUC must be 0.5 within its interval over the dealings, with embeddings and without.
- Shuffled ids: every vector is given to another entity or moment. A ranker with such vectors must show no lift.
- A leaking snapshot: an upstream trained up to the end of the log, whose vectors are published for earlier moments as
  if they had been known. `headwater refresh` refuses to make them, so this goes around it. The leak report must count
  the rows, and the lift must be too good to be true.

    make bench-sanity                                        # on the demo's home folder
    python -m benchmarks.quality_sanity --home small --seeds 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.periods import Told
from benchmarks.quality_homes import Rows, borrow, read_rows, scores
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.lake import replacing
from jobs import apply, refresh, train_upstream, training_set
from jobs import config as settings
from jobs.config import Consumer, Upstream
from jobs.publication import publish_together
from jobs.workspace import Workspace
from models.bootstrap import bootstrap_lift
from models.downstream.inputs import RankerData
from models.metrics import roc_auc

RESULTS = Path(__file__).parent / "results" / "sanity.json"
HOME = Path(".headwater")
LEAKY = "v9"
DEALINGS = 10


def main() -> None:
    """Run the three experiments on a copy of a home folder, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=HOME, help="home folder after `headwater run`")
    parser.add_argument("--name", help="how the home folder is called in the record, where its path tells nobody")
    parser.add_argument("--work", type=Path, help="keep copy and scores here, so that a killed run goes on")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    with TemporaryDirectory(dir=home.parent) as scratch:  # hard links need the same disk
        record = measure(home, arguments.work or Path(scratch), arguments.seeds)
    if arguments.home != HOME:
        record["command"] = f"python -m benchmarks.quality_sanity --home {arguments.name or arguments.home}"
    with replacing(arguments.out) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in record["experiments"]:
        print(f"{'as expected' if row['as_expected'] else 'NOT AS EXPECTED':16} {row['experiment']}: {row['found']}")
    print(f"Written to {arguments.out}")


def measure(home: Path, work: Path, seeds: int) -> dict[str, Any]:
    """Return what each experiment found, and whether that is what it had to be."""
    told = Told()
    ws = borrow(home, work / "home")
    ws.use_threads()
    first = ws.config.upstreams[0].version
    views = tuple(embedding_view(entity, first) for entity in ENTITIES)
    rows = read_rows(ws, "ctr_ranker")
    none = scores(rows, (), seeds, work / "none", told)
    real = scores(rows, views, seeds, work / "real", told)
    dealt = {
        name: dealt_aucs(rows, chosen, work / f"labels, {name}", told)
        for name, chosen in {"without embeddings": (), "user+item": views}.items()
    }
    ids = scores(shuffled_ids(rows, views, 0), views, seeds, work / "ids", told)
    leaks, leaky_rows = leak(ws, told)
    leaky = scores(leaky_rows, tuple(embedding_view(e, LEAKY) for e in ENTITIES), seeds, work / "leak", told)
    return {
        "dataset": ws.log.record.name,
        "seeds": seeds,
        "rows": len(rows.test.label),
        "command": "make bench-sanity",
        "experiments": [
            *(judge_labels(name, aucs) for name, aucs in dealt.items()),
            judge_ids(rows.test, none, real, ids),
            judge_leak(rows.test, none, real, leaky, leaks),
        ],
    }


def shuffled_labels(rows: Rows, seed: int) -> Rows:
    """Return the rows with outcomes and their weights dealt anew within each period."""
    generator = np.random.default_rng(seed)

    def dealt(data: RankerData) -> RankerData:
        order = generator.permutation(len(data.label))
        return replace(data, label=data.label[order], weight=data.weight[order])

    return replace(rows, train=dealt(rows.train), valid=dealt(rows.valid), test=dealt(rows.test))


def dealt_aucs(
    rows: Rows, views: tuple[str, ...], folder: Path, told: Any = None, dealings: int = DEALINGS
) -> list[float]:
    """Return the test ROC-AUC of rankers, each trained and tested on labels that were dealt in another way."""
    found = []
    for dealing in range(dealings):
        shuffled = shuffled_labels(rows, dealing)
        (logits,) = scores(shuffled, views, 1, folder / f"dealing {dealing}", told)
        found.append(roc_auc(shuffled.test.label, logits, shuffled.test.weight))
    return found


def shuffled_ids(rows: Rows, views: Sequence[str], seed: int) -> Rows:
    """Return the rows with every vector (one entity at one moment) given to another one."""
    generator = np.random.default_rng(seed)
    orders = {view: generator.permutation(len(rows.train.embeddings[view][0])) for view in views}

    def dealt(data: RankerData) -> RankerData:
        moved = {view: (data.embeddings[view][0][orders[view]], data.embeddings[view][1]) for view in views}
        return replace(data, embeddings={**data.embeddings, **moved})

    return replace(rows, train=dealt(rows.train), valid=dealt(rows.valid), test=dealt(rows.test))


def leak(ws: Workspace, told: Any) -> tuple[dict[str, Any], Rows]:
    """Publish vectors of a model trained to the end of the log; return what the leak report says, and the rows."""
    known = ws.config.upstreams[0].model_dump() | {"version": LEAKY, "train_end": ws.splits.end}
    consumer = Consumer(name="leaky", task="ctr", versions=(LEAKY,))
    changes = {"upstreams": (*ws.config.upstreams, Upstream(**known)), "consumers": (*ws.config.consumers, consumer)}
    settings.save(ws.config.model_copy(update=changes), ws.home)
    ws = Workspace.open(ws.home.root)
    space = train_upstream.run(ws, LEAKY, progress=told).space
    moments = ws.refresh_moments(ws.splits.upstream_end, min(ws.log.end, ws.splits.end))
    refused = [refresh.why_not(ws, LEAKY, moment) is not None for moment in moments]
    upstream = refresh.Upstream(ws, space)
    for moment in moments:
        told(f"publish the leak as of {moment:%Y-%m-%d}", 0, 1)
        views = [embedding_view(entity, LEAKY) for entity in ENTITIES]
        if all(refresh.published(ws, view, moment) for view in views):
            continue
        candidates = [refresh.candidate(ws, upstream, entity, LEAKY, moment) for entity in ENTITIES]
        available = moment + ws.config.availability_lag
        publish_together(ws, candidates, moment, space_id=space.space_id, available_at=available)
    apply.run(ws)
    manifest = training_set.run(ws, "leaky", progress=told).manifest
    counts = manifest["leak_report"]["any view"]
    found = {
        "refresh_refused": f"{sum(refused)} of {len(moments)} moments",
        "model_trained_after_as_of": counts["model_trained_after_as_of"],
        "rows": manifest["rows"],
        "clock_leaks": manifest["leaks"],
    }
    return found, read_rows(ws, "leaky")


def judge_labels(name: str, aucs: Sequence[float]) -> dict[str, Any]:
    """Hold the mean AUC of several dealings against 0.5, by Student's t."""
    mean, error = float(np.mean(aucs)), float(np.std(aucs, ddof=1) / np.sqrt(len(aucs)))
    low, high = (mean + side * float(stats.t.ppf(0.975, len(aucs) - 1)) * error for side in (-1, 1))
    told = f"ROC-AUC {mean:.4f} [{low:.4f}, {high:.4f}] over {len(aucs)} dealings"
    figures = {"auc": mean, "ci95": [low, high], "aucs": list(aucs)}
    return {"experiment": f"shuffled labels, {name}", "found": told, "as_expected": low <= 0.5 <= high, **figures}


def judge_ids(test: RankerData, none: np.ndarray, real: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Shuffled vectors may cost a little, as any useless input does; they must not lift."""
    table = bootstrap_lift(test.label, test.weight, test.user, none, {"real": real, "shuffled": ids})
    lift, own = table["shuffled"].relative_auc_lift, table["real"].relative_auc_lift
    told = f"lift {_bounds(lift)}, with the right ids {_bounds(own)}"
    figures = {"lift": lift.value, "ci95": list(lift.ci95), "real_lift": own.value, "real_ci95": list(own.ci95)}
    return {"experiment": "shuffled ids", "found": told, "as_expected": lift.ci95[0] <= 0, **figures}


def judge_leak(
    test: RankerData, none: np.ndarray, real: np.ndarray, leaky: np.ndarray, leaks: dict[str, Any]
) -> dict[str, Any]:
    """A leak must be counted, and its lift must be above the honest one, beyond the honest one's interval."""
    table = bootstrap_lift(test.label, test.weight, test.user, none, {"real": real, "leaky": leaky})
    lift, own = table["leaky"].relative_auc_lift, table["real"].relative_auc_lift
    told = (
        f"lift {_bounds(lift)} against the honest {_bounds(own)}; the leak report counts "
        f"{leaks['model_trained_after_as_of']:,} of {leaks['rows']:,} rows, refresh refused "
        f"{leaks['refresh_refused']}"
    )
    expected = leaks["model_trained_after_as_of"] > 0 and lift.ci95[0] > own.ci95[1]
    figures = {"lift": lift.value, "ci95": list(lift.ci95), "real_lift": own.value, "real_ci95": list(own.ci95)}
    return {"experiment": "leaking snapshot", "found": told, "as_expected": bool(expected), **figures, **leaks}


def _bounds(found: Any) -> str:
    return f"{found.value:+.2%} [{found.ci95[0]:+.2%}, {found.ci95[1]:+.2%}]"


if __name__ == "__main__":
    main()
