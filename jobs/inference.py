"""A model's vectors of encoded batches: in this process, or on Spark by the workers that a profile names.

On Spark the driver encodes, workers run the model. A batch travels as one file in the home folder, which every worker
reaches, and is computed as one, so that the vectors are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feature_repo.contracts.errors import LakeError
from feature_repo.contracts.types import Entity
from feature_repo.lake import Home

if TYPE_CHECKING:
    from models.upstream.derm import DERM
    from models.upstream.inputs import ItemBatch, UserBatch

INFERENCE_ROWS = 4096
_RESULT = "place bigint, vector array<float>, norm float"


def in_process(
    model: DERM, entity: Entity, batches: Iterable[UserBatch | ItemBatch], count: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors float32 [N, D] and their norms before scaling float32 [N] of `count` entities."""
    vectors = np.empty((count, dim), np.float32)
    norms = np.empty(count, np.float32)
    start = 0
    for batch in batches:
        vector, norm = _vectors(model, entity, batch)
        here = slice(start, start + len(norm))
        vectors[here], norms[here] = vector, norm
        start += len(norm)
    return vectors, norms


class SparkInference:
    """Runs a saved model on the session of the chosen profile.

    Parameters
    ----------
    home
        Has to lie under the same path on every worker.
    model
        Folder of the model, in `home`.
    """

    def __init__(self, home: Home, model: Path) -> None:
        self._home, self._model = home, model.resolve()

    def vectors(
        self, entity: Entity, batches: Iterable[UserBatch | ItemBatch], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what :func:`in_process` does.

        Raises
        ------
        LakeError
            If Spark gave back other rows than were sent.
        """
        from safetensors.torch import save_file

        from jobs.store import spark_session

        with TemporaryDirectory(prefix=".inference-", dir=self._home.root.resolve()) as scratch:
            starts = [0]
            for number, batch in enumerate(batches):
                save_file({name: tensor.contiguous() for name, tensor in vars(batch).items()}, _file(scratch, number))
                starts.append(starts[-1] + len(batch.cats))
            infer = partial(_infer, folder=scratch, model=self._model, entity=entity, starts=starts)
            # One task per batch: a task that is lost with its worker costs one batch.
            numbers = spark_session(self._home).range(0, len(starts) - 1, 1, max(1, len(starts) - 1))
            table = numbers.mapInArrow(infer, _RESULT).toArrow()
        place = table["place"].to_numpy()
        if not np.array_equal(np.sort(place), np.arange(count)):
            raise LakeError(f"Spark gave {len(place):,} vectors back for {count:,} {entity}s. Refresh again.")
        order = np.argsort(place)
        values = table["vector"].combine_chunks().flatten().to_numpy().reshape(count, -1)
        return values[order], table["norm"].to_numpy()[order]


def _infer(
    ranges: Iterator[pa.RecordBatch], folder: str, model: Path, entity: Entity, starts: list[int]
) -> Iterator[pa.RecordBatch]:
    """Run the model over batches by their numbers, on a worker."""
    from safetensors.torch import load_file

    from models.upstream.derm import DERM
    from models.upstream.inputs import ItemBatch, UserBatch

    kind: Any = UserBatch if entity == "user" else ItemBatch
    loaded: DERM | None = None
    for numbers in ranges:
        for number in numbers.column(0).to_pylist():
            loaded = loaded or DERM.load(model)
            vectors, norms = _vectors(loaded, entity, kind(**load_file(_file(folder, number))))
            offsets = pa.array(np.arange(len(norms) + 1, dtype=np.int32) * vectors.shape[1])
            place = pa.array(starts[number] + np.arange(len(norms), dtype=np.int64))
            listed = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
            yield pa.RecordBatch.from_arrays([place, listed, pa.array(norms)], ["place", "vector", "norm"])


def _vectors(model: DERM, entity: Entity, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        vector, norm = model.user_vectors(batch) if entity == "user" else model.item_vectors(batch)
        return vector.numpy(), norm.numpy()


def _file(folder: str, number: int) -> str:
    return f"{folder}/{number:07d}.safetensors"
