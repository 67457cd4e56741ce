"""What is wrong with rows of events, users and items, found before anything is stored.

Every function is pure: frames in; canonical good rows, bad rows and problems out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from feature_repo.contracts.types import Entity, Problem
from validation.bad_rows import PLACE, BadRows, Parsed
from validation.event_times import Fault, parse_times

TIED_TYPES = ("impression", "click", "conversion")
REQUIRED = ("event_timestamp", "user_id", "item_id", "event_type")
_IDS = ("user_id", "item_id", "impression_id")
# What tools write for a value that is missing when they turn it into text.
_MISSING_WORDS = ("NaN", "nan", "None", "null", "NULL", "<NA>")
_CLOSE = 2  # letters
CORE = (*REQUIRED, "impression_id", "weight")

# `month` is the lake's partition key; a sampling rate is kept as weight = 1 / rate and never as a feature.
_RESERVED = {
    "month": "Rename it: the lake's folders are named by month.",
    "sampling_rate": "Give 'weight' = 1 / sampling_rate instead.",
    "created": "Rename it: 'created' is when the lake wrote a row.",
}


def check_events(raw: pl.DataFrame, file: str, index: int, now: datetime) -> Parsed:
    """Check the rows of one events file and bring its columns into canonical form.

    Parameters
    ----------
    raw
        The file's content, shape ``(N, columns)``, as read.
    file, index
        Its name for messages and its number for ``__file``.
    now
        Timezone-aware; times later than a day after it are bad.
    """
    problems = _column_problems(raw, file, REQUIRED)
    if problems:
        return Parsed(None, problems=problems)
    columns: dict[str, pl.Series] = {}
    faults: list[tuple[str, Fault]] = []
    for name in ("user_id", "item_id"):
        _take_id(raw[name], file, columns, faults, problems, required=True)
    if "impression_id" in raw.columns:
        _take_id(raw["impression_id"], file, columns, faults, problems, required=False)
    else:
        columns["impression_id"] = pl.Series("impression_id", [None] * len(raw), dtype=pl.Null)
    times = parse_times(raw["event_timestamp"], now)
    columns["event_timestamp"] = times.moments
    faults += [("event_timestamp", fault) for fault in times.faults]
    _take_event_type(raw["event_type"], file, columns, faults, problems)
    _take_weight(raw, file, columns, faults, problems)
    if problems:
        return Parsed(None, problems=problems)
    notes = _take_extras(raw, file, CORE, columns, faults)
    return _collect(columns, index, faults, notes, first=CORE)


def check_table(raw: pl.DataFrame, file: str, index: int, entity: Entity, now: datetime) -> Parsed:
    """Check the rows of one users or items file and bring its columns into canonical form.

    Parameters are those of :func:`check_events`; `entity` names the id column. An ``event_timestamp`` is
    optional and says from when on a row's attributes held.
    """
    key = f"{entity}_id"
    problems = _column_problems(raw, file, (key,))
    if problems:
        return Parsed(None, problems=problems)
    columns: dict[str, pl.Series] = {}
    faults: list[tuple[str, Fault]] = []
    _take_id(raw[key], file, columns, faults, problems, required=True)
    if problems:
        return Parsed(None, problems=problems)
    if "event_timestamp" in raw.columns:
        times = parse_times(raw["event_timestamp"], now)
        columns["event_timestamp"] = times.moments
        faults += [("event_timestamp", fault) for fault in times.faults]
    core = tuple(columns)
    notes = _take_extras(raw, file, core, columns, faults)
    return _collect(columns, index, faults, notes, first=core)


def check_repeats(table: pl.DataFrame, entity: Entity) -> list[BadRows]:
    """Return the rows of a users or items table that repeat an id (at the same time, if it has times)."""
    key = [f"{entity}_id", *(["event_timestamp"] if "event_timestamp" in table.columns else [])]
    repeated = table.sort(*PLACE).filter(~pl.struct(key).is_first_distinct())
    if repeated.is_empty():
        return []
    remedy = (
        "Keep one row per id and time."
        if len(key) > 1
        else "Keep one row per id, or add 'event_timestamp' to say from when on each row held."
    )
    return [BadRows(key[0], "repeats an id that an earlier row has", remedy, repeated.select(PLACE))]


def check_same_types(frames: Sequence[pl.DataFrame], files: Sequence[str]) -> list[Problem]:
    """Return a problem for each column whose type differs between files (whole and decimal numbers may mix)."""
    problems = []
    first: dict[str, tuple[str, str]] = {}
    for frame in frames:
        file = files[frame["__file"][0]] if len(frame) else ""
        for name, dtype in frame.schema.items():
            kind = _family(name, dtype)
            if kind is None or not file:
                continue
            seen_kind, seen_file = first.setdefault(name, (kind, file))
            if seen_kind != kind:
                problems.append(
                    Problem(file, name, f"is {kind} here but {seen_kind} in {seen_file}", len(frame), _one_type(name))
                )
    return problems


def doubtful_ids(table: pl.DataFrame, what: str) -> list[str]:
    """Return a note per id column of a table of `what` in which a word for a missing value stands as an id."""
    notes = []
    for name in ("user_id", "item_id"):
        if table.schema.get(name) != pl.String:
            continue
        found = table[name].filter(table[name].is_in(_MISSING_WORDS))
        if len(found):
            words = " or ".join(f"'{word}'" for word in found.unique().sort())
            notes.append(
                f"{what}: {len(found):,} rows have the {name} {words}: likely a missing id turned into text, as "
                f"pandas' astype(str) does. Each word counts as one {name.removesuffix('_id')}; leave such rows out."
            )
    return notes


def doubtful_types(events: pl.DataFrame) -> list[str]:
    """Return a note per event type that differs from a known one by a letter or two."""
    notes = []
    for kind, rows in events["event_type"].value_counts().sort("event_type").iter_rows():
        meant = min(TIED_TYPES, key=lambda known: _distance(kind.lower(), known))
        if kind not in TIED_TYPES and _distance(kind.lower(), meant) <= _CLOSE:
            notes.append(
                f"events: {rows:,} rows have the event_type '{kind}', which is kept as activity. If {meant} is meant, "
                "correct it and ingest again."
            )
    return notes


def _distance(one: str, other: str) -> int:
    """Return the edit distance of two words, or a lower bound above `_CLOSE` where they are far apart."""
    if abs(len(one) - len(other)) > _CLOSE:
        return abs(len(one) - len(other))
    row = list(range(len(other) + 1))
    for above, letter in enumerate(one):
        before, row = row, [above + 1]
        for at, there in enumerate(other):
            row.append(min(row[at] + 1, before[at + 1] + 1, before[at] + (letter != there)))
    return row[-1]


def check_id_types(events: pl.DataFrame, users: pl.DataFrame | None, items: pl.DataFrame | None) -> list[Problem]:
    """Return a problem if the id types of the tables contradict each other: all integers, or all strings."""
    told = [("events", "user_id", events), ("events", "item_id", events)]
    told += [("users", "user_id", users)] if users is not None else []
    told += [("items", "item_id", items)] if items is not None else []
    kinds = {f"{column} of {table}": _family(column, frame.schema[column]) for table, column, frame in told}
    # A column without any value has no type to contradict another; its rows are bad for another reason.
    kinds = {place: kind for place, kind in kinds.items() if kind is not None}
    if len(set(kinds.values())) <= 1:
        return []
    reason = "mixed id types: " + ", ".join(f"{place} is {kind}" for place, kind in kinds.items())
    remedy = "Write all user and item ids as 64-bit integers, or all as strings, in every file."
    return [Problem("all files", "user_id, item_id", reason, len(events), remedy)]


def _column_problems(raw: pl.DataFrame, file: str, required: Sequence[str]) -> list[Problem]:
    missing = [name for name in required if name not in raw.columns]
    problems = [
        Problem(
            file,
            name,
            "is missing",
            len(raw),
            f"Add it or rename the column that holds it; the file has: {', '.join(raw.columns)}.",
        )
        for name in missing
    ]
    for name in raw.columns:
        if name in _RESERVED:
            problems.append(Problem(file, name, "has a reserved name", len(raw), _RESERVED[name]))
        elif name.startswith("__"):
            problems.append(Problem(file, name, "begins with two underscores", len(raw), "Rename it."))
    return problems


def _take_id(
    column: pl.Series,
    file: str,
    columns: dict[str, pl.Series],
    faults: list[tuple[str, Fault]],
    problems: list[Problem],
    *,
    required: bool,
) -> None:
    """Store an id column as Int64 or String, or say why it can't be one."""
    dtype, name = column.dtype, column.name
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        ids = column.cast(pl.String)
        ids = ids.set(ids == "", None)
    elif dtype.is_integer():
        ids = column.cast(pl.Int64, strict=False)
        beyond = ids.is_null() & column.is_not_null()
        faults.append((name, Fault("does not fit into a signed 64-bit integer", "Use strings as ids.", beyond)))
    elif dtype == pl.Null:
        ids = column
    else:
        reason = f"holds {dtype} values, not 64-bit integers or strings"
        remedy = (
            "Write whole numbers (in pandas: astype('Int64') keeps missing ones) or strings; "
            "floats above 2^53 would silently merge ids."
        )
        problems.append(Problem(file, name, reason, len(column), remedy))
        return
    columns[name] = ids
    if required:
        faults.append((name, Fault("is null or empty", "Fill the id in or leave the row out.", _empty(column))))


