"""Writing so that no reader ever sees half a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_durably(path: Path, payload: bytes) -> None:
    """Write `payload` and wait until it is on disk, so that a later rename cannot outrun the content."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, payload: bytes) -> None:
    """Put `payload` in the place of `path` in one step; a kill leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(beside, payload)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def weights_digest(weights: Mapping[str, Tensor], *notes: str) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `weights` in name order, and `notes`."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    for note in notes:
        digest.update(f"|{len(note)}|{note}".encode())
    return digest.hexdigest()
