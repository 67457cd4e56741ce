"""Intervals of metrics by resampling users. Numpy in, numbers out.

Shapes: N rows, S seeds, R resamples, U users, B users of one retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics import (
    Floats,
    Integers,
    RankedScores,
    checked_rows,
    entropy,
    row_log_loss,
    share_of_possible_gain,
    sigmoid,
)


@dataclass(frozen=True)
class Interval:
    """A value on all rows, the 95% interval of its resamples, and their standard deviation (the standard error)."""

    value: float
    ci95: tuple[float, float]
    error: float = float("nan")


@dataclass(frozen=True)
class LiftRow:
    """One row of the lift table: means over seeds, intervals over users.

    Lift and changes compare with the baseline on the same resample and the same seed. The lift is relative;
    the changes are differences, and below 0 is better. `share_of_possible_gain` is there only where an oracle's
    logits were given: (AUC - AUC of the baseline) / (AUC of the oracle - AUC of the baseline), of means over seeds.
    """

    auc: Interval
    log_loss: Interval
    normalized_entropy: Interval
    calibration: Interval
    relative_auc_lift: Interval
    log_loss_change: Interval
    normalized_entropy_change: Interval
    seed_auc_lifts: tuple[float, ...]
    share_of_possible_gain: Interval | None = None


def bootstrap_lift(
    label: ArrayLike,
    weight: ArrayLike,
    user: ArrayLike,
    baseline: ArrayLike,
    treatments: Mapping[str, ArrayLike],
    *,
    oracle: ArrayLike | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, LiftRow]:
    """Compare treatments with a baseline; intervals come from resampling users.

    Rows of one user are not independent, so users are drawn with replacement and bring all their rows. Every
    resample is used for the baseline, all treatments and all seeds (paired), and averaged over seeds. The
    interval thus covers who happened to be in the test period; the spread over seeds stands beside it.

    Parameters
    ----------
    label, weight, user
        ``[N]``.
    baseline
        Logits ``[S, N]``, one row per seed.
    treatments
        Name to logits ``[S, N]``, the same seeds in the same order.
    oracle
        Logits of the true probabilities ``[N]``, where they are known (a simulated log).
    resamples
        R; 200 gives the ends of a 95% interval to about a tenth of its width.
    seed
        Of the resampling.

    Returns
    -------
    dict
        ``"baseline"`` and each treatment, in order; with an oracle also ``"oracle"``, the last.

    Raises
    ------
    ValueError
        If shapes differ, a treatment is named "baseline" or "oracle", or more than one resample in twenty
        has only one class (too few users with positives for an interval).

    Notes
    -----
    Cost: one sort per model and seed, then per resample one gather and one cumulative sum over N.
    """
    if taken := {"baseline", "oracle"} & set(treatments):
        raise ValueError(f"bootstrap_lift: no treatment may be named '{taken.pop()}', another row is.")
    named = {"baseline": baseline, **treatments} | ({} if oracle is None else {"oracle": oracle})
    models = {name: np.atleast_2d(np.asarray(rows)) for name, rows in named.items()}
    shape = (len(models["baseline"]), len(np.asarray(label)))
    for name, rows in models.items():
        if rows.shape != (shape if name != "oracle" else (1, shape[1])):
            raise ValueError(f"bootstrap_lift: logits of '{name}' have shape {rows.shape}, expected {shape}.")
    codes, users = _codes(user)
    if len(codes) != shape[1]:
        raise ValueError(f"bootstrap_lift: {len(codes)} users for {shape[1]} labels.")
    counts = np.concatenate([np.ones((1, users)), user_counts(users, resamples, seed)])  # [1 + R, U]
    metrics = {name: _per_resample(label, weight, codes, rows, counts) for name, rows in models.items()}
    broken = float(np.isnan(metrics["baseline"]["auc"][0]).mean())
    if broken > 0.05:
        raise ValueError(
            f"bootstrap_lift: {broken:.0%} of the resamples hold one class only; "
            "more users with positive labels are needed for an interval."
        )
    return {name: _lift_row(metrics["baseline"], values, metrics.get("oracle")) for name, values in metrics.items()}


def user_counts(users: int, resamples: int, seed: int) -> Floats:
    """Return how often each user is drawn, ``[R, U]``: each row is U draws with replacement."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(users, size=users) for _ in range(resamples))
    return np.stack([np.bincount(draw, minlength=users) for draw in draws]).astype(np.float64)


