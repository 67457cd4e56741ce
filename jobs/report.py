"""Write the report of one run: `reports/summary.json` in, one HTML page that opens offline out.

Layout and words are in `templates/report.html.jinja`, pictures in `report_charts.py`; here is what has to be
computed first. A section whose numbers are not in the summary says so in a word: the page never fails over a
missing key.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import LakeError, NotReadyError
from jobs import report_charts as draw
from jobs.report_charts import TIMES, Scale, day, duration, moment, number, percent, real

if TYPE_CHECKING:
    from jinja2 import Template

_MAX_FAILURES = 40  # rows in the table of failed checks; all of them are in summary.json
_SPANS = ("upstream learns", "rankers learn", "validation", "test")
_READINGS = {
    "lift": "above zero",
    "none": "includes zero",
    "loss": "below zero",
    "unsure": "no interval",
    "base": "the baseline",
}
_SEED = re.compile(r"[\s,]+seed\s*\d+$")
Part = dict[str, Any]  # one object of the summary; any key may be absent


@dataclass(frozen=True)
class ReportResult:
    """Where the report lies and its size."""

    path: Path
    bytes: int


def run(home: Path) -> ReportResult:
    """Read `<home>/reports/summary.json` and write `<home>/reports/report.html`.

    Parameters
    ----------
    home
        The home folder.

    Returns
    -------
    ReportResult
        Path and size of the page. A reader sees the old page or the new one, never half of one.

    Raises
    ------
    NotReadyError
        There is no summary yet.
    LakeError
        The summary is not a JSON object.
    """
    source = home / "reports" / "summary.json"
    try:
        summary = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotReadyError(f"{source} does not exist. Run `headwater evaluate` first; it writes this file.") from None
    except ValueError as error:
        raise LakeError(f"{source} is not valid JSON ({error}). Run `headwater evaluate` again.") from error
    if not isinstance(summary, dict):
        raise LakeError(f"{source} holds no JSON object. Run `headwater evaluate` again.")
    page = render(summary).encode()
    target = source.with_name("report.html")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(page)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return ReportResult(target, len(page))


def render(summary: Part) -> str:
    """Return the report as one HTML page with its style and pictures inside.

    Parameters
    ----------
    summary
        What `reports/summary.json` holds. Every key may be absent.

    Returns
    -------
    str
        The page. It loads nothing: no script, no font and no picture from anywhere.
    """
    return _template().render(
        dataset=_part(summary, "dataset"),
        headline=headline(summary),
        facts=_facts(summary),
        lift=[_lift(task, rows) for task, rows in _tasks(summary).items()],
        skipped=_rows(summary, "skipped"),
        retrieval=_retrieval(_rows(summary, "retrieval")),
        retrieval_setup=_part(summary, "retrieval_setup"),
        splits=_splits(summary),
        versions=_rows(summary, "versions"),
        gate=_gate(_part(summary, "gate")),
        training_sets=[{**row, "leak_table": _leaks(row)} for row in _rows(summary, "training_sets")],
        curves=_curves(_rows(summary, "learning_curves")),
        timings=_timings(_part(summary, "timings_s")),
        machine=_part(summary, "machine"),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(number=number, percent=percent, day=day, duration=duration, bounds=_bounds)
    return environment.get_template("report.html.jinja")


# --- the headline -------------------------------------------------------------------------------------------


def headline(summary: Part) -> str:
    """Say in one sentence what the data says about the first task (CTR where it was measured).

    The row is fixed before its numbers are seen, `user+item` or else the last one, so the sentence never
    picks the luckiest row. A lift is claimed only where the whole interval lies above zero.
    """
    tasks = _tasks(summary)
    if not tasks:
        return "No lift was measured in this run"
    task = "ctr" if "ctr" in tasks else next(iter(tasks))
    return _sentence(task, tasks[task])


def _sentence(task: str, rows: Sequence[Part]) -> str:
    name, row = _task(task), _main_row(rows)
    change = None if row is None else real(row.get("relative_auc_lift"))
    if row is None or change is None:
        return f"No {name} ranker with embeddings was compared with the one without"
    ci, reading, by = _interval(row, "ci95"), _reading(row), percent(change, signed=True)
    if ci is None:
        return f"{name} ROC-AUC changes by {by} with embeddings; without an interval that is no lift"
    if reading == "none":
        return f"No {name} lift could be shown: ROC-AUC changes by {by} (95% CI {_bounds(ci)}, which includes zero)"
    what = "Embeddings" if _is_user_item(row) else f"Embeddings ({row.get('embeddings', 'unnamed')})"
    if reading == "loss":
        return f"{what} lower {name} ROC-AUC by {percent(abs(change))} (95% CI {_bounds(ci)})"
    return f"{what} lift {name} ROC-AUC by {by} (95% CI {_bounds(ci)})"


def _facts(summary: Part) -> list[Part]:
    """Return label, value, note and tone of the few numbers that a reader asks for first."""
    facts = []
    for task, rows in _tasks(summary).items():
        if (row := _main_row(rows)) is not None:
            ci, reading = _interval(row, "ci95"), _reading(row)
            note = f"{_bounds(ci)}, {_READINGS[reading]}" if ci else _READINGS[reading]
            facts.append((f"{_task(task)} lift", percent(row.get("relative_auc_lift"), signed=True), note, reading))
    if retrieval := _retrieval(_rows(summary, "retrieval")):
        best = max(retrieval["rows"], key=lambda row: row["top"])
        ratio = f", {number(best['ratio'], 1)} {TIMES} popularity" if best["ratio"] and best["ratio"] != 1 else ""
        facts.append(("Best recall@100", number(best["top"], 3), best["model"] + ratio, ""))
    sets = _rows(summary, "training_sets")
    if sets and all(real(row.get("leaks")) is not None for row in sets):
        leaks, joined = (sum(real(row.get(key)) or 0 for row in sets) for key in ("leaks", "rows"))
        facts.append(("Leaking rows", number(leaks), f"of {number(joined)} training rows", "loss" if leaks else ""))
    if gate := _part(summary, "gate"):
        refused = f"{number(gate.get('refused'))} refused by the gate"
        facts.append(("Snapshots accepted", number(gate.get("accepted")), refused, ""))
    if (total := real(_part(summary, "timings_s").get("total"))) is not None:
        cores = _part(summary, "machine").get("cores")
        facts.append(("Whole run", duration(total), f"on {cores} cores" if cores else "", ""))
    return [dict(zip(("label", "value", "note", "tone"), fact, strict=True)) for fact in facts]


# --- lift and retrieval -------------------------------------------------------------------------------------


def _lift(task: str, rows: Sequence[Part]) -> Part:
    """Return one task's rows with their reading and their line of the forest plot, all on one scale."""
    base = real(rows[0].get("auc"))
    seeds = [[auc / base - 1 for auc in _numbers(row.get("auc_seeds"))] if base else [] for row in rows]
    drawn = [0.0, *(value for marks in seeds for value in marks)]
    for row in rows[1:]:
        drawn += [*_numbers([row.get("relative_auc_lift")]), *(_interval(row, "ci95") or ())]
    room = 0.04 * (max(drawn) - min(drawn)) or 0.001
    scale = Scale(min(drawn) - room, max(drawn) + room)
    at = [tick if abs(tick) > 1e-12 else 0.0 for tick in draw.ticks(scale.lo, scale.hi, 5)]
    lines = []
    for index, (row, marks) in enumerate(zip(rows, seeds, strict=True)):
        change, ci, tone = real(row.get("relative_auc_lift")), _interval(row, "ci95"), _reading(row)
        if index == 0:
            change, ci, tone = 0.0, None, "base"
        name = str(row.get("embeddings", "unnamed"))
        label = f"{_task(task)}, embeddings {name}: {percent(change, signed=True)}, {_READINGS[tone]}"
        label += f", 95% interval {_bounds(ci)}" if ci else ""
        forest = draw.forest(scale, change, ci, marks, at, tone, label)
        lines.append({**row, "name": name, "tone": tone, "ci": ci, "reading": _READINGS[tone], "forest": forest})
    digits = max(0, -math.floor(math.log10(100 * (at[1] - at[0])) + 1e-9)) if len(at) > 1 else 1
    axis = draw.axis([(scale.at(tick), percent(tick, digits if tick else 0, signed=tick != 0)) for tick in at])
    return {
        "task": _task(task),
        "sentence": _sentence(task, rows),
        "rows": lines,
        "axis": axis,
        "seeds": any(seeds),
    }


