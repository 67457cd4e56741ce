"""An item index on disk that knows its space: searched by vectors of that space, or not at all.

Shapes: I items, D embedding dim, B users of one search, K retrieved.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feature_repo.contracts.errors import NotFoundError
from feature_repo.contracts.spaces import require_same
from models.downstream.retrieval import ItemIndex, build_index

NOTES_FILE, IDS_FILE, INDEX_FILE = "index.json", "ids.npy", "index.faiss"


@dataclass(frozen=True)
class SpaceIndex:
    """An item index with the ids of its items and the space of its vectors.

    Attributes
    ----------
    ids
        Item ids ``[I]``, int64 or text.
    notes
        What :func:`save_index` was told, ``space_id`` among it.
    """

    index: ItemIndex
    ids: NDArray[Any]
    space_id: str
    notes: dict[str, Any]

    def search(self, users: ArrayLike, k: int, *, space_id: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return the ids of the k items with the largest inner product (and offset) and their scores, ``[B, K]`` each.

        Parameters
        ----------
        users
            Vectors ``[B, D]``.
        k
            K, at most the number of items.
        space_id
            The space of the user vectors.

        Raises
        ------
        SpaceMismatchError
            If the vectors are of another space than the items.
        """
        require_same(
            self.space_id,
            space_id,
            what="an item index and the user vectors that search it",
            remedy="Read the user vectors of the version that the index was built of.",
        )
        positions, scores = self.index.search(users, min(k, len(self.ids)))
        return self.ids[positions], scores


def save_index(
    folder: Path,
    ids: ArrayLike,
    vectors: ArrayLike,
    *,
    space_id: str,
    notes: dict[str, Any],
    queries: ArrayLike | None = None,
    offsets: ArrayLike | None = None,
) -> None:
    """Write the index of one snapshot's items into a new folder.

    Parameters
    ----------
    ids
        Item ids ``[I]``, int64 or text.
    vectors
        Their vectors ``[I, D]``, float32.
    queries
        Vectors ``[B, D]`` to measure recall at 100 against exact search with, at most 200 of them; it is kept in the
        notes beside how deep to search for it.
    offsets
        Added to every product with the item ``[I]``; None for nothing.
    """
    import faiss

    index = build_index(vectors, offsets=offsets)
    asked = None if queries is None else np.asarray(queries)
    if asked is not None and len(asked):
        chosen = asked[np.linspace(0, len(asked) - 1, min(200, len(asked))).astype(np.int64)]
        recall = index.tune(vectors, chosen, offsets=offsets)
        notes = {**notes, "recall_at_100": recall, "queries": len(chosen), "search_depth": index.depth}
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index._index, str(folder / INDEX_FILE))
    listed = np.asarray(ids)
    # Text comes as objects from a data frame, and those would be pickled.
    np.save(folder / IDS_FILE, listed.astype(np.str_) if listed.dtype == object else listed, allow_pickle=False)
    content = {**notes, "space_id": space_id, "kind": index.kind, "items": len(index), "offsets": index.with_offsets}
    (folder / NOTES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_index(folder: Path) -> SpaceIndex:
    """Read what :func:`save_index` wrote.

    Raises
    ------
    NotFoundError
        If the folder holds no index, or only a part of one.
    """
    import faiss

    files = [folder / name for name in (NOTES_FILE, IDS_FILE, INDEX_FILE)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise NotFoundError(f"No item index in {folder} ({', '.join(missing)} missing): create the release again.")
    notes = json.loads(files[0].read_text(encoding="utf-8"))
    depth = {"depth": notes["search_depth"]} if "search_depth" in notes else {}
    index = ItemIndex(faiss.read_index(str(files[2])), notes["kind"], **depth, with_offsets=notes.get("offsets", False))
    return SpaceIndex(index, np.load(files[1], allow_pickle=False), notes["space_id"], notes)
