"""Reading `reports/summary.json`: every key may be absent, and nothing here fails over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.report_charts import percent, real

Part = dict[str, Any]  # one object of the summary; any key may be absent
READINGS = {
    "lift": "above zero",
    "none": "includes zero",
    "loss": "below zero",
    "unsure": "no interval",
    "few": "too few to tell",
    "base": "the baseline",
}


def part(holder: Part, key: str) -> Part:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def rows_of(holder: Part, key: str) -> list[Part]:
    value = holder.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def numbers(values: Any) -> list[float]:
    found = [real(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def interval(row: Part, key: str) -> tuple[float, float] | None:
    bounds = numbers(row.get(key))
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None


def bounds_text(ci: tuple[float, float]) -> str:
    return f"{percent(ci[0], signed=True)} to {percent(ci[1], signed=True)}"


def tasks_of(summary: Part) -> dict[str, list[Part]]:
    tasks: dict[str, list[Part]] = {}
    for row in rows_of(summary, "lift"):
        tasks.setdefault(str(row.get("task", "unnamed")), []).append(row)
    return tasks


def task_name(task: str) -> str:
    return task.upper() if len(task) <= 4 else task


def main_row(rows: Sequence[Part]) -> Part | None:
    return next(filter(is_user_item, rows[1:]), rows[-1] if len(rows) > 1 else None)


def is_user_item(row: Part) -> bool:
    return str(row.get("embeddings")).replace(" ", "").lower() == "user+item"


def reading_of(row: Part) -> str:
    if row.get("too_few"):
        return "few"
    ci = interval(row, "ci95")
    if ci is None:
        return "unsure"
    return "lift" if ci[0] > 0 else "loss" if ci[1] < 0 else "none"
