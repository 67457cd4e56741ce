"""The monolith: the same ranker with the upstream's towers inside, trained end to end on the ranker's rows.

Users and items are read as of the same refresh moments as the published vectors, but every one of them, through the
towers' present weights, without smoothing, and by no other loss than the ranker's own. It starts either from fresh
towers (their id table from the factorization that the upstream starts from) or from the trained upstream's.

Legend: N rows, B batch, U distinct users and I distinct items of a batch, E dim of the towers' vectors.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.one_request import OneRequest, of_one_user
from benchmarks.peers_rows import Rows, Vectors
from jobs.features.batches import Grid, item_batch, user_batch
from jobs.features.tables import ItemTable, Tables, UserTable
from jobs.refresh import Upstream
from jobs.train_downstream import fit_config
from jobs.train_upstream import seed_item_rows
from jobs.workspace import Workspace
from models.downstream.batches import RankerBatch, RankerTensors
from models.downstream.fit import predict_tensors, sampling_offset, train_ranker
from models.downstream.inputs import RankerData, RankerSpec
from models.downstream.ranker import Ranker, RankerConfig
from models.upstream.derm import DERM
from models.upstream.inputs import ItemBatch, UserBatch

# How the rates of the towers' id and attribute tables are searched, as factors of the ranker's.
SEARCH: tuple[dict[str, float], ...] = ({}, {"items.rows.": 5.0, "items.attributes.": 5.0})
STARTS = ("fresh", "upstream")
CANDIDATES = 500  # of a timed request


@dataclass(frozen=True)
class MonolithBatch(RankerBatch):
    """B rows with the features of their distinct users and items instead of vectors."""

    users: UserBatch
    items: ItemBatch
    user_at: Tensor  # [B] into U
    item_at: Tensor  # [B] into I


class Monolith(Ranker):
    """A ranker that computes the vectors that it reads."""

    def __init__(self, spec: RankerSpec, config: RankerConfig, towers: DERM) -> None:
        super().__init__(spec, config)
        self.user_tower, self.item_tower, self.items = towers.user_tower, towers.item_tower, towers.items

    def forward(self, batch: RankerBatch) -> Tensor:
        """Return logits [B]."""
        assert isinstance(batch, MonolithBatch)
        users_UE, _ = self.user_tower(batch.users, self.items)
        items_IE, _ = self.item_tower(batch.items, self.items)
        return self.rank(batch, users_UE, items_IE)

    def rank(self, batch: MonolithBatch, users_UE: Tensor, items_IE: Tensor) -> Tensor:
        """Return logits [B] for vectors that are there already."""
        vectors = (users_UE.index_select(0, batch.user_at), items_IE.index_select(0, batch.item_at))
        return super().forward(RankerBatch(batch.ids, batch.nums, vectors, batch.present))


@dataclass(frozen=True)
class Histories:
    """Users and items of all refresh moments, and where each row finds its own.

    Attributes
    ----------
    user_at, item_at
        int64 [N], place in the tables of all moments one after the other, -1 where nothing was known.
    """

    tables: Tables
    users: list[UserTable]
    items: list[ItemTable]
    user_at: np.ndarray
    item_at: np.ndarray

    def take(self, rows: np.ndarray) -> Histories:
        """Return the same tables for some of the rows."""
        return replace(self, user_at=self.user_at[rows], item_at=self.item_at[rows])

    def user_batch(self, places: np.ndarray) -> UserBatch:
        """Return the features of ascending places in the tables of all moments."""
        return _gather(self.users, places, lambda table, at: user_batch(self.tables, table, at))

    def item_batch(self, places: np.ndarray) -> ItemBatch:
        """Return the features of ascending places in the tables of all moments."""
        return _gather(self.items, places, item_batch)


def _gather(tables: Any, places: np.ndarray, read: Any) -> Any:
    ends = np.cumsum([len(table.code) for table in tables])
    moments = np.searchsorted(ends, places, side="right")
    parts = []
    for moment in np.unique(moments):
        start = ends[moment] - len(tables[moment].code)
        parts.append(read(tables[moment], places[moments == moment] - start))
    kind = type(parts[0])
    return kind(**{name: torch.cat([getattr(part, name) for part in parts]) for name in kind.__dataclass_fields__})


def histories(ws: Workspace, rows: Rows, upstream: Upstream) -> Histories:
    """Read users and items at every refresh moment from the upstream cut-off on, with the upstream's encodings."""
    grid = ws.refresh_moments(ws.splits.upstream_end, ws.splits.end)
    where = Grid(tuple(grid), ws.config.availability_lag, ws.splits.end).read_by(rows.times)
    code = {
        entity: rows.source.frame.join(ws.log.codes[entity], on=f"{entity}_id", how="left", maintain_order="left")[
            f"{entity}_code"
        ].to_numpy()
        for entity in ("user", "item")
    }
    user_at, item_at = np.full(len(where), -1, np.int64), np.full(len(where), -1, np.int64)
    users, items, user_start, item_start = [], [], 0, 0
    for index, moment in enumerate(grid):
        chosen = np.flatnonzero(where == index)
        user_table = upstream.tables.users(moment)
        item_table = upstream.tables.items(moment, np.unique(code["item"][chosen]))
        place = np.minimum(np.searchsorted(user_table.code, code["user"][chosen]), len(user_table.code) - 1)
        known = user_table.code[place] == code["user"][chosen]
        user_at[chosen[known]] = user_start + place[known]
        item_at[chosen] = item_start + np.searchsorted(item_table.code, code["item"][chosen])
        users.append(user_table)
        items.append(item_table)
        user_start, item_start = user_start + len(user_table.code), item_start + len(item_table.code)
    return Histories(upstream.tables, users, items, user_at, item_at)


