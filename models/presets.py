"""Named sizes of the upstream model with how to train it."""

from __future__ import annotations

from typing import NamedTuple

from models.training import TrainConfig
from models.upstream.derm import DERM
from models.upstream.dhen import DHEN
from models.upstream.inputs import InputSpec
from models.upstream.layers import MLP, MaskNet, Transformer
from models.upstream.sequence import SequenceTokens
from models.upstream.towers import InteractionTower, ItemTower, UserTower


class Preset(NamedTuple):
    """A model config and the training config that suits it."""

    model: DERM.Config
    train: TrainConfig


def debug(inputs: InputSpec) -> Preset:
    """Return the smallest model with every part in it: seconds on anything. For tests."""
    dhen = DHEN.Config(layers=1, masknet=MaskNet.Config(1, 16, 16), mlp=MLP.Config(16))
    return Preset(
        DERM.Config(
            inputs,
            dim=8,
            out_tokens=2,
            out_dim=8,
            user=UserTower.Config(1, SequenceTokens.Config(tokens=2), dhen),
            item=ItemTower.Config(1, dhen=dhen),
            interaction=InteractionTower.Config(1, 16, dhen),
        ),
        TrainConfig(epochs=1, learning_rate=1e-2, embedding_learning_rate=1e-2),
    )


def small(inputs: InputSpec) -> Preset:
    """Return the demo's model: vectors of 64 floats, half a minute per 700k rows on 2 cores."""
    return Preset(DERM.Config(inputs), TrainConfig())


def full(inputs: InputSpec) -> Preset:
    """Return a model for tens of millions of rows and an accelerator: vectors of 128 floats."""
    dhen = DHEN.Config(
        layers=3,
        modules=("masknet", "transformer"),
        masknet=MaskNet.Config(4, 256, 256),
        transformer=Transformer.Config(heads=4),
    )
    return Preset(
        DERM.Config(
            inputs,
            dim=64,
            out_tokens=4,
            out_dim=32,
            user=UserTower.Config(4, SequenceTokens.Config(layers=2, tokens=8), dhen),
            item=ItemTower.Config(4, dhen=dhen),
            interaction=InteractionTower.Config(2, 256, dhen),
        ),
        TrainConfig(epochs=2, learning_rate=1e-3, embedding_learning_rate=2e-3),
    )
