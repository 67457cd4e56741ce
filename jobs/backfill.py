"""Backfill: every scheduled refresh of a period, in the order of time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from feature_repo import lifecycle
from jobs import refresh, refresh_plain
from jobs.content import ContentUpstream
from jobs.publication import Publication
from jobs.workspace import Progress, Workspace, silent


@dataclass(frozen=True)
class Result:
    """All snapshots of the period, each once, those that were there already included.

    `idle` says of each version for which no moment of the period was due why that is so.
    """

    moments: tuple[datetime, ...]
    publications: tuple[Publication, ...]
    idle: dict[str, str] = field(default_factory=dict)

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
    ws.use_threads()
    start, end = start or ws.splits.upstream_end, end or min(ws.log.end, ws.splits.end)
    moments = ws.refresh_moments(start, end)
    retired = lifecycle.retirements(ws.ledger)
    versions = [version for version in ws.ledger.versions() if version.version not in retired]
    upstreams: dict[str, list[refresh.Upstream]] = {}
    first: refresh.Upstream | None = None
    for version in versions:
        models = refresh.upstreams_of(ws, version.version, first)
        upstreams[version.version] = models
        first = first or (None if isinstance(models[0], ContentUpstream) else models[0])
    found: dict[str, Publication] = {}
    nothing = f"No refresh is scheduled from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}."
    idle = {version.version: nothing for version in versions}
    with ws.home.lock("backfill"):
        for step, moment in enumerate(moments):
            progress(f"refresh as of {moment:%Y-%m-%d}", step, len(moments))
            published = [*refresh_plain.run(ws, moment).publications]
            for version in versions:
                reason = refresh.why_not(ws, version.version, moment)
                if reason is None:
                    idle.pop(version.version, None)
                    models = upstreams[version.version]
                    fit = [model for model in models if model.since <= moment] or models[:1]
                    published += refresh.run(ws, version.version, moment, upstream=fit[-1]).publications
                elif version.version in idle:
                    idle[version.version] = reason
            for publication in published:
                # Attributes are published once and met again at every moment.
                found.setdefault(publication.snapshot.snapshot_id, publication)
    progress("refresh", len(moments), len(moments))
    return Result(tuple(moments), tuple(found.values()), idle)
