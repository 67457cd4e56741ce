"""What the gate's pages show of one snapshot, computed from the ledger and the lake.

Shapes: N entities, D embedding dim, P plotted entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from markupsafe import Markup

from feature_repo.contracts.errors import HeadwaterError
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Check, Decision, Entity, Snapshot
from jobs import gate_charts as draw
from jobs.snapshot import state_of
from jobs.workspace import Workspace
from validation.history import observed
from validation.offenders import Offenders, broken_rows, farthest

POINTS = 600
GROUPS = 6
PAST = 24
OVER_TIME = {"cosine_mean": "mean cosine", "coverage": "coverage", "identity": "identity"}


@dataclass(frozen=True)
class Vectors:
    """The usable rows of one snapshot: ids [N], vectors float32 [N, D], norms before scaling [N], eigenvalues [D]."""

    ids: pl.Series
    vectors: np.ndarray
    norms: np.ndarray
    eigenvalues: np.ndarray


def read(path: Path, entity: Entity) -> Vectors | None:
    """Read what can be drawn of a snapshot; None where nothing can, as its checks say why."""
    from jobs.refresh import read_vectors
    from validation.tables import read_column

    try:
        ids, vectors = read_vectors(path, join_key(entity))
        norms = read_column(path, "norm").to_numpy(zero_copy_only=False).astype(np.float64)
    except (HeadwaterError, OSError, pa.ArrowException, KeyError, ValueError):
        return None
    usable = np.isfinite(vectors).all(axis=1) & np.isfinite(norms) & ids.is_not_null().to_numpy()
    if usable.sum() < 3:
        return None
    vectors = vectors[usable]
    spread = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64), bias=True))[::-1]
    return Vectors(ids.filter(pl.Series(usable)), vectors, norms[usable], np.clip(spread, 0, None))


def page(
    ws: Workspace,
    snapshot: Snapshot,
    others: Sequence[Snapshot],
    decision: Decision | None,
    now: Vectors | None,
    before: Vectors | None,
) -> dict[str, Any]:
    """Return the values of one page's template.

    Parameters
    ----------
    others
        All snapshots of the view by `as_of`, this one among them.
    now, before
        What can be drawn of it and of the accepted snapshot before it; None for plain features.
    """
    here = [other.snapshot_id for other in others].index(snapshot.snapshot_id)
    past = [other for other in others[:here] if other.accepted]
    verdict = snapshot.verdict
    return {
        "snapshot": snapshot,
        "state": state_of(snapshot, decision),
        "decision": decision,
        "verdict": verdict,
        "earlier": others[here - 1].snapshot_id if here else None,
        "later": others[here + 1].snapshot_id if here + 1 < len(others) else None,
        "checks": [(check, _sparkline(check, past)) for check in _sorted(verdict.checks)],
        "failed": [check for check in verdict.checks if not check.passed],
        "charts": [] if now is None else _charts(snapshot, now, before),
        "drift": _over_time(others, here),
        "cloud": None if now is None else _cloud(ws, snapshot, now),
        "offenders": _offenders(ws, snapshot, past),
    }


def _sorted(checks: Sequence[Check]) -> list[Check]:
    """Return failures first, then warnings, then what passed, each in the gate's order."""
    return sorted(checks, key=lambda check: (check.passed is True, check.severity != "critical"))


def _sparkline(check: Check, past: Sequence[Snapshot]) -> Markup:
    if not isinstance(check.observed, int | float):
        return Markup("")
    values = [float(value) for value in observed([snapshot.verdict for snapshot in past[-PAST:]], check.name)]
    label = f"{check.name} over {len(values) + 1} refreshes: from {draw.short(values[0])} " if values else ""
    label += f"to {draw.short(float(check.observed))}" if values else ""
    return draw.sparkline([*values, float(check.observed)], not check.passed, label)


def _charts(snapshot: Snapshot, now: Vectors, before: Vectors | None) -> list[dict[str, Any]]:
    old_norms, old_spread = (None, None) if before is None else (before.norms, before.eigenvalues)
    against = " The line is the snapshot before." if before is not None else ""
    return [
        {
            "title": "Norms before scaling",
            "text": f"Vectors are scaled to length 1; how long they were says how sure the model was.{against}",
            "svg": draw.histogram(
                now.norms,
                old_norms,
                f"Histogram of norms, median {draw.short(float(np.median(now.norms)))}"
                + ("" if old_norms is None else f", before {draw.short(float(np.median(old_norms)))}"),
            ),
            "unit": "percent of the entities, by norm",
        },
        {
            "title": "Spectrum",
            "text": "Share of the variance along each principal direction. A cliff means that vectors collapsed."
            + (" The dashed line is the snapshot before." if before is not None else ""),
            "svg": draw.spectrum(
                now.eigenvalues,
                old_spread,
                f"Eigenvalue spectrum of {len(now.eigenvalues)} directions; the first holds "
                f"{100 * now.eigenvalues[0] / max(now.eigenvalues.sum(), 1e-30):.1f}% of the variance",
            ),
            "unit": "percent of the variance, by direction",
        },
    ]


