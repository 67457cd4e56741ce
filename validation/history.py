"""Bounds from a version's own past: what was normal for it, beside the declared floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from feature_repo.contracts.types import Verdict
from validation.specs import Bounds


@dataclass(frozen=True)
class HistoryBound:
    """A bound and where it comes from."""

    value: float
    note: str


def history_bound(
    history: Sequence[Verdict],
    check: str,
    declared: float,
    slack: float,
    bounds: Bounds,
    side: Literal["floor", "ceiling"] = "floor",
) -> HistoryBound:
    """Return the bound of a check from past accepted verdicts, never looser than the declared one.

    Parameters
    ----------
    history
        Verdicts of the same view, oldest first; refused ones are not counted.
    check
        Name of the check whose observed values are read.
    declared
        Bound that holds without history.
    slack
        The bound stays at least this far from the median, so that a version whose past happens to be
        very even does not refuse its first normal change.
    """
    past = [
        float(item.observed)
        for verdict in history
        if verdict.accepted
        for item in verdict.checks
        if item.name == check and isinstance(item.observed, int | float)
    ]
    if len(past) < bounds.min_history:
        return HistoryBound(declared, "")
    median = float(np.median(past))
    # 1.4826 turns the median absolute deviation into a standard deviation for normal values.
    spread = 1.4826 * float(np.median(np.abs(np.array(past) - median)))
    reach = max(slack, bounds.history_spreads * spread)
    value = max(declared, median - reach) if side == "floor" else min(declared, median + reach)
    return HistoryBound(value, f"median of {len(past)} past {median:.4g}, declared {side} {declared:g}")
