"""Embeddings of several tokens, and attention among them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.downstream.artifact import load_ranker, save_ranker
from models.downstream.batches import RankerTensors
from models.downstream.fit import predict
from models.downstream.inputs import RankerSpec
from models.downstream.layers import TokenAttention
from models.downstream.ranker import Ranker, RankerConfig

CONFIG = RankerConfig(hidden=(16, 8), token_dim=8, pair_dim=4, numeric_dim=8, cross_rank=4)
ATTENTION = dataclasses.replace(CONFIG, attention_heads=2)


@pytest.fixture
def tokens(spec: RankerSpec) -> RankerSpec:
    return dataclasses.replace(spec, tokens=(("user_v1", 4), ("item_v1", 2)))


def build(spec, data, config):
    torch.manual_seed(0)
    model = Ranker(spec, config)
    model.set_statistics(data)
    return model


@pytest.mark.parametrize("config", [CONFIG, ATTENTION])
def test_every_weight_gets_a_gradient(tokens, make_log, config):
    data = make_log(300)
    table, index = data.embeddings["user_v1"]
    data = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": (table, np.where(index < 5, -1, index))})
    table, index = data.embeddings["item_v1"]
    data = dataclasses.replace(data, embeddings={**data.embeddings, "item_v1": (table, np.where(index < 5, -1, index))})
    model = build(tokens, data, config)
    model(RankerTensors(data, tokens).batch(torch.arange(300))).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_each_token_is_projected_by_its_own_weights(tokens, make_log):
    data = make_log(20)
    model = build(tokens, data, CONFIG).eval()
    table, index = data.embeddings["user_v1"]
    embedded = model.embed(RankerTensors(data, tokens).batch(torch.arange(20)))
    weight, bias = model.tokens[0].weight * model.embedding_scale[0], model.tokens[0].bias
    for at in range(4):
        piece = torch.from_numpy(table[index][:, 2 * at : 2 * at + 2])
        own = piece @ weight[8 * at : 8 * at + 8].T + bias[8 * at : 8 * at + 8]
        expected = torch.nn.functional.layer_norm(own, (8,))
        torch.testing.assert_close(embedded[:, 8 * at : 8 * at + 8], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, ATTENTION])
def test_what_lies_in_the_place_of_a_missing_vector_does_not_matter(tokens, make_log, config):
    data = make_log(40)
    missing = np.where(np.arange(40) < 10, -1, data.embeddings["user_v1"][1])
    table = data.embeddings["user_v1"][0]
    gone = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": (table, missing)})
    other = dataclasses.replace(gone, embeddings={**gone.embeddings, "user_v1": (table * 2.0, np.full(40, -1))})
    model = build(tokens, data, config)
    if model.attention is not None:
        torch.nn.init.normal_(model.attention.missing)
    np.testing.assert_array_equal(predict(model, gone)[:10], predict(model, other)[:10])
    np.testing.assert_allclose(predict(model, gone)[10:], predict(model, data)[10:], atol=1e-6)
    assert not np.allclose(predict(model, gone)[:10], predict(model, data)[:10])


def test_attention_lets_a_token_take_from_another_input():
    torch.manual_seed(0)
    layer = TokenAttention([0, 0, 1], dim=8, heads=2)
    given, present = torch.randn(1, 3, 8, requires_grad=True), torch.ones(1, 2)
    layer(given, present)[0, 0].sum().backward()
    assert (given.grad[0, 2] != 0).any()
    # With the other input missing its learned token stands there, and nothing of what was given.
    given.grad = None
    layer(given, torch.tensor([[1.0, 0.0]]))[0, 0].sum().backward()
    assert not given.grad[0, 2].any() and (given.grad[0, 1] != 0).any()
    with pytest.raises(ValueError, match="3 heads do not divide"):
        TokenAttention([0], dim=8, heads=3)


def test_tokens_are_read_as_they_were_written(tokens, make_log, tmp_path):
    data = make_log(60)
    model = build(tokens, data, ATTENTION)
    spaces = {"user_v1": "aa", "item_v1": "aa"}
    save_ranker(model, tmp_path, spaces, {"offset": 0.0})
    saved = load_ranker(tmp_path, spaces)
    assert saved.model.spec == tokens and saved.model.config.attention_heads == 2
    np.testing.assert_array_equal(predict(saved.model, data), predict(model, data))


def test_a_lift_table_keeps_the_tokens_of_what_it_keeps(tokens):
    assert tokens.with_embeddings(["item_v1"]).tokens == (("item_v1", 2),)
    with pytest.raises(ValueError, match="'user_v1' of 8 floats is no 3 tokens"):
        dataclasses.replace(tokens, tokens=(("user_v1", 3),))
