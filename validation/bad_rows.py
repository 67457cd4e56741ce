"""Rows of input that are wrong, where they came from, and how a person is told.

A *problem* concerns a file as a whole (a missing column) and always refuses the input; *bad rows* may be tolerated and
quarantined. Frames carry two hidden columns that say where a row came from: ``__file`` and ``__row`` (from 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from feature_repo.contracts.types import Problem

PLACE = ("__file", "__row")
MANY_FILES = 5


@dataclass(frozen=True)
class BadRows:
    """Rows that are wrong for one reason; `rows` has the columns ``__file`` and ``__row``."""

    column: str | None
    reason: str
    remedy: str
    rows: pl.DataFrame


@dataclass(frozen=True)
class Parsed:
    """One file's canonical good rows and everything that was wrong with it.

    Attributes
    ----------
    frame
        Good rows only, with ``__file`` and ``__row``; None where the file as a whole is unusable.
    """

    frame: pl.DataFrame | None
    bad: list[BadRows] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def to_problems(bad: Iterable[BadRows], files: Sequence[str]) -> list[Problem]:
    """Return one problem per reason and file, with the number of rows and the first one."""
    problems = []
    for found in bad:
        per_file = found.rows.group_by("__file").agg(pl.len(), pl.col("__row").min()).sort("__file")
        for index, rows, first in per_file.iter_rows():
            reason = found.reason if len(per_file) > MANY_FILES else f"{found.reason}, first in row {first:,}"
            problems.append(Problem(files[index], found.column, reason, rows, found.remedy))
    return merged(problems)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Put the same problem of more than `MANY_FILES` files into one: a thousand lines help nobody."""
    groups: dict[tuple[str | None, str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.column, problem.reason, problem.remedy), []).append(problem)
    result = []
    for same in groups.values():
        if len(same) <= MANY_FILES:
            result += same
        else:
            file = f"{same[0].file} and {len(same) - 1:,} more files"
            result.append(replace(same[0], file=file, rows=sum(problem.rows for problem in same)))
    return result
