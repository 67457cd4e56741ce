"""Named sizes of the upstream model: what is read, what is built, how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from feature_repo.contracts.errors import ConfigError
from models.training import TrainConfig
from models.upstream.derm import DERM
from models.upstream.dhen import DHEN
from models.upstream.inputs import InputSpec
from models.upstream.layers import MLP, MaskNet, Transformer
from models.upstream.sequence import SequenceTokens
from models.upstream.towers import InteractionTower, ItemTower, UserTower


@dataclass(frozen=True)
class Preset:
    """One named size.

    Attributes
    ----------
    sequence_length, interests, top_items
        T activities, K interest values per attribute and J items that are read of a user.
    batch_rows
        Impressions per training batch.
    model
        Makes the model's config for given inputs.
    train
        How to train it.
    """

    sequence_length: int
    interests: int
    top_items: int
    batch_rows: int
    model: Callable[[InputSpec], DERM.Config]
    train: TrainConfig


def by_name(name: str) -> Preset:
    """Return a preset: ``debug``, ``small`` or ``full``; ConfigError for any other name."""
    presets = {"debug": debug, "small": small, "full": full}
    if name not in presets:
        raise ConfigError(f"There is no preset '{name}': choose one of {', '.join(presets)}.")
    return presets[name]()


def debug() -> Preset:
    """Return the smallest model with every part in it: seconds on anything. For tests."""
    dhen = DHEN.Config(layers=1, masknet=MaskNet.Config(1, 16, 16), mlp=MLP.Config(16))

    def model(inputs: InputSpec) -> DERM.Config:
        return DERM.Config(
            inputs,
            dim=8,
            out_tokens=2,
            out_dim=8,
            user=UserTower.Config(1, sequence=SequenceTokens.Config(tokens=2), dhen=dhen),
            item=ItemTower.Config(1, dhen=dhen),
            interaction=InteractionTower.Config(1, 16, dhen),
        )

    return Preset(8, 4, 8, 512, model, TrainConfig(epochs=1, learning_rate=1e-2, embedding_learning_rate=1e-2))


def small() -> Preset:
    """Return the demo's model: vectors of 192 floats, a minute or two per 700k rows on a CPU."""
    dhen = DHEN.Config(layers=1, masknet=MaskNet.Config(2, 32, 32), mlp=MLP.Config(64))

    def model(inputs: InputSpec) -> DERM.Config:
        return DERM.Config(
            inputs,
            # As wide as naming a hundred items takes (docs/adr/0007-vectors-that-name-items.md).
            out_dim=48,
            # No transformer block before the pooling: on the demo's data it cost time and gained nothing.
            user=UserTower.Config(sequence=SequenceTokens.Config(layers=0), dhen=dhen),
            item=ItemTower.Config(dhen=dhen),
            interaction=InteractionTower.Config(dim=16, dhen=dhen),
        )

    # One pass: clicks of one visit come in clusters, and a second pass learns them by heart.
    return Preset(32, 64, 128, 4096, model, TrainConfig(epochs=1, embedding_learning_rate=2e-2))


def full() -> Preset:
    """Return a model for tens of millions of rows and an accelerator: vectors of 128 floats."""
    dhen = DHEN.Config(
        layers=3,
        modules=("masknet", "transformer"),
        masknet=MaskNet.Config(4, 256, 256),
        transformer=Transformer.Config(heads=4),
    )

    def model(inputs: InputSpec) -> DERM.Config:
        return DERM.Config(
            inputs,
            dim=64,
            out_tokens=4,
            out_dim=32,
            user=UserTower.Config(4, sequence=SequenceTokens.Config(layers=2, tokens=8), dhen=dhen),
            item=ItemTower.Config(4, dhen=dhen),
            interaction=InteractionTower.Config(2, 256, dhen),
        )

    train = TrainConfig(epochs=2, learning_rate=1e-3, embedding_learning_rate=2e-3)
    return Preset(200, 32, 200, 8192, model, train)
