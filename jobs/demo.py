"""The demo: the whole way of the data on the Complete Journey."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.lake import Home
from jobs import chain, ingest, materialize, serve_once
from jobs import config as settings
from jobs.complete_journey import DATASET_NAME, write_source
from jobs.config import Config, Consumer, Upstream
from jobs.workspace import Progress, Workspace, silent

V1, V2 = Config().upstreams
V3 = Upstream(version="v3", kind="content", description="what items are: their attributes, and whose they were")
RANKERS = [consumer for consumer in Config().consumers if consumer.task != "retrieval"]
CONFIG = Config(
    # A household's taste shows in what it buys; clicks here are derived from purchases and would count them twice.
    history_actions=("purchase",),
    retrieval_actions=("purchase",),
    # A shop sells again what it sold, and a refresh a week mixes less than one a day (docs/adr/0091, 0094).
    upstreams=(V1.model_copy(update={"fold_in": 5.0, "fold_in_half_life_days": 90.0}), V2, V3),
    smoothing=0.6,
    consumers=(
        *(consumer.model_copy(update={"versions": ("v1", "v2", "v3")}) for consumer in RANKERS),
        Consumer(name="retrieval", task="retrieval", versions=("v1",)),
    ),
)


def ingest_journey(
    root: Path, *, households: int | None = None, now: datetime | None = None, progress: Progress = silent
) -> ingest.IngestResult:
    """Make the impression log of the Complete Journey and ingest it; the same log again changes nothing.

    Parameters
    ----------
    households
        Take only so many households; None takes all 2,469.

    Raises
    ------
    MissingExtraError
        If the data package is not installed.
    """
    home = Home(root)
    source = home.root / "source"

    def told(what: str) -> None:
        progress(what, 0, 1)

    files = write_source(source, households=households, progress=told)
    result = ingest.run(
        ingest.IngestConfig(
            home=home.root,
            name=DATASET_NAME,
            events=(str(files.events),),
            users=(str(files.users),),
            items=(str(files.items),),
            now=now or datetime.now(UTC),
        ),
        progress=told,
    )
    shutil.rmtree(source)
    progress("ingest", 1, 1)
    return result


def run(
    root: Path, *, households: int | None = None, config: Config | None = None, progress: Progress = silent
) -> chain.Result:
    """Ingest the Complete Journey into `root`, run the whole chain on it, serve some requests and audit them.

    Killed at any moment and run again, it goes on where it was and ends in the same state.
    """
    home = Home(root.resolve())
    settings.save(config or CONFIG, home)
    if not (home.lake / "dataset.json").exists():
        started = time.monotonic()
        ingest_journey(home.root, households=households, progress=progress)
        ws = Workspace.open(home.root)
        chain.Stopwatch(ws).record("ingest", time.monotonic() - started)
    ws = Workspace.open(home.root)
    result = chain.run(ws, progress=progress)
    watch = chain.Stopwatch(ws)
    now = datetime.now(UTC)
    moment = materialize.last_available(ws, now)
    served = watch.time("serve and audit", lambda: serve_once.run(ws, moment, now, progress=progress))
    return replace(result, served=served)
