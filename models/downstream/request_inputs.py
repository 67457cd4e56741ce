"""The inputs of a ranker taken apart: what was asked once per request, what is known of items, what is looked up.

Shapes: B rows (1 of what was asked, N candidates, I items), X width of the joined input, D embedding dim, H token dim,
K tokens of one embedding, T tokens of all, G embeddings, E width of a product and its dot, P as in ``request.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.downstream.batches import table_layouts
from models.downstream.inputs import Array
from models.downstream.layers import BELOW_ALL, NumericInput
from models.downstream.ranker import Ranker


class Positions:
    """Where every input stands in the joined input: ``Ranker.join`` says the same by what it does.

    Attributes
    ----------
    cats
        By position in cats followed by crosses.
    shared
        What the bins of all numbers become together.
    tokens, pairs, present
        By position in the specification.
    """

    def __init__(self, ranker: Ranker) -> None:
        spec, config = ranker.spec, ranker.config
        self._end = 0
        layouts = table_layouts(spec)
        self.cats = {column: self._next(layout.dim) for layout in layouts for column in layout.columns}
        self.nums = self._next(spec.nums)
        self.shared = self._next(config.numeric_dim if spec.nums else 0)
        self.tokens = [self._next(count * config.token_dim) for count in ranker.token_counts]
        self.pairs = [self._next(config.pair_dim + 1) for _ in spec.pairs]
        self.present = self._next(len(spec.embeddings))

    def _next(self, width: int) -> list[int]:
        self._end += width
        return list(range(self._end - width, self._end))


class Lookups:
    """Some of the fields that are rows of weight tables."""

    def __init__(self, ranker: Ranker, columns: Collection[int]) -> None:
        self._tables: list[Array] = []
        self._fields: list[tuple[list[int], Array]] = []  # per table its columns, and the first row of each
        for table, layout in zip(ranker.tables, table_layouts(ranker.spec), strict=True):
            chosen = [at for at, column in enumerate(layout.columns) if column in columns]
            if chosen:
                self._tables.append(table.get_parameter("weight").detach().numpy())
                offsets = np.array(layout.offsets, np.int64)[chosen]
                self._fields.append(([layout.columns[at] for at in chosen], offsets))

    def positions(self, x: Positions) -> list[int]:
        """Return where the answers stand in the joined input."""
        return [at for columns, _ in self._fields for column in columns for at in x.cats[column]]

    def ids(self, columns: Array) -> tuple[Array, ...]:
        """Return each table's rows, int64 ``[B, f]``, out of the columns of all cats and crosses."""
        return tuple(columns[:, chosen] + offsets for chosen, offsets in self._fields)

    def __call__(self, ids: Iterable[Array]) -> list[Array]:
        """Return what :meth:`ids` names, float32 ``[B, any]`` each."""
        found = zip(self._tables, ids, strict=True)
        return [table.take(rows, axis=0).reshape(len(rows), -1) for table, rows in found]


class PlainInputs:
    """Some plain inputs: ids and standardized numbers, and what their bins add to what all bins become together.

    In numpy, for one row costs it a third of what it costs torch.

    Attributes
    ----------
    width
        Of the ids and the standardized numbers.
    """

    def __init__(self, ranker: Ranker, cats: Collection[int], nums: Sequence[int]) -> None:
        self._nums = list(nums)
        self.lookups = Lookups(ranker, cats)
        self._numbers = _Numbers.of(ranker.numeric, self._nums) if ranker.numeric is not None and self._nums else None
        self.width = len(self.positions(Positions(ranker)))

    @property
    def has_numbers(self) -> bool:
        """Whether any of them is a number."""
        return self._numbers is not None

    def positions(self, x: Positions) -> list[int]:
        """Return where the first part of the answer stands in the joined input; the second is a part of ``shared``."""
        return [*self.lookups.positions(x), *(x.nums[column] for column in self._nums)]

    def __call__(self, ids: Iterable[Array], nums: Array) -> list[Array]:
        """Return both side by side, in pieces, from what :meth:`Lookups.ids` returns and float32 ``[B, m]``."""
        return self.lookups(ids) + ([] if self._numbers is None else self._numbers(nums))


