"""Write the tables of `docs/results.md` and `docs/world.md` from the records: between the markers, nothing else.

    python -m benchmarks.quality_tables            # after any benchmark of quality
    python -m benchmarks.quality_tables --check    # exit code 1 if the page is not what the records say

A marker is a line `<!-- table NAME -->`, and the table ends at `<!-- end -->`. Names: `DATASET TASK` for all records of
a task, `retrieval DATASET`, `helped not DATASET`, `truth KIND DATASET` for what was measured beside a world's truth,
`in short`, `staleness`, `sanity`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import world_records
from benchmarks.quality_records import KEY, RESULTS, read
from feature_repo.lake import replacing

PAGES = tuple(Path(__file__).parents[1] / "docs" / name for name in ("results.md", "world.md"))
MARKED = re.compile(r"(<!-- table (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
ABSENT = "Not measured yet."
JOURNEY, WORLD, DENSE, DENSEST = "complete-journey", "world-5m", "world-5m-dense", "world-5m-densest"
# What a reader asks first: words for the log, then dataset, task, model and embeddings of a record.
TREES = "LightGBM (lightgbm 4.7.0)"
IN_SHORT = (
    ("Complete Journey", JOURNEY, "ctr", "ranker", "user+item, v3 added"),
    ("Complete Journey", JOURNEY, "ctr", "ranker", "SVD 32"),
    ("Complete Journey", JOURNEY, "ctr", TREES, "v1 user+item"),
    ("Complete Journey", JOURNEY, "ctr", "monolith", "inside, upstream start"),
    ("Complete Journey", JOURNEY, "cvr", "ranker", "user+item"),
    ("Complete Journey", JOURNEY, "cvr", "ranker", "SVD 32"),
    ("Complete Journey", JOURNEY, "cvr", TREES, "v1 user+item"),
    ("Complete Journey", JOURNEY, "cvr", "monolith", "inside, upstream start"),
    ("Complete Journey", JOURNEY, "retrieval", "DERM v1", "user+item"),
    ("Complete Journey", JOURNEY, "retrieval", "ALS (implicit 0.7.3), popularity and own choices added", "none"),
    ("world, 10,000 users", WORLD, "ctr", "ranker", "user+item"),
    ("world, 10,000 users", WORLD, "ctr", "ranker", "SVD 32"),
    ("world, 10,000 users", WORLD, "ctr", TREES, "v1 user+item"),
    ("world, 10,000 users", WORLD, "ctr", "monolith", "inside, upstream start"),
    ("world, 10,000 users", WORLD, "cvr", "ranker", "user+item of v2"),
    ("world, 10,000 users", WORLD, "cvr", "ranker", "SVD 32"),
    ("world, 10,000 users", WORLD, "cvr", TREES, "v1 user+item"),
    ("world, 10,000 users", WORLD, "cvr", "monolith", "inside, upstream start"),
    ("world, 10,000 users", WORLD, "retrieval", "DERM v1", "user+item"),
    ("world, 10,000 users", WORLD, "retrieval", "BPR (implicit 0.7.3), popularity and own choices added", "none"),
    ("world, 4,000 users", DENSE, "ctr", "ranker", "user+item"),
    ("world, 1,000 users", DENSEST, "ctr", "ranker", "user+item"),
)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before, RESULTS.parent)
        if before == after:
            continue
        if arguments.check:
            sys.exit(f"{page} is not what the records say: python -m benchmarks.quality_tables")
        with replacing(page) as staged:
            staged.write_text(after, encoding="utf-8")


def filled(page: str, results: Path) -> str:
    """Return the page with every marked table made from the records in a folder."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(found['name'], results)}\n\n{found[3]}", page)


def table(name: str, results: Path) -> str:
    """Return one table as Markdown."""
    kind, _, rest = name.partition(" ")
    if name == "staleness":
        return _staleness(results / "staleness.json")
    if name == "sanity":
        return _sanity(results / "sanity.json")
    if kind == "truth":
        measured, _, dataset = rest.partition(" ")
        return _beside_truth(world_records.read(results / "worlds.json").get(dataset, {}).get(measured))
    records = read(results / "quality.json")
    if name == "in short":
        return _in_short(records)
    if kind == "retrieval":
        return _retrieval([row for row in records if row["dataset"] == rest and row["task"] == "retrieval"])
    if name.startswith("helped not "):
        return _helped_not([row for row in records if row["dataset"] == name.removeprefix("helped not ")])
    return _ranking([row for row in records if row["dataset"] == kind and row["task"] == rest])


def _ranking(records: Sequence[dict[str, Any]]) -> str:
    shares = any(row["share_of_possible_gain"] is not None for row in records)
    costs = any(row["ranking_cost"] is not None for row in records)
    against = any(row.get("against_default") is not None for row in records)
    rows = []
    for row in sorted(records, key=lambda row: row["relative_auc_lift"] or 0.0):
        cells = {
            "model": row["model"],
            "embeddings": row["embeddings"],
            "ROC-AUC": f"{row['auc']:.4f}" if row["auc"] is not None else "",
            "lift": _lift(row["relative_auc_lift"], row["ci95"]),
            "norm. entropy": f"{row['normalized_entropy']:.4f}" if row["normalized_entropy"] is not None else "",
        }
        if shares:
            cells["share of the possible gain"] = _percent(row["share_of_possible_gain"])
        if against:
            cells["against the default"] = _lift(row.get("against_default"), row.get("against_default_ci95"))
        if costs:
            cells["ms per request"] = "" if row["ranking_cost"] is None else f"{row['ranking_cost']:.2f}"
        rows.append(cells | {"seeds": str(row["seeds"] or "")})
    return _markdown(rows, records)


