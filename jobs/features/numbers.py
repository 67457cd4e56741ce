"""Items' numbers, such as prices, in deviations from what is usual of such an item.

What is expensive is so beside others of its kind: what categorical attributes tell of a number is taken from it, and
what they tell of tastes is told by vectors.

Legend: I items by their codes, M numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from jobs.features.encode import Standardizer, Vocabulary, attributes_as_of, numeric_matrix
from jobs.features.log import EventLog

# Items at the mean that are added to those of every value of an attribute.
PRIOR = 5.0
SWEEPS = 5  # over all categorical attributes
WIDEST = 3.0  # deviations; an outlier counts as much


@dataclass(frozen=True)
class ItemNumbers:
    """What is usual: of all items, and by categorical attribute.

    Attributes
    ----------
    names
        Numeric attributes of items.
    standard
        Mean and deviation of their logarithms.
    usual
        By categorical attribute: its values, and what each adds, float64 [values, M]; the first is "unknown".
    spread
        Deviation of what is left [M].
    """

    names: tuple[str, ...]
    standard: Standardizer
    usual: dict[str, tuple[Vocabulary, np.ndarray]]
    spread: np.ndarray

    @classmethod
    def fit(cls, log: EventLog, names: Sequence[str], as_of: datetime) -> ItemNumbers:
        """Learn from the catalogue as it was known at a moment."""
        if not names:
            return cls((), Standardizer([], []), {}, np.ones(0))
        table = attributes_as_of(log, "item", as_of)
        numbers = numeric_matrix(table, list(names))
        standard = Standardizer.fit(numbers)
        left, missing = standard.apply(numbers).astype(np.float64), np.isnan(numbers)
        usual: dict[str, tuple[Vocabulary, np.ndarray]] = {}
        places: dict[str, np.ndarray] = {}
        for name in log.attribute_columns("item").categorical:
            vocabulary = Vocabulary.fit(table[name])
            places[name], usual[name] = (
                vocabulary.encode(table[name]),
                (vocabulary, np.zeros((vocabulary.size, len(names)))),
            )
        for _ in range(SWEEPS):
            for name, (_, adds) in usual.items():
                place = places[name]
                for number in range(len(names)):
                    known = (place > 0) & ~missing[:, number]
                    rest = left[:, number] + adds[place, number]
                    sums = np.bincount(place[known], rest[known], len(adds))
                    adds[:, number] = sums / (np.bincount(place[known], minlength=len(adds)) + PRIOR)
                    left[:, number] = rest - adds[place, number]
        left[missing] = np.nan
        spread = np.array([np.nanstd(column) if (~np.isnan(column)).any() else 1.0 for column in left.T])
        return cls(tuple(names), standard, usual, np.where(spread > 1e-6, spread, 1.0))

    def of(self, log: EventLog, as_of: datetime) -> np.ndarray:
        """Return the numbers of all items as they were known at a moment: float32 [I, M], 0 where one is missing."""
        if not self.names:
            return np.zeros((log.codes["item"].height, 0), np.float32)
        table = attributes_as_of(log, "item", as_of)
        numbers = numeric_matrix(table, list(self.names))
        left = self.standard.apply(numbers).astype(np.float64)
        for name, (vocabulary, adds) in self.usual.items():
            left -= adds[vocabulary.encode(table[name])]
        found = np.clip(left / self.spread, -WIDEST, WIDEST)
        return np.where(np.isnan(numbers), 0.0, found).astype(np.float32)