class _Numbers(NamedTuple):
    """What ``NumericInput`` does, for m of its numbers, and without the bias of its projection."""

    mean: Array
    std: Array
    spread: Tensor
    shift: Tensor
    binned: Array  # the projection's weights of the bins, [m * T, dim]
    absent: Array  # and of the indicators, [m, dim]

    @classmethod
    def of(cls, numeric: NumericInput, columns: list[int]) -> _Numbers:
        blocks = [column * numeric.bins + at for column in columns for at in range(numeric.bins)]
        weight = numeric.project.weight.detach().T
        binned, absent = weight[: weight.shape[0] - len(numeric.mean)], weight[weight.shape[0] - len(numeric.mean) :]
        return cls(
            numeric.mean[columns].numpy(),
            numeric.std[columns].numpy(),
            numeric.spread[columns][:, blocks],
            numeric.shift[blocks],
            binned[blocks].numpy(),
            absent[columns].numpy(),
        )

    def __call__(self, nums: Array) -> list[Array]:
        """Return ``[B, m]`` and ``[B, dim]``."""
        absent = np.isnan(nums)
        # By torch: a number that hardly varies is divided by next to nothing, so that its last bit can be seen.
        values = np.copysign(torch.from_numpy(np.abs(nums)).log1p_().numpy(), nums)
        standard = np.clip((values - self.mean) / self.std, -5, 5)
        # Clipped after the product: what is absent lies under every bin, and fills none.
        values[absent], standard[absent] = BELOW_ALL, 0.0
        bins = torch.addmm(self.shift, torch.from_numpy(values), self.spread).clamp_(0, 1).numpy()
        return [standard, bins @ self.binned + absent.astype(np.float32) @ self.absent]


class _Token(NamedTuple):
    """One embedding's tokens: a product with ``[D, K * H]``, then LayerNorm of each.

    The product already lacks the mean that LayerNorm subtracts, for that is linear.
    """

    weight: Tensor
    bias: Tensor
    tokens: int
    gain: Tensor  # [H]
    shift: Tensor  # [H]
    eps: Tensor

    def __call__(self, projected: Tensor) -> Tensor:
        """Return tokens ``[B, K * H]`` from the projected vectors."""
        rows = projected.unflatten(1, (self.tokens, -1)) if self.tokens > 1 else projected
        mean_square = torch.add(self.eps, torch.linalg.vecdot(rows, rows), alpha=1 / len(self.gain))
        tokens = torch.addcmul(self.shift, rows * mean_square.rsqrt_().unsqueeze(-1), self.gain)
        return tokens.flatten(1)