def _retrieval(rows: Sequence[Part]) -> Part | None:
    """Return the models with one bar per cut-off, all bars on one scale, and the ratio to popularity."""
    if not rows:
        return None
    keys = ("recall_at_10", "recall_at_50", "recall_at_100")
    intervals = [_interval(row, "ci95_at_100") for row in rows]
    reach = [value for row in rows for value in _numbers([row.get(key) for key in keys])]
    scale = Scale(0.0, max([*reach, *(ci[1] for ci in intervals if ci)], default=0.0) or 1.0)
    tops = [real(row.get("recall_at_100")) or 0.0 for row in rows]
    popular = (top for row, top in zip(rows, tops, strict=True) if "popular" in str(row.get("model")).lower())
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


# --- time: splits, the gate, curves, timings ----------------------------------------------------------------


def _splits(summary: Part) -> Part | None:
    """Return the time line of the splits, as far as their bounds are known and in order."""
    known = _part(summary, "splits")
    bounds = [moment(_part(summary, "dataset").get("start"))]
    bounds += [moment(known.get(key)) for key in ("upstream_end", "train_end", "valid_end", "end")]
    spans = []
    for index, (first, last) in enumerate(pairwise(bounds)):
        if first and last and first < last:
            spans.append((f"s{index}", _SPANS[index], first, last))
    if not spans:
        return None
    start, end = spans[0][2], spans[-1][3]
    times = {moment(row.get("as_of")) for row in _rows(_part(summary, "gate"), "snapshots")}
    marks = sorted(time for time in times if time and start <= time <= end)
    return {"chart": draw.timeline(start, end, spans, marks), "spans": spans, "marks": bool(marks)}


