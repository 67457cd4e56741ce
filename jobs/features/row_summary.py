"""What encodings and heads start from: a summary of the training rows, counted window by window.

It holds a number per user and item and a count per distinct value, so that it does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from jobs.features.encode import Spread, Standardizer, Vocabulary, counted, numeric_matrix
from jobs.features.log import EventLog


class RowSummary:
    """Counts over the training rows of an upstream.

    Parameters
    ----------
    log
        The ingested log.
    windows
        The rows as :meth:`jobs.features.labels.Opportunities.between` returns them, each once, by time.

    Attributes
    ----------
    rows, clicks, conversions, clicked_conversions
        Rows in all, with a click, with a conversion, with both; without impressions every row is a click.
    of_user, of_item
        int64 [users], [items]: rows by code.
    """

    def __init__(self, log: EventLog, windows: Iterable[pl.DataFrame]) -> None:
        context = log.context_columns
        self.rows = self.clicks = self.conversions = self.clicked_conversions = 0
        self.of_user = np.zeros(log.codes["user"].height, np.int64)
        self.of_item = np.zeros(log.codes["item"].height, np.int64)
        self._values = {name: counted(pl.Series([], dtype=pl.String)) for name in context.categorical}
        self._numeric = list(context.numeric)
        self._spread = Spread(len(self._numeric))
        for rows in windows:
            self._add(rows)

    def _add(self, rows: pl.DataFrame) -> None:
        click, conversion = rows["click"].fill_null(True), rows["conversion"]
        self.rows += rows.height
        self.clicks += int(click.sum())
        self.conversions += int(conversion.sum())
        self.clicked_conversions += int((click & conversion).sum())
        self.of_user += np.bincount(rows["user_code"].to_numpy(), minlength=len(self.of_user))
        self.of_item += np.bincount(rows["item_code"].to_numpy(), minlength=len(self.of_item))
        for name, seen in self._values.items():
            both = pl.concat([seen, counted(rows[name])])
            self._values[name] = both.group_by("value").agg(pl.col("len").sum())
        self._spread.add(numeric_matrix(rows, self._numeric))

    @property
    def click_rate(self) -> float:
        """Share of rows with a click."""
        return self.clicks / max(self.rows, 1)

    @property
    def conversion_rate(self) -> float:
        """Share of clicked rows with a conversion."""
        return self.clicked_conversions / max(self.clicks, 1)

    def vocabulary(self, name: str) -> Vocabulary:
        """Return the values of a categorical context column."""
        return Vocabulary.of_counts(self._values[name])

    def standardizer(self) -> Standardizer:
        """Return mean and deviation of the numeric context columns."""
        return self._spread.standardizer()
