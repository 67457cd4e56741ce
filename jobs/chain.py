"""The whole way of the data for one home folder: every stage in order, each skipped where its work is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import NotReadyError
from feature_repo.lake import read_json, write_json
from jobs import (
    apply,
    backfill,
    docs,
    evaluate,
    materialize,
    report,
    retrieve,
    train_downstream,
    train_upstream,
    training_set,
)
from jobs.truth import truth_files
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs import serve_once


@dataclass(frozen=True)
class Result:
    """The summary of the run, the page that shows it, and what was served at the end of a demo."""

    summary: dict[str, Any]
    report: Any
    skipped: list[dict[str, str]]
    served: serve_once.Result | None = None


class Stopwatch:
    """Seconds per stage, kept over killed and repeated runs: a stage that found its work done keeps its time."""

    def __init__(self, ws: Workspace) -> None:
        self._path = ws.home.reports / "timings.json"
        self.seconds: dict[str, float] = read_json(self._path) if self._path.exists() else {}

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Run one stage and record its seconds."""
        started = time.monotonic()
        result = work()
        if stage not in self.seconds or not getattr(result, "reused", False):
            self.record(stage, time.monotonic() - started)
        return result

    def record(self, stage: str, seconds: float) -> None:
        """Set the seconds of one stage."""
        self.seconds[stage] = round(seconds, 2)
        self.seconds["total"] = round(sum(s for name, s in self.seconds.items() if name != "total"), 2)
        write_json(self.seconds, self._path)


def run(ws: Workspace, *, progress: Progress = silent) -> Result:
    """Train, refresh, apply, materialize, join, train the consumers, evaluate and report.

    Every stage keeps what an earlier run finished, so a killed run goes on where it was.

    Raises
    ------
    ConfigError
        As :func:`check`, before the first stage.
    HeadwaterError
        From the stage that failed; the stages before it stay done.
    """
    check(ws)
    watch = Stopwatch(ws)
    skipped: list[dict[str, str]] = []
    with ws.home.lock("run"):
        versions = [upstream.version for upstream in ws.config.upstreams]
        watch.time("train-upstream", lambda: train_upstream.run_all(ws, versions, progress=progress))
        refreshed = watch.time("backfill", lambda: backfill.run(ws, progress=progress))
        watch.time("apply", lambda: apply.run(ws, progress=progress))
        end = max(publication.snapshot.available_at for publication in refreshed.publications)
        watch.time("materialize", lambda: materialize.run(ws, end, progress=progress))
        for consumer in ws.config.consumers:
            name = consumer.name
            try:
                if consumer.task == "retrieval":
                    watch.time(f"retrieve {name}", partial(retrieve.run, ws, name, progress=progress))
                else:
                    watch.time(f"training-set {name}", partial(training_set.run, ws, name, progress=progress))
                    watch.time(f"train-downstream {name}", partial(train_downstream.run, ws, name, progress=progress))
            except NotReadyError as error:
                skipped.append({"task": consumer.task, "why": str(error)})
                progress(f"{name} skipped: {error}", 1, 1)
        watch.time("docs", lambda: docs.run(ws, datetime.now(UTC), only=docs.worth_a_page(ws), progress=progress))
        result = watch.time("evaluate", lambda: evaluate.run(ws, skipped=skipped, progress=progress))
        # What was trained and how well it did becomes visible in Feast.
        watch.time("apply results", lambda: apply.run(ws, progress=progress))
        page = watch.time("report", lambda: report.run(ws.home.root))
    return Result(result.summary, page, skipped)


def check(ws: Workspace) -> None:
    """Refuse settings that only a late stage would refuse, after hours of training.

    Raises
    ------
    ConfigError
        If a consumer reads a version that is retired, or that neither config.yaml nor the ledger has; if the folder
        of the truth holds no Parquet files.
    """
    apply.check_consumers(ws, to_come=[upstream.version for upstream in ws.config.upstreams])
    if ws.config.truth is not None:
        truth_files(ws.config.truth)