def _empty(column: pl.Series) -> pl.Series:
    return (column.cast(pl.String).fill_null("") == "") if not column.dtype.is_integer() else column.is_null()


def _take_event_type(
    column: pl.Series,
    file: str,
    columns: dict[str, pl.Series],
    faults: list[tuple[str, Fault]],
    problems: list[Problem],
) -> None:
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        remedy = "Write impression, click or conversion; any other word is kept as activity."
        problems.append(Problem(file, column.name, f"holds {column.dtype} values, not text", len(column), remedy))
        return
    text = column.cast(pl.String)
    columns[column.name] = text
    # 'Click' would silently become activity of an unknown type, and the click task would lose its labels.
    almost = text.str.strip_chars().str.to_lowercase().str.strip_suffix("s").is_in(list(TIED_TYPES))
    almost = (almost & ~text.is_in(list(TIED_TYPES))).fill_null(False)
    faults.append((column.name, Fault("is null or empty", "Name the event's type.", _empty(text))))
    remedy = "Write exactly impression, click or conversion (lower case, singular)."
    faults.append((column.name, Fault("is almost the name of a known event type", remedy, almost)))


def _take_weight(
    raw: pl.DataFrame,
    file: str,
    columns: dict[str, pl.Series],
    faults: list[tuple[str, Fault]],
    problems: list[Problem],
) -> None:
    """Store the weight as Float32, 1 where there is none."""
    if "weight" not in raw.columns:
        columns["weight"] = pl.repeat(1.0, len(raw), dtype=pl.Float32, eager=True).alias("weight")
        return
    given = raw["weight"]
    if not given.dtype.is_numeric() and given.dtype != pl.Null:
        remedy = "Write 1 / (probability that the row was kept), 1.0 where nothing was dropped."
        problems.append(Problem(file, "weight", f"holds {given.dtype} values, not numbers", len(raw), remedy))
        return
    weight = given.cast(pl.Float32)
    of_impression = (raw["event_type"].cast(pl.String, strict=False) == "impression").fill_null(False)
    unknown = weight.is_null() & of_impression
    faults.append(("weight", Fault("is null on an impression", "Write 1.0 if nothing was dropped.", unknown)))
    filled = weight.fill_null(1.0)
    wrong = ~(filled.is_finite() & (filled > 0))
    remedy = "A weight is 1 / (probability that the row was kept): above 0 and finite."
    faults.append(("weight", Fault("is not above 0 and finite", remedy, wrong)))
    columns["weight"] = filled


