"""One release, loaded: immutable, so that a request which holds it is answered by it alone.

Legend: N candidates, R requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import sqlalchemy as sa

from feature_repo import ledger_tables as tables
from feature_repo import releases
from feature_repo.contracts.errors import ConfigError, NotFoundError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, choices_view, embedding_view, join_key
from feature_repo.contracts.types import Release, Snapshot, View
from jobs import item_index
from jobs.own_choices import ITEMS, STRENGTHS, OwnChoices
from jobs.popularity import Popularity
from jobs.release import check_parts
from jobs.serving.candidates import Candidates
from jobs.serving.inputs import RankerInputs
from jobs.serving.rankers import Rows, ServedRanker
from jobs.serving.rows import NEVER, PlainRows, UserRows, VectorRows, Vectors, micros, read_rows
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from feast import FeatureStore

WITNESSES = 16  # users per view whose rows show that the online store still has what it had
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Question:
    """One request as the models see it: a user, items or none yet, and what is known of the moment."""

    user_id: Any
    item_ids: Sequence[Any]
    context: Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """Everything that answers requests for one release.

    Attributes
    ----------
    key
        What it was loaded from: the pointer's position and the snapshots that could be read. Where the key is
        another one, something else has to be served.
    snapshots
        Item view -> the latest snapshot that is served from memory.
    until
        The microsecond from which on it has to be loaded again.
    """

    key: tuple[Any, ...]
    release: Release
    integer_ids: bool
    snapshots: dict[str, str]
    until: int
    plain: dict[str, PlainRows]
    items: dict[str, VectorRows]
    users: UserRows
    rankers: dict[str, ServedRanker]
    inputs: dict[str, RankerInputs]
    candidates: Candidates | None

    def rows(self, questions: Sequence[Question], now: datetime, read: Mapping[str, Vectors] | None = None) -> Rows:
        """Read the features of every candidate of every question, vectors of all views that ranking needs.

        Parameters
        ----------
        read
            Vectors of the users that have been read already, by view.
        """
        clock = micros(now)
        who = np.repeat(np.arange(len(questions)), [len(question.item_ids) for question in questions])
        kind = pa.int64() if self.integer_ids else pa.string()
        items = pa.array([item for question in questions for item in question.item_ids], kind)
        users = [question.user_id for question in questions]
        vectors = dict(read or {})
        for view in self.ranking_views:
            if view.startswith("item"):
                vectors[view] = self.items[view].read(items, now)
            elif view not in vectors:
                vectors[view] = self.users.vectors(view, users, now)
        return Rows(
            moment=clock,
            who=who,
            item_ids=items,
            users=self.users.plain(users, clock),
            contexts=self._contexts([question.context for question in questions]),
            items={view: rows.find(items, clock) for view, rows in self.plain.items()},
            vectors=vectors,
        )

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        """Return every ranker's probabilities by its task, float64 [N] each."""
        return {task: ranker.score(rows, self.inputs[task]) for task, ranker in self.rankers.items()}

    @cached_property
    def ranking_views(self) -> list[str]:
        """Embedding views that the rankers read, and those of the index."""
        views = {view for ranker in self.rankers.values() for view in ranker.views}
        if self.index_version is not None:
            views |= {embedding_view(entity, self.index_version) for entity in ENTITIES}
        return sorted(views)

    @cached_property
    def context_names(self) -> frozenset[str]:
        """Names of a request's context that the rankers read."""
        return frozenset(name for ranker in self.rankers.values() for kind in ranker.context for name in kind)

    @property
    def index_version(self) -> str | None:
        """The version whose vectors retrieval compares; None without an index."""
        return self.release.index["version"] if self.release.index else None

    def _contexts(self, contexts: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        cats = {name for ranker in self.rankers.values() for name in ranker.context[0]}
        nums = {name for ranker in self.rankers.values() for name in ranker.context[1]}
        columns = [pl.Series(n, [_text(c.get(n)) for c in contexts], pl.String) for n in sorted(cats)]
        columns += [pl.Series(n, [_number(c.get(n)) for c in contexts], pl.Float64) for n in sorted(nums - cats)]
        return pl.DataFrame(columns) if columns else pl.DataFrame({"_": [None] * len(contexts)})


def _text(value: Any) -> str | None:
    """Return a context value as the log has it: a category is text, and a whole number is written as one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        raise ConfigError(f"A number of the context is beyond {_LARGEST:.2g}, the largest that the models read.")
    return float(value) if isinstance(value, int | float) else None


def current_key(ws: Workspace, now: datetime) -> tuple[Any, ...]:
    """Return what decides what is served: the last move of the pointer, and the snapshots that can be read now.

    A few milliseconds: it is asked every second.
    """
    moves = ws.ledger.rows(sa.select(sa.func.max(tables.moves.c.seq).label("seq")))
    found = tables.snapshots.c
    rows = ws.ledger.rows(sa.select(found.snapshot_id, found.sha256, found.available_at).where(found.accepted))
    visible = sorted(
        (row["snapshot_id"], row["sha256"]) for row in rows if datetime.fromisoformat(row["available_at"]) <= now
    )
    return moves[0]["seq"], hash(tuple(visible))


def load(ws: Workspace, store: FeatureStore, now: datetime) -> Served:
    """Load the release that the pointer names.

    Raises
    ------
    NotReadyError
        If no release is live, or nothing of it may be read at this moment.
    HeadwaterError
        If a part is missing, was changed, or is of another space.
    """
    key = current_key(ws, now)
    release = releases.current_release(ws.ledger)
    if release is None:
        raise NotReadyError("No release is live. Run `headwater release create`, then `headwater release promote`.")
    check_parts(ws, release)
    records = {view.name: view for view in ws.ledger.views()}
    visible = _visible(ws, records, now)
    spaces = {embedding_view(e, v): space for v, space in release.versions.items() for e in ENTITIES}
    empty = sorted(view for view in spaces if not visible.get(view))
    if empty:
        raise NotReadyError(
            f"{', '.join(empty)} has no snapshot that may be read at {now:%Y-%m-%d %H:%M} UTC: all are later, or older "
            "than the view's time to live. Refresh the versions, or serve a log of the past with --now."
        )
    plain_views = [view for view in records.values() if view.version is None and view.name != choices_view()]
    plain = {
        view.name: PlainRows(ws.home, view, visible.get(view.name, []), now)
        for view in plain_views
        if view.entity == "item" and visible.get(view.name)
    }
    items = {
        view: VectorRows(ws.home, records[view], visible[view], space)
        for view, space in spaces.items()
        if records[view].entity == "item"
    }
    rankers = {}
    for name, part in release.consumers.items():
        rankers[part["task"]] = ServedRanker.load(ws.home.root, name, part, spaces)
    read = {view for view in spaces if records[view].entity == "user"}
    told = release.index or {}
    own_choices = OwnChoices.read(told.get("own_choices"))
    if own_choices.weight and not visible.get(choices_view()):
        raise NotReadyError(
            f"{release.name} adds own choices, and {choices_view()} has no snapshot that may be read at "
            f"{now:%Y-%m-%d %H:%M} UTC. Publish them (`headwater backfill`, own_choices above 0), train the retrieval "
            "consumer again and release it, or serve a log of the past with --now."
        )
    users = UserRows(
        store,
        [view for view in plain_views if view.entity == "user" and visible.get(view.name)],
        {view: spaces[view] for view in read},
        {view: _some_ids(ws, visible[view][-1]) for view in [*read, *([choices_view()] if own_choices.weight else [])]},
        choices=(choices_view(), (ITEMS, STRENGTHS)) if own_choices.weight else None,
    )
    integer_ids = records[next(iter(spaces))].id_type == "int64"
    candidates = None
    if release.index is not None:
        latest = visible[embedding_view("item", release.index["version"])][-1]
        folder = item_index.find_or_build(ws, latest, Popularity.read(told.get("popularity")))
        candidates = Candidates(folder, plain, micros(now), own_choices if own_choices.weight else None)
    return Served(
        key=key,
        release=release,
        integer_ids=integer_ids,
        snapshots={name: visible[name][-1].snapshot_id for name in [*plain, *items]},
        until=min([rows.until for rows in plain.values()], default=NEVER),
        plain=plain,
        items=items,
        users=users,
        rankers=rankers,
        inputs={task: ranker.inputs(plain, users.columns, integer_ids=integer_ids) for task, ranker in rankers.items()},
        candidates=candidates,
    )


def _visible(ws: Workspace, records: Mapping[str, View], now: datetime) -> dict[str, list[Snapshot]]:
    """Return each view's snapshots of which a row may be read now, oldest first."""
    found: dict[str, list[Snapshot]] = {}
    for snapshot in ws.ledger.snapshots(accepted=True):
        ttl = records[snapshot.view].ttl_days
        alive = not ttl or now - snapshot.available_at <= timedelta(days=ttl)
        if snapshot.available_at <= now and alive:
            found.setdefault(snapshot.view, []).append(snapshot)
    return found


def _some_ids(ws: Workspace, snapshot: Snapshot) -> list[Any]:
    """Return up to WITNESSES ids of a snapshot, spread over all of it."""
    key = join_key(snapshot.entity)
    ids = read_rows(ws.home, snapshot, key, [key])[key]
    places = np.unique(np.linspace(0, len(ids) - 1, min(WITNESSES, len(ids))).astype(np.int64))
    return ids.gather(places).to_list()


def one_vector(served: Served, entity: str, version: str, ids: Sequence[Any], now: datetime) -> tuple[int, Vectors]:
    """Return the width and the vectors of users or items of one version of the release.

    Raises
    ------
    NotFoundError
        If the release does not read that version.
    """
    if version not in served.release.versions:
        raise NotFoundError(f"The release reads {', '.join(served.release.versions)}.")
    item_view = served.items[embedding_view("item", version)]
    if entity == "user":
        return item_view.dim, served.users.vectors(embedding_view("user", version), list(ids), now)
    kind = pa.int64() if served.integer_ids else pa.string()
    return item_view.dim, item_view.read(pa.array(list(ids), kind), now)
