"""Retrieval: an index over item vectors.

Shapes: I items, D embedding dim, B users of one retrieval, K retrieved, N own items of a user.
Everything here speaks of item positions, rows of the item vectors, never of item ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics import Integers

# Up to here an exact search of one user takes a few milliseconds and nothing has to be built.
_FLAT_ITEMS = 100_000
_ROWS_AT_ONCE = 256  # users whose items are scored together
_NEIGHBOURS, _BUILD_DEPTH, _SEARCH_DEPTH, _DEEPEST = 32, 200, 256, 4096


@dataclass(frozen=True)
class Own:
    """Items that each user is known to choose, which count for more than their products say.

    Attributes
    ----------
    positions
        int64 ``[B, N]``, each item of a user once; -1 where a user has fewer.
    added
        To the products with them, float32 ``[B, N]``, at least 0.
    """

    positions: Integers
    added: NDArray[np.float32]

    def take(self, rows: Sequence[int] | Integers) -> Own:
        """Return those of some of the users."""
        return Own(self.positions[rows], self.added[rows])


class ItemIndex:
    """Item vectors searchable by inner product; made by :func:`build_index`.

    Attributes
    ----------
    depth
        Candidates that an approximate search keeps on its way (efSearch); more find more, and take longer.
    with_offsets
        Whether items have one number more than users, which is added to every product with the item.
    """

    def __init__(self, index: Any, kind: str, depth: int = _SEARCH_DEPTH, *, with_offsets: bool = False) -> None:
        self._index, self.kind, self.depth, self.with_offsets = index, kind, depth, with_offsets

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, users: ArrayLike, k: int, among: Integers | None = None, own: Own | None = None
    ) -> tuple[Integers, NDArray[np.float32]]:
        """Return the k items with the largest inner product, and what is added to it, for each user.

        Parameters
        ----------
        users
            Vectors ``[B, D]`` of the same space as the items.
        k
            K; where there are fewer items, positions are filled with -1.
        among
            Positions of the only items to look at. Few are searched exactly, whatever the kind.
        own
            Items that users chose themselves: each of them is scored, whether the search finds it or not.

        Returns
        -------
        positions, scores
            ``[B, K]`` each, best first. Scores are products, with the offsets of items that have one, and with what
            `own` adds.

        Raises
        ------
        ValueError
            If the vectors have another length than the items, or are not finite.
        """
        vectors = self._asking(users)
        if vectors.shape[1] != self._index.d:
            asked, theirs = (count - self.with_offsets for count in (vectors.shape[1], self._index.d))
            raise ValueError(f"ItemIndex: user vectors have {asked} numbers, items {theirs}.")
        if among is not None and len(among) <= _FLAT_ITEMS:
            found = self._search_exactly(vectors, k, np.asarray(among, np.int64))
        else:
            scores, positions = self._index.search(vectors, k, params=self._parameters(k, among))
            found = positions, scores
        return found if own is None else self.with_own(users, *found, own, among)

    def with_own(
        self,
        users: ArrayLike,
        positions: Integers,
        scores: NDArray[np.float32],
        own: Own,
        among: Integers | None = None,
    ) -> tuple[Integers, NDArray[np.float32]]:
        """Return the best of what :meth:`search` found and of the users' own items, as it would with `own`.

        Exact where the search was. The same search serves any number of weights of what is added.
        """
        asking, mine = self._asking(users), own.positions
        if among is not None:
            mine = np.where(np.isin(mine, among), mine, -1)
        lowest = np.finfo(np.float32).min
        mine_scores = np.where(mine >= 0, self._scores(asking, mine) + own.added, lowest)
        # An item is scored as one's own or as found, not as both: rows are told apart by their number.
        row = np.arange(len(mine))[:, None] * len(self)
        twice = np.isin(row + positions, (row + mine)[mine >= 0]) & (positions >= 0)
        all_positions = np.concatenate([np.where(twice, -1, positions), mine], axis=1)
        all_scores = np.concatenate([np.where(twice | (positions < 0), lowest, scores), mine_scores], axis=1)
        best = np.argsort(-all_scores, axis=1, kind="stable")[:, : positions.shape[1]]
        return np.take_along_axis(all_positions, best, axis=1), np.take_along_axis(all_scores, best, axis=1)

    def products(self, users: ArrayLike, positions: Integers) -> NDArray[np.float32]:
        """Return the inner products of each user with some items, ``[B, K]``, nothing added; 0 for position -1."""
        vectors = _vectors("users", users)
        asking = with_offsets(vectors, np.zeros(len(vectors), np.float32)) if self.with_offsets else vectors
        return self._scores(asking, np.asarray(positions, np.int64))

    def _scores(self, asking: NDArray[np.float32], positions: Integers) -> NDArray[np.float32]:
        """Return each row's products with its own items, ``[B, N]``; 0 for position -1."""
        scores = np.zeros(positions.shape, np.float32)
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            rows = positions[start : start + _ROWS_AT_ONCE]
            items = self._index.reconstruct_batch(np.maximum(rows, 0).ravel()).reshape(*rows.shape, self._index.d)
            products = np.einsum("bd,bnd->bn", asking[start : start + _ROWS_AT_ONCE], items)
            scores[start : start + _ROWS_AT_ONCE] = np.where(rows >= 0, products, 0)
        return scores

    def _asking(self, users: ArrayLike) -> NDArray[np.float32]:
        """Return user vectors as the index is asked: with a 1 that meets the items' offsets."""
        vectors = _vectors("users", users)
        return with_offsets(vectors, np.ones(len(vectors), np.float32)) if self.with_offsets else vectors

    def _parameters(self, k: int, among: Integers | None) -> Any:
        import faiss

        chosen = {} if among is None else {"sel": faiss.IDSelectorBatch(np.asarray(among, np.int64))}
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
                efSearch=max(self.depth, 2 * k), **chosen
            )
        return faiss.SearchParameters(**chosen) if chosen else None

    def _search_exactly(
        self, vectors: NDArray[np.float32], k: int, among: Integers
    ) -> tuple[Integers, NDArray[np.float32]]:
        positions = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), np.finfo(np.float32).min, np.float32)
        if not len(among):
            return positions, scores
        products = vectors @ self._index.reconstruct_batch(among).T
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        kept = best.shape[1]
        positions[:, :kept] = among[best]
        scores[:, :kept] = np.take_along_axis(products, best, axis=1)
        return positions, scores

    def tune(
        self,
        item_vectors: ArrayLike,
        queries: ArrayLike,
        *,
        offsets: ArrayLike | None = None,
        k: int = 100,
        target: float = 0.98,
    ) -> float:
        """Measure recall against exact search, and search deeper until it reaches a target.

        Parameters
        ----------
        item_vectors, offsets
            Those that the index was built of, ``[I, D]`` and ``[I]``.
        queries
            ``[B, D]``, vectors that look like those that will be asked with.
        k
            Neighbours to agree on.
        target
            Least mean recall; the depth is doubled up to 4,096 to reach it.

        Returns
        -------
        float
            Mean share of the exact k nearest that the search finds.
        """
        import faiss

        items = _vectors("items", item_vectors)
        if offsets is not None:
            items = with_offsets(items, offsets)
        k = min(k, len(items))
        _, exact = faiss.knn(self._asking(queries), items, k, metric=faiss.METRIC_INNER_PRODUCT)
        while True:
            found, _ = self.search(queries, k)
            recall = float(np.mean([np.isin(exact[row], found[row]).mean() for row in range(len(exact))]))
            if recall >= target or self.kind == "flat" or self.depth >= _DEEPEST:
                return recall
            self.depth *= 2


