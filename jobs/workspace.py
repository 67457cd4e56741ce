"""What every job works on: a home folder with its settings, its ledger and its event log."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.lake import Home
from jobs import config as settings
from jobs.config import Config, Splits, Upstream

if TYPE_CHECKING:
    from feature_repo.ledger import Ledger
    from jobs.features.log import EventLog

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Workspace:
    """One home folder, opened."""

    home: Home
    config: Config

    @classmethod
    def open(cls, root: Path) -> Workspace:
        """Open a home folder with the settings it holds."""
        home = Home(root.resolve())
        return cls(home, settings.load(home))

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; created where it is missing."""
        from feature_repo.ledger import open_ledger

        return open_ledger(self.home)

    @cached_property
    def log(self) -> EventLog:
        """The ingested event log."""
        from jobs.features.log import EventLog

        return EventLog(self.home)

    @cached_property
    def splits(self) -> Splits:
        """The configured splits, or those derived from the log's time range."""
        if self.config.splits is not None:
            return self.config.splits
        return settings.derive_splits(self._midnight, self.log.end, self.config.refresh_every)

    def check_length(self, upstream: Upstream) -> None:
        """Check that splits, where they are derived, leave an upstream something to train on; else ConfigError."""
        if upstream.kind == "derm" and upstream.train_end is None and self.config.splits is None:
            settings.check_length(self._midnight, self.log.end, self.config.refresh_every)

    @property
    def _midnight(self) -> datetime:
        return self.log.start.replace(hour=0, minute=0, second=0, microsecond=0)

    def use_threads(self) -> None:
        """Bound the threads of torch and of the libraries below it."""
        import torch

        os.environ.setdefault("OMP_NUM_THREADS", str(self.config.threads))
        torch.set_num_threads(self.config.threads)

    def refresh_moments(self, start: datetime, end: datetime) -> list[datetime]:
        """Return the scheduled `as_of` moments in [start, end)."""
        from jobs.features.batches import moments

        return moments(start, end, self.config.refresh_every)
