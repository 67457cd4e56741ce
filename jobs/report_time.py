"""What the report says about time: the splits, the gate over all refreshes, learning curves and timings."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

from jobs import report_charts as draw
from jobs.report_charts import Scale, day, moment, number, real
from jobs.report_summary import Part, numbers, part, rows_of

_MAX_FAILURES = 40  # rows in the table of failed checks; all of them are in summary.json
_SPANS = ("upstream learns", "rankers learn", "validation", "test")
_SEED = re.compile(r"[\s,]+seed\s*\d+$")


def splits(summary: Part) -> Part | None:
    """Return the time line of the splits, as far as their bounds are known and in order."""
    known = part(summary, "splits")
    bounds = [moment(part(summary, "dataset").get("start"))]
    bounds += [moment(known.get(key)) for key in ("upstream_end", "train_end", "valid_end", "end")]
    spans = []
    for index, (first, last) in enumerate(pairwise(bounds)):
        if first and last and first < last:
            spans.append((f"s{index}", _SPANS[index], first, last))
    if not spans:
        return None
    start, end = spans[0][2], spans[-1][3]
    times = {moment(row.get("as_of")) for row in rows_of(part(summary, "gate"), "snapshots")}
    marks = sorted(time for time in times if time and start <= time <= end)
    return {"chart": draw.timeline(start, end, spans, marks), "spans": spans, "marks": bool(marks)}


def gate(gate: Part) -> Part | None:
    """Return the verdicts over time per view, the checks that did not pass, and each view's last checks."""
    if not gate:
        return None
    snapshots = sorted((row for row in rows_of(gate, "snapshots") if moment(row.get("as_of"))), key=_stamp)
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
        line["seconds"] = statistics.median(numbers([row.get("seconds") for row in rows]) or [math.nan])
        line["checks"] = rows_of(rows[-1], "checks")
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
            warned = any(check.get("passed") is not True for check in rows_of(row, "checks"))
            tone = "refused" if _refused(row) else "warned" if warned else "accepted"
            title = f"{day(row['as_of'])}: {tone}, {number(row.get('rows'))} rows"
            cells.append(draw.Cell(time, ends[time], place, len(tries), tone, title))
    return cells


def _failures(row: Part) -> list[Part]:
    """Return the checks of one snapshot that did not pass; a refusal always has at least one line."""
    failed = [check for check in rows_of(row, "checks") if check.get("passed") is not True]
    if _refused(row) and not failed:
        failed = [{"name": "gate", "observed": None, "bound": "ran to its end", "detail": row.get("error") or ""}]
    about = {"view": row.get("view"), "as_of": row["as_of"], "refused": _refused(row)}
    return [{**check, **about} for check in failed]


def leaks(training_set: Part) -> Part | None:
    """Return the leak report as a table: one line per view, one column per kind; counts without a view lead."""
    report = part(training_set, "leak_report")
    lines = {view: counts for view, counts in report.items() if isinstance(counts, dict)}
    whole = {kind: count for kind, count in report.items() if kind not in lines}
    lines = {"all rows": whole, **lines} if whole else lines
    kinds = list(dict.fromkeys(kind for counts in lines.values() for kind in counts))
    rows = [(view, [counts.get(kind) for kind in kinds]) for view, counts in lines.items()]
    return {"kinds": kinds, "rows": rows} if rows else None


def curves(curves: Iterable[Part]) -> list[Part]:
    """Return one panel per loss.

    Training and validation loss of one ranker and all its seeds share a panel, and the panels of one task share
    a scale, so that they can be compared. Upstream losses differ in size: each has a panel and a scale of its own.
    """
    panels: dict[tuple[str, str], Part] = {}
    for curve in curves:
        name, points = _SEED.sub("", str(curve.get("name", "unnamed"))), rows_of(curve, "points")
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


def timings(timings: Part) -> Part | None:
    stages = {stage: real(seconds) for stage, seconds in timings.items() if stage != "total"}
    if not timings:
        return None
    scale = Scale(0.0, max((value for value in stages.values() if value), default=1.0))
    rows = [(stage, seconds, draw.bar(scale, seconds, "")) for stage, seconds in stages.items()]
    return {"rows": rows, "total": real(timings.get("total"))}


def _refused(row: Part) -> bool:
    return row.get("accepted") is not True


def _stamp(row: Part) -> float:
    time = moment(row.get("as_of"))
    assert time is not None, "only snapshots with a time are drawn"
    return time.timestamp()


def _usual_gap(times: Sequence[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else 86400.0
