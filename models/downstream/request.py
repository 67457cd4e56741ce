"""A trained ranker made ready for requests: one user, N candidates, no gradients.

The joined input of a candidate is the sum of two: what was asked (the user and the context, once per request) and what
is the candidate's own. All that the layers do with the former alone is done once, and what is known of items ahead is
encoded ahead. The logits are those of :class:`~models.downstream.ranker.Ranker` up to rounding.

Shapes: N candidates, I items, c and m categorical fields and numeric inputs of one source, P width of its encoded rows,
f fields of one weight table that are looked up, D embedding dim, G embeddings of the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.downstream.inputs import Array
from models.downstream.ranker import Ranker
from models.downstream.request_inputs import Lookups, PlainInputs, Positions, VectorInputs
from models.downstream.request_layers import RequestLayers


@dataclass(frozen=True)
class Columns:
    """Positions of some plain inputs: among the categorical fields and among the numeric inputs of a specification."""

    cats: tuple[int, ...] = ()
    nums: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sources:
    """Where the inputs of a ranker come from.

    Categorical fields that are not named, and all crosses, are looked up for each candidate.

    Attributes
    ----------
    asked
        Plain inputs that come with the request: all its candidates share them.
    items
        Plain inputs that are known of every item ahead, by the table that they are read from.
    asked_embeddings
        Names of the embeddings that come with the request; the others are the candidates' own.
    """

    asked: Columns
    items: tuple[Columns, ...]
    asked_embeddings: frozenset[str]


@dataclass(frozen=True)
class Asked:
    """What comes with one request.

    Attributes
    ----------
    ids, nums
        Of ``Sources.asked``: what ``RequestRanker.asked.ids`` returns, and float32 ``[1, m]``, NaN where missing.
    vectors, present
        One ``[1, D]`` per asked embedding, in the order of the specification, and whether each is there.
    """

    ids: tuple[Array, ...]
    nums: Array
    vectors: tuple[Tensor, ...]
    present: tuple[bool, ...]


@dataclass(frozen=True)
class Candidates:
    """The candidates of one request.

    Attributes
    ----------
    known
        Per source ``[N, P]``, rows of what :meth:`RequestRanker.encode` returned.
    ids
        What ``RequestRanker.lookups.ids`` returns, int64 ``[N, f]`` each.
    vectors
        One ``[N, D]`` per embedding of theirs; any finite values where it is missing.
    present
        ``[N, G]``, 1.0 where the embedding is there; None where all are.
    """

    known: tuple[Tensor, ...]
    ids: tuple[Array, ...]
    vectors: tuple[Tensor, ...]
    present: Tensor | None = None

    @property
    def count(self) -> int:
        """N."""
        return next(len(values) for part in (self.known, self.ids, self.vectors) for values in part)


class RequestRanker:
    """Ranks the candidates of one request as the ranker that it was made from does.

    Parameters
    ----------
    ranker
        Trained. Its layers are copied as they are now, its tables are shared.
    sources
        Where its inputs come from.

    Attributes
    ----------
    asked, items, lookups
        The plain inputs by where they come from; each makes rows of the weight tables out of encoded columns.

    Raises
    ------
    ValueError
        If an input has two sources, or a number has none.
    """

    @torch.no_grad()
    def __init__(self, ranker: Ranker, sources: Sources) -> None:
        groups = (sources.asked, *sources.items)
        cats = [column for group in groups for column in group.cats]
        if len(set(cats)) < len(cats) or sorted(c for group in groups for c in group.nums) != [
            *range(ranker.spec.nums)
        ]:
            raise ValueError("Sources: each number needs one source, and each categorical field one at most.")
        x = Positions(ranker)
        self._asked, *items = (PlainInputs(ranker, group.cats, group.nums) for group in groups)
        self._items = tuple(items)
        self.asked, self.items = self._asked.lookups, tuple(part.lookups for part in items)
        self.lookups = Lookups(ranker, [column for column in x.cats if column not in cats])
        self._vectors = VectorInputs(ranker, sources.asked_embeddings)
        bias = ranker.numeric.project.bias if ranker.numeric is not None else torch.zeros(0)
        self._bias = bias.detach().clone().unsqueeze(0).numpy()
        asked = [*self._asked.positions(x), *x.shared, *self._vectors.asked_positions(x)]
        own = [at for part in self._items for at in part.positions(x)]
        own += x.shared if any(part.has_numbers for part in self._items) else []
        own += [*self.lookups.positions(x), *self._vectors.own_positions(x)]
        self._layers = RequestLayers(ranker, asked, own)

    def encode(self, source: int, ids: tuple[Array, ...], nums: Array) -> Array:
        """Return all I items of a source encoded, ``[I, P]``, from ``items[source].ids`` and float32 ``[I, m]``."""
        return np.concatenate([nums[:, :0], *self._items[source](ids, nums)], axis=1)

    @torch.inference_mode()
    def __call__(self, asked: Asked, candidates: Candidates) -> Tensor:
        """Return logits ``[N]``."""
        plain = self._asked(asked.ids, asked.nums)
        if self._asked.has_numbers:
            plain[-1] += self._bias
        else:
            plain.append(self._bias)
        seen = self._vectors.of_asked(asked.vectors, asked.present)
        known = list(zip(self._items, candidates.known, strict=True))
        parts = [rows[:, : part.width] for part, rows in known]
        shares = [rows[:, part.width :] for part, rows in known if part.has_numbers]
        parts += [sum(shares[1:], start=shares[0])] if shares else []
        parts += map(torch.from_numpy, self.lookups(candidates.ids))
        parts += self._vectors.of_candidates(seen, candidates.vectors, candidates.present, candidates.count)
        together = torch.from_numpy(np.concatenate(plain, axis=1))
        return self._layers(torch.cat([together, *seen.parts], dim=1), torch.cat(parts, dim=1))