def bootstrap_mean(values: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the mean of per-user values ``[B]``, e.g. recall, with its interval over users.

    Raises
    ------
    ValueError
        If there are no values.
    """
    return bootstrap_ratio(values, np.ones(np.shape(values)), resamples=resamples, seed=seed)


def bootstrap_ratio(treatment: ArrayLike, baseline: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return mean treatment / mean baseline of per-user values ``[B]``, on the same resamples of users.

    Raises
    ------
    ValueError
        If there are no values, or the shapes differ.
    """
    above, below = np.asarray(treatment, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape or len(above) == 0:
        raise ValueError(f"Bootstrap: shapes {above.shape} and {below.shape}; one value per user is needed.")
    draws = np.random.default_rng(seed)
    rows = [np.arange(len(above)), *(draws.integers(len(above), size=len(above)) for _ in range(resamples))]
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(np.array([above[row].mean() / below[row].mean() for row in rows]))


def _per_resample(
    label: ArrayLike, weight: ArrayLike, codes: Integers, logits: NDArray[np.floating], counts: Floats
) -> dict[str, Floats]:
    """Return every metric as ``[S, 1 + R]``; column 0 is all users once."""
    users = counts.shape[1]
    auc, loss, predicted = (np.empty((len(logits), len(counts))) for _ in range(3))
    for row, values in enumerate(logits):
        labels, scores, weights = checked_rows(label, values, weight)
        ranked = RankedScores(labels, scores, weights)
        ranked.by_user(codes)
        auc[row] = [ranked.resampled_auc(count) for count in counts]
        # These are sums over rows, hence sums over users: no need to touch the rows again.
        loss[row] = counts @ np.bincount(codes, weights * row_log_loss(labels, scores), minlength=users)
        predicted[row] = counts @ np.bincount(codes, weights * sigmoid(scores), minlength=users)
    whole = counts @ np.bincount(codes, weights, minlength=users)
    clicked = counts @ np.bincount(codes, weights * labels, minlength=users)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = loss / whole
        return {
            "auc": auc,
            "log_loss": loss,
            "normalized_entropy": loss / entropy(clicked / whole),
            "calibration": predicted / clicked,
        }


def _lift_row(
    baseline: Mapping[str, Floats], model: Mapping[str, Floats], oracle: Mapping[str, Floats] | None
) -> LiftRow:
    share = None
    if oracle is not None:
        gains = share_of_possible_gain(*(values["auc"].mean(axis=0) for values in (model, baseline, oracle)))
        share = _interval(gains)
    lifts = model["auc"] / baseline["auc"] - 1.0
    return LiftRow(
        **{name: _interval(values.mean(axis=0)) for name, values in model.items()},
        relative_auc_lift=_interval(lifts.mean(axis=0)),
        log_loss_change=_interval((model["log_loss"] - baseline["log_loss"]).mean(axis=0)),
        normalized_entropy_change=_interval(
            (model["normalized_entropy"] - baseline["normalized_entropy"]).mean(axis=0)
        ),
        seed_auc_lifts=tuple(float(lift) for lift in lifts[:, 0]),
        share_of_possible_gain=share,
    )


def _interval(values: Floats) -> Interval:
    """Return column 0 with the 2.5% and 97.5% percentiles of the others."""
    resampled = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(resampled, (0.025, 0.975)) if len(resampled) else (np.nan, np.nan)
    error = resampled.std(ddof=1) if len(resampled) > 1 else np.nan
    return Interval(float(values[0]), (float(low), float(high)), float(error))


def _codes(user: ArrayLike) -> tuple[Integers, int]:
    names, codes = np.unique(np.asarray(user), return_inverse=True)
    return codes.astype(np.int64), len(names)