def _in_short(records: Sequence[dict[str, Any]]) -> str:
    """Return the rows that a reader asks for first."""
    known = {tuple(row[name] for name in KEY): row for row in records}
    rows = []
    for words, *key in IN_SHORT:
        if (row := known.get(tuple(key))) is None:
            continue
        _, task, model, embeddings = key
        figure = _lift(row["relative_auc_lift"], row["ci95"])
        if task == "retrieval":
            figure = f"recall@100 {row['recall_at_100']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})"
        rows.append(
            {
                "log": words,
                "task": {"ctr": "clicks", "cvr": "conversions of clicks"}.get(task, task),
                "what": model if task == "retrieval" else f"{model}, {embeddings}",
                "lift over none, or recall": figure,
                "of the possible gain": _percent(row["share_of_possible_gain"]),
            }
        )
    return _markdown(rows, [])


def _retrieval(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in sorted(records, key=lambda row: -(row["recall_at_100"] or 0.0)):
        low, high = row["ci95"] or (None, None)
        ends = "" if low is None else f"{low:.4f} to {high:.4f}"
        rows.append({"model": row["model"], "recall@100": f"{row['recall_at_100']:.4f}", "95% interval": ends})
    return _markdown(rows, records)


def _helped_not(records: Sequence[dict[str, Any]]) -> str:
    """List what made nothing better that the interval can tell, changes that cost nothing, and who does better."""
    said = _better(records)
    for row in records:
        lift, ends = row["relative_auc_lift"], row["ci95"]
        who = f"{row['task']}: {row['model']}" + (f" ({row['embeddings']})" if row["embeddings"] != "none" else "")
        if lift is not None and ends is not None and ends[0] <= 0:
            word = "worse than without embeddings" if ends[1] < 0 else "no lift that the interval can tell"
            said.append(f"- {who}: {word}, {_lift(lift, ends)}.")
        change, ends = row.get("against_default"), row.get("against_default_ci95")
        if change is not None and ends is not None and ends[1] >= 0:
            word = "better than the default" if ends[0] > 0 else "not worse than the default that the interval can tell"
            said.append(f"- {who}: {word}, {_lift(change, ends)}.")
    if not records:
        return ABSENT
    return "\n".join(said) or "Every row above lies above zero, and every change from the default below it."


def _better(records: Sequence[dict[str, Any]]) -> list[str]:
    """Name the models of others that score above the best of ours, task by task."""
    said = []
    for task in sorted({row["task"] for row in records}):
        figure = "recall_at_100" if task == "retrieval" else "auc"
        known = [row for row in records if row["task"] == task and row[figure] is not None]
        own = [row for row in known if row["model"].startswith(("DERM", "ranker")) and "SVD" not in row["embeddings"]]
        if not own:
            continue
        best = max(own, key=lambda row: row[figure])
        for row in known:
            if row not in own and row["model"] != "true probabilities" and row[figure] > best[figure]:
                who = row["model"] + (f" ({row['embeddings']})" if row["embeddings"] != "none" else "")
                ours = best["model"] + (f" ({best['embeddings']})" if task != "retrieval" else "")
                name = figure.replace("_at_", "@").replace("auc", "ROC-AUC")
                said.append(f"- {task}: {who} has {name} {row[figure]:.4f}, {ours} {best[figure]:.4f}.")
    return said


def _staleness(path: Path) -> str:
    if not path.exists():
        return ABSENT
    parts = []
    for name, record in json.loads(path.read_text(encoding="utf-8")).items():
        rows = [
            {
                "embeddings": row["embeddings"],
                "days since refresh": f"{row['days']:.1f}",
                "lift": _lift(row["lift"], row["ci95"]),
                "against fresh vectors": ""
                if row["refreshes"] == 0
                else _lift(row["against_fresh"], row["against_fresh_ci95"]),
                "items with a vector": f"{min(row['hit_rates'].values()):.1%}",
            }
            for row in sorted(record["curve"], key=lambda row: (row["embeddings"], row["days"]))
        ]
        seeds = f"{record['seeds']} seeds, {record['rows']:,} rows, `{record['command']}`"
        parts.append(f"{name}, {seeds}:\n\n{_markdown(rows, [])}")
    return "\n\n".join(parts)


def _sanity(path: Path) -> str:
    if not path.exists():
        return ABSENT
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {
            "experiment": row["experiment"],
            "found": row["found"],
            "as it must be": "yes" if row["as_expected"] else "**no**",
        }
        for row in record["experiments"]
    ]
    told = f"{record['dataset']}, {record['seeds']} seeds, {record['rows']:,} test rows, `{record['command']}`"
    return f"{told}:\n\n{_markdown(rows, [])}"


def _beside_truth(known: dict[str, Any] | None) -> str:
    if known is None:
        return ABSENT
    return "\n".join([" ".join(known["of"]), "", *world_records.markdown(known["rows"]), "", f"`{known['command']}`"])


def _markdown(rows: Sequence[dict[str, str]], records: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ABSENT
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row.values()) + " |" for row in rows]
    commands = sorted({str(record["command"]) for record in records})
    return "\n".join(lines) + ("\n\nMade by " + ", ".join(f"`{command}`" for command in commands) if commands else "")


def _lift(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:+.2%}" + (f" ({ends[0]:+.2%} to {ends[1]:+.2%})" if ends else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