def _gate(gate: Part) -> Part | None:
    """Return the verdicts over time per view, the checks that did not pass, and each view's last checks."""
    if not gate:
        return None
    snapshots = sorted((row for row in _rows(gate, "snapshots") if moment(row.get("as_of"))), key=_stamp)
    # What holds at any time is recorded as of 1970; on the axis it would leave no room for the refreshes.
    times = sorted({_stamp(row) for row in snapshots if _stamp(row) > 0})
    scale = Scale(times[0], times[-1] + _usual_gap(times)) if times else Scale(0.0, 1.0)
    views: dict[str, list[Part]] = {}
    for row in snapshots:
        views.setdefault(str(row.get("view", "unnamed")), []).append(row)
    lines = []
    for view, rows in views.items():
        refused = [row for row in rows if _refused(row)]
        label = f"{view}: {len(rows) - len(refused)} accepted, {len(refused)} refused"
        label += f" (as of {', '.join(day(row['as_of']) for row in refused)})" if refused else ""
        line = {"view": view, "accepted": len(rows) - len(refused), "refused": len(refused), "last": rows[-1]}
        line["chart"] = draw.strip(scale, _cells([row for row in rows if _stamp(row) > 0]), label)
        line["seconds"] = statistics.median(_numbers([row.get("seconds") for row in rows]) or [math.nan])
        line["checks"] = _rows(rows[-1], "checks")
        lines.append(line)
    failures = sorted((failure for row in snapshots for failure in _failures(row)), key=lambda f: not f["refused"])
    return {
        "accepted": gate.get("accepted"),
        "refused": gate.get("refused"),
        "views": lines,
        "calendar": draw.calendar(scale, 5) if times else "",
        "failures": failures[:_MAX_FAILURES],
        "more": len(failures[_MAX_FAILURES:]),
    }


def _cells(rows: Sequence[Part]) -> list[draw.Cell]:
    """Return one view's snapshots, each from its `as_of` until the next refresh was due."""
    times = sorted({_stamp(row) for row in rows})
    gap = _usual_gap(times)
    following = [*times[1:], math.inf][: len(times)]
    ends = {time: min(later, time + gap) for time, later in zip(times, following, strict=True)}
    cells = []
    for time, group in groupby(rows, key=_stamp):
        tries = list(group)  # a refused snapshot and its repetition share one as_of
        for place, row in enumerate(tries):
            warned = any(check.get("passed") is not True for check in _rows(row, "checks"))
            tone = "refused" if _refused(row) else "warned" if warned else "accepted"
            title = f"{day(row['as_of'])}: {tone}, {number(row.get('rows'))} rows"
            cells.append(draw.Cell(time, ends[time], place, len(tries), tone, title))
    return cells


def _failures(row: Part) -> list[Part]:
    """Return the checks of one snapshot that did not pass; a refusal always has at least one line."""
    failed = [check for check in _rows(row, "checks") if check.get("passed") is not True]
    if _refused(row) and not failed:
        failed = [{"name": "gate", "observed": None, "bound": "ran to its end", "detail": row.get("error") or ""}]
    about = {"view": row.get("view"), "as_of": row["as_of"], "refused": _refused(row)}
    return [{**check, **about} for check in failed]


def _leaks(training_set: Part) -> Part | None:
    """Return the leak report as a table: one line per view, one column per kind; counts without a view lead."""
    report = _part(training_set, "leak_report")
    lines = {view: counts for view, counts in report.items() if isinstance(counts, dict)}
    whole = {kind: count for kind, count in report.items() if kind not in lines}
    lines = {"all rows": whole, **lines} if whole else lines
    kinds = list(dict.fromkeys(kind for counts in lines.values() for kind in counts))
    rows = [(view, [counts.get(kind) for kind in kinds]) for view, counts in lines.items()]
    return {"kinds": kinds, "rows": rows} if rows else None


