"""Keys and commands of ids that are asked for: made once, and filled in per id."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.stores.wire import as_list, contents


class PerId:
    """The same bytes around each id. Integer ids are put into a row that was made once, which is quick for few ids.

    Parameters
    ----------
    make
        From ids to rows, large binary; the bytes around an integer id must not depend on it.
    integer
        Whether ids are int64.
    """

    _MARK = 0x5EED_1E55_C0FF_EE42

    def __init__(self, make: Callable[[pa.Array], pa.Array], integer: bool) -> None:
        self._make, self._integer = make, integer
        if integer:
            row = as_list(make(pa.array([self._MARK], pa.int64())))[0]
            self._row = np.frombuffer(row, np.uint8)
            self._at = row.index(self._MARK.to_bytes(8, "little"))

    def joined(self, ids: pa.Array) -> memoryview:
        """Return the rows of ids one after another."""
        return self._filled(ids).data if self._integer else contents(self._make(ids))

    def listed(self, ids: pa.Array) -> list[bytes]:
        """Return the rows of ids."""
        if not self._integer:
            return as_list(self._make(ids))
        rows: list[bytes] = self._filled(ids).view(f"V{len(self._row)}").ravel().tolist()
        return rows

    def _filled(self, ids: pa.Array) -> npt.NDArray[np.uint8]:
        rows = np.tile(self._row, (len(ids), 1))
        numbers = np.ascontiguousarray(ids.to_numpy(), "<i8")
        rows[:, self._at : self._at + 8] = numbers.view(np.uint8).reshape(-1, 8)
        return rows
