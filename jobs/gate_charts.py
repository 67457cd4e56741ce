"""The pictures of the gate's pages as inline SVG. They fill any column; colours are classes of the style sheet.

Shapes: N values, P points, T moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 16, 34
MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar")


def _svg(kind: str, width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(kind, width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, text)


def short(value: float) -> str:
    """Write a number for an axis."""
    return f"{value:.3g}" if abs(value) < 10_000 else f"{value:,.0f}"


class _Frame:
    """A plot with a vertical scale; `x` runs from 0 to 1."""

    def __init__(self, low: float, high: float) -> None:
        if not math.isfinite(low) or not math.isfinite(high):
            low, high = 0.0, 1.0
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
        self.low, self.high = low, high

    def x(self, share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[Markup]:
        parts = []
        for value in np.linspace(self.low, self.high, 4):
            height = self.y(float(value))
            line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
            parts += [
                line.format(LEFT, WIDTH - RIGHT, height, height),
                _text(LEFT - 6, height + 4, short(value), "end"),
            ]
        return parts


def sparkline(values: Sequence[float], failed: bool, label: str) -> Markup:
    """Draw the last values of one check; the newest is the dot."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = [
        (3 + 114 * at / (len(values) - 1), 21 - 18 * ((value - low) / span if high > low else 0.5))
        for at, value in enumerate(values)
    ]
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(
        "end bad" if failed else "end", *points[-1]
    )
    return _svg("spark", 120, 24, label, [_path(points, "past"), dot])


