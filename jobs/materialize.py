"""Materialize: load the latest published rows into the online store."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from datetime import datetime

from jobs.workspace import Progress, Workspace, silent


@dataclass(frozen=True)
class Result:
    """The views that were loaded, up to which moment, and how long it took."""

    views: tuple[str, ...]
    end: datetime
    seconds: float


def run(ws: Workspace, end: datetime, *, progress: Progress = silent) -> Result:
    """Load, view by view, what became available up to `end` since the last time.

    Feast keeps a watermark per view, so a killed run goes on with the views that are missing.

    Raises
    ------
    NotReadyError
        If nothing is registered yet.
    """
    from feature_repo.contracts.errors import NotReadyError
    from jobs.store import open_store

    started = time.monotonic()
    store = open_store(ws.home)
    views = [view.name for view in store.list_feature_views()]
    if not views:
        raise NotReadyError("Feast knows no view yet. Run `headwater apply` first.")
    for step, view in enumerate(views):
        progress(f"materialize {view}", step, len(views))
        # Feast prints its own progress for a terminal; ours goes through `progress`.
        with contextlib.redirect_stdout(io.StringIO()):
            store.materialize_incremental(end_date=end, feature_views=[view])
    progress("materialize", len(views), len(views))
    return Result(tuple(views), end, time.monotonic() - started)
