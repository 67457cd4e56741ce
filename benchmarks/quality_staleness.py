"""How fast does the lift fade when nobody refreshes? The trained rankers on the test period with older vectors.

Every label is joined again as if it had happened k refreshes earlier, through Feast and the point-in-time store as any
training set is, and only the vectors of that join are kept: attributes, counts and context stay those of the label's
own time. The rankers are those that `headwater train-downstream` left; their training rows had fresh vectors. As
`as_of` moves with the label, the view's TTL does not hide old vectors here; in a home folder it does.

    make bench-staleness                                        # on the demo's home folder, minutes
    python -m benchmarks.quality_staleness --home world-home
"""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from benchmarks.periods import Told
from benchmarks.quality_homes import borrow
from feature_repo.lake import read_json, replacing
from jobs import apply, training_set
from jobs.features.ranking import RankerEncoder, TrainingSet
from jobs.train_downstream import LABELS
from jobs.workspace import Workspace
from models.bootstrap import bootstrap_lift
from models.downstream.artifact import load_ranker
from models.downstream.fit import predict

RESULTS = Path(__file__).parent / "results" / "staleness.json"
REFRESHES = (0, 1, 2, 4, 8, 12)
END = timedelta(days=36500)
DEMO = Path(".headwater")


def command(home: Path) -> str:
    """Return what measures a home folder again."""
    return "make bench-staleness" if home == DEMO else f"python -m benchmarks.quality_staleness --home {home.name}"


def main() -> None:
    """Measure one home folder, print its curve and put it into the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=DEMO)
    parser.add_argument("--consumer", default="ctr_ranker")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.home.resolve().parent) as scratch:  # hard links need the same disk
        ws = borrow(arguments.home.resolve(), Path(scratch) / "home")
        record = measure(ws, arguments.consumer, Path(scratch) / "joined") | {"command": command(arguments.home)}
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    known[f"{record['dataset']} {record['task']}"] = record
    with replacing(arguments.out) as staged:
        staged.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    for row in record["curve"]:
        low, high = row["ci95"]
        print(
            f"{row['embeddings']:24} {row['days']:5.1f} days  {row['lift']:+.3%} [{low:+.3%}, {high:+.3%}]  "
            f"against fresh {row['against_fresh']:+.3%}, found {row['hit_rates']}"
        )
    print(f"Written to {arguments.out}")


def measure(ws: Workspace, name: str, joined: Path) -> dict[str, Any]:
    """Return lift and hit rates for vectors of every age."""
    told = Told()
    told("feast apply", 0, 1)
    apply.run(ws)  # the registry of the copy still names the files of its source
    consumer = next(consumer for consumer in ws.ledger.consumers() if consumer["name"] == name)
    folder, task = ws.home.root / consumer["record"]["artifact"], consumer["task"]
    period = (ws.splits.valid_end, ws.splits.end + END)
    source = TrainingSet(ws.home.training_sets / name, LABELS[task], within=period)
    encoder = RankerEncoder.load(folder / "encoder.json")
    variants = {variant["name"]: variant for variant in read_json(folder / "consumer.json")["variants"]}
    kept = {name: variants[name] for name in dict.fromkeys(("user+item", list(variants)[-1]))}
    test = np.load(folder / "test.npz")
    baseline = np.stack([np.load(folder / "none" / f"seed-{s}" / "test.npz")["logit"] for s in range(ws.config.seeds)])
    shifts = [k for k in REFRESHES if ws.splits.valid_end - k * ws.config.refresh_every > ws.splits.upstream_end]
    facts = test["label"], test["weight"], test["user"]
    curve: list[dict[str, Any]] = []
    fresh: dict[str, np.ndarray] = {}
    for k in shifts:
        told(f"vectors {k} refreshes older", 0, 1)
        older = _older(ws, name, source, k, joined / str(k), period)
        vectors = {view: older.vectors(view) for view in older.views}
        found = {view: round(float((place >= 0).mean()), 4) for view, (_, place) in vectors.items()}
        data = source.data(encoder, vectors)
        for variant, record in kept.items():
            place = folder / "-".join(record["views"])
            spaces = {view: ws.ledger.version(view.rsplit("_", 1)[1]).space_id for view in record["views"]}
            rankers = [load_ranker(place / f"seed-{seed}", spaces) for seed in range(ws.config.seeds)]
            logits = np.stack([predict(ranker.model, data) + ranker.extra["offset"] for ranker in rankers])
            fresh.setdefault(variant, logits)
            lift = bootstrap_lift(*facts, baseline, {"row": logits}, resamples=ws.config.bootstrap)["row"]
            change = bootstrap_lift(*facts, fresh[variant], {"row": logits}, resamples=ws.config.bootstrap)["row"]
            curve.append(
                {
                    "embeddings": variant,
                    "refreshes": k,
                    "days": round(_days(source, older, record["views"]), 2),
                    "auc": lift.auc.value,
                    "lift": lift.relative_auc_lift.value,
                    "ci95": list(lift.relative_auc_lift.ci95),
                    "against_fresh": change.relative_auc_lift.value,
                    "against_fresh_ci95": list(change.relative_auc_lift.ci95),
                    "hit_rates": {view: found[view] for view in record["views"]},
                }
            )
    return {
        "dataset": ws.log.record.name,
        "task": task,
        "seeds": ws.config.seeds,
        "rows": len(test["label"]),
        "ttl_days": ws.config.ttl_days,
        "curve": curve,
    }


def _older(ws: Workspace, name: str, source: TrainingSet, k: int, folder: Path, period: Any) -> TrainingSet:
    """Return the test rows joined as if each label had happened k refreshes earlier."""
    if k == 0:
        return source
    moved = pl.col("event_timestamp") - k * ws.config.refresh_every
    labels = folder.with_suffix(".labels.parquet")
    labels.parent.mkdir(parents=True, exist_ok=True)
    source.frame.select("row_id", moved, "user_id", "item_id").write_parquet(labels)
    training_set.run(ws, name, labels=labels, out=folder)
    # Its rows carry no outcome: none of the moved moments is that of a label.
    older = TrainingSet(folder, source._label)
    if not older.frame["row_id"].equals(source.frame["row_id"]):
        raise AssertionError("The join changed the order of its rows; scores would belong to other labels.")
    return older


def _days(source: TrainingSet, older: TrainingSet, views: list[str]) -> float:
    """Return the mean age of the vectors that were found, at the time of the real label."""
    label = source.frame["event_timestamp"].dt.epoch("us")
    ages = [(label - older.frame[f"{view}__available_us"]).drop_nulls() for view in views]
    return float(np.mean([age.mean() / 86_400_000_000 for age in ages]))


if __name__ == "__main__":
    main()
