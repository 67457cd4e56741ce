"""The rows of the paper's table for one's own data, beside the published lifts, with the number of comparisons said.

The paper: Decoupled Entity Representation Learning for Pinterest Ads Ranking, arXiv 2509.04337. Its lifts are over a
production ranker on billions of rows; ours are over the ranker of this repository. They are no target: they say what is
usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.bootstrap import Interval
from models.multiplicity import holm, p_value, simultaneous

# Relative ROC-AUC lift of the CTR ranker: user embeddings, item embeddings added, those of the CVR upstream added.
PUBLISHED = {"user": 0.00095, "user+item": 0.00160, "conversion upstream added": 0.00190}


def published(task: str, embeddings: str, conversion_versions: Sequence[str]) -> float | None:
    """Return the paper's lift for a row of ours; None where the paper has no such row."""
    if task != "ctr":
        return None
    if any(embeddings == f"user+item, {version} added" for version in conversion_versions):
        return PUBLISHED["conversion upstream added"]
    return PUBLISHED.get(embeddings)


def adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the rows of a lift table what their number does to them, in place.

    One family is the whole table, all tasks: whoever reads it may quote any row. Rows get ``comparisons``, ``p_value``,
    ``adjusted_p_value`` (Holm) and ``adjusted_ci95`` (Bonferroni); rows without embeddings get null, and so do those of
    a task with too few outcomes to tell.
    """
    compared = [row for row in rows if row["embeddings"] != "none"]
    for row in rows:
        row |= {"comparisons": len(compared), "p_value": None, "adjusted_p_value": None, "adjusted_ci95": None}
    lifts = [Interval(row["relative_auc_lift"], tuple(row["ci95"]), row["lift_error"]) for row in compared]
    plain = [None if row.get("too_few") else p_value(lift) for row, lift in zip(compared, lifts, strict=True)]
    for row, lift, value, adjusted in zip(compared, lifts, plain, holm(plain), strict=True):
        known = value is not None
        row["p_value"], row["adjusted_p_value"] = value, adjusted
        row["adjusted_ci95"] = list(simultaneous(lift, len(compared))) if known else None


def table(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Return the paper's rows for a summary, written for a person."""
    oracle = {row["task"] for row in summary.get("oracle", [])}
    rows = []
    for row in summary["lift"]:
        base = row["embeddings"] == "none"
        share, ends = row.get("share_of_possible_gain"), row.get("share_ci95")
        written = {
            "task": row["task"],
            "embeddings": row["embeddings"],
            "ROC-AUC": f"{row['auc']:.5f}",
            "lift": "" if base else f"{row['relative_auc_lift']:+.3%}",
            "95% interval": "" if base else _bounds(row["ci95"]),
            "the paper's": f"{row['published_lift']:+.3%}" if row.get("published_lift") else "",
            f"all {row['comparisons']} at 95%": "" if base else _bounds(row["adjusted_ci95"]),
            "p (Holm)": "" if base else _p(row["adjusted_p_value"]),
            "norm. entropy": f"{row['normalized_entropy']:.4f}",
        }
        if oracle:
            known = not base and share is not None and ends is not None
            written["share of possible gain"] = f"{share:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]" if known else ""
        rows.append(written)
    return rows


def notes(summary: dict[str, Any]) -> list[str]:
    """Return what has to be said beside the table."""
    rows = summary["lift"]
    compared = rows[0]["comparisons"]
    seeds = sorted({row["seeds"] for row in rows})
    return [
        f"{compared} comparisons, every one in the table. A 95% interval stands for its row alone; "
        f"'all {compared} at 95%' holds for all of them together (Bonferroni), p is adjusted by Holm's method.",
        f"Intervals: {summary.get('bootstrap', 200)} resamples of users, each used for every row and seed; means "
        f"over {' or '.join(map(str, seeds))} seeds. They cover who was in the test period, not which seeds.",
        *sentences_of_few(rows),
        "The paper's lifts are over another ranker and another log (arXiv 2509.04337): they say what is usual.",
    ]


def sentences_of_few(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence per task whose test period has too few outcomes to tell anything."""
    found = {
        row["task"]: f"{row['task']}: {row['positives']:,} of {row['rows']:,} test rows are positive, "
        f"{row['too_few']}: too few to tell."
        for row in rows
        if row.get("too_few")
    }
    return list(found.values())


def _bounds(ends: Sequence[float] | None) -> str:
    return "unknown" if ends is None else f"[{ends[0]:+.3%}, {ends[1]:+.3%}]"


def _p(value: float | None) -> str:
    return "unknown" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
