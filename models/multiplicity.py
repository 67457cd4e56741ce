"""What is left of several comparisons when it is said that there were several.

A 95% interval misses the truth once in twenty; of twelve rows without any effect, one of two tables shows a "lift".
Resampled percentiles cannot reach the tails that a correction needs (200 resamples say nothing about 1 in 500), so
both corrections take the resamples' standard deviation and the normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from models.bootstrap import Interval


def p_value(found: Interval) -> float | None:
    """Return how probable so large a value would be, on either side, if there were no effect; None without an error.

    Examples
    --------
    >>> round(p_value(Interval(1.96, (0.0, 0.0), 1.0)), 3)
    0.05
    """
    if not math.isfinite(found.error) or found.error <= 0:
        return None
    return 2 * NormalDist().cdf(-abs(found.value) / found.error)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for all of them by Holm's method: below 0.05, no false find in 95 of 100 tables.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure (Scandinavian Journal of Statistics 1979): it
    needs no independence, and is never weaker than Bonferroni. None stays None and does not count.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[place] = highest
    return adjusted


def simultaneous(found: Interval, comparisons: int) -> tuple[float, float]:
    """Return an interval such that all of so many hold together in 95 of 100 tables (Bonferroni, normal).

    Examples
    --------
    >>> low, high = simultaneous(Interval(0.0, (0.0, 0.0), 1.0), 1)
    >>> round(high, 2)
    1.96
    """
    reach = NormalDist().inv_cdf(1 - 0.025 / max(comparisons, 1)) * found.error
    return found.value - reach, found.value + reach