def _curves(curves: Iterable[Part]) -> list[Part]:
    """Return one panel per loss.

    Training and validation loss of one ranker and all its seeds share a panel, and the panels of one task share
    a scale, so that they can be compared. Upstream losses differ in size: each has a panel and a scale of its own.
    """
    panels: dict[tuple[str, str], Part] = {}
    for curve in curves:
        name, points = _SEED.sub("", str(curve.get("name", "unnamed"))), _rows(curve, "points")
        step = "epoch" if any("epoch" in point for point in points) else "step"
        for key in dict.fromkeys(key for point in points for key in point if "loss" in key):
            xy = [(real(point.get(step)), real(point.get(key))) for point in points]
            seen = [(x, y) for x, y in xy if x is not None and y is not None]
            part = key.split("_")[0]
            tone, title = (part, "") if part in ("train", "valid") else ("only", key.replace("_", " "))
            scale = (name, title) if title else name.split(" ")[0]
            panel: Part = {"name": name, "loss": title, "step": step, "series": [], "scale": scale}
            if seen:
                panels.setdefault((name, title), panel)["series"].append((tone, seen))
    ranges: dict[Any, list[float]] = {}
    for panel in panels.values():
        ranges.setdefault(panel["scale"], []).extend(y for _, points in panel["series"] for _, y in points)
    return [_panel(panel, ranges[panel["scale"]]) for panel in panels.values()]


def _panel(panel: Part, values: Sequence[float]) -> Part:
    series: list[draw.Series] = panel["series"]
    xs = [x for _, points in series for x, _ in points]
    held_out = [points for tone, points in series if tone == "valid"]
    best = [min(points, key=lambda point: point[1]) for points in held_out]
    if best:
        last = statistics.mean(points[-1][1] for points in held_out)
        words = f"validation at best {number(statistics.mean(y for _, y in best), 4)}, at the end {number(last, 4)}"
        words += f", means of {len(best)} seeds" if len(best) > 1 else ""
    else:
        points = series[0][1]
        words = f"from {number(points[0][1], 4)} to {number(points[-1][1], 4)}"
    label = f"{panel['name']} {panel['loss']}: {words}"
    chart = draw.curve(series, (min(xs), max(xs)), (min(values), max(values)), best, label)
    return {**panel, "words": words, "chart": chart, "x": (min(xs), max(xs)), "y": (min(values), max(values))}


def _timings(timings: Part) -> Part | None:
    stages = {stage: real(seconds) for stage, seconds in timings.items() if stage != "total"}
    if not timings:
        return None
    scale = Scale(0.0, max((value for value in stages.values() if value), default=1.0))
    rows = [(stage, seconds, draw.bar(scale, seconds, "")) for stage, seconds in stages.items()]
    return {"rows": rows, "total": real(timings.get("total"))}


# --- reading the summary ------------------------------------------------------------------------------------


def _part(holder: Part, key: str) -> Part:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _rows(holder: Part, key: str) -> list[Part]:
    value = holder.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _numbers(values: Any) -> list[float]:
    found = [real(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def _interval(row: Part, key: str) -> tuple[float, float] | None:
    bounds = _numbers(row.get(key))
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None


def _bounds(ci: tuple[float, float]) -> str:
    return f"{percent(ci[0], signed=True)} to {percent(ci[1], signed=True)}"


def _tasks(summary: Part) -> dict[str, list[Part]]:
    tasks: dict[str, list[Part]] = {}
    for row in _rows(summary, "lift"):
        tasks.setdefault(str(row.get("task", "unnamed")), []).append(row)
    return tasks


def _task(task: str) -> str:
    return task.upper() if len(task) <= 4 else task


def _main_row(rows: Sequence[Part]) -> Part | None:
    return next(filter(_is_user_item, rows[1:]), rows[-1] if len(rows) > 1 else None)


def _is_user_item(row: Part) -> bool:
    return str(row.get("embeddings")).replace(" ", "").lower() == "user+item"


def _reading(row: Part) -> str:
    ci = _interval(row, "ci95")
    if ci is None:
        return "unsure"
    return "lift" if ci[0] > 0 else "loss" if ci[1] < 0 else "none"


def _refused(row: Part) -> bool:
    return row.get("accepted") is not True


def _stamp(row: Part) -> float:
    time = moment(row.get("as_of"))
    assert time is not None, "only snapshots with a time are drawn"
    return time.timestamp()


def _usual_gap(times: Sequence[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else 86400.0
