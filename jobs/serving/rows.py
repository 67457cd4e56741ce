"""The rows that serving reads: items from mapped snapshots, users from the online store, as of one moment.

What is found is what the offline join would find for a label of that moment: the latest row that was available,
no older than the view's time to live. Legend: N candidates, R requests, I items, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.errors import (
    HeadwaterError,
    LakeError,
    NotReadyError,
    OnlineStoreError,
    SpaceMismatchError,
)
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Snapshot, View
from feature_repo.lake import Home
from feature_repo.stores import twin
from feature_repo.stores.bank import ItemBank
from feature_repo.stores.list_reader import ListReader, Lists
from feature_repo.stores.packed import EmbeddingReader

if TYPE_CHECKING:
    from feast import FeatureStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NEVER = np.iinfo(np.int64).max
TYPES: dict[str, Any] = {
    "string": pl.String,
    "float": pl.Float32,
    "double": pl.Float64,
    "int64": pl.Int64,
    "bool": pl.Boolean,
}


def micros(moment: datetime) -> int:
    """Return a moment as microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


@dataclass(frozen=True)
class Vectors:
    """Vectors float32 [N, D], bool [N] found, and int64 [N] when each became available (-1: not found)."""

    values: np.ndarray
    found: np.ndarray
    available_us: np.ndarray

    def take(self, rows: Sequence[int]) -> Vectors:
        """Return those of some of the ids."""
        return Vectors(self.values[rows], self.found[rows], self.available_us[rows])


class PlainRows:
    """The latest rows of one plain item view, in memory.

    Attributes
    ----------
    frame
        Features named ``<view>__<feature>``, one row per item by id, and a last row without any value.
    until
        The first microsecond at which a row of this moment's files becomes available; NEVER if none does.
    """

    def __init__(self, home: Home, view: View, snapshots: Sequence[Snapshot], now: datetime) -> None:
        key = join_key(view.entity)
        self._ttl = view.ttl_days * 86_400_000_000
        wanted = [key, *view.fields, "event_timestamp", "created"]
        frames = [read_rows(home, snapshot, key, wanted) for snapshot in snapshots]
        types = {name: TYPES[kind] for name, kind in view.fields.items()}
        rows = pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(wanted, pl.Null))
        rows = rows.with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")).dt.epoch("us").alias("_us"))
        late = rows.filter(pl.col("_us") > micros(now))
        self.until = int(late["_us"].min()) if late.height else NEVER  # type: ignore[arg-type]
        rows = (
            rows.filter(pl.col("_us") <= micros(now))
            .sort("_us", "created", maintain_order=True)
            .unique(key, keep="last", maintain_order=True)
            .sort(key)
        )
        self.ids = rows[key].cast(pl.Int64 if view.id_type == "int64" else pl.String)
        self._found = SortedIds(self.ids.to_arrow())
        self._times = rows["_us"].to_numpy()
        named = rows.select(pl.col(name).cast(kind).alias(f"{view.name}__{name}") for name, kind in types.items())
        self.frame = pl.concat([named, pl.DataFrame({name: [None] for name in named.columns}, schema=named.schema)])

    def find(self, ids: pa.Array, now: int) -> np.ndarray:
        """Return each id's row in `frame`, int64 [N]; -1, the empty row, where none may be read now."""
        rows = self._found.rows(ids)
        if self._ttl and len(self._times):
            rows = np.where((rows >= 0) & (now - self._times[rows] <= self._ttl), rows, -1)
        return rows


