"""Backfill: every scheduled refresh of a period, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from feature_repo import lifecycle
from feature_repo.contracts.naming import ENTITIES, embedding_view
from jobs import refresh, refresh_plain
from jobs.lanes import side_by_side
from jobs.publication import Publication, published
from jobs.workspace import Progress, Workspace, silent

# Starting processes takes as long as refreshing a version for so many moments.
WORTH_A_PROCESS = 4


@dataclass(frozen=True)
class Result:
    """All snapshots of the period, those that were there already included."""

    moments: tuple[datetime, ...]
    publications: tuple[Publication, ...]

    @property
    def reused(self) -> bool:
        """Whether every snapshot was there already."""
        return all(publication.reused for publication in self.publications)


def run(
    ws: Workspace,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    progress: Progress = silent,
) -> Result:
    """Publish the counts and every version's vectors for each scheduled moment in [start, end).

    A version is left out where its model was trained on later events, where its snapshots were pruned, and when
    it is retired.

    Parameters
    ----------
    start
        First moment; the upstream cut-off by default, since earlier vectors would come from a model
        that was trained on their future.
    end
        The end of the log by default.

    Raises
    ------
    SnapshotRefusedError
        If the gate refused a snapshot: the moments before it stay published.
    BusyError
        If another process backfills this home folder.
    """
    moments = ws.refresh_moments(start or ws.splits.upstream_end, end or min(ws.log.end, ws.splits.end))
    retired = lifecycle.retirements(ws.ledger)
    versions = [version.version for version in ws.ledger.versions() if version.version not in retired]
    found: list[Publication] = []
    with ws.home.lock("backfill"):
        for step, moment in enumerate(moments):
            progress(f"counts: as of {moment:%Y-%m-%d}", step, len(moments))
            found.extend(refresh_plain.run(ws, moment).publications)
        missing = [sum(not _is_there(ws, version, moment) for moment in moments) for version in versions]
        processes = ws.config.processes if sum(count >= WORTH_A_PROCESS for count in missing) > 1 else 1
        lane = partial(_lane, ws.home.root, moments)
        found.extend(side_by_side(lane, versions, processes=processes, progress=progress))
    progress("refresh", len(moments), len(moments))
    return Result(tuple(moments), tuple(found))


def _is_there(ws: Workspace, version: str, moment: datetime) -> bool:
    return all(published(ws, embedding_view(entity, version), moment) for entity in ENTITIES)


def _lane(root: Path, moments: list[datetime], versions: Iterator[str], progress: Progress) -> list[Publication]:
    """Refresh one version after the other for all moments, in the order of time."""
    ws = Workspace.open(root)
    ws.use_threads()
    found: list[Publication] = []
    for version in versions:
        models: list[refresh.Upstream] = []
        for step, moment in enumerate(moments):
            if refresh.why_not(ws, version, moment) is not None:
                continue
            progress(f"refresh {version}: as of {moment:%Y-%m-%d}", step, len(moments))
            if not models and not _is_there(ws, version, moment):
                models = refresh.upstreams_of(ws, version)
            fit = [model for model in models if model.since <= moment] or models[:1]
            found.extend(refresh.run(ws, version, moment, upstream=fit[-1] if fit else None).publications)
    return found
