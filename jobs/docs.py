"""Docs: the gate's pages, one per snapshot, an index of all refreshes, and Great Expectations' Data Docs beside them.

Every page opens offline and a content policy forbids any request. The gate's own pages are one file each, with style
and pictures inside; Data Docs have theirs beside them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import NotFoundError, NotReadyError
from feature_repo.contracts.types import Decision, Snapshot
from feature_repo.lake import replacing
from feature_repo.lifecycle import day_of
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
        Ids of the snapshots whose pages to write; the index always has all of them, and links to pages that are there.

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
    # Links lead to what is written now or was before.
    linked = {snapshot.snapshot_id for snapshot in snapshots if only is None or snapshot.snapshot_id in only}
    linked |= {path.stem for path in folder.glob("*.html")}
    done = 0
    for _, group in groupby(snapshots, key=lambda snapshot: snapshot.view):
        done += _pages_of_view(ws, list(group), decisions, only, folder, linked, now, progress)
    progress("data docs", 0, 1)
    verdicts = {snapshot.snapshot_id: snapshot.verdict for snapshot in snapshots}
    build_data_docs(verdicts, ws.home.data_docs, checked_at=now, only=only)
    progress("data docs", 1, 1)
    index = folder / "index.html"
    _write(index, "gate_index.html.jinja", views=_views(snapshots, decisions), linked=linked, now=now)
    return Result(index, done)


def worth_a_page(ws: Workspace) -> set[str]:
    """Return the ids of every refused snapshot, and of the newest of each view: what a run writes pages of.

    Pages of all take a second for every ten snapshots; `headwater docs` writes them.
    """
    snapshots = ws.ledger.snapshots()
    newest = {snapshot.view: snapshot.snapshot_id for snapshot in snapshots}
    return {*newest.values(), *(snapshot.snapshot_id for snapshot in snapshots if not snapshot.accepted)}


def _pages_of_view(
    ws: Workspace,
    snapshots: list[Snapshot],
    decisions: dict[str, Decision],
    only: Collection[str] | None,
    folder: Path,
    linked: Collection[str],
    now: datetime,
    progress: Progress,
) -> int:
    from jobs import snapshot_pages

    @lru_cache(maxsize=2)
    def vectors(at: int) -> snapshot_pages.Vectors | None:
        snapshot = snapshots[at]
        return None if snapshot.space_id is None else snapshot_pages.read(ws.home.root / snapshot.path, snapshot.entity)

    wanted = [at for at, snapshot in enumerate(snapshots) if only is None or snapshot.snapshot_id in only]
    for done, at in enumerate(wanted):
        snapshot = snapshots[at]
        progress(f"pages of {snapshot.view}", done, len(wanted))
        day = day_of(snapshot.as_of)
        days_before = (place for place in range(at - 1, -1, -1) if day_of(snapshots[place].as_of) < day)
        earlier = next((place for place in days_before if snapshots[place].accepted), None)
        before = None if earlier is None else vectors(earlier)
        values = snapshot_pages.page(ws, snapshot, snapshots, decisions.get(snapshot.sha256), vectors(at), before)
        path = folder / f"{snapshot.snapshot_id}.html"
        _write(path, "gate_snapshot.html.jinja", now=now, linked=linked, **values)
    return len(wanted)


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
