"""What the gate asks, as plain data: one Rule per check, with its bounds and severity.

A rule says where its value stands (``rows``: one value per row of the per-row table; ``summary``: one
statistic of the whole file) and in which range it must lie; `validation/suites.py` turns rules into
Great Expectations suites. docs/gate.md explains each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Severity
from validation.drift import MIN_SAMPLE
from validation.history import HistoryBound
from validation.specs import Bounds, SnapshotSpec

Table = Literal["rows", "summary"]
Kind = Literal["between", "not_null", "unique", "custom"]
Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class Rule:
    """One check.

    Attributes
    ----------
    name
        Unique within a suite; becomes the name of the Check.
    low, high
        Inclusive bounds; None is open. `above` makes the lower bound exclusive.
    why
        What a failure usually means, shown with the verdict.
    note
        Where the bound comes from, when not declared.
    expectation
        For kind ``custom``: a function that returns any Great Expectations expectation (docs/gate.md).
    """

    name: str
    table: Table
    column: str
    low: float | None = None
    high: float | None = None
    severity: Severity = "critical"
    kind: Kind = "between"
    above: bool = False
    why: str = ""
    note: str = ""
    expectation: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse rules that could only pass: no bound at all, or bounds that are no numbers."""
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if self.kind == "between" and not bounds:
            raise ConfigError(f"Rule '{self.name}' has no bound and would always pass: give low or high.")
        if any(not math.isfinite(bound) for bound in bounds):
            raise ConfigError(f"Rule '{self.name}' has a bound that is no number: use None for open ends.")
        if self.kind == "custom" and self.expectation is None:
            raise ConfigError(f"Rule '{self.name}' is custom but brings no expectation: give `expectation`.")

    def bound(self) -> str:
        """Return the bound for a person."""
        fixed = {"not_null": "no nulls", "unique": "no duplicates", "custom": "as its expectation says"}
        text = fixed.get(self.kind) or self._range()
        return f"{text} ({self.note})" if self.note else text

    def _range(self) -> str:
        if self.low is not None and self.low == self.high:
            return f"exactly {self.low:.6g}"
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if self.above else 'at least'} {self.low:.6g}")
        if self.high is not None:
            parts.append(f"at most {self.high:.6g}")
        return " and ".join(parts)


# They say nothing of vectors that attributes alone make.
OF_WHAT_IS_LEARNED = ("duplicate_vectors", "unchanged_usual")


def snapshot_rules(spec: SnapshotSpec, bounds: Bounds, rows: int) -> list[Rule]:
    """Return every rule for an embedding snapshot by itself.

    Parameters
    ----------
    rows
        Rows of the file; a handful of vectors has no spread that could collapse.
    """
    rules = [*_row_rules(spec.dim, bounds), *whole_rules(spec.min_rows, spec.max_rows)]
    rules.append(
        warn(
            "duplicate_vectors",
            "duplicate_vector_share",
            (None, bounds.usual_duplicate_share),
            "many entities share one vector, as cold ones with equal attributes do",
        )
    )
    if spec.known_ids is not None:
        rules.append(must("id_known", "unknown_ids", (0, 0), "ids that no table of entities has"))
    if spec.active_ids is not None:
        missing = "active entities have no row"
        rules += [
            must("active_coverage", "active_coverage", (bounds.active_coverage, None), missing),
            warn("active_coverage_usual", "active_coverage", (bounds.usual_active_coverage, None), missing),
            must("inactive_share", "inactive_share", (None, bounds.inactive_share), "rows of entities that left"),
        ]
    if rows >= MIN_SAMPLE and spec.dim > 1:
        rules += _collapse_rules(spec.dim, bounds)
    return rules


def whole_rules(min_rows: int, max_rows: int | None) -> list[Rule]:
    """Return the rules that hold for every snapshot: row count and clocks."""
    return [
        must("row_count", "rows", (min_rows, max_rows), "the refresh lost or multiplied rows"),
        must("clocks_present", "null_clocks", (0, 0), "rows without event_timestamp or created"),
        must(
            "event_timestamp",
            "wrong_event_timestamps",
            (0, 0),
            "rows of another refresh: event_timestamp differs from available_at",
        ),
        must("available_us", "wrong_available_us", (0, 0), "the copy of event_timestamp that consumers read differs"),
        must("created_after_as_of", "created_before_as_of", (0, 0), "written before the moment it describes"),
        must("created_not_future", "created_in_future", (0, 0), "the writer's clock is ahead"),
    ]


