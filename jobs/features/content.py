"""Item attributes as bags of features: values, the words of texts, and numbers shared between quantiles.

Learned from the items known at a moment; what an item has beyond them says nothing. No event is read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_repo.lake import read_json, write_json
from jobs.features.log import Columns

if TYPE_CHECKING:
    from models.upstream.content import Bags

KNOTS = 9  # quantiles of a number; a value lies between two of them and has a share of both
LEAST_ITEMS, MOST_FEATURES = 2, 65_536
_WORD = r"[\p{L}\p{N}]{2,}"


@dataclass(frozen=True)
class ContentFeatures:
    """The known features, by frequency, and where numbers are cut.

    Attributes
    ----------
    categorical
        Columns of values and texts.
    knots
        Numeric column to its ascending quantiles.
    names
        The F features: ``column=value``, ``column~word`` or ``column#knot``.
    """

    categorical: tuple[str, ...]
    knots: dict[str, list[float]]
    names: list[str]

    @classmethod
    def fit(cls, items: pl.DataFrame, columns: Columns) -> ContentFeatures:
        """Learn from items, one row each; features of a single item are left out, as they tie it to no other."""
        knots = {}
        for name in columns.numeric:
            values = items[name].cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
            if len(values):
                knots[name] = np.unique(np.quantile(values, np.linspace(0, 1, KNOTS))).tolist()
        found = cls(columns.categorical, knots, [])
        names = (
            found._features(items)
            .group_by("feature")
            .agg(pl.col("item").n_unique().alias("items"))
            .filter(pl.col("items").is_between(LEAST_ITEMS, items.height - 1))
            .sort(["items", "feature"], descending=[True, False])
            .head(MOST_FEATURES)["feature"]
        )
        return cls(columns.categorical, knots, names.to_list())

    @cached_property
    def _places(self) -> pl.DataFrame:
        return pl.DataFrame({"feature": pl.Series(self.names, dtype=pl.String)}).with_row_index("place")

    def bags(self, items: pl.DataFrame) -> Bags:
        """Return the known features of items, one row each, in their order."""
        import torch

        from models.upstream.content import Bags

        known = self._features(items).join(self._places, on="feature").sort("item", "place")
        start = known["item"].search_sorted(pl.Series(np.arange(items.height), dtype=pl.UInt32), side="left")
        return Bags(
            torch.from_numpy(known["place"].cast(pl.Int64).to_numpy(writable=True)),
            torch.from_numpy(known["share"].to_numpy(writable=True)),
            torch.from_numpy(start.cast(pl.Int64).to_numpy(writable=True)),
        )

    def _features(self, items: pl.DataFrame) -> pl.DataFrame:
        """Return every feature of every item: item (row number), feature, share."""
        rows = items.with_row_index("item")
        parts = [pl.DataFrame(schema={"item": pl.UInt32, "feature": pl.String, "share": pl.Float32})]
        for name in self.categorical:
            text = pl.col(name).cast(pl.String)
            values = rows.select("item", text.alias("text")).drop_nulls()
            words = values.select("item", pl.col("text").str.to_lowercase().str.extract_all(_WORD).alias("word"))
            # A value of one word has said it already.
            words = words.filter(pl.col("word").list.len() > 1).explode("word").unique(["item", "word"])
            parts.append(_weighed(values, f"{name}=", "text"))
            parts.append(_weighed(words, f"{name}~", "word"))
        parts += [self._between(rows, name, np.array(knots)) for name, knots in self.knots.items()]
        return pl.concat(parts)

    def _between(self, rows: pl.DataFrame, name: str, knots: np.ndarray) -> pl.DataFrame:
        """Share each number between the knots left and right of it: near numbers get near features."""
        numbers = rows.select("item", pl.col(name).cast(pl.Float64).fill_nan(None).alias("number")).drop_nulls()
        inside = np.clip(numbers["number"].to_numpy(), knots[0], knots[-1])
        left = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, max(len(knots) - 2, 0))
        right = np.minimum(left + 1, len(knots) - 1)
        gap = knots[right] - knots[left]
        to_right = np.where(gap > 0, (inside - knots[left]) / np.where(gap > 0, gap, 1.0), 0.0)
        sides = [(left, 1.0 - to_right), (right, to_right)]
        parts = [
            pl.DataFrame(
                {
                    "item": numbers["item"],
                    "feature": f"{name}#" + pl.Series(at).cast(pl.String),
                    "share": pl.Series(share, dtype=pl.Float32),
                }
            )
            for at, share in sides
        ]
        return pl.concat(parts).filter(pl.col("share") > 0)

    def save(self, path: Path) -> None:
        """Write the features as JSON."""
        write_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> ContentFeatures:
        """Read what :meth:`save` wrote."""
        values = read_json(path)
        return cls(tuple(values["categorical"]), values["knots"], values["names"])


def _weighed(frame: pl.DataFrame, prefix: str, column: str) -> pl.DataFrame:
    feature = (pl.lit(prefix) + pl.col(column)).alias("feature")
    return frame.select("item", feature, pl.lit(1.0, dtype=pl.Float32).alias("share"))
