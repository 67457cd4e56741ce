"""Training batches of the upstream model, from opportunities and the tables of a grid of moments.

An opportunity at time t reads the tables of the last grid moment whose features were available at t.
A batch takes its rows from one grid moment, so that the towers run once per distinct user and item, and the
negatives of the contrastive loss are what the user could have chosen in the same week
(docs/adr/0005-batches-share-a-moment.md).

Legend: B rows, U distinct users, I distinct items, P pairs of activity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from jobs.features.tables import ItemTable, Tables, UserTable

if TYPE_CHECKING:
    from models.upstream.inputs import InputSpec, ItemBatch, TrainBatch, UserBatch


def moments(start: datetime, end: datetime, every: timedelta) -> list[datetime]:
    """Return start, start + every, ... before `end`."""
    found = []
    while start < end:
        found.append(start)
        start += every
    return found


def grid_positions(times: pl.Series, grid: list[datetime], lag: timedelta) -> np.ndarray:
    """Return for each time the last grid moment with moment + lag <= time, -1 where there is none."""
    edges = np.array([int((moment + lag).timestamp() * 1_000_000) for moment in grid])
    return np.searchsorted(edges, times.dt.epoch("us").to_numpy(), side="right") - 1


@dataclass(frozen=True)
class _Slice:
    """The training rows of one grid moment with its tables; positions point into the tables."""

    users: UserTable
    items: ItemTable
    user: np.ndarray
    item: np.ndarray
    click: np.ndarray
    click_known: np.ndarray
    conversion: np.ndarray
    conversion_known: np.ndarray
    context_cats: np.ndarray
    context_nums: np.ndarray
    pair_user: np.ndarray
    pair_item: np.ndarray


class TrainingRows:
    """All training rows of an upstream model, cut into batches anew for each epoch.

    Parameters
    ----------
    tables
        Reader of the log with the model's encodings.
    rows
        Opportunities as known at the training cut-off.
    grid
        Moments at which features are read, ascending.
    lag
        Availability lag.
    until
        The training cut-off: activity pairs after it are not read.
    positives
        ``click`` or ``conversion``: which outcome makes a row a positive of the contrastive loss.
    activity_pairs
        Whether the activity between two moments adds positives to the contrastive loss.
    """

    def __init__(
        self,
        tables: Tables,
        rows: pl.DataFrame,
        grid: list[datetime],
        *,
        lag: timedelta,
        until: datetime,
        positives: str,
        activity_pairs: bool,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._tables = tables
        self._positives = positives
        where = grid_positions(rows["event_timestamp"], grid, lag)
        self._slices: list[_Slice] = []
        self.without_history = int((where < 0).sum())
        for index, moment in enumerate(grid):
            chosen = rows.filter(pl.Series(where == index))
            following = min(grid[index + 1] if index + 1 < len(grid) else until, until)
            pairs = tables.activity.between(moment + lag, following) if activity_pairs else None
            part, dropped = _slice(tables, moment, chosen, pairs)
            self.without_history += dropped
            if len(part.user):
                self._slices.append(part)
            progress(index + 1, len(grid))
        self.rows = sum(len(part.user) for part in self._slices)
        self._log_q: np.ndarray | None = None

    def _item_log_q(self, batch_rows: int) -> np.ndarray:
        """Log probability of each item code to be in a batch of its moment, from one epoch's batches.

        An item enters a batch once however often it occurs there, so this is the chance of being among the
        negatives. It levels off at 1 for popular items, which a share of all rows would not.
        """
        drawn = np.zeros(len(self._tables.item_rows), np.float64)
        batches = 0
        for index, chunk, pairs in self._plan(np.random.default_rng(0), batch_rows):
            part = self._slices[index]
            present = part.items.code[np.unique(np.concatenate([part.item[chunk], part.pair_item[pairs]]))]
            drawn[present] += 1
            batches += 1
        return np.log((drawn + 0.3) / (batches + 0.3)).astype(np.float32)

    def _plan(self, rng: np.random.Generator, batch_rows: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Return the batches of one epoch in the order of the slices: slice, rows, activity pairs."""
        plan = []
        for index, part in enumerate(self._slices):
            pieces = max(1, round(len(part.user) / batch_rows))
            rows = np.array_split(rng.permutation(len(part.user)), pieces)
            pairs = np.array_split(rng.permutation(len(part.pair_user)), pieces)
            plan += [(index, chunk, some) for chunk, some in zip(rows, pairs, strict=True)]
        return plan

    def epoch(self, number: int, *, batch_rows: int, seed: int) -> Iterator[TrainBatch]:
        """Yield the batches of one epoch; the same seed and number give the same batches."""
        if self._log_q is None:
            self._log_q = self._item_log_q(batch_rows)
        rng = np.random.default_rng([seed, number])
        plan = self._plan(rng, batch_rows)
        for position in rng.permutation(len(plan)):
            index, chunk, pairs = plan[position]
            yield self._batch(self._slices[index], chunk, pairs, self._log_q)

    def steps(self, batch_rows: int) -> int:
        """Batches of one epoch."""
        return sum(max(1, round(len(part.user) / batch_rows)) for part in self._slices)

    def _batch(self, part: _Slice, chunk: np.ndarray, pairs: np.ndarray, log_q: np.ndarray) -> TrainBatch:
        import torch

        from models.upstream.inputs import ContextBatch, TrainBatch

        all_users = np.concatenate([part.user[chunk], part.pair_user[pairs]])
        all_items = np.concatenate([part.item[chunk], part.pair_item[pairs]])
        users, user_index = np.unique(all_users, return_inverse=True)
        items, item_index = np.unique(all_items, return_inverse=True)
        count = len(chunk)
        positive = part.click[chunk] if self._positives == "click" else part.conversion[chunk]
        return TrainBatch(
            user=user_batch(self._tables, part.users, users),
            item=item_batch(part.items, items),
            context=ContextBatch(
                cats=torch.from_numpy(part.context_cats[chunk]),
                nums=torch.from_numpy(part.context_nums[chunk]),
            ),
            user_index=torch.from_numpy(user_index[:count]),
            item_index=torch.from_numpy(item_index[:count]),
            click=torch.from_numpy(part.click[chunk]),
            click_known=torch.from_numpy(part.click_known[chunk]),
            conversion=torch.from_numpy(part.conversion[chunk]),
            conversion_known=torch.from_numpy(part.conversion_known[chunk]),
            user_key=torch.from_numpy(part.users.code[users]),
            item_key=torch.from_numpy(part.items.code[items]),
            item_log_q=torch.from_numpy(log_q[part.items.code[items]]),
            positive=torch.from_numpy(positive > 0),
            pos_user_index=torch.from_numpy(user_index[count:]),
            pos_item_index=torch.from_numpy(item_index[count:]),
        )


