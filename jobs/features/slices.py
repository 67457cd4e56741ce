"""The training rows of one grid moment with its tables, kept in a file and memory-mapped.

A batch touches a few thousand rows of one slice. What it touched is given back to the operating system afterwards, so
that a training holds one batch in memory and not the log (docs/adr/0060-training-rows-are-mapped.md).
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jobs.features.history import UserHistory
from jobs.features.tables import ItemTable, UserTable

_TYPES = {"BOOL": "?", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}
_PARTS: dict[str, type[Any]] = {"users": UserTable, "items": ItemTable, "users.history": UserHistory}


@dataclass(frozen=True)
class Slice:
    """The training rows of one grid moment with its tables; positions point into the tables.

    Attributes
    ----------
    users, items
        Tables of the moment.
    user, item
        int64 [B], positions of each row.
    click, click_known, conversion, conversion_known
        [B], outcomes as float32 and whether they are known.
    context_cats, context_nums
        Encoded context [B, ...].
    pair_user, pair_item
        int64 [P], positions of the activity pairs.
    catalogue
        int64, positions of the items that were known at the moment; empty unless uniform negatives are drawn.
    """

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
    catalogue: np.ndarray

    def write(self, path: Path) -> None:
        """Write every array into one safetensors file."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in _flat(self).items()}, path)


class MappedSlice:
    """A slice in a file: its arrays are views of the mapped file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(self._map[:8], "little")
        arrays = {}
        for name, place in json.loads(self._map[8:start]).items():
            if name == "__metadata__":
                continue
            low, high = place["data_offsets"]
            kind = np.dtype(_TYPES[place["dtype"]])
            flat = np.frombuffer(self._map, kind, (high - low) // kind.itemsize, start + low)
            arrays[name] = flat.reshape(place["shape"])
        self.rows: Slice = _nested(Slice, "", arrays)

    def release(self) -> None:
        """Give the pages that were read back to the operating system, which keeps them as long as it has room."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _flat(part: Any, prefix: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for field in fields(part):
        name, value = prefix + field.name, getattr(part, field.name)
        found |= {name: value} if isinstance(value, np.ndarray) else _flat(value, name + ".")
    return found


def _nested(cls: type[Any], prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    values = {}
    for field in fields(cls):
        name = prefix + field.name
        values[field.name] = _nested(_PARTS[name], name + ".", arrays) if name in _PARTS else arrays[name]
    return cls(**values)
