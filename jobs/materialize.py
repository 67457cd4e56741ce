"""Materialize: load the latest published rows into the online store."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from feature_repo.failpoints import durable
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from feast import FeatureView

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Result:
    """The views that were loaded, up to which moment, and how long it took."""

    views: tuple[str, ...]
    end: datetime
    seconds: float


def last_available(ws: Workspace, now: datetime) -> datetime:
    """Return when the newest rows became available, at most `now`: what there is to load ends there.

    The next load begins where the last one ended. An end past the rows would lose those that are published later
    as of an earlier moment, and a view's first load reaches back from the end only as far as its rows live.
    """
    moments = [snapshot.available_at for snapshot in ws.ledger.snapshots(accepted=True)]
    return max((moment for moment in moments if moment <= now), default=now)


def run(ws: Workspace, end: datetime, *, again: bool = False, progress: Progress = silent) -> Result:
    """Load, view by view, what became available up to `end` since the last time.

    Feast keeps a watermark per view, so a killed run goes on with the views that are missing.

    Parameters
    ----------
    again
        Load all that is alive, whatever the watermarks say: for a store that lost what it had.

    Raises
    ------
    NotReadyError
        If nothing is registered yet.
    """
    from feature_repo.contracts.errors import NotReadyError
    from jobs.store import open_store

    started = time.monotonic()
    store = open_store(ws.home)
    if isinstance(store.config.batch_engine_config, dict):
        store.config.batch_engine_config["progress"] = False
    views = store.list_feature_views()
    if not views:
        raise NotReadyError("Feast knows no view yet. Run `headwater apply` first.")
    newest = {item.view: item.available_at for item in ws.ledger.snapshots(accepted=True) if item.available_at <= end}
    for step, view in enumerate(views):
        progress(f"materialize {view.name}", step, len(views))
        # Feast prints for a terminal; what is done is said through `progress`.
        with contextlib.redirect_stdout(io.StringIO()), durable(f"online {view.name}"):
            store.materialize(_start(view, end, newest.get(view.name), again), end, feature_views=[view.name])
    progress("materialize", len(views), len(views))
    return Result(tuple(view.name for view in views), end, time.monotonic() - started)


def _start(view: FeatureView, end: datetime, newest: datetime | None, again: bool) -> datetime:
    """Return from when on a view's rows are loaded.

    Feast's own choice for a view's first load reaches back from the wall clock, and would find nothing in a log of
    last year. A watermark past the newest rows, left by a load up to now, must not hide them either.
    """
    watermark = view.most_recent_end_time
    if watermark is None or again:
        return end - view.ttl if view.ttl else EPOCH
    return min(watermark, newest or watermark, end)