class SortedIds:
    """Ids in ascending order, integers or strings, to be found."""

    def __init__(self, ids: pa.Array) -> None:
        self._integer = pa.types.is_integer(ids.type)
        self._ids = ids if self._integer else ids.cast(pa.string())
        self._numbers = ids.to_numpy() if self._integer else None

    def rows(self, asked: pa.Array) -> np.ndarray:
        """Return where each id stands, int64 [N]; -1 for those that are not among them."""
        if not len(self._ids):
            return np.full(len(asked), -1, np.int64)
        if self._numbers is not None:
            wanted = asked.to_numpy()
            rows = np.minimum(np.searchsorted(self._numbers, wanted), len(self._ids) - 1)
            return np.where(self._numbers[rows] == wanted, rows, -1)
        rows = np.minimum(pc.search_sorted(self._ids, asked).to_numpy().astype(np.int64), len(self._ids) - 1)
        same = pc.equal(self._ids.take(pa.array(rows)), asked).to_numpy(zero_copy_only=False)
        return np.where(same, rows, -1)


class VectorRows:
    """The vectors of one item embedding view: the latest snapshot mapped, and behind it those still alive.

    An item that the latest snapshot lacks is read from an earlier one, as the offline join does.

    Raises
    ------
    SpaceMismatchError
        If a snapshot is of another space than the release says.
    """

    def __init__(self, home: Home, view: View, snapshots: Sequence[Snapshot], space_id: str) -> None:
        self._banks: list[tuple[int, ItemBank]] = []
        for snapshot in sorted(snapshots, key=lambda item: item.available_at, reverse=True):
            if snapshot.space_id != space_id:
                raise SpaceMismatchError(
                    f"{snapshot.snapshot_id} is of space {snapshot.space_id}, the release reads {space_id}: "
                    "refresh the version again, or release what it stands for now."
                )
            bank = ItemBank(
                home.root / snapshot.path, join_key(view.entity), "embedding", ttl=timedelta(days=view.ttl_days)
            )
            self._banks.append((micros(snapshot.available_at), bank))
        if not self._banks:
            raise LakeError(f"{view.name} has no snapshot that may be read now. Refresh the version, or see --now.")

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._banks[0][1].dim

    def read(self, ids: pa.Array, now: datetime) -> Vectors:
        """Return the vectors of N ids, in their order."""
        clock, bank = self._banks[0]
        answer = bank.read(ids, now)
        values, found = answer.vectors, answer.found
        available = np.where(found, clock, -1)
        for clock, bank in self._banks[1:]:
            missing = np.flatnonzero(~found)
            if not len(missing):
                break
            earlier = bank.read(ids.take(pa.array(missing)), now)
            here = missing[earlier.found]
            values[here], found[here], available[here] = earlier.vectors[earlier.found], True, clock
        return Vectors(values, found, available)


