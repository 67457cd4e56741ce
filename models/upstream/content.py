"""A content embedding: what an item is like by its attributes alone, learned without a click.

Items are bags of features (values, words, parts of numbers). Their weighted matrix is factorized, as latent semantic
analysis does with words and documents (Deerwester et al., Indexing by Latent Semantic Analysis, JASIS 1990): features
that occur in the same items get similar rows, and an item's vector is the sum of the rows of its features. So an item
that nobody has seen yet has a vector as soon as its attributes are known.

Legend: I items, F features, N features of all items of a batch one after the other, E floats per vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models.upstream import config as config_io
from models.upstream.files import load_model, save_model

_SPARE, _ITERATIONS = 16, 12  # of the randomized factorization


@dataclass(frozen=True, eq=False)
class Bags:
    """Features of I items, one item after the other.

    Attributes
    ----------
    feature
        int64 [N], in ``[0, F)``.
    share
        float32 [N], above 0: how much of the feature the item has, 1 for a value or a word.
    start
        int64 [I], where each item's features begin.
    """

    feature: Tensor
    share: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.start)

    @property
    def counts(self) -> Tensor:
        """Features per item, int64 [I]."""
        end = torch.full((1,), len(self.feature), dtype=torch.int64)
        return torch.diff(torch.cat([self.start, end]))


class ContentEmbedding(nn.Module):
    """The factorized features: made by :meth:`fit`, or read by :meth:`load`."""

    @dataclass(frozen=True)
    class Config:
        """What the model was built from.

        Attributes
        ----------
        features
            F.
        dim
            E, at most what was asked for: no more than the items' features have independent directions.
        seed
            Of the randomized factorization.
        cutoff
            Up to when items were known. A space has one cut-off, though the same catalogue gives the same weights.
        """

        features: int
        dim: int
        seed: int = 0
        cutoff: str = ""
        kind: Literal["content"] = "content"

        def to_dict(self) -> dict[str, Any]:
            """Return plain JSON values."""
            return config_io.to_dict(self)

    rarity: Tensor
    rows: Tensor
    centre: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("rarity", torch.zeros(config.features))  # idf of each feature
        self.register_buffer("rows", torch.zeros(config.features, config.dim))
        self.register_buffer("centre", torch.zeros(config.dim))  # of the mean item

    @property
    def dim(self) -> int:
        """Floats per published vector."""
        return self.config.dim

    @classmethod
    def fit(cls, bags: Bags, features: int, dim: int, seed: int = 0, *, cutoff: str = "") -> ContentEmbedding:
        """Factorize the features of some items.

        Parameters
        ----------
        bags
            The items to learn from, each with at least one feature.
        features
            F.
        dim
            E at most.
        seed
            Of the factorization; equal seeds and items give equal weights.
        cutoff
            To be kept with it.

        Raises
        ------
        ConfigError
            If the items differ in less than two directions: then there is no space.
        """
        count = len(bags)
        held = torch.zeros(features).index_add_(0, bags.feature, bags.share)
        rarity = torch.where(held > 0, torch.log(count / held.clamp(min=1e-6)).clamp(min=0), 0.0)
        item = torch.repeat_interleave(torch.arange(count), bags.counts)
        places = torch.stack([item, bags.feature])
        weights = _weighted(bags, rarity)
        items_IF = torch.sparse_coo_tensor(places, weights, (count, features), check_invariants=True).coalesce()
        directions_FE = _directions(items_IF, min(dim, count - 1, features), seed)
        if directions_FE.shape[1] < 2:
            raise ConfigError(
                "The items' attributes differ in less than two directions: there is no content to embed. Ingest items "
                "with more attributes, or take the content upstream out of config.yaml."
            )
        model = cls(cls.Config(features, directions_FE.shape[1], seed, cutoff))
        model.rarity.copy_(rarity)
        model.rows.copy_(directions_FE)
        model.centre.copy_((torch.sparse.sum(items_IF, 0).to_dense() / count) @ directions_FE)
        return model.eval()

    def vectors(self, bags: Bags) -> tuple[Tensor, Tensor]:
        """Return unit vectors [I, E] and their lengths before scaling [I]; zeros for an item without features."""
        weights = _weighted(bags, self.rarity)
        sums = functional.embedding_bag(
            bags.feature, self.rows, bags.start, mode="sum", per_sample_weights=weights.to(self.rows.dtype)
        )
        # An item of which nothing is known is no average item.
        raw = torch.where((bags.counts > 0).unsqueeze(1), sums - self.centre, 0.0)
        norm = raw.norm(dim=1)
        return raw / norm.clamp(min=1e-12).unsqueeze(1), norm

    def save(self, folder: Path) -> None:
        """Write weights and config into `folder`, each beside its place and renamed, the config last."""
        save_model(folder, self.config.to_dict(), self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> ContentEmbedding:
        """Read what :meth:`save` wrote.

        Raises
        ------
        LakeError
            If a file is missing or the weights are not those the config was written with.
        """
        config, weights = load_model(folder)
        model = cls(config_io.from_dict(cls.Config, config, "model"))
        model.load_state_dict(weights)
        return model.eval()


def _weighted(bags: Bags, rarity: Tensor) -> Tensor:
    """Return share x rarity of each feature [N], every item's scaled to length 1: many words say no more than few."""
    weight = bags.share * rarity.index_select(0, bags.feature)
    item = torch.repeat_interleave(torch.arange(len(bags)), bags.counts)
    square = torch.zeros(len(bags)).index_add_(0, item, weight * weight)
    return weight / square.sqrt().clamp(min=1e-12).index_select(0, item)


def _directions(items_IF: Tensor, rank: int, seed: int) -> Tensor:
    """Return the directions [F, E] in which the items spread most, by randomized subspace iteration.

    Halko, Martinsson and Tropp, Finding Structure with Randomness (SIAM Review 2011). The items are centred without
    making them dense; signs are fixed, so that equal items give equal directions.
    """
    count, features = items_IF.shape
    mean = torch.sparse.sum(items_IF, 0).to_dense() / count
    turned = items_IF.t().coalesce()
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(features, min(rank + _SPARE, count, features), generator=generator)
    for _ in range(_ITERATIONS):
        seen = torch.sparse.mm(items_IF, basis) - mean @ basis  # [I, rank + spare]
        basis, _ = torch.linalg.qr(torch.sparse.mm(turned, seen) - torch.outer(mean, seen.sum(0)))
    seen = torch.sparse.mm(items_IF, basis) - mean @ basis
    _, strength, vt = torch.linalg.svd(seen, full_matrices=False)
    directions = (basis @ vt.T)[:, :rank][:, strength[:rank] > 1e-3 * strength[0]]
    largest = directions.abs().argmax(0)
    signs = directions.gather(0, largest.unsqueeze(0)).sign()
    return directions * signs
