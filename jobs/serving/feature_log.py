"""The served-feature log: what was read and answered for a sample of requests, as Parquet below the home folder.

``serving/log/<day>/<time>-<process>-<number>.parquet``, one row per candidate. Files appear whole; the oldest go when
the log outgrows its size. A process that is killed loses what it has not written: what it answered in the last second
and during the write under way, of at most 1,000 requests and 20,000 rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_repo.lake import Home, replacing
from jobs.serving.served import Served
from jobs.serving.settings import ServeSettings
from jobs.serving.worker import Outcome

FLUSH_ROWS, FLUSH_SECONDS, HELD_REQUESTS, ROTATE_FILES = 20_000, 1.0, 1_000, 20
logger = logging.getLogger("headwater.serve")


def log_folder(home: Home) -> Path:
    """Return where the log of a home folder lies."""
    return home.root / "serving" / "log"


@dataclass(frozen=True)
class _Entry:
    served: Served
    path: str
    request_id: str
    outcome: Outcome
    answered_at: datetime


class FeatureLog:
    """Writes a sample of requests in a thread of its own; a full queue loses rows, never time of a request.

    Parameters
    ----------
    logged, lost
        Called with numbers of rows.
    """

    def __init__(
        self,
        settings: ServeSettings,
        logged: Callable[[int], None] = lambda rows: None,
        lost: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._settings, self._logged, self._lost = settings, logged, lost
        self._folder = log_folder(Home(settings.home))
        self._queue: queue.Queue[_Entry | None] = queue.Queue(HELD_REQUESTS)
        self._number = 0
        self._draw = random.Random()
        self._thread = threading.Thread(target=self._run, name="feature log", daemon=True)
        self._thread.start()

    def offer(self, served: Served, path: str, request_id: str, outcome: Outcome) -> None:
        """Log a ranked request, if the sample takes it."""
        if outcome.rows is None or self._draw.random() >= self._settings.log_sample:
            return
        try:
            self._queue.put_nowait(_Entry(served, path, request_id, outcome, datetime.now(UTC)))
        except queue.Full:
            self._lost(len(outcome.item_ids))

    def close(self) -> None:
        """Write what is held and stop."""
        self._queue.put(None)
        self._thread.join(self._settings.shutdown_s)

    def _run(self) -> None:
        held: dict[tuple[str, ...], list[pl.DataFrame]] = {}
        rows, since, running = 0, time.monotonic(), True
        while running:
            try:
                entry = self._queue.get(timeout=FLUSH_SECONDS / 4)
                if entry is None:
                    running = False
                else:
                    frame = entry_frame(
                        entry.served,
                        entry.path,
                        entry.request_id,
                        entry.outcome,
                        entry.answered_at,
                        self._settings.log_rows,
                    )
                    # Releases differ in columns, and a file has one schema.
                    held.setdefault(tuple(frame.columns), []).append(frame)
                    rows += frame.height
            except queue.Empty:
                pass
            except Exception:
                logger.exception("a request could not be logged")
                self._lost(1)
            if rows and (not running or rows >= FLUSH_ROWS or time.monotonic() - since > FLUSH_SECONDS * 3 / 4):
                for frames in held.values():
                    self._write(pl.concat(frames))
                held, rows, since = {}, 0, time.monotonic()
            elif not rows:
                since = time.monotonic()

    def _write(self, frame: pl.DataFrame) -> None:
        now = datetime.now(UTC)
        self._number += 1
        final = self._folder / f"{now:%Y-%m-%d}" / f"{now:%H%M%S}-{os.getpid()}-{self._number:06d}.parquet"
        try:
            with replacing(final) as staged:
                frame.write_parquet(staged)
            self._logged(frame.height)
            if self._number % ROTATE_FILES == 1:
                rotate(self._folder, self._settings.log_mb * 1_000_000)
        except Exception:
            logger.exception("the log could not be written")
            self._lost(frame.height)


def rotate(folder: Path, limit: int) -> None:
    """Remove the oldest files until the log takes at most `limit` bytes."""
    files = sorted(folder.glob("*/*.parquet"))
    size = sum(path.stat().st_size for path in files)
    for path in files[:-1]:
        if size <= limit:
            break
        size -= path.stat().st_size
        path.unlink(missing_ok=True)


def entry_frame(
    served: Served, path: str, request_id: str, outcome: Outcome, answered_at: datetime, most: int
) -> pl.DataFrame:
    """Return one request as rows of the log, at most `most` of them, the best ones first.

    Columns: what was asked and answered under plain names, scores as ``score_<name>``, features as in a training set.
    """
    rows, places = outcome.rows, outcome.places
    assert rows is not None and places is not None
    scores = outcome.scores
    kept = np.argsort(-scores["score"], kind="stable")[:most]
    features = rows.frame(served.plain, places[kept])
    views = sorted({*served.plain, *rows.vectors, *(c.split("__")[0] for c in rows.users.columns if "__" in c)})
    facts: dict[str, Any] = {
        "request_id": request_id,
        "path": path,
        "release": served.release.name,
        "moment_us": rows.moment,
        "answered_us": int(answered_at.timestamp() * 1e6),
        "views": ",".join(views),
        "context": ",".join(name for name in rows.contexts.columns if name != "_"),
        "snapshots": json.dumps(served.snapshots),
        "index_version": served.index_version or "",
    }
    frame = features.with_columns(pl.lit(value).alias(name) for name, value in facts.items())
    frame = frame.with_columns(pl.Series(f"score_{name}", values[kept]) for name, values in scores.items())
    return frame.with_columns(pl.Series("feature_hash", feature_hashes(features, views)))


def feature_columns(frame: pl.DataFrame, views: list[str]) -> list[str]:
    """Return the columns of a frame that are features of the given views, in an order of their own."""
    return sorted(name for name in frame.columns if name.split("__")[0] in views and "__" in name)


def feature_hashes(frame: pl.DataFrame, views: list[str]) -> list[str]:
    """Return a hash per row over names and values of all features: equal rows, and only they, have equal hashes."""
    columns = feature_columns(frame, views)
    plain = [name for name in columns if frame.schema[name] != pl.List(pl.Float32)]
    lists = [name for name in columns if name not in plain]
    texts = [json.dumps(row, default=str) for row in frame.select(plain).rows()] if plain else [""] * frame.height
    vectors = [frame[name].to_list() for name in lists]
    found = []
    for number, text in enumerate(texts):
        digest = hashlib.blake2b(json.dumps(columns).encode(), digest_size=8)
        digest.update(text.encode("utf-8", "surrogatepass"))
        for column in vectors:
            value = column[number]
            digest.update(b"-" if value is None else np.asarray(value, "<f4").tobytes())
        found.append(digest.hexdigest())
    return found
