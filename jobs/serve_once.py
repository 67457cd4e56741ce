"""Serve a few requests to oneself and audit them: how the demo ends, and a quick look at whether serving is sound."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from feature_repo import releases
from jobs import audit, release
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    import polars as pl

USERS, UNKNOWN = 5, -1


@dataclass(frozen=True)
class Result:
    """One answer of the server, how long it took, and the audit of all of them."""

    release: str
    answer: dict[str, Any]
    milliseconds: float
    audit: audit.Result


def run(ws: Workspace, moment: datetime, written_at: datetime, *, progress: Progress = silent) -> Result:
    """Serve the live release on a free port of this machine, ask for recommendations, stop, and audit them.

    Where no release is live, one of all trained consumers is made and promoted.

    Parameters
    ----------
    moment
        What is served as of: at or after the last load of the online store.
    written_at
        The wall clock's time, for the record of a release.

    Raises
    ------
    NotReadyError
        If no consumer is trained, or the server does not get ready.
    """
    from jobs.serving.background import serving
    from jobs.serving.settings import ServeSettings

    live = releases.current_release(ws.ledger)
    if live is None:
        live = release.create(ws, description="made by the demo", now=written_at, progress=progress)
        release.promote(ws, live.name, by="demo", now=written_at, progress=progress)
    progress(f"serve {live.name}", 0, 1)
    settings = ServeSettings(home=ws.home.root, port=0, now=moment, log_sample=1.0, timeout_s=20.0)
    with serving(settings) as url:
        answers = [_ask(url, live.index is not None, user, _some_items(ws)) for user in _some_users(ws)]
    progress(f"serve {live.name}", 1, 1)
    audited = audit.run(ws, since=written_at, progress=progress)
    answer, milliseconds = answers[0]
    return Result(live.name, answer, milliseconds, audited)


def _ask(url: str, retrieves: bool, user: Any, items: list[Any]) -> tuple[dict[str, Any], float]:
    body = {"user_id": user, "k": 5} if retrieves else {"user_id": user, "item_ids": items}
    path = "recommend" if retrieves else "rank"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/{path}", json.dumps(body).encode(), headers)
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    return answer, (time.perf_counter() - started) * 1e3


def _some_users(ws: Workspace) -> list[Any]:
    ids = _ids(ws, "user")
    unknown: Any = UNKNOWN if ids.dtype.is_integer() else "nobody"
    return [*ids.to_list(), unknown]


def _some_items(ws: Workspace) -> list[Any]:
    return _ids(ws, "item").to_list()


def _ids(ws: Workspace, entity: str) -> pl.Series:
    import polars as pl

    latest = [s for s in ws.ledger.snapshots(accepted=True) if s.entity == entity and s.version is not None][-1]
    return pl.read_parquet(ws.home.root / latest.path, columns=[f"{entity}_id"], n_rows=USERS).to_series()
