"""What `benchmarks.peers` found, as rows, as records of quality and as text."""

from __future__ import annotations

from typing import Any

from benchmarks import peers_sasrec, quality_records
from benchmarks.peers_monolith import CANDIDATES
from benchmarks.peers_rows import RANK
from models.bootstrap import LiftRow

OURS, ALL, SVD = "v1 user+item", "all upstreams", f"SVD {RANK}"


def lift_row(name: str, row: LiftRow) -> dict[str, Any]:
    """Return a row of the lift table as JSON; `name` is "model | embeddings"."""
    share = row.share_of_possible_gain
    model, _, embeddings = name.partition(" | ")
    return {
        "model": model,
        "embeddings": embeddings,
        "auc": row.auc.value,
        "log_loss": row.log_loss.value,
        "normalized_entropy": row.normalized_entropy.value,
        "calibration": row.calibration.value,
        "relative_auc_lift": row.relative_auc_lift.value,
        "ci95": list(row.relative_auc_lift.ci95),
        "seed_auc_lifts": list(row.seed_auc_lifts),
        "share_of_possible_gain": share.value if share else None,
        "share_ci95": list(share.ci95) if share else None,
    }


def records(dataset: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the peers' records of quality; ours come from `jobs.evaluate`'s tables."""
    command = f"python -m benchmarks.peers  # {dataset}"
    empty = dict.fromkeys(quality_records.FIGURES)
    made = []
    for task in ("ctr", "cvr"):
        for row in found.get(task, {}).get("lift", []):
            if row["model"] == "oracle" or (row["model"] == "ranker" and row["embeddings"] in ("none", OURS, ALL)):
                continue
            # As of all rankers: the fastest of many.
            cost = found[task].get("ranking_cost") or {}
            taken = cost["fastest_milliseconds"] if cost.get("candidates") == CANDIDATES else {}
            kept = {name: row.get(name) for name in (*quality_records.FIGURES, "embeddings", "share_ci95")}
            made.append(
                {
                    **kept,
                    "dataset": dataset,
                    "task": task,
                    "model": named(row["model"]),
                    "ranking_cost": taken.get({"ranker": row["embeddings"]}.get(row["model"], row["model"])),
                    "seeds": found[task]["seeds"],
                    "rows": found[task]["rows"],
                    "positives": found[task]["positives"],
                    "baseline": "ranker without embeddings",
                    "command": command,
                }
            )
    for row in found.get("retrieval", []):
        if row["model"].startswith("DERM") or row["model"] == "popularity":
            continue
        low, high = row["ours_minus_it_ci95"]
        made.append(
            {
                **empty,
                "dataset": dataset,
                "task": "retrieval",
                "model": named(row["model"]),
                "embeddings": "none",
                "recall_at_100": row["recall_at_100"],
                "ci95": row["ci95"],
                "seeds": row["seeds"],
                "rows": row["users"],
                "note": f"recall@100 of v1 minus it: {row['ours_minus_it']:+.4f} [{low:+.4f}, {high:+.4f}]",
                "command": command,
            }
        )
    return made


def alone(version: str) -> str:
    """Return what the table calls the vectors of a further upstream without the first one's."""
    return f"user+item of {version}"


def named(model: str) -> str:
    """Return a model's name with the version of the package that it comes from."""
    from importlib.metadata import version

    name, *more = model.split(", ", 1)
    package = {"LightGBM": "lightgbm", "ALS": "implicit", "BPR": "implicit", "item-kNN": "implicit"}.get(name)
    if name == "SASRec":
        return ", ".join([f"{name} (RecBole {peers_sasrec.RECBOLE})", *more])
    return model if package is None else ", ".join([f"{name} ({package} {version(package)})", *more])


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    for task in ("ctr", "cvr"):
        if task not in found:
            continue
        print(f"\n{task}: {found[task]['rows']:,} test rows, {found[task]['seeds']} seeds")
        for row in found[task]["lift"]:
            low, high = row["ci95"]
            share = (
                "" if row["share_of_possible_gain"] is None else f"  {row['share_of_possible_gain']:.1%} of the gain"
            )
            print(
                f"  {row['model']:10} {row['embeddings']:24} {row['auc']:.5f}  {row['relative_auc_lift']:+.3%} "
                f"[{low:+.3%}, {high:+.3%}]  log loss {row['log_loss']:.5f}{share}"
            )
        for row in found[task]["against"]:
            low, high = row["ci95"]
            print(f"  {row['model']} against {row['against']}: {row['lift']:+.3%} [{low:+.3%}, {high:+.3%}]")
        if cost := found[task].get("ranking_cost"):
            told = ", ".join(f"{kind} {value:.1f} ms" for kind, value in cost["milliseconds"].items())
            print(f"  {cost['candidates']} candidates on one thread: {told}")
    for row in found.get("retrieval", []):
        (low, high), (a, b) = row["ci95"], row["ours_minus_it_ci95"]
        print(
            f"  {row['model']:12} recall@100 {row['recall_at_100']:.4f} [{low:.4f}, {high:.4f}]  "
            f"ours minus it {row['ours_minus_it']:+.4f} [{a:+.4f}, {b:+.4f}]  {row['setting']}"
        )