def _take_extras(
    raw: pl.DataFrame,
    file: str,
    core: Sequence[str],
    columns: dict[str, pl.Series],
    faults: list[tuple[str, Fault]],
) -> list[str]:
    """Store every other column as String, Boolean, Int64 or Float64; return notes on those left out."""
    notes = []
    for name in sorted(set(raw.columns) - set(core)):
        given = raw[name]
        dtype = given.dtype
        if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
            text = given.cast(pl.String)
            columns[name] = text.set(text == "", None)
        elif dtype in (pl.Boolean, pl.Null):
            columns[name] = given
        elif dtype.is_integer() and (given.cast(pl.Int64, strict=False).null_count() == given.null_count()):
            columns[name] = given.cast(pl.Int64)
        elif dtype.is_float() or dtype.is_decimal():
            number = given.cast(pl.Float64)
            infinite = number.is_infinite().fill_null(False)
            faults.append((name, Fault("is infinite", "Write a finite number, or null where unknown.", infinite)))
            columns[name] = number.fill_nan(None)
        else:
            notes.append(f"{file}: column '{name}' ({dtype}) is left out: it is neither categorical nor numeric.")
    return notes


def _collect(
    columns: dict[str, pl.Series],
    index: int,
    faults: list[tuple[str, Fault]],
    notes: list[str],
    *,
    first: Sequence[str],
) -> Parsed:
    """Put the columns together and part the good rows from the bad ones."""
    ordered = [columns[name] for name in first] + [columns[name] for name in sorted(set(columns) - set(first))]
    frame = pl.DataFrame(ordered)
    place = pl.DataFrame(
        {
            "__file": pl.repeat(index, len(frame), dtype=pl.UInt32, eager=True),
            "__row": pl.int_range(1, len(frame) + 1, dtype=pl.UInt32, eager=True),
        }
    )
    frame = pl.concat([frame, place], how="horizontal")
    found = [(name, fault) for name, fault in faults if fault.mask.any()]
    bad = [BadRows(name, fault.reason, fault.remedy, place.filter(fault.mask)) for name, fault in found]
    if found:
        frame = frame.filter(~pl.DataFrame([f.mask.alias(str(i)) for i, (_, f) in enumerate(found)]).fold(_either))
    return Parsed(frame, bad, notes=notes)


def _either(left: pl.Series, right: pl.Series) -> pl.Series:
    return left | right


def _family(name: str, dtype: pl.DataType) -> str | None:
    """Return the word for a canonical type, None where it can't contradict another."""
    if name in ("__file", "__row", "event_timestamp", "weight", "event_type") or dtype == pl.Null:
        return None
    if dtype == pl.String:
        return "text"
    if dtype == pl.Boolean:
        return "true/false"
    return "integer" if name in _IDS else "number"


def _one_type(name: str) -> str:
    if name in _IDS:
        return "Mixed id types: write this column as 64-bit integers in every file, or as strings in every file."
    return "Write this column with one type in every file."