class MonolithTensors(RankerTensors):
    """Rows with their users' and items' features; see :class:`RankerTensors`."""

    def __init__(self, data: RankerData, spec: RankerSpec, known: Histories) -> None:
        # One unit vector stands for every vector: it tells the ranker their scale, and which rows have one.
        stand_in = {
            name: (np.full((1, dim), dim**-0.5, np.float32), np.minimum(at, 0))
            for (name, dim), at in zip(spec.embeddings, (known.user_at, known.item_at), strict=True)
        }
        self.data = replace(data, embeddings=stand_in)
        super().__init__(self.data, spec)
        self.known = known

    def batch(self, rows: Tensor) -> MonolithBatch:
        """Return the batch of the given row positions [B]."""
        plain = super().batch(rows)
        at = rows.numpy()
        users, user_at = np.unique(np.maximum(self.known.user_at[at], 0), return_inverse=True)
        items, item_at = np.unique(np.maximum(self.known.item_at[at], 0), return_inverse=True)
        return MonolithBatch(
            plain.ids,
            plain.nums,
            (),
            plain.present,
            self.known.user_batch(users),
            self.known.item_batch(items),
            torch.from_numpy(user_at),
            torch.from_numpy(item_at),
        )


@dataclass(frozen=True)
class Fitted:
    """The test logits [N] of a trained monolith, and how training went."""

    logits: np.ndarray
    valid_log_loss: float
    seconds: float


def towers(upstream: Upstream, ws: Workspace, start: str, seed: int) -> DERM:
    """Return the towers to start from: the trained upstream's, or fresh ones as the upstream's training makes them."""
    if start == "upstream":
        return copy.deepcopy(upstream.model)
    fresh = DERM(replace(upstream.model.config, seed=seed))
    seed_item_rows(fresh, upstream.tables, ws.splits.upstream_end)
    return fresh


def spec_of(rows: Rows, upstream: Upstream) -> RankerSpec:
    """Return the inputs of the ranker that reads the published vectors: the monolith's are the same."""
    embeddings = tuple((view, upstream.model.dim) for view in rows.views)
    return replace(rows.encoder.spec({}), embeddings=embeddings, pairs=(rows.views,))


def untrained(rows: Rows, upstream: Upstream) -> Monolith:
    """Return a monolith that ranks badly, and as fast as a trained one."""
    return Monolith(spec_of(rows, upstream), fit_config(len(rows.data)).ranker, copy.deepcopy(upstream.model))


