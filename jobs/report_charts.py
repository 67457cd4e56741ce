"""The report's pictures as inline SVG, and how its numbers are written. Nothing here knows the summary.

Horizontal positions are percentages of the picture's width and heights are pixels: a picture fills any
column, from a phone to a sheet of paper, and its text and strokes keep their size. Colours are classes,
so the style sheet decides them for light, dark and print. `Markup.format` escapes every argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup

MINUS, TIMES, DASH, NONE = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}", "\N{EM DASH}"
Series = tuple[str, list[tuple[float, float]]]  # tone and points of one line
_SIGNS = {"refused": TIMES, "warned": "!"}
_MAX_POINTS = 240  # more points than a small panel has pixels only make the file larger


def real(value: Any) -> float | None:
    """Return a finite number as float; anything else, NaN and booleans included, as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int | None = None, signed: bool = False) -> str:
    """Write a value for a person: thousands separated, a true minus sign, an em dash for what is missing.

    Without `digits` an integer is written whole and a fraction with four significant digits.
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if real(value) is None:
            return NONE
        if digits is not None:
            text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
        else:
            text = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"
        return text.replace("-", MINUS)
    return str(value)


def percent(value: Any, digits: int = 2, signed: bool = False) -> str:
    """Write a fraction as a percentage."""
    fraction = real(value)
    return NONE if fraction is None else number(100 * fraction, digits, signed) + "%"


def moment(value: Any) -> datetime | None:
    """Read an ISO time as UTC; None where there is none. A time without a zone is taken as UTC."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def day(value: Any) -> str:
    """Write an ISO time as its UTC day, with the minute where it isn't midnight; other text stays as it is."""
    time = moment(value)
    if time is None:
        return NONE if value is None else str(value)
    return time.strftime("%Y-%m-%d" if (time.hour, time.minute) == (0, 0) else "%Y-%m-%d %H:%M")