def previous_rules(bounds: Bounds, coverage: HistoryBound | None = None) -> list[Rule]:
    """Return the rules that hold for every snapshot with a previous one: rows, coverage, order."""
    floor = coverage or HistoryBound(bounds.coverage, "")
    return [
        must("row_ratio", "row_ratio", bounds.row_ratio, "row count jumped against the previous snapshot"),
        warn("row_ratio_usual", "row_ratio", bounds.usual_row_ratio, "row count moved more than usual"),
        must(
            "coverage",
            "coverage",
            (floor.value, None),
            "entities of the previous snapshot are missing",
            floor.note,
        ),
        warn("coverage_usual", "coverage", (bounds.usual_coverage, None), "more entities left than usual"),
        must("new_share", "new_share", (None, bounds.new_share), "hardly any entity was there before"),
        warn("new_share_usual", "new_share", (None, bounds.usual_new_share), "more entities are new than usual"),
        must(
            "after_previous",
            "seconds_after_previous",
            (0, bounds.max_seconds_after_previous),
            "a snapshot may not become readable before the one it follows",
        ),
    ]


def _row_rules(dim: int, bounds: Bounds) -> list[Rule]:
    wide, tight = bounds.norm_tolerance, bounds.usual_norm_tolerance
    scaled, rounded = "vectors were scaled or not normalized", "vectors were rounded"
    return [
        Rule("id_not_null", "rows", "id", kind="not_null", why="rows without an entity"),
        Rule("id_unique", "rows", "id", kind="unique", why="an entity has two vectors"),
        _each("vector_not_null", "is_null", (0, 0), "an entity without a vector must have no row"),
        _each("vector_length", "length", (dim, dim), "vectors of another model, or cut ones"),
        _each("vector_finite", "nonfinite", (0, 0), "NaN, infinite or missing values inside a vector"),
        _each("vector_not_zero", "max_abs", (0, None), "a vector of zeros has no direction", above=True),
        _each("vector_norm", "norm", (1 - wide, 1 + wide), scaled),
        _each("vector_norm_usual", "norm", (1 - tight, 1 + tight), rounded, severity="warning"),
        _each("raw_norm", "raw_norm", (0, None), "the norm before normalizing is no positive number", above=True),
    ]


def _collapse_rules(dim: int, bounds: Bounds) -> list[Rule]:
    # One dimension alone is enough for two directions, so the floor grows with D up to 2 at D = 11.
    floor = 1 + 0.1 * min(dim - 1, 10)
    usual = max(floor, bounds.usual_rank_share * dim)
    return [
        must("effective_rank", "effective_rank", (floor, None), "vectors collapsed onto a few directions"),
        warn("effective_rank_usual", "effective_rank", (usual, None), "vectors use little of their space"),
        must("dead_dimensions", "dead_dimensions", (0, 0), "dimensions that are the same for everyone"),
        must("mean_vector", "mean_vector_norm", (None, bounds.mean_vector_norm), "all vectors point one way"),
        warn(
            "mean_vector_usual",
            "mean_vector_norm",
            (None, bounds.usual_mean_vector_norm),
            "vectors lie in a narrow cone",
        ),
    ]


def must(name: str, column: str, limits: Limits, why: str, note: str = "") -> Rule:
    """Return a critical rule over one statistic."""
    return Rule(name, "summary", column, *limits, why=why, note=note)


def warn(name: str, column: str, limits: Limits, why: str) -> Rule:
    """Return a warning rule over one statistic."""
    return Rule(name, "summary", column, *limits, severity="warning", why=why)


def _each(
    name: str, column: str, limits: Limits, why: str, *, above: bool = False, severity: Severity = "critical"
) -> Rule:
    return Rule(name, "rows", column, *limits, severity=severity, above=above, why=why)
