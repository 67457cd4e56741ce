"""What the report says about quality: the headline, the facts, the lift tables and retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs import report_charts as draw
from jobs.report_charts import TIMES, Scale, duration, number, percent, real
from jobs.report_summary import (
    READINGS,
    Part,
    bounds_text,
    interval,
    is_user_item,
    main_row,
    numbers,
    part,
    reading_of,
    rows_of,
    task_name,
    tasks_of,
)


def headline(summary: Part) -> str:
    """Say in one sentence what the data says about the first task (CTR where it was measured).

    The row is fixed before its numbers are seen, `user+item` or else the last one, so the sentence never
    picks the luckiest row. A lift is claimed only where the whole interval lies above zero.
    """
    tasks = tasks_of(summary)
    if not tasks:
        return "No lift was measured in this run"
    task = "ctr" if "ctr" in tasks else next(iter(tasks))
    return _sentence(task, tasks[task])


def _sentence(task: str, rows: Sequence[Part]) -> str:
    name, row = task_name(task), main_row(rows)
    change = None if row is None else real(row.get("relative_auc_lift"))
    if row is None or change is None:
        return f"No {name} ranker with embeddings was compared with the one without"
    ci, reading, by = interval(row, "ci95"), reading_of(row), percent(change, signed=True)
    if reading == "few":
        counts = f"{number(row.get('positives'))} of {number(row.get('rows'))} test rows are positive"
        return f"Nothing can be told about {name}: {counts}, {row['too_few']}"
    if ci is None:
        return f"{name} ROC-AUC changes by {by} with embeddings; without an interval that is no lift"
    if reading == "none":
        return f"No {name} lift could be shown: ROC-AUC changes by {by} (95% CI {bounds_text(ci)}, which includes zero)"
    what = "Embeddings" if is_user_item(row) else f"Embeddings ({row.get('embeddings', 'unnamed')})"
    if reading == "loss":
        return f"{what} lower {name} ROC-AUC by {percent(abs(change))} (95% CI {bounds_text(ci)})"
    return f"{what} lift {name} ROC-AUC by {by} (95% CI {bounds_text(ci)})"


def facts(summary: Part) -> list[Part]:
    """Return label, value, note and tone of the few numbers that a reader asks for first."""
    facts = []
    for task, rows in tasks_of(summary).items():
        if (row := main_row(rows)) is not None:
            ci, reading = interval(row, "ci95"), reading_of(row)
            note = f"{bounds_text(ci)}, {READINGS[reading]}" if ci else READINGS[reading]
            value = percent(row.get("relative_auc_lift"), signed=True)
            if reading == "few":
                value, note = "unknown", f"{number(row.get('positives'))} positive test rows, {READINGS[reading]}"
            facts.append((f"{task_name(task)} lift", value, note, reading))
    if found := retrieval(rows_of(summary, "retrieval")):
        best = max(found["rows"], key=lambda row: row["top"])
        ratio = f", {number(best['ratio'], 1)} {TIMES} popularity" if best["ratio"] and best["ratio"] != 1 else ""
        facts.append(("Best recall@100", number(best["top"], 3), best["model"] + ratio, ""))
    sets = rows_of(summary, "training_sets")
    if sets and all(real(row.get("leaks")) is not None for row in sets):
        leaks, joined = (sum(real(row.get(key)) or 0 for row in sets) for key in ("leaks", "rows"))
        facts.append(("Leaking rows", number(leaks), f"of {number(joined)} training rows", "loss" if leaks else ""))
    if gate := part(summary, "gate"):
        refused = f"{number(gate.get('refused'))} refused by the gate"
        facts.append(("Snapshots accepted", number(gate.get("accepted")), refused, ""))
    if (total := real(part(summary, "timings_s").get("total"))) is not None:
        cores = part(summary, "machine").get("cores")
        facts.append(("Whole run", duration(total), f"on {cores} cores" if cores else "", ""))
    return [dict(zip(("label", "value", "note", "tone"), fact, strict=True)) for fact in facts]


def lift(task: str, rows: Sequence[Part], noun: str = "embeddings") -> Part:
    """Return one task's rows with their reading and their line of the forest plot, all on one scale.

    The first row is the one that the others are compared with; `noun` says what their names are of.
    """
    base = real(rows[0].get("auc"))
    seeds = [[auc / base - 1 for auc in numbers(row.get("auc_seeds"))] if base else [] for row in rows]
    drawn = [0.0, *(value for marks in seeds for value in marks)]
    for row in rows[1:]:
        drawn += [*numbers([row.get("relative_auc_lift")]), *(interval(row, "ci95") or ())]
    room = 0.04 * (max(drawn) - min(drawn)) or 0.001
    scale = Scale(min(drawn) - room, max(drawn) + room)
    at = [tick if abs(tick) > 1e-12 else 0.0 for tick in draw.ticks(scale.lo, scale.hi, 5)]
    lines = []
    for index, (row, marks) in enumerate(zip(rows, seeds, strict=True)):
        change, ci, tone = real(row.get("relative_auc_lift")), interval(row, "ci95"), reading_of(row)
        if index == 0:
            change, ci, tone = 0.0, None, "base"
        name = str(row.get("embeddings", "unnamed"))
        label = f"{task_name(task)}, {noun} {name}: {percent(change, signed=True)}, {READINGS[tone]}"
        label += f", 95% interval {bounds_text(ci)}" if ci else ""
        forest = draw.forest(scale, change, ci, marks, at, tone, label)
        lines.append({**row, "name": name, "tone": tone, "ci": ci, "reading": READINGS[tone], "forest": forest})
    digits = max(0, -math.floor(math.log10(100 * (at[1] - at[0])) + 1e-9)) if len(at) > 1 else 1
    axis = draw.axis([(scale.at(tick), percent(tick, digits if tick else 0, signed=tick != 0)) for tick in at])
    return {
        "task": task_name(task),
        "sentence": _sentence(task, rows),
        "rows": lines,
        "axis": axis,
        "seeds": any(seeds),
        "shares": any(real(row.get("share_of_possible_gain")) is not None for row in rows),
    }


def retrieval(rows: Sequence[Part]) -> Part | None:
    """Return the models with one bar per cut-off, all bars on one scale, and the ratio to popularity."""
    if not rows:
        return None
    keys = ("recall_at_10", "recall_at_50", "recall_at_100")
    intervals = [interval(row, "ci95_at_100") for row in rows]
    reach = [value for row in rows for value in numbers([row.get(key) for key in keys])]
    scale = Scale(0.0, max([*reach, *(ci[1] for ci in intervals if ci)], default=0.0) or 1.0)
    tops = [real(row.get("recall_at_100")) or 0.0 for row in rows]
    # Not a model that popularity is added to.
    popular = (top for row, top in zip(rows, tops, strict=True) if str(row.get("model")).startswith("popularity"))
    base = next(popular, 0.0)
    lines = []
    for row, ci, top in zip(rows, intervals, tops, strict=True):
        tone = "strong" if top and top == max(tops) else ""
        cells = []
        for key in keys:
            whisker = ci if key == "recall_at_100" else None
            bar = draw.bar(scale, real(row.get(key)), tone, whisker)
            cells.append({"value": row.get(key), "bar": bar, "ci": whisker, "label": key.replace("_at_", "@")})
        ratio = top / base if base else None
        model = str(row.get("model", "unnamed"))
        lines.append({"model": model, "top": top, "ratio": ratio, "cells": cells, "tone": tone})
    return {"rows": lines, "base": base}
