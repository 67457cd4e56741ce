"""Records of quality out of a home folder: every row of its lift table, its retrieval, and what ranking costs.

    make bench-quality                                             # on the demo's home folder, after `make demo`
    python -m benchmarks.quality --home world-home --command "..."   # any other home folder that ran

Evaluates again, so that the figures are those of the present code, then measures the cost of ranking: the time in
which a ranker scores one request of one user and 500 candidates on one thread, made ready as serving does, features and
vectors at hand (the fastest of sixty, for what else runs on the machine only adds to it). Records go into
`benchmarks/results/quality.json` and, for the report page, into `reports/quality.json` of the home folder;
`docs/results.md` is written from the former (`python -m benchmarks.quality_tables`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.one_request import OneRequest, of_one_user
from benchmarks.periods import Told
from benchmarks.quality_records import RESULTS, put
from feature_repo.lake import read_json, write_json
from jobs import evaluate, report
from jobs.features.ranking import RankerEncoder, TrainingSet
from jobs.train_downstream import LABELS
from jobs.workspace import Workspace
from models.downstream.artifact import load_ranker

CANDIDATES, REPEATS = 500, 60
EMPTY = dict.fromkeys(
    ("auc", "log_loss", "normalized_entropy", "relative_auc_lift", "ci95", "share_of_possible_gain", "recall_at_100")
)


def main() -> None:
    """Evaluate a home folder and put its records beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"))
    parser.add_argument("--command", default="make demo && make bench-quality", help="what repeats these figures")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ws = Workspace.open(arguments.home)
    ws.use_threads()
    summary = evaluate.run(ws, progress=Told()).summary
    costs = {(task, name): cost for task, found in ranking_costs(ws).items() for name, cost in found.items()}
    merged = put(records_of(summary, costs, arguments.command), arguments.out)
    own = [record for record in merged if record["dataset"] == summary["dataset"]["name"]]
    write_json(own, ws.home.reports / "quality.json")
    page = report.run(ws.home.root).path
    print(f"{len(own)} records of {summary['dataset']['name']}, of {len(merged)} in {arguments.out}; report: {page}")


def records_of(summary: dict[str, Any], costs: dict[tuple[str, str], float], command: str) -> list[dict[str, Any]]:
    """Return the records of a summary; `costs` are milliseconds by task and row of the lift table."""
    dataset = summary["dataset"]["name"]
    records: list[dict[str, Any]] = []
    for row in [*summary["lift"], *summary["oracle"]]:
        oracle, base = row["embeddings"] == "oracle", row["embeddings"] == "none"
        record = EMPTY | {
            "dataset": dataset,
            "task": row["task"],
            "model": "true probabilities" if oracle else "ranker",
            "embeddings": "none" if oracle else row["embeddings"],
            "ranking_cost": None if oracle else costs.get((row["task"], row["embeddings"])),
            "command": command,
        }
        record |= {name: row[name] for name in ("auc", "log_loss", "normalized_entropy", "rows", "positives", "seeds")}
        if not base:
            record |= {
                name: row[name] for name in ("relative_auc_lift", "ci95", "share_of_possible_gain", "share_ci95")
            }
        if not base and not oracle:
            record |= {name: row[name] for name in ("adjusted_ci95", "p_value", "adjusted_p_value", "comparisons")}
        records.append(record)
    for row in summary["retrieval"]:
        record = EMPTY | {
            "dataset": dataset,
            "task": "retrieval",
            "model": row["model"],
            "embeddings": "user+item" if row["model"].startswith("DERM") else "none",
            "ci95": row["ci95_at_100"],
            "recall_at_100": row["recall_at_100"],
            "ranking_cost": None,
            "seeds": 1,
            "rows": (summary["retrieval_setup"] or {}).get("users"),
            "command": command,
        }
        records.append(record)
    return records


def ranking_costs(ws: Workspace) -> dict[str, dict[str, float]]:
    """Return the milliseconds of one request of 500 candidates, by task and row of the lift table."""
    found: dict[str, dict[str, float]] = {}
    for consumer in ws.ledger.consumers():
        if consumer["task"] == "retrieval" or "artifact" not in consumer["record"]:
            continue
        folder = ws.home.root / consumer["record"]["artifact"]
        shards = read_json(ws.home.training_sets / consumer["name"] / "manifest.json")["files"][-1:]
        source = TrainingSet(ws.home.training_sets / consumer["name"], LABELS[consumer["task"]], shards)
        encoder = RankerEncoder.load(folder / "encoder.json")
        data = source.data(encoder, {view: source.vectors(view) for view in source.views})
        request = of_one_user(encoder, data.take(np.arange(min(CANDIDATES, len(data)))), 0)
        found[consumer["task"]] = {}
        for variant in read_json(folder / "consumer.json")["variants"]:
            place = folder / ("-".join(variant["views"]) or "none") / "seed-0"
            spaces = {view: ws.ledger.version(view.rsplit("_", 1)[1]).space_id for view in variant["views"]}
            found[consumer["task"]][variant["name"]] = milliseconds(
                OneRequest(load_ranker(place, spaces).model, encoder, request)
            )
    return found


def milliseconds(request: Callable[[], Any]) -> float:
    """Return the fastest time of a request, in milliseconds."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        request()
        taken.append(1000 * (time.perf_counter() - started))
    return round(min(taken), 3)


if __name__ == "__main__":
    main()
