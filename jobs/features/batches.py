"""Training batches of the upstream model, from opportunities and the tables of a grid of moments.

An opportunity at time t reads the tables of the last grid moment whose features were available at t.
A batch takes its rows from one grid moment, so that the towers run once per distinct user and item, and the
negatives of the contrastive loss are what the user could have chosen in the same week
(docs/adr/0005-batches-share-a-moment.md).

Legend: B rows, U distinct users, I distinct items, P pairs of activity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from jobs.features.labels import Opportunities
from jobs.features.sampling import Cut, Kind, Sampling, plan, steps
from jobs.features.slices import MappedSlice, Slice
from jobs.features.tables import ItemTable, Tables, UserTable

if TYPE_CHECKING:
    from models.upstream.inputs import InputSpec, ItemBatch, TrainBatch, UserBatch

ONE_STREAM = Sampling()
_RECORD, _CODES = "rows.json", "codes.npz"


def moments(start: datetime, end: datetime, every: timedelta) -> list[datetime]:
    """Return start, start + every, ... before `end`."""
    found = []
    while start < end:
        found.append(start)
        start += every
    return found


class Codes(Protocol):
    """What turns the codes of a history into what a model reads; `Tables` is one."""

    @property
    def item_rows(self) -> np.ndarray:
        """Row of the id table by item code, int64."""

    @property
    def action_index(self) -> np.ndarray:
        """The model's index by position in `Activity.actions` plus one, int64."""


@dataclass(frozen=True)
class _Codes:
    item_rows: np.ndarray
    action_index: np.ndarray


