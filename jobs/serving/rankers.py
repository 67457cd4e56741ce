"""Rankers as they are served, and the rows that they read.

Legend: N candidates, R requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import LakeError
from feature_repo.lake import read_json
from jobs.features.ranking import RankerEncoder
from jobs.serving.inputs import RankerInputs
from jobs.serving.rows import PlainRows, Vectors

if TYPE_CHECKING:
    from models.downstream.artifact import SavedRanker
    from models.downstream.inputs import RankerData

# Requests with fewer candidates than this on average are ranked together, the user's part for each of them.
FEW = 256


@dataclass(frozen=True)
class Rows:
    """The features of N candidates of R requests, as they were read.

    Attributes
    ----------
    moment
        Microseconds; what was read is what was available then.
    who
        int64 [N], the request of each candidate.
    item_ids
        N of them.
    users, contexts
        [R] rows: ``user_id`` and plain user features, and what the requests say of themselves.
    items
        Per plain item view the row of each candidate, int64 [N]; -1 for the empty row.
    vectors
        Per embedding view: R vectors of users, N of items.
    """

    moment: int
    who: np.ndarray
    item_ids: pa.Array
    users: pl.DataFrame
    contexts: pl.DataFrame
    items: dict[str, np.ndarray]
    vectors: dict[str, Vectors]

    def frame(self, plain: Mapping[str, PlainRows], chosen: np.ndarray) -> pl.DataFrame:
        """Return some candidates' features as a training set has them: ids, context, ``<view>__<feature>``."""
        who = self.who[chosen]
        parts = [
            self.users[who.tolist()],
            pl.DataFrame({"item_id": pl.Series(pl.from_arrow(self.item_ids.take(pa.array(chosen))))}),
            self.contexts[who.tolist()],
        ]
        parts += [
            plain[view].frame[(rows[chosen] % plain[view].frame.height).tolist()] for view, rows in self.items.items()
        ]
        for view, read in self.vectors.items():
            places = who if view.startswith("user") else chosen
            found = read.found[places]
            vectors = [
                vector if there else None for vector, there in zip(read.values[places].tolist(), found, strict=True)
            ]
            clocks = [
                clock if there else None for clock, there in zip(read.available_us[places].tolist(), found, strict=True)
            ]
            parts.append(
                pl.DataFrame(
                    {f"{view}__embedding": vectors, f"{view}__available_us": clocks},
                    schema={f"{view}__embedding": pl.List(pl.Float32), f"{view}__available_us": pl.Int64},
                )
            )
        return pl.concat(parts, how="horizontal")


@dataclass(frozen=True)
class ServedRanker:
    """One consumer's model: of its variants and seeds the one with the least validation loss.

    Attributes
    ----------
    name, task
        Of the consumer.
    views
        Embedding views that the model reads.
    """

    name: str
    task: str
    digest: str
    encoder: RankerEncoder
    saved: SavedRanker

    @classmethod
    def load(cls, root: Path, name: str, part: Mapping[str, Any], spaces: Mapping[str, str]) -> ServedRanker:
        """Read a consumer of a release.

        Parameters
        ----------
        part
            What the release says of it.
        spaces
            Embedding view -> the space that is going to be fed.

        Raises
        ------
        LakeError
            If its folder lacks a trained model.
        SpaceMismatchError
            If a model was trained with another space.
        """
        from models.downstream.artifact import load_ranker

        folder = root / part["artifact"]
        encoder = RankerEncoder.load(folder / "encoder.json")
        return cls(name, part["task"], part["digest"], encoder, load_ranker(best_model(folder), spaces))

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Embedding views that the model reads."""
        return tuple(name for name, _ in self.saved.model.spec.embeddings)

    @cached_property
    def context(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Columns that a request brings itself: categories, numbers."""
        fields = self.encoder.fields
        return tuple(n for n in fields.cats if "__" not in n), tuple(n for n in fields.nums if "__" not in n)

    def inputs(self, plain: Mapping[str, PlainRows], users: Sequence[str], *, integer_ids: bool) -> RankerInputs:
        """Encode all rows of the plain item views; `users` are the columns that the online store has of a user."""
        asked = {"user_id", *users, *self.context[0], *self.context[1]}
        return RankerInputs(self.encoder, self.saved.model, plain, asked, integer_ids=integer_ids)

    def score(self, rows: Rows, inputs: RankerInputs) -> np.ndarray:
        """Return the probability of the task's outcome per candidate, float64 [N].

        Raises
        ------
        ValueError
            If a feature that was read is not finite, and so one of them is none.
        """
        import torch

        if rows.users.height > 1 and len(rows.who) < FEW * rows.users.height:
            with torch.inference_mode():
                logits = self.saved.model(inputs.batch(rows)).numpy()
        else:
            found = [inputs.ready(*request).numpy() for request in inputs.requests(rows)]
            logits = np.concatenate([np.empty(0, np.float32), *found])
        if not np.isfinite(logits).all():
            raise ValueError(f"{self.name}: {int((~np.isfinite(logits)).sum())} scores are not finite")
        return probability(self.saved.log_odds(logits))

    def score_frame(self, frame: pl.DataFrame) -> np.ndarray:
        """Return the same for rows as a training set has them, by the way that training takes."""
        from models.downstream.fit import predict

        embeddings: dict[str, Any] = {}
        for view, dim in self.saved.model.spec.embeddings:
            vectors = frame[f"{view}__embedding"]
            there = vectors.is_not_null().to_numpy()
            table = np.array(vectors.drop_nulls().to_list(), np.float32).reshape(-1, dim)
            embeddings[view] = (table, np.where(there, np.cumsum(there) - 1, -1))
        data = ranker_data(*self.encoder.arrays(self.encoder.encode(frame)), embeddings)
        return probability(self.saved.log_odds(predict(self.saved.model, data)))


def best_model(folder: Path) -> Path:
    """Return the folder of the model with the least validation loss, of all variants and seeds of a consumer.

    Raises
    ------
    LakeError
        If there is none.
    """
    curves = sorted(folder.glob("*/seed-*/curve.json"))
    if not curves:
        raise LakeError(f"{folder} holds no trained model. Run `headwater train-downstream` and release it again.")
    losses = [min(point["valid_loss"] for point in read_json(path)["points"]) for path in curves]
    return curves[int(np.argmin(losses))].parent


def ranker_data(cats: np.ndarray, crosses: np.ndarray, nums: np.ndarray, embeddings: dict[str, Any]) -> RankerData:
    """Return rows without labels as a ranker's input."""
    from models.downstream.inputs import RankerData

    count = len(cats)
    ones = np.ones(count, np.float32)
    return RankerData(cats, crosses, nums, embeddings, np.zeros(count, np.float32), ones, np.zeros(count, np.int64))


def probability(log_odds: np.ndarray) -> np.ndarray:
    """Return probabilities float64 [N]."""
    return np.asarray(1.0 / (1.0 + np.exp(-log_odds)))
