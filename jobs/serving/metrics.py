"""Prometheus metrics of a serving process, or of all of them together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """What is counted. With several workers each writes into a shared folder, and any of them answers for all."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # Feast's import turns the client's shared folder on, too, if it comes first.
        self._shared = bool(values.ValueClass._multiprocess)
        newest: Any = {"multiprocess_mode": "mostrecent"}
        total: Any = {"multiprocess_mode": "livesum"}
        made: Any = {"registry": self._registry}
        self.requests = Counter("headwater_requests_total", "Answers by path and status.", ["path", "status"], **made)
        self.seconds = Histogram("headwater_request_seconds", "Time to an answer.", ["path"], buckets=_SECONDS, **made)
        self.batch = Histogram(
            "headwater_batch_requests",
            "Requests that were answered together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            **made,
        )
        self.items = Counter("headwater_items_total", "Items in answers.", ["path"], **made)
        self.unknown = Counter("headwater_unknown_users_total", "Requests of users without a vector.", **made)
        self.ignored = Counter("headwater_ignored_context_total", "Requests with a context that nobody reads.", **made)
        self.switches = Counter("headwater_switches_total", "Times that another release or snapshot took over.", **made)
        self.logged = Counter("headwater_logged_rows_total", "Rows of the served-feature log.", **made)
        self.lost = Counter("headwater_log_lost_rows_total", "Rows that could not be logged.", **made)
        self.in_flight = Gauge("headwater_requests_in_flight", "Requests without an answer yet.", **made, **total)
        self.waiting = Gauge("headwater_waiting_requests", "Requests in the queue.", **made, **total)
        self.release = Gauge(
            "headwater_release_moved", "Position of the release pointer that is served.", **made, **newest
        )
        self.recall = Gauge(
            "headwater_index_recall_at_100", "Recall of the index, measured when it was built.", **made, **newest
        )

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        if not self._shared:
            return generate_latest(self._registry)
        _forget_the_dead()
        registry = CollectorRegistry()
        registry.register(_Ours())
        return generate_latest(registry)


def _forget_the_dead() -> None:
    """Drop what killed processes said of the moment, such as requests in flight; what they counted stays."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rsplit("_", 1)[1])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)


class _Ours(Collector):
    """Our metrics of all processes; Feast counts its own into the same folder."""

    def collect(self) -> Iterator[Metric]:
        for metric in MultiProcessCollector(None).collect():
            if metric.name.startswith("headwater_"):
                yield metric
