"""Docs: the gate's pages, one per snapshot, an index of all refreshes, and Great Expectations' Data Docs beside them.

Every page is one file that opens offline: style and pictures are inside, and a content policy forbids any request.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import NotFoundError, NotReadyError
from feature_repo.contracts.types import Decision, Snapshot
from feature_repo.lake import replacing
from jobs.page_templates import environment
from jobs.snapshot import state_of
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Result:
    """The index, and how many pages were written."""

    path: Path
    pages: int


def run(ws: Workspace, now: datetime, *, only: Collection[str] | None = None, progress: Progress = silent) -> Result:
    """Write the gate's pages under ``reports/gate/``.

    Parameters
    ----------
    now
        The moment that the pages show as their own.
    only
        Ids of the snapshots whose pages to write; the index always has all of them.

    Raises
    ------
    NotReadyError
        If nothing was refreshed yet.
    NotFoundError
        If there is no snapshot of a given id.
    """
    from validation.docs import build_data_docs

    snapshots = ws.ledger.snapshots()
    if not snapshots:
        raise NotReadyError("There is no snapshot yet. Run `headwater backfill` or `headwater refresh` first.")
    unknown = sorted(set(only or ()) - {snapshot.snapshot_id for snapshot in snapshots})
    if unknown:
        raise NotFoundError(f"No snapshot '{unknown[0]}'. `headwater snapshot list` lists them.")
    folder = ws.home.reports / "gate"
    decisions = {decision.sha256: decision for decision in ws.ledger.decisions()}
    done = 0
    for _, group in groupby(snapshots, key=lambda snapshot: snapshot.view):
        done += _pages_of_view(ws, list(group), decisions, only, folder, now, progress)
    progress("data docs", 0, 1)
    verdicts = {snapshot.snapshot_id: snapshot.verdict for snapshot in snapshots}
    build_data_docs(verdicts, folder / "data_docs", checked_at=now, only=only)
    progress("data docs", 1, 1)
    index = folder / "index.html"
    _write(index, "gate_index.html.jinja", views=_views(snapshots, decisions), now=now, whole=only is None)
    return Result(index, done)


def _pages_of_view(
    ws: Workspace,
    snapshots: list[Snapshot],
    decisions: dict[str, Decision],
    only: Collection[str] | None,
    folder: Path,
    now: datetime,
    progress: Progress,
) -> int:
    from jobs import snapshot_pages

    before, done = None, 0
    wanted = [at for at, snapshot in enumerate(snapshots) if only is None or snapshot.snapshot_id in only]
    for at, snapshot in enumerate(snapshots):
        if not wanted or at > wanted[-1]:
            break
        vectors = None
        if snapshot.space_id is not None and (at in wanted or snapshot.accepted):
            vectors = snapshot_pages.read(ws.home.root / snapshot.path, snapshot.entity)
        if at in wanted:
            progress(f"pages of {snapshot.view}", done, len(wanted))
            values = snapshot_pages.page(ws, snapshot, snapshots, decisions.get(snapshot.sha256), vectors, before)
            _write(folder / f"{snapshot.snapshot_id}.html", "gate_snapshot.html.jinja", now=now, **values)
            done += 1
        if snapshot.accepted:
            before = vectors
    return done


def _views(snapshots: list[Snapshot], decisions: dict[str, Decision]) -> list[dict[str, Any]]:
    """Return the index: per view its refreshes, newest first."""
    views = []
    for view, group in groupby(snapshots, key=lambda snapshot: snapshot.view):
        rows = []
        for snapshot in group:
            verdict = snapshot.verdict
            warnings = [check.name for check in verdict.checks if check.severity == "warning" and not check.passed]
            rows.append(
                {
                    "snapshot": snapshot,
                    "state": state_of(snapshot, decisions.get(snapshot.sha256)),
                    "tone": "refused" if not snapshot.accepted else "warned" if warnings else "accepted",
                    "failed": [check.name for check in verdict.failures()]
                    or ([verdict.error] if verdict.error else []),
                    "warnings": warnings,
                }
            )
        views.append({"name": view, "rows": rows[::-1], "refused": sum(row["tone"] == "refused" for row in rows)})
    # What a person comes for stands first: refusals, then embeddings.
    return sorted(
        views, key=lambda view: (-view["refused"], view["rows"][0]["snapshot"].space_id is None, view["name"])
    )


def _write(path: Path, template: str, **values: Any) -> None:
    text = _environment().get_template(template).render(**values)
    with replacing(path) as staged:
        staged.write_text(text, encoding="utf-8")


@cache
def _environment() -> Environment:
    return environment(value=_value)


def _value(observed: float | int | str | None) -> str:
    if observed is None:
        return "none"
    return (
        f"{observed:,.4g}"
        if isinstance(observed, float)
        else f"{observed:,}"
        if isinstance(observed, int)
        else observed
    )
