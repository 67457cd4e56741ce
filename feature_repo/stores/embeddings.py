"""What a reader of embeddings answers, and when a vector counts as found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.spaces import require_same
from feature_repo.contracts.types import Problem
from feature_repo.stores.clocks import MISSING, BoolArray, Int64Array

Ids: TypeAlias = Sequence[int] | Sequence[str] | npt.NDArray[np.int64] | pa.Array
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of N asked ids, in their order.

    Attributes
    ----------
    vectors
        float32 [N, D]; zeros where not found.
    found
        bool [N]: there is a vector, and it is neither older than allowed nor from the future.
    age
        float64 [N], seconds from the stored event time to now; NaN where nothing is stored. With `found` False
        and an age, the vector was too old, too new, or null.
    space_id
        Of the vectors; None where their source names none.
    """

    vectors: npt.NDArray[np.float32]
    found: BoolArray
    age: npt.NDArray[np.float64]
    space_id: str | None = None

    def scores(self, others: Embeddings) -> npt.NDArray[np.float32]:
        """Return the products with all vectors of another read, float32 [N, K]; 0 where either was not found.

        Raises
        ------
        SpaceMismatchError
            If the two are of different spaces: their products mean nothing.
        """
        require_same(
            self.space_id or "no named space",
            others.space_id or "no named space",
            what="the vectors of two reads",
            remedy="Read both from the views of one version.",
        )
        return np.asarray(self.vectors @ others.vectors.T)


class Freshness:
    """How old a vector may be: the offline rule, so that serving sees what training saw.

    Parameters
    ----------
    ttl
        Of the view; None or zero for ever.
    max_age
        A shorter limit of the caller's own.
    """

    def __init__(self, ttl: timedelta | None, max_age: timedelta | None) -> None:
        limits = [limit for limit in (ttl, max_age) if limit]
        self._limit = min(limits) // _MICROSECOND if limits else None

    def judge(self, times: Int64Array, now: datetime | None) -> tuple[BoolArray, npt.NDArray[np.float64]]:
        """Return which rows may be read now and each one's age in seconds.

        Parameters
        ----------
        times
            Event times, microseconds; `MISSING` where nothing is stored.
        now
            Timezone-aware; the wall clock by default.
        """
        moment = (aware(now) - _EPOCH) // _MICROSECOND
        there = times != MISSING
        passed = moment - np.where(there, times, moment)
        fresh = there & (passed >= 0)
        if self._limit is not None:
            fresh &= passed <= self._limit
        return fresh, np.where(there, passed / 1e6, np.nan)


def aware(now: datetime | None) -> datetime:
    """Return a moment, or the wall clock's."""
    if now is None:
        return datetime.now(UTC)
    if now.tzinfo is None:
        raise ValueError("`now` has no time zone: pass datetime.now(UTC), or the moment that is replayed with its zone")
    return now


def id_column(ids: Ids, integer: bool, name: str) -> pa.Array:
    """Return ids as int64 or string.

    Raises
    ------
    InputDataError
        If an id is null or of another type.
    """
    wanted = pa.int64() if integer else pa.string()
    try:
        column = ids if isinstance(ids, pa.Array) else pa.array(ids if len(ids) else [], None if len(ids) else wanted)
        fits = pa.types.is_integer(column.type) if integer else not pa.types.is_integer(column.type)
        if not fits or column.null_count:
            raise pa.ArrowInvalid("null" if column.null_count else str(column.type))
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        problem = Problem(
            "the request", name, f"is not {wanted} ({error})", len(ids), "Ask with ids of the entity's type."
        )
        raise InputDataError([problem]) from error
