"""Random labels and views, and a brute-force loop that knows only the rules and nothing of the engine.

The rules (docs/point-in-time.md): a label at time t sees, of the rows of its key, those with ``time <= t`` and
``t - time <= ttl`` (a ttl of zero or none is unlimited), where time is event_timestamp plus the declared lag; in
strict mode also only those with ``created <= t``. Of these it gets the one with the latest time, among equal
times the one created last (no time of creation counts as first), among equal ones the last in the files.
A null key or time matches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView
from hypothesis import strategies as st

from feature_repo.stores import twin
from feature_repo.stores.reading import LAG_TAG

MICROSECOND = timedelta(microseconds=1)
DAY = 86_400_000_000
TTLS = [0, 1, 1_000_000, DAY, 7 * DAY + DAY // 2]
KEYS = {"none": {}, "int": {"id": "int"}, "string": {"id": "string"}, "both": {"id": "int", "name": "string"}}
TYPES = {"int": pa.int64(), "string": pa.string()}


@dataclass(frozen=True)
class Row:
    """One stored row; times in microseconds since 1970."""

    key: tuple[Any, ...]
    time: int | None
    created: int | None
    features: tuple[Any, ...]


@dataclass(frozen=True)
class ViewCase:
    """One view: its files in order, each a list of rows, and how they are laid out."""

    files: list[list[Row]]
    ttl: int
    lag: int
    unit: str
    row_group: int
    has_created: bool
    twins: str


@dataclass(frozen=True)
class Case:
    """Labels (key, time) and the views to join to them."""

    keys: dict[str, str]
    labels: list[tuple[tuple[Any, ...], int | None]]
    views: list[ViewCase]
    strict: bool
    piece_rows: int
    threads: int
    from_file: bool


def expected(case: Case, view: ViewCase) -> list[tuple[Any, ...]]:
    """Return what each label sees of one view: the rules, one label and one row at a time."""
    result = []
    for key, t in case.labels:
        winner, rank = None, None
        place = 0
        for row in (row for file in view.files for row in file):
            place += 1
            if t is None or row.time is None or None in key or row.key != key:
                continue
            time = row.time + view.lag
            if time > t or (view.ttl and t - time > view.ttl):
                continue
            if case.strict and view.has_created and (row.created is None or row.created > t):
                continue
            written = (row.created is not None, row.created or 0) if view.has_created else (False, 0)
            if rank is None or (time, written, place) > rank:
                winner, rank = row, (time, written, place)
        result.append((None, None, None) if winner is None else winner.features)
    return result


def times() -> st.SearchStrategy[int]:
    """Times that meet, lie one microsecond or exactly one ttl apart, or lie before 1970."""
    return st.builds(
        lambda base, days, ttl, jitter: base + days * DAY + ttl + jitter,
        st.sampled_from([0, -20_000 * DAY, 18_000 * DAY]),
        st.integers(0, 3),
        st.sampled_from(TTLS),
        st.sampled_from([0, 0, 0, -1, 1]),
    )


def values(kind: str) -> st.SearchStrategy[Any]:
    """Few keys, so that they meet; one is null."""
    few = st.integers(-2, 3) if kind == "int" else st.sampled_from(["", "a", "b", "ab", "ä"])
    return st.one_of(few, few, few, st.none())


def vectors(draw: st.DrawFn, rows: int) -> list[Any]:
    """Vectors of one length, in some cases with null vectors, other lengths or gaps inside."""
    width = draw(st.sampled_from([1, 2, 3, 17, 512]))
    kind = draw(st.sampled_from(["full", "full", "null", "uneven", "gap"]))
    made: list[Any] = [[float(number * 1000 + at) for at in range(width)] for number in range(rows)]
    for number in range(rows):
        if kind == "null" and draw(st.booleans()):
            made[number] = None
        if kind == "uneven" and draw(st.booleans()):
            made[number] = made[number][: draw(st.integers(0, width))]
        if kind == "gap" and draw(st.booleans()):
            made[number][draw(st.integers(0, width - 1))] = None
    return made


@st.composite
def view_cases(draw: st.DrawFn, keys: dict[str, str]) -> ViewCase:
    """Draw one view."""
    unit = draw(st.sampled_from(["us", "us", "ns", "ms"]))
    scale = 1000 if unit == "ms" else 1
    count = draw(st.integers(0, 15))
    made = vectors(draw, count)
    rows = []
    for number in range(count):
        time = draw(st.one_of(times(), times(), times(), st.none()))
        created = draw(st.one_of(times(), st.sampled_from([0, 5]), st.none()))
        rows.append(
            Row(
                tuple(draw(values(kind)) for kind in keys.values()),
                None if time is None else time // scale * scale,
                None if created is None else created // scale * scale,
                (draw(st.sampled_from([None, number])), draw(st.sampled_from([None, f"text {number}"])), made[number]),
            )
        )
    if draw(st.booleans()):
        # What our own lake looks like: one moment per file and one row per key, sorted.
        rows = list({(row.time, row.key): row for row in rows}.values())
        rows.sort(key=lambda row: (row.time is None, row.time or 0, [(part is None, part) for part in row.key]))
        moments = list(dict.fromkeys(row.time for row in rows))
        files = [[row for row in rows if row.time == moment] for moment in moments]
    else:
        cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
        files = [rows[low:high] for low, high in zip([0, *cuts], [*cuts, count], strict=True)]
    return ViewCase(
        files=files or [[]],
        ttl=draw(st.sampled_from(TTLS)),
        lag=draw(st.sampled_from([0, 0, 1_000_000])),
        unit=unit,
        row_group=draw(st.sampled_from([1, 2, 5, 100])),
        has_created=draw(st.booleans()),
        twins=draw(st.sampled_from(["off", "use", "build"])),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw labels and one to three views."""
    keys = KEYS[draw(st.sampled_from(list(KEYS)))]
    label = st.tuples(st.tuples(*(values(kind) for kind in keys.values())), st.one_of(times(), times(), st.none()))
    labels = draw(st.lists(label, max_size=12))
    return Case(
        keys=keys,
        labels=labels + draw(st.lists(st.sampled_from(labels), max_size=3)) if labels else [],
        views=draw(st.lists(view_cases(keys), min_size=1, max_size=2)),
        strict=draw(st.booleans()),
        piece_rows=draw(st.sampled_from([1, 3, 1000])),
        threads=draw(st.sampled_from([1, 2])),
        from_file=draw(st.booleans()),
    )