def with_offsets(vectors: NDArray[np.float32], offsets: ArrayLike) -> NDArray[np.float32]:
    """Return vectors with one number more each, ``[N, D + 1]``; offsets ``[N]``.

    Items carry what is added to their products, users a 1.
    """
    column = np.asarray(offsets, np.float32)[:, None]
    return np.ascontiguousarray(np.concatenate([vectors, column], axis=1))


def build_index(
    item_vectors: ArrayLike, kind: Literal["auto", "flat", "hnsw"] = "auto", *, offsets: ArrayLike | None = None
) -> ItemIndex:
    """Build an index for the largest inner product.

    Parameters
    ----------
    item_vectors
        ``[I, D]`` of one snapshot; float32.
    kind
        "flat" is exact. "hnsw" (Malkov and Yashunin, arXiv 1603.09320) is approximate, and fast for many items. "auto"
        chooses by the number of items.
    offsets
        Added to every product with the item, ``[I]``, e.g. how popular it is; None for nothing.

    Raises
    ------
    ValueError
        If there are no vectors, or they are not finite, or the kind is unknown.
    """
    import faiss

    vectors = _vectors("items", item_vectors)
    if offsets is not None:
        vectors = with_offsets(vectors, offsets)
    index: Any
    if kind == "auto":
        kind = "flat" if len(vectors) <= _FLAT_ITEMS else "hnsw"
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_DEPTH
    else:
        raise ValueError(f"build_index: unknown kind '{kind}'; choose auto, flat or hnsw.")
    index.add(vectors)
    return ItemIndex(index, kind, with_offsets=offsets is not None)


def _vectors(name: str, values: ArrayLike) -> NDArray[np.float32]:
    vectors = np.ascontiguousarray(values, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) == 0:
        raise ValueError(f"Retrieval: {name} have shape {vectors.shape}; at least one vector [D] each is needed.")
    broken = int((~np.isfinite(vectors)).any(axis=1).sum())
    if broken:
        raise ValueError(f"Retrieval: {broken} vectors of {name} are not finite.")
    return vectors
