"""What the report shows of sub-groups, and of other models beside ours: the lift table's picture for other rows."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import report_charts as draw
from jobs import report_quality as quality
from jobs.report_charts import Scale, real
from jobs.report_summary import Part, interval, is_user_item, numbers, task_name

NOTHING: Part = {"embeddings": "no lift", "relative_auc_lift": 0.0}  # what every other row is drawn against


def groups(rows: Sequence[Part]) -> list[Part]:
    """Return per task the sub-groups of the headline row, with their line of one forest plot."""
    found = []
    for task in dict.fromkeys(str(row.get("task")) for row in rows):
        own = [row for row in rows if row.get("task") == task]
        shown = [row for row in own if row.get("embeddings") is None or is_user_item(row)]
        named = [{**row, "embeddings": row.get("group")} for row in shown]
        table = quality.lift(task, [NOTHING, *named], "sub-group")
        found.append({"task": task_name(task), "rows": table["rows"][1:], "axis": table["axis"]})
    return found


def records(rows: Sequence[Part]) -> list[Part]:
    """Return per task every model that was measured on this data, best last; retrieval as bars."""
    found = []
    for task in dict.fromkeys(str(row.get("task")) for row in rows):
        own = [row for row in rows if row.get("task") == task]
        found.append(_retrieval(own) if task == "retrieval" else _ranking(task, own))
    return [table for table in found if table["rows"]]


def _ranking(task: str, rows: Sequence[Part]) -> Part:
    lifted = [row for row in rows if real(row.get("relative_auc_lift")) is not None]
    # The truth is so far off that it would flatten every other line; its figures are in the table of lifts.
    shown = [row for row in lifted if row.get("model") != "true probabilities"]
    shown.sort(key=lambda row: real(row.get("relative_auc_lift")) or 0.0)
    named = [{**row, "embeddings": _name(row)} for row in shown]
    table = quality.lift(task, [NOTHING, *named], "model")
    return {
        "task": task_name(task),
        "rows": table["rows"][1:],
        "axis": table["axis"],
        "shares": any(real(row.get("share_of_possible_gain")) is not None for row in shown),
        "costs": any(real(row.get("ranking_cost")) is not None for row in shown),
    }


def _retrieval(rows: Sequence[Part]) -> Part:
    known = [row for row in rows if real(row.get("recall_at_100")) is not None]
    known.sort(key=lambda row: real(row.get("recall_at_100")) or 0.0)
    reach = [value for row in known for value in (*numbers([row.get("recall_at_100")]), *(interval(row, "ci95") or ()))]
    scale = Scale(0.0, max(reach, default=1.0) or 1.0)
    lines = []
    for row in known:
        value, ci = real(row.get("recall_at_100")), interval(row, "ci95")
        tone = "strong" if str(row.get("model")).startswith("DERM") else ""
        bar = draw.bar(scale, value, tone, ci)
        lines.append({"name": str(row.get("model", "unnamed")), "value": value, "ci": ci, "bar": bar, "tone": tone})
    return {"task": "retrieval", "rows": lines}


def _name(row: Part) -> str:
    model, embeddings = str(row.get("model", "unnamed")), row.get("embeddings")
    return model if embeddings in (None, "none") else f"{model}, {embeddings}"