def duration(seconds: Any) -> str:
    """Write seconds the way people say them."""
    value = real(seconds)
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to percentages of the width; `pad` per cent stay free at both ends."""

    lo: float
    hi: float
    pad: float = 0.0

    def at(self, value: float) -> float:
        """Return the position of a value in per cent; values outside land on the edge."""
        share = (value - self.lo) / (self.hi - self.lo) if self.hi > self.lo else 0.5
        return round(self.pad + (100 - 2 * self.pad) * min(1.0, max(0.0, share)), 2)


def ticks(lo: float, hi: float, count: int = 5) -> list[float]:
    """Return about `count` round values within [lo, hi]."""
    if not hi > lo:
        return [lo]
    rough = (hi - lo) / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)]


def time_ticks(start: datetime, end: datetime, count: int) -> list[tuple[datetime, str]]:
    """Return at most about `count` days or months within [start, end] with their labels."""
    days = max(1, (end - start).days)
    if days <= 75:
        step = next((s for s in (1, 2, 7) if days / s <= count), 14)
        first = start.replace(hour=0, minute=0, second=0, microsecond=0)
        times = [first + timedelta(days=n) for n in range(0, days + 2, step)]
        return [(t, f"{t.day} {t:%b}") for t in times if start <= t <= end]
    step = next((s for s in (1, 2, 3, 6, 12) if days / 30.4 / s <= count), 24)
    months = range(start.year * 12 + start.month - 1, end.year * 12 + end.month)
    times = [datetime(m // 12, m % 12 + 1, 1, tzinfo=UTC) for m in months if m % step == 0]
    return [(t, f"{t:%b}" if t.month > 1 else f"{t:%Y}") for t in times if start <= t <= end]


def _svg(kind: str, height: int, label: str, parts: Iterable[Markup]) -> Markup:
    """Wrap parts into one picture; without a label it is decoration that screen readers skip."""
    access = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    body = Markup("").join(parts)
    return Markup('<svg class="{}" width="100%" height="{}" {}>{}</svg>').format(kind, height, access, body)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    tip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect class="{}" x="{}%" y="{}" width="{}%" height="{}">{}</rect>').format(
        kind, x, y, round(max(width, 0.0), 2), height, tip
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{}%" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def axis(marks: Sequence[tuple[float, str]], height: int = 22) -> Markup:
    """Draw tick labels at positions in per cent; the outermost ones stay inside the picture."""
    parts = []
    for position, text in marks:
        anchor = "start" if position < 3 else "end" if position > 97 else "middle"
        parts += [_line("tick", position, 0, position, 4), _text(position, 17, text, anchor)]
    return _svg("axis", height, "", parts)


def forest(
    scale: Scale,
    value: float | None,
    ci: tuple[float, float] | None,
    seeds: Sequence[float],
    grid: Sequence[float],
    tone: str,
    label: str,
) -> Markup:
    """Draw one row of a forest plot: dot, whisker, a faint tick per seed, grid and the line of no effect.

    The vertical lines are longer than the picture, so that those of consecutive rows meet.
    """
    y = 15
    parts = [_line("zero" if at == 0 else "grid", scale.at(at), -8, scale.at(at), 4 * y) for at in (*grid, 0.0)]
    parts += [_line("seed", scale.at(seed), y - 9, scale.at(seed), y - 4) for seed in seeds]
    if ci is not None:
        lo, hi = scale.at(ci[0]), scale.at(ci[1])
        parts += [_line(f"whisker {tone}", lo, y, hi, y)]
        parts += [_line(f"whisker {tone}", end, y - 4, end, y + 4) for end in (lo, hi)]
    if value is not None:
        parts.append(Markup('<circle class="dot {}" cx="{}%" cy="{}" r="5"/>').format(tone, scale.at(value), y))
    return _svg("forest", 2 * y, label, parts)


def bar(scale: Scale, value: float | None, tone: str, ci: tuple[float, float] | None = None) -> Markup:
    """Draw a bar from zero, with a whisker where there is an interval. The number stands beside it in text."""
    parts = [_rect("track", 0, 3, 100, 8)]
    if value is not None:
        parts.append(_rect(f"bar {tone}", 0, 3, max(scale.at(value), 0.4), 8))
    if ci is not None:
        lo, hi = scale.at(ci[0]), scale.at(ci[1])
        parts += [_line("error", lo, 7, hi, 7), _line("error", lo, 4, lo, 10), _line("error", hi, 4, hi, 10)]
    return _svg("bars", 14, "", parts)


def calendar(scale: Scale, count: int) -> Markup:
    """Draw the axis of a time scale (its values are seconds since 1970) with at most about `count` labels."""
    start, end = datetime.fromtimestamp(scale.lo, UTC), datetime.fromtimestamp(scale.hi, UTC)
    return axis([(scale.at(time.timestamp()), text) for time, text in time_ticks(start, end, count)])


def timeline(
    start: datetime,
    end: datetime,
    spans: Sequence[tuple[str, str, datetime, datetime]],
    marks: Sequence[datetime],
) -> Markup:
    """Draw spans (tone, name, from, to) as one bar, a tick below it for every mark, and the calendar."""
    scale = Scale(start.timestamp(), end.timestamp())
    parts, words = [], []
    for tone, name, first, last in spans:
        x = scale.at(first.timestamp())
        words.append(f"{name} {day(first.isoformat())} to {day(last.isoformat())}")
        parts.append(_rect(f"span {tone}", x, 0, scale.at(last.timestamp()) - x, 30, words[-1]))
    for mark in marks:
        x = scale.at(mark.timestamp())
        parts.append(_line("mark", x, 36, x, 45))
    picture = _svg("timeline", 48 if marks else 34, "Time line: " + "; ".join(words), parts)
    return picture + calendar(scale, 12 if (end - start).days > 75 else 6)


@dataclass(frozen=True)
class Cell:
    """One snapshot in a strip: from when to when, which of how many tries at that time, tone and words."""

    start: float
    end: float
    place: int
    places: int
    tone: str
    title: str


def strip(scale: Scale, cells: Sequence[Cell], label: str) -> Markup:
    """Draw verdicts over time, tries at one time above each other; a sign says what the colour says."""
    parts = []
    dense = " dense" if len(cells) > 60 else ""  # gaps between cells this thin would wash their colour out
    for cell in cells:
        x, height = scale.at(cell.start), 22 / cell.places
        width, top = scale.at(cell.end) - x, round(cell.place * height, 2)
        parts.append(_rect(f"cell {cell.tone}{dense}", x, top, width, round(height, 2), cell.title))
        if cell.tone in _SIGNS:
            parts.append(_text(round(x + width / 2, 2), round(top + height / 2 + 5, 2), _SIGNS[cell.tone]))
    return _svg("strip", 22, label, parts)


def curve(
    series: Sequence[Series],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    best: Sequence[tuple[float, float]],
    label: str,
) -> Markup:
    """Draw lines over one pair of axes; `best` points get a dot. Axis labels are the page's business."""
    x_scale, y_scale = Scale(*x_range), Scale(*y_range)
    lines = []
    for tone, points in series:
        thin = list(points[:: math.ceil(len(points) / _MAX_POINTS)]) if points else []
        if thin and thin[-1] != points[-1]:
            thin.append(points[-1])  # the last point is the one a reader quotes
        path = " ".join(f"{x_scale.at(x)},{round(100 - y_scale.at(y), 2)}" for x, y in thin)
        lines.append(Markup('<polyline class="{}" points="{}"/>').format(tone, path))
    plot = Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{}</svg>')
    grid = [Markup('<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>').format(y) for y in (0, 50, 100)]
    dots = [
        Markup('<circle class="best" cx="{}%" cy="{}%" r="3.5"/>').format(x_scale.at(x), round(100 - y_scale.at(y), 2))
        for x, y in best
    ]
    return _svg("curve", 104, label, [*grid, plot.format(Markup("").join(lines)), *dots])