def _over_time(others: Sequence[Snapshot], here: int) -> dict[str, Any] | None:
    series = {}
    for name, words in OVER_TIME.items():
        values = []
        for snapshot in others:
            found = [check.observed for check in snapshot.verdict.checks if check.name == name]
            values.append(float(found[0]) if found and isinstance(found[0], int | float) else None)
        if sum(value is not None for value in values) > 1:
            series[words] = values
    if not series:
        return None
    days = [f"{snapshot.as_of:%Y-%m-%d}" for snapshot in others]
    last = {
        words: next((v for v in reversed(values[: here + 1]) if v is not None), None)
        for words, values in series.items()
    }
    told = ", ".join(f"{words} {value:.3f}" for words, value in last.items() if value is not None)
    return {
        "names": list(series),
        "svg": draw.over_time(days, series, here, f"Over {len(days)} refreshes; here {told}"),
    }


def _cloud(ws: Workspace, snapshot: Snapshot, now: Vectors) -> dict[str, Any]:
    rows = np.random.default_rng(1).permutation(len(now.ids))[:POINTS]
    centred = now.vectors[rows] - now.vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    name, values = _attribute(ws, snapshot.entity, now.ids.gather(rows), points)
    named = values.drop_nulls().value_counts(sort=True).get_column(values.name).head(GROUPS).to_list()
    group = [named.index(value) if value in named else GROUPS for value in values.to_list()]
    ids = now.ids.gather(rows).to_list()
    titles = [
        f"{one}: {value if value is not None else 'unknown'}" for one, value in zip(ids, values.to_list(), strict=True)
    ]
    words = [str(value) for value in named] + (["other or unknown"] if GROUPS in group else [])
    kinds = [*range(len(named)), *([GROUPS] if GROUPS in group else [])]
    label = f"{len(rows)} {snapshot.entity}s on the two main directions, by {name}"
    return {
        "name": name,
        "count": len(rows),
        "svg": draw.scatter(points, group, titles, label),
        "legend": [(draw.key(kind), word, group.count(kind)) for kind, word in zip(kinds, words, strict=True)],
    }


def _attribute(ws: Workspace, entity: Entity, ids: pl.Series, points: np.ndarray) -> tuple[str, pl.Series]:
    """Choose the attribute whose most frequent values differ most in place (share of variance between them)."""
    key = join_key(entity)
    frame = pl.DataFrame({key: ids}).join(ws.log.attributes(entity), on=key, how="left", maintain_order="left")
    best, chosen = -1.0, ("nothing known", pl.Series("none", [None] * len(ids), pl.String))
    total = float(((points - points.mean(axis=0)) ** 2).sum())
    for name in ws.log.attribute_columns(entity).categorical:
        values = frame[name].cast(pl.String)
        counts = values.drop_nulls().value_counts(sort=True).head(GROUPS)
        if counts.height < 3 or counts["count"].sum() < len(ids) / 3:
            continue
        between = 0.0
        for value in counts[values.name].to_list():
            inside = points[(values == value).fill_null(False).to_numpy()]
            between += len(inside) * float(((inside.mean(axis=0) - points.mean(axis=0)) ** 2).sum())
        if between / max(total, 1e-30) > best:
            best, chosen = between / max(total, 1e-30), (name.replace("_", " "), values)
    return chosen


def _offenders(ws: Workspace, snapshot: Snapshot, past: Sequence[Snapshot]) -> dict[str, Any] | None:
    """Return broken rows and the entities that moved farthest; None for plain features and lost files."""
    path = ws.home.root / snapshot.path
    if snapshot.space_id is None or not path.exists():
        return None
    dim, id_name = ws.ledger.space(snapshot.space_id).dim, join_key(snapshot.entity)
    broken: list[Offenders] = []
    moved: list[tuple[Any, float]] = []
    try:
        broken = broken_rows(path, id_name, dim)
        if past:
            smoothing = ws.ledger.version(snapshot.version or "").smoothing
            moved = farthest(path, ws.home.root / past[-1].path, id_name, dim, smoothing, limit=10)
    except (HeadwaterError, OSError, pa.ArrowException, KeyError, ValueError):
        return {"unreadable": True, "broken": broken, "moved": moved}
    return {"unreadable": False, "broken": broken, "moved": moved}
