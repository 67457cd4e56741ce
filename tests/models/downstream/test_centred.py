"""Products of vectors less their means."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from models.downstream.artifact import load_ranker, save_ranker
from models.downstream.batches import RankerTensors
from models.downstream.fit import predict
from models.downstream.ranker import Ranker, RankerConfig

CONFIG = RankerConfig(hidden=(16, 8), token_dim=8, pair_dim=4, numeric_dim=8, cross_rank=4)
CENTRED = dataclasses.replace(CONFIG, centred=True)


def build(spec, data, config):
    torch.manual_seed(0)
    model = Ranker(spec, config)
    model.set_statistics(data)
    model.embedding_scale.fill_(1.0)
    return model


def shifted(data, by):
    moved = {name: (table + np.float32(by), index) for name, (table, index) in data.embeddings.items()}
    return dataclasses.replace(data, embeddings=moved)


def products(model, data, spec):
    return model.embed(RankerTensors(data, spec).batch(torch.arange(len(data))))[:, -(CONFIG.pair_dim + 1) :]


def test_what_all_vectors_have_in_common_is_no_part_of_a_centred_product(spec, make_log):
    data = make_log(200)
    moved = shifted(data, 3.0)
    first, second = (products(build(spec, rows, CENTRED), rows, spec) for rows in (data, moved))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    plain = (products(build(spec, rows, CONFIG), rows, spec) for rows in (data, moved))
    assert not torch.allclose(*plain, atol=1e-1)


def test_the_mean_is_that_of_the_rows_that_have_a_vector(spec, make_log):
    data = make_log(200)
    name = spec.pairs[0][0]
    table, index = data.embeddings[name]
    index = np.where(np.arange(200) < 50, -1, index)
    model = build(spec, dataclasses.replace(data, embeddings={**data.embeddings, name: (table, index)}), CENTRED)
    position = [field for field, _ in spec.embeddings].index(name)
    mean = model.get_buffer(f"embedding_mean_{position}").numpy()
    np.testing.assert_allclose(mean, table[index[50:]].mean(axis=0), atol=1e-5)


def test_means_are_kept_with_the_ranker(spec, make_log, tmp_path):
    data = shifted(make_log(60), 2.0)
    model = build(spec, data, CENTRED)
    spaces = {name: "aa" for name, _ in spec.embeddings}
    save_ranker(model, tmp_path, spaces, {"offset": 0.0})
    saved = load_ranker(tmp_path, spaces)
    assert saved.model.config.centred
    np.testing.assert_array_equal(predict(saved.model, data), predict(model, data))
