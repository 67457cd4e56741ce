"""LightGBM on what a ranker reads.

Numbers go in as they are and small vocabularies as native categories. Ids, large vocabularies and crosses become what
trees can split on: how often the value occurred in the training rows, and its smoothed label rate there, a training row
never counting its own week. Vectors go in as at most 32 principal components each, with the product of the pair.

Legend: N rows, F features, D embedding dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.peers_rows import Rows, Vectors
from models.downstream.fit import sampling_offset
from models.metrics import log_loss

NATIVE = 255  # vocabularies up to here are native categories
PRIOR = 20.0  # rows at the mean rate that are added to every value's own
COMPONENTS = 32
ROUNDS, PATIENCE = 2000, 50


@dataclass(frozen=True)
class Setting:
    """One point of the search; `weeks`: a training row counts all other weeks, or only those before its own."""

    leaves: int
    least: int  # rows in a leaf
    l2: float
    weeks: Literal["other", "earlier"]

    def parameters(self, seed: int) -> dict[str, Any]:
        """Return LightGBM's parameters."""
        return {
            "objective": "binary",
            "metric": "none",
            "learning_rate": 0.05,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.least,
            "lambda_l2": self.l2,
            "feature_fraction": 0.7,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


SEARCH = (
    Setting(31, 100, 1.0, "other"),
    Setting(31, 100, 1.0, "earlier"),
    Setting(15, 100, 1.0, "earlier"),
    Setting(63, 500, 10.0, "earlier"),
)


@dataclass(frozen=True)
class Table:
    """Features of all rows, float32 [N, F], and which of them are native categories."""

    values: np.ndarray
    categories: list[int]


def features(rows: Rows, weeks: str, embeddings: dict[str, Vectors]) -> Table:
    """Return the features of all rows of a consumer, with the given embeddings or none."""
    fields = [*rows.encoder.spec({}).cats, *rows.encoder.spec({}).crosses]
    codes = np.concatenate([rows.data.cats.astype(np.int64), rows.data.crosses], axis=1)
    train = rows.chosen[0]
    week = ((rows.times.dt.epoch("us").to_numpy() - rows.times.dt.epoch("us").min()) // (7 * 86_400_000_000)).astype(
        int
    )  # type: ignore[operator]
    columns = [rows.data.nums]
    small = [at for at, (_, size, _) in enumerate(fields) if size <= NATIVE]
    columns.append(codes[:, small].astype(np.float32))
    categories = list(range(rows.data.nums.shape[1], rows.data.nums.shape[1] + len(small)))
    for at, (_, size, _) in enumerate(fields):
        if at not in small:
            columns.append(statistics(codes[:, at], size, rows.known_train, train, week, weeks))
    columns += vector_columns(embeddings, train)
    return Table(np.concatenate(columns, axis=1, dtype=np.float32), categories)


def statistics(
    code: np.ndarray, size: int, label: np.ndarray, train: np.ndarray, week: np.ndarray, weeks: str
) -> np.ndarray:
    """Return count and smoothed label rate of each row's value in the training rows, float32 [N, 2].

    A training row sees the weeks other than its own, or those before it; every later row sees all training weeks.
    The value 0 is unknown and has no rows.
    """
    span = int(week[train].max()) + 1
    place = week[train] * size + code[train]
    shape = (span, size)
    count = np.bincount(place, minlength=span * size).astype(np.float64).reshape(shape)
    positive = np.bincount(place, weights=label[train], minlength=span * size).reshape(shape)
    count[:, 0] = positive[:, 0] = 0
    rate = label[train].mean()
    seen, hits = (np.broadcast_to(table.sum(axis=0), shape) for table in (count, positive))
    if weeks == "other":
        own_seen, own_hits = seen - count, hits - positive
    else:
        own_seen, own_hits = (np.cumsum(table, axis=0) - table for table in (count, positive))
    found = np.empty((len(code), 2), np.float32)
    for chosen, n, y in ((train, own_seen, own_hits), (~train, seen, hits)):
        at = (np.minimum(week[chosen], span - 1), code[chosen])
        found[chosen, 0], found[chosen, 1] = n[at], (y[at] + PRIOR * rate) / (n[at] + PRIOR)
    return found


def vector_columns(embeddings: dict[str, Vectors], train: np.ndarray) -> list[np.ndarray]:
    """Return the principal components of each embedding [N, <= 32] and the pair's product [N, 1]; NaN for missing.

    The components are those of the vectors that training rows read, users and items together: they share a space.
    """
    if not embeddings:
        return []
    used = np.concatenate([table[np.unique(index[train & (index >= 0)])] for table, index in embeddings.values()])
    basis = np.eye(used.shape[1], dtype=np.float32)
    if used.shape[1] > COMPONENTS:
        _, vectors = np.linalg.eigh(np.cov(used, rowvar=False))
        basis = vectors[:, ::-1][:, :COMPONENTS].astype(np.float32)
    found = []
    for table, index in embeddings.values():
        narrow = table @ basis
        found.append(np.where((index >= 0)[:, None], narrow[np.maximum(index, 0)], np.float32(np.nan)))
    (left, left_at), (right, right_at) = embeddings.values()
    product = np.full((len(left_at), 1), np.nan, np.float32)
    both = np.flatnonzero((left_at >= 0) & (right_at >= 0))
    for part in np.array_split(both, max(1, len(both) // 50_000)):
        product[part, 0] = np.einsum("nd,nd->n", left[left_at[part]], right[right_at[part]])
    return [*found, product]


@dataclass(frozen=True)
class Fitted:
    """Test logits [N] of one model, and how it did on the validation rows."""

    logits: np.ndarray
    valid_log_loss: float
    rounds: int


def fit(rows: Rows, table: Table, setting: Setting, seed: int) -> Fitted:
    """Train on the training rows as known at their end; stop on the weighted log loss of the validation rows."""
    import lightgbm as lgb

    train, valid, test = rows.chosen
    weight = rows.data.weight
    offset = sampling_offset(rows.known_train[train], weight[train])
    told = {"categorical_feature": table.categories, "free_raw_data": True}
    learn = lgb.Dataset(table.values[train], rows.known_train[train], **told)
    check = lgb.Dataset(table.values[valid], rows.known_valid[valid], reference=learn, **told)

    def loss(probability: np.ndarray, _: Any) -> tuple[str, float, bool]:
        logits = np.log(probability) - np.log1p(-probability)
        return "log loss", log_loss(rows.known_valid[valid], logits + offset, weight[valid]), False

    model = lgb.train(
        setting.parameters(seed),
        learn,
        ROUNDS,
        valid_sets=[check],
        feval=loss,
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
    )
    logits = np.asarray(model.predict(table.values[test], raw_score=True)) + offset
    return Fitted(logits.astype(np.float32), float(model.best_score["valid_0"]["log loss"]), model.best_iteration)