class UserRows:
    """Users out of the online store: vectors by the packed reader, plain features by Feast.

    Parameters
    ----------
    plain
        The plain user views.
    spaces
        Embedding view -> the space that the release reads.
    members
        View that is read here -> some users of its latest snapshot. Those that are stored now witness from here on
        that the store still has what it had.
    choices
        The view of users' own choices and its lists; None where nobody reads them.

    Raises
    ------
    NotReadyError
        If the store has none of the members of a view.
    """

    def __init__(
        self,
        store: FeatureStore,
        plain: Sequence[View],
        spaces: Mapping[str, str],
        members: Mapping[str, Sequence[Any]],
        choices: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        self._store, self._plain = store, tuple(plain)
        self._witnesses: dict[str, list[Any]] = {}
        self._features = [f"{view.name}:{name}" for view in plain for name in view.fields]
        self._choices = None if choices is None else ListReader(store, *choices)
        self._choices_view = "" if choices is None else choices[0]
        self._readers: dict[str, EmbeddingReader] = {}
        for name, space_id in spaces.items():
            tagged = store.get_feature_view(name).tags.get("space_id")
            if tagged != space_id:
                raise SpaceMismatchError(
                    f"The online table {name} is of space {tagged}, the release reads {space_id}. "
                    "Run `headwater apply`."
                )
            self._readers[name] = EmbeddingReader(store, name, "embedding")
        for name in members:
            stored = self._stored(name, members[name])
            self._witnesses[name] = [user for user, there in zip(members[name], stored, strict=True) if there]
            if len(members[name]) and not self._witnesses[name]:
                raise NotReadyError(
                    f"The online store has no rows of {name}. Run `headwater materialize --again` with this profile."
                )

    @property
    def columns(self) -> list[str]:
        """Plain features that are read, as ``<view>__<feature>``."""
        return [feature.replace(":", "__", 1) for feature in self._features]

    def plain(self, ids: list[Any], now: int) -> pl.DataFrame:
        """Return R users: ``user_id`` and plain features ``<view>__<feature>``, null where no row may be read now."""
        if not self._features:
            return pl.DataFrame({"user_id": ids})
        asked = [{"user_id": user} for user in ids]
        try:
            found = self._store.get_online_features(self._features, asked, full_feature_names=True).to_dict()
        except HeadwaterError:
            raise
        except Exception as error:  # each store has errors of its own
            message = f"The online store does not answer for users ({type(error).__name__}: {error}). Start it again."
            raise OnlineStoreError(message) from error
        columns = [pl.Series("user_id", ids)]
        for view in self._plain:
            # Feast enforces no time to live online; every row carries its clock as a feature.
            ttl = view.ttl_days * 86_400_000_000 or NEVER
            clocks = found[f"{view.name}__available_us"]
            fresh = [clock is not None and 0 <= now - clock <= ttl for clock in clocks]
            for name, kind in view.fields.items():
                values = found[f"{view.name}__{name}"]
                kept = [value if there else None for value, there in zip(values, fresh, strict=True)]
                columns.append(pl.Series(f"{view.name}__{name}", kept, TYPES[kind]))
        return pl.DataFrame(columns)

    def vectors(self, view: str, ids: list[Any], now: datetime) -> Vectors:
        """Return one version's vectors of R users; OnlineStoreError as :meth:`check`."""
        answer = self._readers[view].read(ids, now)
        if not answer.found.all():
            self.check(view)
        age = np.rint(np.nan_to_num(answer.age) * 1e6).astype(np.int64)
        return Vectors(answer.vectors, answer.found, np.where(answer.found, micros(now) - age, -1))

    def choices(self, ids: list[Any], now: datetime) -> Lists | None:
        """Return the own choices of R users, empty where no row may be read now; None where nobody reads them.

        Raises OnlineStoreError as :meth:`check`.
        """
        if self._choices is None:
            return None
        answer = self._choices.read(ids, now)
        if not answer.found.all():
            self.check(self._choices_view)
        return answer

    def check(self, view: str | None = None) -> None:
        """Tell users that the store never knew from a store that lost what it had, as Redis does without a file.

        Parameters
        ----------
        view
            One of those that are read here; None for all.

        Raises
        ------
        OnlineStoreError
            If rows that were there when the release was loaded are gone, or the store does not answer.
        """
        for name in self._witnesses if view is None else (view,):
            lost = self._stored(name, self._witnesses[name]).count(False)
            if lost:
                raise OnlineStoreError(
                    f"The online store lost rows of {name}: {lost} of {len(self._witnesses[name])} that were there are "
                    "gone. Run `headwater materialize --again`."
                )

    def _stored(self, view: str, ids: Sequence[Any]) -> list[bool]:
        if self._choices is not None and view == self._choices_view:
            return self._choices.stored(list(ids)).tolist()
        age = self._readers[view].read(list(ids), EPOCH).age
        return (~np.isnan(age)).tolist()


def read_rows(home: Home, snapshot: Snapshot, key: str, wanted: list[str]) -> pl.DataFrame:
    """Return some columns of a snapshot, mapped where it has a twin."""
    path = home.root / snapshot.path
    found = twin.current_or_built(path, [key])
    table = found.table() if found is not None else pa.table(pl.read_parquet(path).to_arrow())
    return pl.DataFrame(pl.from_arrow(table.select(wanted)))
