"""Shapes, gradients, missing inputs and files of the ranker."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from feature_repo.contracts.errors import NotFoundError, SpaceMismatchError
from models.downstream.artifact import CONFIG_FILE, load_ranker, save_ranker
from models.downstream.batches import SPARSE_ROWS, RankerTensors
from models.downstream.fit import predict
from models.downstream.inputs import RankerSpec
from models.downstream.layers import CrossLayer, Dropout, IdDropout, NumericInput
from models.downstream.ranker import Ranker, RankerConfig

CONFIG = RankerConfig(hidden=(16, 8), token_dim=8, pair_dim=4, numeric_dim=8, cross_rank=4)


def build(spec, data, config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = Ranker(spec, config)
    model.set_statistics(data)
    return model


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, cross_rank=0),
        dataclasses.replace(CONFIG, cross_layers=0),
        dataclasses.replace(CONFIG, hidden=()),
        dataclasses.replace(CONFIG, numeric_bins=0),
    ],
)
def test_every_weight_gets_a_gradient(spec, make_log, config):
    data = make_log(300)
    data.nums[:9] = np.nan
    model = build(spec, data, config)
    logits = model(RankerTensors(data, spec).batch(torch.arange(300)))
    assert logits.shape == (300,)
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "spec",
    [
        RankerSpec(nums=2),
        RankerSpec(cats=(("user", 61, 4),)),
        RankerSpec(embeddings=(("user_v1", 8),)),
        RankerSpec(crosses=(("user_x_item", SPARSE_ROWS + 1, 4),)),
    ],
)
def test_any_group_of_inputs_alone(spec, make_log):
    data = make_log(30)
    data = dataclasses.replace(
        data,
        cats=data.cats[:, : len(spec.cats)],
        crosses=data.crosses[:, : len(spec.crosses)],
        nums=data.nums[:, : spec.nums],
    )
    model = build(spec, data)
    model(RankerTensors(data, spec).batch(torch.arange(30))).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_missing_embedding_is_zero_plus_indicator(spec, make_log):
    data = make_log(40)
    missing = np.arange(40) < 10
    table, index = data.embeddings["user_v1"]
    gone = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": (table, np.where(missing, -1, index))})
    model = build(spec, data).eval()
    batch = RankerTensors(gone, spec).batch(torch.arange(40))
    embedded = model.embed(batch)[:10]
    # Token of the user, then token of the item, then product and dot of the pair.
    assert (embedded[:, :8] == 0).all() and (embedded[:, 16:] == 0).all()
    assert (embedded[:, 8:16] != 0).any()
    joined = model.join(batch)
    assert joined[:10, -2:].tolist() == [[0.0, 1.0]] * 10 and joined[10:, -2:].tolist() == [[1.0, 1.0]] * 30
    # What lies in the table for a missing row must not matter, and rows that are there must not change.
    other = dataclasses.replace(gone, embeddings={**gone.embeddings, "user_v1": (table[::-1].copy(), np.full(40, -1))})
    np.testing.assert_array_equal(predict(model, gone)[:10], predict(model, other)[:10])
    np.testing.assert_array_equal(predict(model, gone)[10:], predict(model, data)[10:])


def test_plain_vectors_equal_gathered_ones_and_nan_rows_are_missing(spec, make_log):
    data = make_log(40)
    table, index = data.embeddings["user_v1"]
    index = np.where(np.arange(40) % 4 == 0, -1, index)
    plain = np.where((index < 0)[:, None], np.float32(np.nan), table[index])
    model = build(spec, data)
    gathered = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": (table, index)})
    flat = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": plain})
    np.testing.assert_array_equal(predict(model, gathered), predict(model, flat))


@pytest.mark.parametrize("rows", [0, 5])
def test_nobody_has_an_embedding(spec, make_log, rows):
    data = make_log(40)
    nothing = (np.full((rows, 8), np.nan, dtype=np.float32), np.full(40, -1))
    data = dataclasses.replace(data, embeddings={"user_v1": nothing, "item_v1": nothing})
    assert np.isfinite(predict(build(spec, data), data)).all()


def test_predictions_do_not_depend_on_the_batch(spec, make_log):
    data = make_log(100)
    model = build(spec, data)
    one_by_one = [predict(model, data.take(np.array([row])))[0] for row in range(100)]
    np.testing.assert_allclose(predict(model, data), one_by_one, atol=1e-6)


def test_scale_of_the_embeddings_does_not_matter(spec, make_log):
    data = make_log(100)
    large = dataclasses.replace(
        data, embeddings={name: (table * 50, index) for name, (table, index) in data.embeddings.items()}
    )
    np.testing.assert_allclose(predict(build(spec, data), data), predict(build(spec, large), large), atol=1e-5)


def test_cross_layer_by_hand():
    layer = CrossLayer(3, 0)
    first, x = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    with torch.no_grad():
        layer.up.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 1, 1]]))
        layer.up.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    assert layer(first, x).tolist() == [[1 * 4.5 + 4, 2 * 10 + 5, 3 * 14 + 6]]


def test_numeric_bins_are_quantiles_and_nan_is_told():
    values = np.repeat(np.array([0.0, 0, 0, 0, 0, 0, 1, 2, 4, 8], np.float32), 50)[:, None]
    layer = NumericInput(1, bins=2, dim=3)
    layer.set_statistics(values)
    torch.nn.init.zeros_(layer.project.bias)
    with torch.no_grad():
        layer.project.weight.copy_(torch.eye(3))
    low, middle, high, missing = layer(torch.tensor([[0.0], [1.0], [8.0], [np.nan]])).detach()
    assert low[1:].tolist() == [0, 0, 0] and high[1:].tolist() == [1, 1, 0]
    assert 0 < middle[1] <= 1 and middle[2] < 1
    assert missing.tolist() == [0, 0, 0, 1]


def test_constant_and_unknown_numbers_are_harmless():
    layer = NumericInput(2, bins=4, dim=2)
    layer.set_statistics(np.array([[3.0, np.nan]] * 20, np.float32))
    assert layer(torch.tensor([[3.0, np.nan], [1e30, -1e30]])).isfinite().all()


def test_dropout_rate_and_scale():
    layer = Dropout(0.25)
    layer.generator = torch.Generator().manual_seed(1)
    out = layer(torch.ones(1000, 101))
    assert abs((out == 0).float().mean() - 0.25) < 0.005
    assert abs(out.mean() - 1) < 0.01
    assert layer.eval()(out) is out
    with pytest.raises(ValueError, match="rate is 1"):
        Dropout(1.0)


def test_id_dropout_hides_large_vocabularies_only():
    layer = IdDropout(offsets=(0, 50), sizes=(50, 2000), rate=0.5, smallest=1000)
    ids = torch.tensor([[7, 60]]).repeat(4000, 1)
    out = layer(ids)
    assert (out[:, 0] == 7).all()
    assert set(out[:, 1].tolist()) == {50, 60}
    assert abs((out[:, 1] == 50).float().mean() - 0.5) < 0.05
    assert (ids[:, 1] == 60).all()
    assert layer.eval()(ids) is ids


def test_save_and_load(spec, make_log, tmp_path):
    data = make_log(60)
    model = build(spec, data)
    spaces = {"user_v1": "aa", "item_v1": "aa"}
    save_ranker(model, tmp_path / "ctr", spaces, {"offset": -3.5})
    saved = load_ranker(tmp_path / "ctr", spaces)
    np.testing.assert_array_equal(predict(saved.model, data), predict(model, data))
    assert saved.space_ids == spaces and saved.extra == {"offset": -3.5}
    assert not saved.model.training
    assert json.loads((tmp_path / "ctr" / CONFIG_FILE).read_text())["space_ids"] == spaces


def test_spaces_must_agree(spec, make_log, tmp_path):
    model = build(spec, make_log(60))
    with pytest.raises(SpaceMismatchError, match="without a space: item_v1"):
        save_ranker(model, tmp_path, {"user_v1": "aa"})
    with pytest.raises(SpaceMismatchError, match="joins spaces aa and bb"):
        save_ranker(model, tmp_path, {"user_v1": "aa", "item_v1": "bb"})
    assert not list(tmp_path.iterdir())
    save_ranker(model, tmp_path, {"user_v1": "aa", "item_v1": "aa"})
    with pytest.raises(SpaceMismatchError, match="trained with space aa as 'user_v1', but is given bb"):
        load_ranker(tmp_path, {"user_v1": "bb", "item_v1": "aa"})
    with pytest.raises(NotFoundError, match="No ranker in"):
        load_ranker(tmp_path / "nowhere", {})
