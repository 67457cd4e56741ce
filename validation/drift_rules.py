"""The rules that hold a snapshot's vectors against those of the previous one and against the version's past."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.contracts.types import Verdict
from validation.drift import MIN_SAMPLE
from validation.history import HistoryBound, history_bound, is_steady, observed
from validation.rules import Rule, must, previous_rules, warn
from validation.specs import Bounds
from validation.tables import Summary


def drift_rules(bounds: Bounds, summary: Summary, history: Sequence[Verdict] = ()) -> list[Rule]:
    """Return every rule against the previous snapshot; none when `summary` holds no comparison.

    Parameters
    ----------
    history
        Verdicts of earlier accepted snapshots of the same view; they tighten the declared bounds.
    """
    if "previous_rows" not in summary:
        return []
    enough = min(MIN_SAMPLE, int(summary["previous_rows"]) // 2)
    rules = [
        *previous_rules(bounds, _coverage_floor(bounds, history)),
        must("comparable", "comparable", (enough, None), "too few entities have a vector in both"),
    ]
    if "smoothing_violations" in summary:
        why = "vectors that are no mixture of their previous one and any other: changed after smoothing"
        rules.append(must("smoothing", "smoothing_violations", (0, 0), why))
    comparable = int(summary["comparable"])
    if comparable < MIN_SAMPLE:
        # The statistics of a handful of pairs are noise; `comparable` and `coverage` still block.
        return rules
    return [*rules, *_entity_rules(bounds, comparable, history), *_space_rules(bounds, history)]


def anchor_rules(bounds: Bounds, summary: Summary) -> list[Rule]:
    """Return the rules against an old snapshot; none when `summary` holds no comparison or too small a one."""
    if int(summary.get("anchor_comparable", 0)) < MIN_SAMPLE:
        return []
    slow = "small steps of many refreshes added up to"
    return [
        must(
            "anchor_cosine_mean",
            "anchor_cosine_mean",
            (bounds.anchor_cosine_mean, None),
            f"{slow} vectors that have nothing to do with the old ones",
        ),
        must("anchor_identity", "anchor_identity", (bounds.anchor_identity, None), f"{slow} other entities' vectors"),
        must("anchor_space", "anchor_space_gain", (None, bounds.anchor_space_gain), f"{slow} another space"),
        warn(
            "anchor_space_usual",
            "anchor_space_gain",
            (None, bounds.usual_anchor_space_gain),
            "the space turns slowly",
        ),
    ]


def _coverage_floor(bounds: Bounds, history: Sequence[Verdict]) -> HistoryBound:
    past = observed(history, "coverage")
    if len(past) and past.min() == 1.0:
        # Nobody has left yet: the past says nothing about how many leave once the first ones do.
        return HistoryBound(bounds.coverage, "")
    return history_bound(history, "coverage", bounds.coverage, 0.25, bounds)


def _entity_rules(bounds: Bounds, comparable: int, history: Sequence[Verdict]) -> list[Rule]:
    steady = is_steady(history, bounds)

    def floor(name: str, declared: float, slack: float, why: str) -> Rule:
        found = history_bound(history, name, declared, slack if steady else 2 * slack, bounds)
        return must(name, name, (found.value, None), why, found.note)

    # A handful of entities may always turn; in a small snapshot they are a larger share.
    few = max(0.003, 5 / comparable) if steady else 0.1
    turned = history_bound(history, "turned_share", bounds.turned_share, few, bounds, "ceiling")
    return [
        floor("cosine_mean", bounds.cosine_mean, 0.15, "entities moved far since the previous snapshot"),
        warn("cosine_mean_usual", "cosine_mean", (bounds.usual_cosine_mean, None), "a large step"),
        floor("cosine_p01", bounds.cosine_p01, 0.3, "some entities turned around"),
        warn("cosine_p01_usual", "cosine_p01", (bounds.usual_cosine_p01, None), "some entities turned far"),
        must(
            "turned_share",
            "turned_share",
            (None, turned.value),
            "many entities point elsewhere now: mixed models, or rows of others",
            turned.note,
        ),
        warn("turned_share_usual", "turned_share", (None, bounds.usual_turned_share), "entities turned"),
        floor(
            "identity",
            bounds.identity,
            0.05,
            "entities do not resemble themselves: shuffled ids, shifted rows or swapped files",
        ),
        warn("identity_usual", "identity", (bounds.usual_identity, None), "some do not resemble themselves"),
        warn(
            "unchanged_usual",
            "unchanged_share",
            (None, bounds.usual_unchanged_share),
            "nothing was refreshed: the file may be a copy of the previous one",
        ),
    ]


def _space_rules(bounds: Bounds, history: Sequence[Verdict]) -> list[Rule]:
    rank = history_bound(history, "rank_ratio", bounds.rank_ratio, 0.3, bounds)
    correlation = bounds.dimension_correlation
    return [
        must(
            "space",
            "space_gain",
            (None, bounds.space_gain),
            "a rotation explains the change: these vectors are of another space",
        ),
        warn("space_usual", "space_gain", (None, bounds.usual_space_gain), "a rotation explains part of it"),
        must(
            "dimension_order",
            "dimension_correlation_min",
            (correlation, None),
            "a dimension changed its sign or its place",
        ),
        warn(
            "dimension_order_usual",
            "dimension_correlation_min",
            (bounds.usual_dimension_correlation, None),
            "a dimension hardly resembles itself",
        ),
        must("rank_ratio", "rank_ratio", (rank.value, None), "vectors use far fewer directions now", rank.note),
        warn("rank_ratio_usual", "rank_ratio", (bounds.usual_rank_ratio, None), "fewer directions are used"),
        must("raw_norm_ratio", "raw_norm_ratio", bounds.raw_norm_ratio, "norms before normalizing jumped"),
        warn("raw_norm_ratio_usual", "raw_norm_ratio", bounds.usual_raw_norm_ratio, "raw norms moved"),
        warn(
            "neighbours_usual",
            "neighbour_overlap",
            (bounds.usual_neighbour_overlap, None),
            "nearest neighbours changed",
        ),
        warn("psi_usual", "psi_max", (None, bounds.usual_psi), "a dimension is distributed differently now"),
    ]
