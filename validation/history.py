"""Bounds from a version's own past: what was normal for it, beside the declared floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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

    The bound lies away from the median by `slack`, by `bounds.history_spreads` robust standard deviations
    or by twice the worst that was accepted, whichever is most: the deviation alone is zero for a version
    whose past was very even, and would refuse its first normal change.

    Parameters
    ----------
    history
        Verdicts of the same view, oldest first; refused ones are not counted.
    check
        Name of the check whose observed values are read.
    declared
        Bound that holds without history.
    """
    past = observed(history, check)
    if len(past) < bounds.min_history:
        return HistoryBound(declared, "")
    median = float(np.median(past))
    # 1.4826 turns the median absolute deviation into a standard deviation for normal values.
    spread = 1.4826 * float(np.median(np.abs(past - median)))
    worst = median - float(past.min()) if side == "floor" else float(past.max()) - median
    reach = max(slack, bounds.history_spreads * spread, 2 * worst)
    value = max(declared, median - reach) if side == "floor" else min(declared, median + reach)
    return HistoryBound(value, f"median of {len(past)} past {median:.4g}, declared {side} {declared:g}")


def is_steady(history: Sequence[Verdict], bounds: Bounds) -> bool:
    """Return whether entities hardly move from one snapshot to the next, as smoothed ones do.

    Vectors that are computed anew each time turn with the season; what is an alarm for a smoothed version
    is an ordinary week for those.
    """
    past = observed(history, "cosine_p01")
    return len(past) >= bounds.min_history and bool(past.min() >= bounds.steady_cosine_p01)


def observed(history: Sequence[Verdict], check: str) -> npt.NDArray[np.float64]:
    """Return what a check saw in the accepted verdicts of a history."""
    return np.array(
        [
            float(item.observed)
            for verdict in history
            if verdict.accepted
            for item in verdict.checks
            if item.name == check and isinstance(item.observed, int | float)
        ]
    )