def histogram(now: np.ndarray, before: np.ndarray | None, label: str) -> Markup:
    """Draw how values (N,) are distributed now, as bars, and before, as a line, in percent of the entities."""
    both = now if before is None else np.concatenate([now, before])
    low, high = (float(edge) for edge in np.quantile(both, [0.001, 0.999])) if len(both) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1e-6, 31)

    def shares(values: np.ndarray) -> np.ndarray:
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        return 100 * counts / max(1, len(values))

    bars = shares(now)
    line = None if before is None else shares(before)
    frame = _Frame(0, float(max(bars.max(), 0 if line is None else line.max())) or 1.0)
    width = (WIDTH - LEFT - RIGHT) / 30
    parts = frame.grid()
    box = Markup('<rect class="now" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    for at, value in enumerate(bars):
        top = frame.y(float(value))
        parts.append(box.format(LEFT + at * width + 0.5, top, width - 1, HEIGHT - BOTTOM - top))
    if line is not None:
        steps = []
        for at, value in enumerate(line):
            steps += [(LEFT + at * width, frame.y(float(value))), (LEFT + (at + 1) * width, frame.y(float(value)))]
        parts.append(_path(steps, "before"))
    for share in (0.0, 0.5, 1.0):
        text = short(float(edges[0] + share * (edges[-1] - edges[0])))
        parts.append(
            _text(frame.x(share), HEIGHT - 16, text, "start" if share == 0 else "end" if share == 1 else "middle")
        )
    return _svg("plot", WIDTH, HEIGHT, label, parts)


def spectrum(now: np.ndarray, before: np.ndarray | None, label: str) -> Markup:
    """Draw the shares of the variance (D,) along the principal directions, largest first, on a log scale."""

    def logs(eigenvalues: np.ndarray) -> np.ndarray:
        return np.log10(np.maximum(100 * eigenvalues / max(float(eigenvalues.sum()), 1e-30), 1e-4))

    lines = [(logs(now), "line")] + ([] if before is None else [(logs(before), "before")])
    low = math.floor(min(float(values.min()) for values, _ in lines))
    high = math.ceil(max(float(values.max()) for values, _ in lines))
    frame = _Frame(low, max(high, low + 1))
    parts = []
    for power in range(low, max(high, low + 1) + 1):
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        parts += [line.format(LEFT, WIDTH - RIGHT, frame.y(power), frame.y(power))]
        parts += [_text(LEFT - 6, frame.y(power) + 4, f"{10.0**power:g}%", "end")]
    for values, kind in reversed(lines):
        last = max(1, len(values) - 1)
        parts.append(_path([(frame.x(at / last), frame.y(float(value))) for at, value in enumerate(values)], kind))
    parts += [
        _text(LEFT, HEIGHT - 16, "1st direction", "start"),
        _text(WIDTH - RIGHT, HEIGHT - 16, f"{len(now)}th", "end"),
    ]
    return _svg("plot", WIDTH, HEIGHT, label, parts)


def over_time(days: Sequence[str], series: Mapping[str, Sequence[float | None]], here: int, label: str) -> Markup:
    """Draw values in 0 to 1 over T moments; a vertical line marks this snapshot. Lines are named at their ends."""
    known = [value for values in series.values() for value in values if value is not None]
    low = math.floor(10 * min(known)) / 10 if known else 0.0
    frame = _Frame(low, max([1.0, *known]))
    last = max(1, len(days) - 1)
    parts = frame.grid()
    mark = frame.x(here / last)
    parts.append(
        Markup('<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(mark, mark, TOP, HEIGHT - BOTTOM)
    )
    for number, values in enumerate(series.values()):
        points = [(frame.x(at / last), frame.y(value)) for at, value in enumerate(values) if value is not None]
        if points:
            parts.append(_path(points, f"series s{number}"))
            dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>')
            parts += [dot.format(number, x, y) for x, y in points]
    for at, anchor in ((0, "start"), (len(days) - 1, "end")):
        parts.append(_text(frame.x(at / last), HEIGHT - 16, days[at], anchor))
    return _svg("plot", WIDTH, HEIGHT, label, parts)


def scatter(points: np.ndarray, group: Sequence[int], titles: Sequence[str], label: str) -> Markup:
    """Draw points (P, 2); groups differ in colour and in shape, and each point has a tooltip."""
    size, edge = 420, 12
    low, high = np.quantile(points, 0.005, axis=0), np.quantile(points, 0.995, axis=0)
    scaled = np.clip((points - low) / np.maximum(high - low, 1e-9), 0, 1) * (WIDTH - 2 * edge, size - 2 * edge) + edge
    parts = []
    for (x, y), kind, title in zip(scaled, group, titles, strict=True):
        parts.append(Markup('<g class="g{}"><title>{}</title>{}</g>').format(kind, title, _mark(kind, x, size - y)))
    return _svg("plot cloud", WIDTH, size, label, parts)


def key(kind: int) -> Markup:
    """Draw the mark of one group for a legend; the picture says nothing that the words beside it do not."""
    body = Markup('<g class="g{}">{}</g>').format(kind, _mark(kind, 8, 8))
    return Markup('<svg class="key" viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(body)


def _mark(kind: int, x: float, y: float) -> Markup:
    shapes: dict[str, tuple[str, tuple[Any, ...]]] = {
        "circle": ('<circle cx="{:.1f}" cy="{:.1f}" r="3.6"/>', (x, y)),
        "square": ('<rect x="{:.1f}" y="{:.1f}" width="6.4" height="6.4"/>', (x - 3.2, y - 3.2)),
        "triangle": ('<path d="M{:.1f} {:.1f}l4 7h-8z"/>', (x, y - 4)),
        "diamond": ('<path d="M{:.1f} {:.1f}l4.2 4.2l-4.2 4.2l-4.2 -4.2z"/>', (x, y - 4.2)),
        "cross": ('<path class="stroke" d="M{:.1f} {:.1f}l6 6m0 -6l-6 6"/>', (x - 3, y - 3)),
        "ring": ('<circle class="stroke" cx="{:.1f}" cy="{:.1f}" r="3.2"/>', (x, y)),
        "bar": ('<rect x="{:.1f}" y="{:.1f}" width="8" height="2.6"/>', (x - 4, y - 1.3)),
    }
    form, values = shapes[MARKS[kind % len(MARKS)]]
    return Markup(form).format(*values)