def _slice(
    tables: Tables, moment: datetime, rows: pl.DataFrame, pairs: tuple[np.ndarray, np.ndarray] | None
) -> tuple[_Slice, int]:
    users = tables.users(moment)
    user, known = _positions(users.code, rows["user_code"].to_numpy())
    rows = rows.filter(pl.Series(known))
    pair_user, pair_item = pairs if pairs is not None else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    pair_position, pair_known = _positions(users.code, pair_user)
    codes = np.unique(np.concatenate([rows["item_code"].to_numpy(), pair_item[pair_known]]))
    items = tables.items(moment, codes)
    click = rows["click"]
    part = _Slice(
        users=users,
        items=items,
        user=user[known],
        item=np.searchsorted(codes, rows["item_code"].to_numpy()),
        click=click.fill_null(True).cast(pl.Float32).to_numpy(),
        click_known=click.is_not_null().to_numpy(),
        conversion=rows["conversion"].cast(pl.Float32).to_numpy(),
        conversion_known=np.ones(rows.height, bool),
        context_cats=tables.encoder.categories("context", rows),
        context_nums=tables.encoder.numbers("context", rows),
        pair_user=pair_position[pair_known],
        pair_item=np.searchsorted(codes, pair_item[pair_known]),
    )
    return part, int((~known).sum())


def _positions(sorted_codes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the wanted codes in the sorted ones, and which were found."""
    if len(sorted_codes) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    position = np.minimum(np.searchsorted(sorted_codes, wanted), len(sorted_codes) - 1)
    return position, sorted_codes[position] == wanted


def input_spec(tables: Tables, history_length: int) -> InputSpec:
    """Return the shapes a model needs to be built for these encodings."""
    from models.upstream.inputs import InputSpec

    encoder = tables.encoder
    return InputSpec(
        user_cats=encoder.sizes("user"),
        user_nums=len(encoder.columns["user_nums"]),
        item_cats=encoder.sizes("item"),
        item_nums=len(encoder.columns["item_nums"]),
        item_rows=encoder.item_ids.rows,
        actions=1 + len(encoder.actions),
        sequence_length=history_length,
        interests=encoder.interests,
        top_items=encoder.top_items,
        context_cats=encoder.sizes("context"),
        context_nums=len(encoder.columns["context_nums"]),
    )


def user_batch(tables: Tables, users: UserTable, rows: np.ndarray) -> UserBatch:
    """Gather the given rows of a user table into tensors."""
    import torch

    from models.upstream.inputs import UserBatch

    history = users.history
    item = history.item_code[rows]
    real = item >= 0
    top = history.top_item[rows]
    safe = np.where(real, item, 0)
    assert tables._item_cats is not None
    cats = np.where(real[:, :, None], tables._item_cats[safe], 0).astype(np.int64)
    actions = tables._action_index[history.action[rows].astype(np.int64) + 1]
    return UserBatch(
        cats=torch.from_numpy(users.cats[rows]),
        nums=torch.from_numpy(users.nums[rows]),
        seq_item=torch.from_numpy(np.where(real, tables.item_rows[safe], 0)),
        seq_cats=torch.from_numpy(cats),
        seq_action=torch.from_numpy(actions),
        seq_age=torch.from_numpy(np.log1p(history.age_hours[rows])),
        interest_value=torch.from_numpy(history.interest_value[rows].astype(np.int64)),
        interest_weight=torch.from_numpy(history.interest_weight[rows]),
        top_item=torch.from_numpy(np.where(top >= 0, tables.item_rows[top], 0)),
        top_weight=torch.from_numpy(history.top_weight[rows]),
    )


def item_batch(items: ItemTable, rows: np.ndarray) -> ItemBatch:
    """Gather the given rows of an item table into tensors."""
    import torch

    from models.upstream.inputs import ItemBatch

    return ItemBatch(
        row=torch.from_numpy(items.row[rows]),
        cats=torch.from_numpy(items.cats[rows]),
        nums=torch.from_numpy(items.nums[rows]),
    )