class TrainingRows:
    """All training rows of an upstream model, cut into batches anew for each epoch.

    They lie in memory-mapped files, one per moment: of the log, an epoch holds one batch in memory.

    Parameters
    ----------
    folder
        Filled by :func:`write_moments` and :meth:`bind`. Who trains removes it.
    positives
        ``click`` or ``conversion``: which outcome makes a row a positive of the contrastive loss.
    sampling
        How an epoch is drawn; as it was written where it draws uniform negatives.
    """

    def __init__(self, folder: Path, *, positives: str, sampling: Sampling = ONE_STREAM) -> None:
        record = json.loads((folder / _RECORD).read_text())
        codes = np.load(folder / _CODES)
        self._codes = _Codes(codes["item_rows"], codes["action_index"])
        self.positives = positives
        self.sampling = sampling
        self._mapped = [MappedSlice(folder / name) for name in record["slices"]]
        self._slices = [mapped.rows for mapped in self._mapped]
        self.without_history: int = record["without_history"]
        self.rows = sum(len(part.user) for part in self._slices)
        self._log_p: dict[Kind, np.ndarray] = {}

    @classmethod
    def bind(
        cls, folder: Path, codes: Codes, parts: Sequence[Written], *, positives: str, sampling: Sampling = ONE_STREAM
    ) -> TrainingRows:
        """Make the moments that some processes wrote to a folder (:func:`write_moments`) one training's rows."""
        names = sorted(name for part in parts for name in part.files)
        without_history = sum(part.without_history for part in parts)
        np.savez(folder / _CODES, item_rows=codes.item_rows, action_index=codes.action_index)
        (folder / _RECORD).write_text(json.dumps({"slices": names, "without_history": without_history}))
        return cls(folder, positives=positives, sampling=sampling)

    def _item_log_p(self, batch_rows: int) -> dict[Kind, np.ndarray]:
        """Log probability of each item code to be in a batch of its moment, from one epoch's batches of a kind.

        An item enters a batch once however often it occurs there, so this is the chance of being among the
        negatives. It levels off at 1 for popular items, which a share of all rows would not.
        """
        cuts = plan(self._slices, self.sampling, batch_rows, np.random.default_rng(0))
        drawn = {cut.kind: np.zeros(len(self._codes.item_rows), np.float64) for cut in cuts}
        batches = dict.fromkeys(drawn, 0)
        for cut in cuts:
            part = self._slices[cut.slice]
            used = [part.item[cut.rows], part.item[cut.clicked], part.pair_item[cut.pairs]]
            drawn[cut.kind][part.items.code[np.unique(np.concatenate(used))]] += 1
            batches[cut.kind] += 1
            self._mapped[cut.slice].release()
        return {kind: np.log((count + 0.3) / (batches[kind] + 0.3)).astype(np.float32) for kind, count in drawn.items()}

    def epoch(
        self, number: int, *, batch_rows: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TrainBatch]:
        """Yield the batches of one epoch; the same seed and number give the same batches.

        With a shard (rank, ranks) each batch holds that rank's part of it: together the ranks have every row, clicked
        row, pair and uniform negative of the batch once, whatever their number.
        """
        if not self._log_p:
            self._log_p = self._item_log_p(batch_rows)
        rng = np.random.default_rng([seed, number])
        cuts = plan(self._slices, self.sampling, batch_rows, rng)
        for position in rng.permutation(len(cuts)):
            cut = cuts[position]
            uniform = self._uniform(self._slices[cut.slice], np.random.default_rng([seed, number, 1 + position]))
            batch = self._batch(cut, uniform, shard)
            self._mapped[cut.slice].release()
            yield batch

    def steps(self, batch_rows: int) -> int:
        """Batches of one epoch."""
        return steps(self._slices, self.sampling, batch_rows)

    def _uniform(self, part: Slice, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of the items that a batch draws uniformly from those of its moment."""
        count = min(self.sampling.uniform_negatives, len(part.catalogue))
        return rng.choice(part.catalogue, count, replace=False) if count else part.catalogue[:0]

    def _log_q(self, cut: Cut, items: np.ndarray, drawn: int) -> np.ndarray:
        """Return the log probability of each item of a batch to be in it, through its rows or drawn uniformly."""
        part = self._slices[cut.slice]
        log_p = self._log_p[cut.kind][part.items.code[items]]
        if drawn == 0:
            return log_p
        uniform = np.where(np.isin(items, part.catalogue), drawn / len(part.catalogue), 0.0)
        missed = (1.0 - np.minimum(np.exp(log_p.astype(np.float64)), 1.0)) * (1.0 - uniform)
        return np.log(1.0 - missed).astype(np.float32)

    def _batch(self, cut: Cut, drawn: np.ndarray, shard: tuple[int, int] = (0, 1)) -> TrainBatch:
        import torch

        from models.upstream.inputs import ContextBatch, TrainBatch

        part, own = self._slices[cut.slice], slice(shard[0], None, shard[1])
        first, pairs, uniform = cut.rows[own], cut.pairs[own], drawn[own]
        chunk = np.concatenate([first, cut.clicked[own]])
        all_users = np.concatenate([part.user[chunk], part.pair_user[pairs]])
        all_items = np.concatenate([part.item[chunk], part.pair_item[pairs], uniform])
        users, user_index = np.unique(all_users, return_inverse=True)
        items, item_index = np.unique(all_items, return_inverse=True)
        count = len(chunk)
        from_first = np.arange(count) < len(first)
        by_click = self.positives == "click"
        positive = (part.click[chunk] if by_click else part.conversion[chunk]) > 0
        masks: dict[str, torch.Tensor] = {}
        if self.sampling.sources is not None:
            positive &= from_first if by_click else ~from_first
            masks = {"click_trains": torch.from_numpy(from_first), "conversion_trains": torch.from_numpy(~from_first)}
        log_share = self.sampling.log_share(part)
        if log_share is not None:
            masks["click_shift"] = torch.tensor(-log_share)
        return TrainBatch(
            user=user_batch(self._codes, part.users, users),
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
            item_log_q=torch.from_numpy(self._log_q(cut, items, len(drawn))),
            positive=torch.from_numpy(positive),
            pos_user_index=torch.from_numpy(user_index[count:]),
            pos_item_index=torch.from_numpy(item_index[count : count + len(pairs)]),
            **masks,
        )


@dataclass(frozen=True)
class Grid:
    """The moments at which training reads features, and which rows read which moment.

    Attributes
    ----------
    moments
        Ascending.
    lag
        Availability lag: a row reads the last moment with moment + lag <= its time.
    until
        The training cut-off: neither rows nor activity pairs from then on are read.
    """

    moments: tuple[datetime, ...]
    lag: timedelta
    until: datetime

    def windows(self) -> list[tuple[datetime | None, datetime]]:
        """Return the times [from, to) whose rows read no moment, the first, the second, ...: every time once."""
        edges = [moment + self.lag for moment in self.moments]
        return list(zip([None, *edges], [*edges, self.until], strict=True))

    def read_by(self, times: pl.Series) -> np.ndarray:
        """Return for each time the position of the moment that a row of that time reads, -1 for none: int64 [N]."""
        edges = np.array([int((moment + self.lag).timestamp() * 1_000_000) for moment in self.moments])
        return np.searchsorted(edges, times.dt.epoch("us").to_numpy(), side="right") - 1

    def pairs(self, index: int) -> tuple[datetime, datetime]:
        """Return the times [from, to) whose activity adds pairs to a moment: up to the next one."""
        following = self.moments[index + 1] if index + 1 < len(self.moments) else self.until
        return self.moments[index] + self.lag, min(following, self.until)


@dataclass(frozen=True)
class Written:
    """What one process wrote of a training's rows: names of files, and rows left out for want of a history."""

    files: tuple[str, ...]
    without_history: int


def write_moments(
    folder: Path,
    tables: Tables,
    rows: Opportunities,
    grid: Grid,
    *,
    catalogue: bool,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write the training rows of a shard's moments to a folder, each read from Parquet by itself.

    With a shard (rank, ranks) the process reads every ranks-th window of the log: together the shards have every row
    and activity pair once, whatever their number, in the same files.

    Parameters
    ----------
    folder
        Has to be there, for all ranks the same one.
    tables
        Reader of the log with the model's encodings.
    rows
        Opportunities as known at the training cut-off.
    catalogue
        Whether a moment keeps all items known at it, to draw uniform negatives from.
    """
    names: list[str] = []
    without_history = 0
    windows = list(enumerate(grid.windows()))[shard[0] :: shard[1]]
    for done, (number, (start, end)) in enumerate(windows):
        if number == 0:
            without_history += rows.count(start, end)
        else:
            moment, chosen = grid.moments[number - 1], rows.between(start, end)
            pairs = tables.activity.between(*grid.pairs(number - 1))
            part, dropped = _slice(tables, moment, chosen, pairs, catalogue)
            without_history += dropped
            if len(part.user):
                names.append(f"moment-{number - 1:05d}.safetensors")
                part.write(folder / names[-1])
        progress(done + 1, len(windows))
    return Written(tuple(names), without_history)


def _slice(
    tables: Tables,
    moment: datetime,
    rows: pl.DataFrame,
    pairs: tuple[np.ndarray, np.ndarray],
    with_catalogue: bool,
) -> tuple[Slice, int]:
    users = tables.users(moment)
    user, known = _positions(users.code, rows["user_code"].to_numpy())
    rows = rows.filter(pl.Series(known))
    pair_user, pair_item = pairs
    pair_position, pair_known = _positions(users.code, pair_user)
    catalogue = tables.items(moment).code if with_catalogue else np.zeros(0, np.int64)
    codes = np.unique(np.concatenate([rows["item_code"].to_numpy(), pair_item[pair_known], catalogue]))
    items = tables.items(moment, codes)
    click = rows["click"]
    part = Slice(
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
        catalogue=np.searchsorted(codes, catalogue),
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


def user_batch(codes: Codes, users: UserTable, rows: np.ndarray) -> UserBatch:
    """Gather the given rows of a user table into tensors."""
    import torch

    from models.upstream.inputs import UserBatch

    history = users.history
    item = history.item_code[rows]
    real = item >= 0
    top = history.top_item[rows]
    safe = np.where(real, item, 0)
    cats = np.where(real[:, :, None], users.item_cats[safe], 0).astype(np.int64)
    actions = codes.action_index[history.action[rows].astype(np.int64) + 1]
    return UserBatch(
        cats=torch.from_numpy(users.cats[rows]),
        nums=torch.from_numpy(users.nums[rows]),
        seq_item=torch.from_numpy(np.where(real, codes.item_rows[safe], 0)),
        seq_cats=torch.from_numpy(cats),
        seq_action=torch.from_numpy(actions),
        seq_age=torch.from_numpy(np.log1p(history.age_hours[rows])),
        interest_value=torch.from_numpy(history.interest_value[rows].astype(np.int64)),
        interest_weight=torch.from_numpy(history.interest_weight[rows]),
        top_item=torch.from_numpy(np.where(top >= 0, codes.item_rows[top], 0)),
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
