"""Calibration: a strictly rising map from a ranker's log-odds to log-odds that hold on later rows.

Strictly rising, so that the order of candidates, and with it every area under a curve, stays as it was.

Shapes: N rows, P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from models.metrics import Floats, checked_rows, sigmoid

Method = Literal["platt", "isotonic"]
_STEPS, _SMALLEST_SLOPE = 50, 1e-3


@dataclass(frozen=True)
class Calibration:
    """A map of log-odds, made by :func:`fit_calibration`.

    Attributes
    ----------
    x, y
        Points [P] of a rising line, which goes on at its ends with slope `slope`; one point is enough.
    """

    method: Method
    x: tuple[float, ...]
    y: tuple[float, ...]
    slope: float = 1.0

    def apply(self, logits: ArrayLike) -> Floats:
        """Return calibrated log-odds, float64, same shape."""
        values = np.asarray(logits, dtype=np.float64)
        x, y = np.array(self.x), np.array(self.y)
        beyond = values - np.clip(values, x[0], x[-1])
        return np.asarray(np.interp(values, x, y) + self.slope * beyond)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"method": self.method, "x": list(self.x), "y": list(self.y), "slope": self.slope}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` wrote."""
        return cls(values["method"], tuple(values["x"]), tuple(values["y"]), values["slope"])


def fit_calibration(
    method: Method, label: ArrayLike, logits: ArrayLike, weight: ArrayLike | None = None
) -> Calibration:
    """Learn a calibration from rows that the ranker was not trained on.

    Parameters
    ----------
    method
        ``platt``: logistic regression on the log-odds (Platt 1999), two numbers. ``isotonic``: the rising steps that
        fit best (Zadrozny and Elkan 2002), joined by lines between their middles; wants thousands of positives.
    label
        0 or 1, ``[N]``.
    logits
        The ranker's log-odds, ``[N]``.
    weight
        Row weights, ``[N]``; None for 1.

    Raises
    ------
    ValueError
        If lengths differ, a score is not finite, or one class has no weight.
    """
    labels, scores, weights = checked_rows(label, logits, weight)
    if method == "platt":
        return _platt(labels, scores, weights)
    return _isotonic(labels, scores, weights)


def _platt(labels: Floats, scores: Floats, weights: Floats) -> Calibration:
    """Fit slope and intercept by Newton's method; where scores do not rise with the labels, the intercept alone."""
    inputs = np.stack([scores, np.ones(len(scores))], axis=1)
    for columns in ([0, 1], [1]):
        found = np.array([1.0, 0.0])
        used = inputs[:, columns]
        for _ in range(_STEPS):
            predicted = sigmoid(inputs @ found)
            gradient = used.T @ (weights * (predicted - labels))
            curvature = (used * (weights * predicted * (1 - predicted))[:, None]).T @ used
            step = np.linalg.solve(curvature + 1e-9 * weights.sum() * np.eye(len(columns)), gradient)
            # Separable labels would run to infinity; no step is longer than 2.
            found[columns] -= step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
            if np.abs(step).max() < 1e-10:
                break
        if found[0] > _SMALLEST_SLOPE:
            break
    return Calibration("platt", (0.0,), (float(found[1]),), float(found[0]))


def _isotonic(labels: Floats, scores: Floats, weights: Floats) -> Calibration:
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    labels, scores, weights = labels[order], scores[order], weights[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(scores) > 0]))  # equal scores are one point
    mass = np.add.reduceat(weights, first)
    rate = np.add.reduceat(weights * labels, first) / mass
    fitted = isotonic_regression(rate, weights=mass)
    blocks = fitted.blocks[:-1]
    weight = np.add.reduceat(mass, blocks)
    middle = np.add.reduceat(mass * scores[first], blocks) / weight
    # A step of one class only would be sure of itself: half a row of the other one is added to the outermost.
    least = 0.5 * float(np.median(weights)) / weight
    steps = np.clip(fitted.x[blocks], least, 1 - least)
    steps = np.maximum.accumulate(steps)
    kept = np.flatnonzero(np.concatenate([[True], np.diff(steps) > 1e-12]))
    steps, middle = steps[kept], middle[kept]
    odds = np.log(steps / (1 - steps))
    return Calibration("isotonic", tuple(middle.tolist()), tuple(odds.tolist()))
