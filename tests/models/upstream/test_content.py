"""The content embedding: like items lie together, it is the same every time, and it knows what it does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from feature_repo.contracts.errors import ConfigError, LakeError
from models.upstream.content import Bags, ContentEmbedding


def bags(rows: list[list[int]]) -> Bags:
    counts = [len(row) for row in rows]
    feature = torch.tensor([feature for row in rows for feature in row], dtype=torch.int64)
    start = torch.tensor([0, *np.cumsum(counts)[:-1]], dtype=torch.int64)
    return Bags(feature, torch.ones(len(feature)), start)


# Features 0 to 2 occur together, 3 to 5 occur together; 6 and 7 say nothing about either.
ROWS = [[0, 1, 6], [0, 2, 7], [1, 2, 6], [0, 1, 7], [3, 4, 6], [3, 5, 7], [4, 5, 6], [3, 4, 7]] * 3


@pytest.fixture
def model() -> ContentEmbedding:
    return ContentEmbedding.fit(bags(ROWS), 8, 4)


def test_items_whose_attributes_occur_with_the_same_others_lie_together() -> None:
    # Three groups; within each, the first and the third never meet but both go with the second.
    rows = [[group, group + 1] for group in (0, 3, 6)] + [[group + 1, group + 2] for group in (0, 3, 6)]
    vectors, _ = ContentEmbedding.fit(bags(rows * 2), 9, 2).vectors(bags([[0], [2], [5]]))
    same, other = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert same > 0.9 and other < 0


def test_vectors_are_the_centred_features_along_the_directions_of_largest_spread(model: ContentEmbedding) -> None:
    dense = torch.zeros(len(ROWS), 8)
    for row, features in enumerate(ROWS):
        dense[row, features] = model.rarity[features]
    dense /= dense.norm(dim=1, keepdim=True)
    centred = dense - dense.mean(0)
    _, _, vt = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ vt[:4].T
    vectors, norms = model.vectors(bags(ROWS))
    gram = (vectors * norms[:, None]) @ (vectors * norms[:, None]).T
    torch.testing.assert_close(gram, expected @ expected.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(ROWS)))


def test_it_is_the_same_every_time(model: ContentEmbedding) -> None:
    again = ContentEmbedding.fit(bags(ROWS), 8, 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_an_item_without_features_has_no_vector(model: ContentEmbedding) -> None:
    vectors, norms = model.vectors(bags([[], [0, 1], []]))
    assert norms[0] == 0 and norms[2] == 0 and norms[1] > 0
    assert not vectors[0].any() and not vectors[2].any()
    alone, _ = model.vectors(bags([[0, 1]]))
    torch.testing.assert_close(vectors[1], alone[0])


def test_the_length_is_bounded_by_what_there_is_to_tell() -> None:
    assert ContentEmbedding.fit(bags(ROWS), 8, 64).dim < 8
    with pytest.raises(ConfigError, match="less than two directions"):
        ContentEmbedding.fit(bags([[0, 1], [0, 1], [0, 2]]), 3, 64)


def test_it_is_read_as_it_was_written(model: ContentEmbedding, tmp_path: Path) -> None:
    model.save(tmp_path)
    before, after = model.vectors(bags(ROWS)), ContentEmbedding.load(tmp_path).vectors(bags(ROWS))
    assert torch.equal(before[0], after[0])
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(LakeError, match="not those of its config"):
        ContentEmbedding.load(tmp_path)
