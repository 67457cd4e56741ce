"""DHEN: a stack of layers, each an ensemble of two different interaction modules (arXiv 2203.11014).

Legend: B batch, F fields (tokens per example), D token dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from feature_repo.contracts.errors import ConfigError
from models.upstream.config import added
from models.upstream.layers import MLP, MaskNet, Transformer

ModuleName = Literal["masknet", "transformer", "mlp"]


class DHENLayer(nn.Module):
    """Shortcut plus two modules, both reading the normalized tokens."""

    def __init__(self, config: DHEN.Config, pair: tuple[ModuleName, ModuleName], fields: int, dim: int) -> None:
        super().__init__()
        self.ensemble = nn.ModuleList(_build(name, config, fields, dim) for name in pair)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BFD: Tensor) -> Tensor:
        """Return [B, F, D]."""
        first, second = self.ensemble
        normed = self.norm(tokens_BFD)
        return tokens_BFD + first(normed) + second(normed)


class DHEN(nn.Module):
    """The backbone of every tower: tokens [B, F, D] to tokens [B, F, D]."""

    @dataclass(frozen=True)
    class Config:
        """What the layers are made of.

        Attributes
        ----------
        modules
            The pair of every layer, where `pairs` names none.
        pairs
            One pair per layer, from the first on; None: `modules` in every layer.
        """

        layers: int = 2
        modules: tuple[ModuleName, ModuleName] = ("masknet", "mlp")
        masknet: MaskNet.Config = field(default_factory=MaskNet.Config)
        transformer: Transformer.Config = field(default_factory=Transformer.Config)
        mlp: MLP.Config = field(default_factory=MLP.Config)
        pairs: tuple[tuple[ModuleName, ModuleName], ...] | None = added(None)

        def __post_init__(self) -> None:
            if self.layers < 1:
                raise ConfigError(f"A DHEN needs at least one layer, not {self.layers}.")
            if self.pairs is not None and len(self.pairs) != self.layers:
                raise ConfigError(
                    f"A DHEN of {self.layers} layers needs as many pairs of modules, not {len(self.pairs)}: "
                    "give one per layer, or leave `pairs` out to have `modules` in every layer."
                )
            for pair in (self.modules, *(self.pairs or ())):
                unknown = set(pair) - {"masknet", "transformer", "mlp"}
                if unknown or len(pair) != 2 or len(set(pair)) != 2:
                    raise ConfigError(
                        f"A DHEN layer ensembles two different modules of masknet, transformer and mlp; not {pair}."
                    )

        def of_layers(self) -> tuple[tuple[ModuleName, ModuleName], ...]:
            """Return the pair of each layer."""
            return self.pairs or (self.modules,) * self.layers

    def __init__(self, config: Config, fields: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DHENLayer(config, pair, fields, dim) for pair in config.of_layers())
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BFD: Tensor) -> Tensor:
        """Return [B, F, D]."""
        for layer in self.layers:
            tokens_BFD = layer(tokens_BFD)
        return self.norm(tokens_BFD)


def _build(name: ModuleName, config: DHEN.Config, fields: int, dim: int) -> nn.Module:
    if name == "masknet":
        return MaskNet(config.masknet, fields, dim)
    if name == "transformer":
        return Transformer(config.transformer, dim)
    return MLP(config.mlp, fields, dim)