def clock(moments: list[int | None], unit: str = "us") -> pa.Array:
    """Return UTC timestamps of a unit."""
    return pa.array(moments, pa.timestamp("us", tz="UTC")).cast(pa.timestamp(unit, tz="UTC"))


def write(view: ViewCase, keys: dict[str, str], folder: Path) -> None:
    """Write a view's files; a twin of the first where twins are used."""
    folder.mkdir()
    for number, rows in enumerate(view.files):
        columns = {
            key: pa.array([row.key[i] for row in rows], TYPES[kind]) for i, (key, kind) in enumerate(keys.items())
        }
        columns["event_timestamp"] = clock([row.time for row in rows], view.unit)
        if view.has_created:
            columns["created"] = clock([row.created for row in rows], view.unit)
        for at, (name, kind) in enumerate(
            {"number": pa.int64(), "text": pa.string(), "vector": pa.list_(pa.float32())}.items()
        ):
            columns[name] = pa.array([row.features[at] for row in rows], kind)
        path = folder / f"{number:03d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=view.row_group)
        if view.twins == "use" and number == 0 and keys:
            twin.build(path, list(keys))


def label_table(case: Case) -> pa.Table:
    """Return the labels."""
    columns = {
        key: pa.array([label[0][i] for label in case.labels], TYPES[kind])
        for i, (key, kind) in enumerate(case.keys.items())
    }
    return pa.table({"row": pa.array(range(len(case.labels)), pa.int64()), **columns}).append_column(
        "event_timestamp", clock([time for _, time in case.labels])
    )


def views_of(case: Case, folder: Path, make: Callable[..., FeatureView]) -> list[FeatureView]:
    """Write a case's views below a folder, whose names have a space in them, and return them as Feast's.

    `make` gets path, name and settings of a view.
    """
    found = []
    for number, view in enumerate(case.views):
        write(view, case.keys, folder / f"view {number}")
        found.append(
            make(
                folder / f"view {number}",
                f"view_{number}",
                keys=case.keys,
                ttl=view.ttl * MICROSECOND,
                created="created" if view.has_created else "",
                tags={LAG_TAG: str(view.lag // 1_000_000)},
            )
        )
    return found


def labels_of(case: Case, folder: Path) -> Any:
    """Return a case's labels as a frame, or the path of a file in the folder, as the case says."""
    table = label_table(case)
    if not case.from_file:
        return table.to_pandas()
    pq.write_table(table, folder / "labels.parquet")
    return str(folder / "labels.parquet")


def answers(result: pa.Table, view: FeatureView) -> list[tuple[Any, ...]]:
    """Return what a result holds of one view, in the form of :func:`expected`."""
    parts = ("number", "text", "vector")
    return list(zip(*(result[f"{view.name}__{part}"].to_pylist() for part in parts), strict=True))