class _Pair(NamedTuple):
    """A pair: the product of both vectors less their means, times ``[D, E]``, is its product and its dot."""

    place: int
    left: int
    right: int
    weight: Tensor
    means: tuple[Tensor, Tensor] | None

    def of(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``[B, E]`` for vectors ``[B, D]``."""
        if self.means is not None:
            left, right = left - self.means[0], right - self.means[1]
        return (left * right) @ self.weight

    def met(self, left: Tensor) -> Tensor:
        """Return the matrix ``[D, E]`` that the right vector less its mean meets, given the left ``[1, D]``."""
        return (left if self.means is None else left - self.means[0]).T * self.weight

    def turned(self) -> _Pair:
        """Return the same with left and right changed."""
        means = None if self.means is None else (self.means[1], self.means[0])
        return self._replace(left=self.right, right=self.left, means=means)


@dataclass(frozen=True)
class Seen:
    """What was made of the asked embeddings: columns of the joined input, and what candidates meet.

    Attributes
    ----------
    tokens
        By embedding ``[1, K * H]``.
    weights, biases
        By embedding of the candidates ``[D, K * H + any * E]`` and ``[K * H + any * E]``.
    """

    parts: list[Tensor]
    tokens: dict[int, Tensor]
    weights: dict[int, Tensor]
    biases: dict[int, Tensor]
    present: Tensor


class VectorInputs:
    """The embeddings of a ranker.

    Given the user's vector, a product with the user's is linear in the candidate's vector, as its projection is: one
    matrix, made once per request, turns a candidate's vector into its token and its products.
    """

    def __init__(self, ranker: Ranker, asked: Collection[str]) -> None:
        names = [name for name, _ in ranker.spec.embeddings]
        self._count = len(names)
        self._asked = [at for at, name in enumerate(names) if name in asked]
        self._own = [at for at, name in enumerate(names) if name not in asked]
        self._attention, self._dim = ranker.attention, ranker.config.token_dim
        self._tokens = [_token(ranker, at) for at in range(len(names))]
        self._nothing = [torch.zeros(1, token.weight.shape[1]) for token in self._tokens]
        pairs = [_pair(ranker, place) for place in range(len(ranker.pairs))]
        self._asked_pairs = [pair for pair in pairs if {pair.left, pair.right} <= set(self._asked)]
        self._own_pairs = [pair for pair in pairs if {pair.left, pair.right} <= set(self._own)]
        mixed = [pair for pair in pairs if len({pair.left, pair.right} & set(self._asked)) == 1]
        mixed = [pair if pair.right in self._own else pair.turned() for pair in mixed]
        self._mixed = {at: [pair for pair in mixed if pair.right == at] for at in self._own}

    def asked_positions(self, x: Positions) -> list[int]:
        """Return where :attr:`Seen.parts` stand in the joined input."""
        found = [] if self._attention is not None else [at for embedding in self._asked for at in x.tokens[embedding]]
        found += [at for pair in self._asked_pairs for at in x.pairs[pair.place]]
        return found + [x.present[embedding] for embedding in self._asked]

    def own_positions(self, x: Positions) -> list[int]:
        """Return where the answer of :meth:`of_candidates` stands in the joined input."""
        mixing = range(self._count) if self._attention is not None else self._own
        found = [at for embedding in mixing for at in x.tokens[embedding]]
        pairs = [*(pair for embedding in self._own for pair in self._mixed[embedding]), *self._own_pairs]
        found += [at for pair in pairs for at in x.pairs[pair.place]]
        return found + [x.present[embedding] for embedding in self._own]

    def of_asked(self, vectors: Sequence[Tensor], present: Sequence[bool]) -> Seen:
        """Return what is made once per request."""
        given, here = dict(zip(self._asked, vectors, strict=True)), dict(zip(self._asked, present, strict=True))
        tokens = {at: self._project(at, given[at]) if here[at] else self._nothing[at] for at in self._asked}
        parts = [] if self._attention is not None else list(tokens.values())
        for pair in self._asked_pairs:
            parts.append(pair.of(given[pair.left], given[pair.right]) * (here[pair.left] * here[pair.right]))
        weights, biases = {}, {}
        for at, pairs in self._mixed.items():
            token = self._tokens[at]
            met = [pair.met(given[pair.left]) if here[pair.left] else torch.zeros_like(pair.weight) for pair in pairs]
            weights[at] = torch.cat([token.weight, *met], dim=1) if met else token.weight
            shifts = [
                weight.new_zeros(weight.shape[1]) if pair.means is None else -(pair.means[1] @ weight)
                for pair, weight in zip(pairs, met, strict=True)
            ]
            biases[at] = torch.cat([token.bias, *shifts]) if met else token.bias
        row = torch.tensor([present], dtype=torch.float32)
        return Seen([*parts, row], tokens, weights, biases, row)

    def of_candidates(
        self, seen: Seen, vectors: Sequence[Tensor], present: Tensor | None, candidates: int
    ) -> list[Tensor]:
        """Return what the candidates' vectors become, each ``[N, any]``; `present` is as in ``Candidates``."""
        given = dict(zip(self._own, vectors, strict=True))
        here = {at: present[:, [column]] for column, at in enumerate(self._own)} if present is not None else {}
        tokens, pairs = dict(seen.tokens), []
        for at, vector in given.items():
            both = torch.addmm(seen.biases[at], vector, seen.weights[at])
            both = both * here[at] if at in here else both
            width = self._tokens[at].weight.shape[1]
            # The norm of a row of zeros is its bias, and not zero.
            normed = self._tokens[at](both[:, :width])
            tokens[at] = normed * here[at] if at in here else normed
            pairs.append(both[:, width:])
        for pair in self._own_pairs:
            product = pair.of(given[pair.left], given[pair.right])
            pairs.append(product * here[pair.left] * here[pair.right] if here else product)
        own = present if present is not None else torch.ones(candidates, len(self._own))
        if self._attention is None:
            return [*(tokens[at] for at in self._own), *pairs, own]
        whole = torch.empty(candidates, self._count)
        whole[:, self._asked], whole[:, self._own] = seen.present, own
        side_by_side = torch.cat([tokens[at].expand(candidates, -1) for at in range(self._count)], dim=1)
        return [self._attention(side_by_side.unflatten(1, (-1, self._dim)), whole).flatten(1), *pairs, own]

    def _project(self, at: int, vectors: Tensor) -> Tensor:
        token = self._tokens[at]
        return token(torch.addmm(token.bias, vectors, token.weight))


def _token(ranker: Ranker, at: int) -> _Token:
    linear, norm, count = ranker.tokens[at], ranker.token_norms[at], ranker.token_counts[at]
    assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
    weight, bias = (values.double().unflatten(0, (count, -1)) for values in (linear.weight, linear.bias))
    weight = (weight - weight.mean(1, keepdim=True)) * ranker.embedding_scale[at]  # [K, H, D / K]
    bias = (bias - bias.mean(1, keepdim=True)).flatten()
    affine = norm.weight.detach().clone(), norm.bias.detach().clone(), torch.tensor(norm.eps)
    return _Token(torch.block_diag(*weight).T.float().contiguous(), bias.float(), count, *affine)


def _pair(ranker: Ranker, place: int) -> _Pair:
    left, right = ranker.pairs[place]
    scale = ranker.embedding_scale[left] * ranker.embedding_scale[right]
    weight = ranker.products[place].get_parameter("weight").T * scale  # [D, E - 1]
    dim = len(weight)
    # Scaled entries have mean square 1, so the dot of unrelated vectors grows with the root of D.
    weight = torch.cat([weight, (scale / dim**0.5).expand(dim, 1)], dim=1)
    one, other = ranker.mean(left), ranker.mean(right)
    means = None if one is None or other is None else (one.clone(), other.clone())
    return _Pair(place, left, right, weight.contiguous(), means)
