"""Each interaction module, each DHEN pair, the token makers: shapes, gradients, what they may not see."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from feature_repo.contracts.errors import ConfigError
from models.upstream.dhen import DHEN
from models.upstream.layers import MLP, MaskNet, Transformer
from models.upstream.tokens import CategoryTable, NumericTokens, RowDropout, bag

FIELDS, DIM = 5, 8
MODULES = {
    "masknet": lambda: MaskNet(MaskNet.Config(blocks=2, hidden=6, guide=4), FIELDS, DIM),
    "transformer": lambda: Transformer(Transformer.Config(heads=2), DIM),
    "mlp": lambda: MLP(MLP.Config(hidden=6), FIELDS, DIM),
}


def assert_every_gradient(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        assert parameter.grad.abs().sum() > 0, f"{name} has a zero gradient"


@pytest.mark.parametrize("name", MODULES)
def test_module_keeps_shape_and_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    tokens = torch.randn(7, FIELDS, DIM, requires_grad=True)
    out = module(tokens)
    assert out.shape == tokens.shape
    (out * torch.randn_like(out)).sum().backward()
    assert_every_gradient(module)
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("name", MODULES)
def test_module_treats_examples_alone(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    tokens = torch.randn(7, FIELDS, DIM)
    torch.testing.assert_close(module(tokens)[2:3], module(tokens[2:3]))
    assert module(tokens[:0]).shape == (0, FIELDS, DIM)


@pytest.mark.parametrize("pair", list(itertools.permutations(MODULES, 2)))
def test_dhen_of_each_pair(pair: tuple[str, str]) -> None:
    torch.manual_seed(0)
    config = DHEN.Config(layers=2, modules=pair, masknet=MaskNet.Config(2, 6, 4), mlp=MLP.Config(6))
    dhen = DHEN(config, FIELDS, DIM)
    tokens = torch.randn(7, FIELDS, DIM)
    out = dhen(tokens)
    assert out.shape == tokens.shape
    (out * torch.randn_like(out)).sum().backward()
    assert_every_gradient(dhen)


def test_dhen_layer_is_shortcut_plus_both_modules() -> None:
    torch.manual_seed(0)
    dhen = DHEN(DHEN.Config(layers=1, modules=("mlp", "transformer")), FIELDS, DIM)
    layer = dhen.layers[0]
    tokens = torch.randn(3, FIELDS, DIM)
    normed = layer.norm(tokens)
    by_hand = tokens + layer.ensemble[0](normed) + layer.ensemble[1](normed)
    torch.testing.assert_close(dhen(tokens), dhen.norm(by_hand))


@pytest.mark.parametrize("modules", [("mlp", "mlp"), ("mlp", "cross"), ("mlp",), ("mlp", "masknet", "transformer")])
def test_dhen_wants_two_different_known_modules(modules: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="two different modules"):
        DHEN.Config(modules=modules)  # type: ignore[arg-type]


def test_masked_tokens_are_never_attended_to() -> None:
    torch.manual_seed(0)
    block = MODULES["transformer"]()
    tokens = torch.randn(4, FIELDS, DIM)
    mask = torch.tensor([True, True, True, False, False]).expand(4, -1)
    changed = tokens.clone()
    changed[:, 3:] = 100.0
    torch.testing.assert_close(block(tokens, mask)[:, :3], block(changed, mask)[:, :3])
    torch.testing.assert_close(block(tokens, mask)[:, :3], block(tokens[:, :3]))


def test_attention_heads_must_divide_dim() -> None:
    with pytest.raises(ConfigError, match="divisible"):
        Transformer(Transformer.Config(heads=3), DIM)


def test_one_table_keeps_features_apart() -> None:
    table = CategoryTable((3, 4), DIM)
    assert table.table is not None and table.table.num_embeddings == 7
    tokens = table(torch.tensor([[2, 0]]))
    torch.testing.assert_close(tokens[0, 0], table.table.weight[2])
    torch.testing.assert_close(tokens[0, 1], table.table.weight[3])
    assert CategoryTable((), DIM)(torch.zeros(5, 0, dtype=torch.int64)).shape == (5, 0, DIM)


def test_interests_are_weighted_sums_of_the_attribute_table() -> None:
    table = CategoryTable((3, 4), DIM)
    values = torch.tensor([[[1, 2, 0], [3, 0, 0]]])
    weights = torch.tensor([[[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]])
    sums = table.weighted_sums(values, weights)
    assert table.table is not None
    rows = table.table.weight
    torch.testing.assert_close(sums[0, 0], 0.75 * rows[1] + 0.25 * rows[2])
    torch.testing.assert_close(sums[0, 1], rows[3 + 3])
    assert table.weighted_sums(values[..., :0], weights[..., :0]).shape == (1, 2, DIM)


@pytest.mark.parametrize("weighted", [False, True])
def test_bag_has_the_gradient_of_a_gather_and_sum(weighted: bool) -> None:
    torch.manual_seed(0)
    index = torch.randint(0, 6, (10, 4))
    table = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(10, 4, dtype=torch.float64) if weighted else None
    seen = torch.randn(10, 3, dtype=torch.float64)
    terms = table[index] if weight is None else table[index] * weight[:, :, None]
    expected = torch.autograd.grad((terms.sum(1) * seen).sum(), table)
    actual = torch.autograd.grad((bag(index, table, weight) * seen).sum(), table)
    torch.testing.assert_close(bag(index, table, weight), terms.sum(1))
    torch.testing.assert_close(actual, expected)


def test_numbers_become_tokens_or_nothing() -> None:
    assert NumericTokens(3, 2, DIM)(torch.randn(5, 3)).shape == (5, 2, DIM)
    none = NumericTokens(0, 2, DIM)
    assert none.tokens == 0 and none(torch.zeros(5, 0)).shape == (5, 0, DIM)


def test_row_dropout_drops_whole_rows_and_only_in_training() -> None:
    torch.manual_seed(0)
    dropout = RowDropout(0.5)
    kept = (dropout(torch.ones(1000, DIM)) != 0).float()
    assert ((kept.sum(1) == 0) | (kept.sum(1) == DIM)).all()
    assert 0.4 < kept.mean() < 0.6
    assert torch.equal(dropout.eval()(torch.ones(10, DIM)), torch.ones(10, DIM))