def fit(
    ws: Workspace, rows: Rows, known: Histories, upstream: Upstream, start: str, rates: dict[str, float], seed: int
) -> Fitted:
    """Train end to end with the ranker's own budget, stopping and seeds."""
    train, valid, test = rows.periods({})
    spec, config = spec_of(rows, upstream), fit_config(len(rows.data))
    learn, check, judge = (
        MonolithTensors(data, spec, known.take(chosen))
        for data, chosen in zip((train, valid, test), rows.chosen, strict=True)
    )
    with torch.random.fork_rng(devices=[]):  # the towers' dropout draws from the global generator
        torch.manual_seed(seed)
        model = Monolith(spec, config.ranker, towers(upstream, ws, start, seed)).requires_grad_(True)
        model.set_statistics(learn.data)
        offset = sampling_offset(train.label, train.weight)
        fitted = train_ranker(model, learn, check, config, offset, seed=seed, rates=rates)
    logits = predict_tensors(model, judge) + offset
    return Fitted(logits, min(point.valid_log_loss for point in fitted.history), fitted.seconds)


def reading(rows: Rows, vectors: Mapping[str, Vectors]) -> Ranker:
    """Return a ranker of some vectors that ranks badly, and as fast as a trained one."""
    ranker = Ranker(rows.spec(vectors), fit_config(len(rows.data)).ranker)
    ranker.set_statistics(replace(rows.data, embeddings=vectors))
    return ranker.eval()


def _one_request(rows: Rows, known: Histories, candidates: int) -> np.ndarray:
    """Return test rows of distinct items, all of the refresh moment that has most of them, int64 [<= candidates]."""
    test = np.flatnonzero(rows.chosen[2] & (known.item_at >= 0) & (known.user_at >= 0))
    places, first = np.unique(known.item_at[test], return_index=True)
    ends = np.cumsum([len(table.code) for table in known.items])
    moments = np.searchsorted(ends, places, side="right")
    fullest = np.bincount(moments).argmax()
    return test[first[moments == fullest][:candidates]]


def ranking_cost(
    rows: Rows,
    known: Histories,
    model: Monolith,
    readers: Mapping[str, Mapping[str, Vectors]],
    *,
    candidates: int = CANDIDATES,
    repeats: int = 200,
) -> tuple[dict[str, list[float]], int]:
    """Time requests of one user and many candidates on one thread, the kinds in turn: milliseconds of each, and how
    many candidates there were.

    A request gathers its tensors and computes logits. Each of `readers` is the platform's ranker, looking these
    vectors up; `monolith` encodes user and candidates; `monolith, items kept` encodes the user and looks the vectors of
    candidates up. All rank by what serving makes of a ranker, plain item rows encoded ahead: vectors and towers make
    the difference.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    some = _one_request(rows, known, candidates)
    has_vector = rows.data.embeddings[rows.views[0]][1][some] >= 0
    row = int(np.argmax(has_vector))  # a user that both know
    vectors = {view: found for each in readers.values() for view, found in each.items()}
    data = of_one_user(rows.encoder, replace(rows.data, embeddings=vectors).take(some), row)
    user_at, item_at = known.user_at[some[row]][None], known.item_at[some]  # ascending, each once
    inside = OneRequest(model, rows.encoder, replace(data, embeddings={}))
    model.eval()
    with torch.inference_mode():

        def encoded_user() -> Tensor:
            return model.user_tower(known.user_batch(user_at), model.items)[0]

        def encoded_items() -> Tensor:
            return model.item_tower(known.item_batch(item_at), model.items)[0]

        kept, every = encoded_items(), torch.arange(len(some))

        def monolith(items_NE: Tensor) -> Tensor:
            return inside.rank((encoded_user(),), (items_NE,), (True,), None)

        kinds: dict[str, Callable[[], Tensor]] = {
            name: OneRequest(reading(rows, found), rows.encoder, data) for name, found in readers.items()
        }
        kinds |= {
            "monolith": lambda: monolith(encoded_items()),
            "monolith, items kept": lambda: monolith(kept.index_select(0, every)),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step in range(repeats + 5):
            for name, request in kinds.items():
                started = time.perf_counter()
                request()
                if step >= 5:
                    found[name].append(1e3 * (time.perf_counter() - started))
    torch.set_num_threads(threads)
    return found, len(some)
