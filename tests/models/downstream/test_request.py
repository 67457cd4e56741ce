"""A ranker made ready for requests says what the ranker says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.downstream.batches import RankerBatch, table_layouts
from models.downstream.inputs import RankerSpec
from models.downstream.ranker import Ranker, RankerConfig
from models.downstream.request import Asked, Candidates, Columns, RequestRanker, Sources

CONFIG = RankerConfig(hidden=(16, 8), token_dim=8, pair_dim=4, numeric_dim=8, cross_rank=4, numeric_bins=3)
SPEC = RankerSpec(
    cats=(("user", 60_000, 4), ("item", 40, 4), ("age", 7, 4), ("brand", 30, 8), ("colour", 5, 4), ("hour", 25, 8)),
    nums=7,
    crosses=(("user x brand", 60_000, 4), ("user x colour", 64, 4)),
    embeddings=(("user_v1", 16), ("item_v1", 16), ("item_v2", 8), ("user_v2", 8), ("item_v3", 16)),
    pairs=(("user_v1", "item_v1"), ("item_v2", "user_v2"), ("item_v1", "item_v3"), ("user_v1", "item_v3")),
)
SOURCES = Sources(
    asked=Columns(cats=(5, 0, 2), nums=(6, 0, 1)),
    items=(Columns(cats=(4, 3)), Columns(nums=(2, 4)), Columns(cats=(), nums=(3, 5))),
    asked_embeddings=frozenset({"user_v1", "user_v2"}),
)


def ranker_of(spec: RankerSpec, config: RankerConfig) -> Ranker:
    """Return a ranker whose every weight and statistic matters."""
    torch.manual_seed(0)
    model = Ranker(spec, config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.2)
    if model.numeric is not None and config.numeric_bins:  # each number fills its own bins
        fields = torch.eye(spec.nums).repeat_interleave(config.numeric_bins, dim=1)
        model.numeric.spread.mul_(fields * 0.3)
    return model


def request_of(
    spec: RankerSpec, sources: Sources, count: int, *, gone: Sequence[str] = (), seed: int = 0
) -> RankerBatch:
    """Return candidates of one request; of the embeddings that are gone the user's is, or every second item's."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [size for _, size, _ in (*spec.cats, *spec.crosses)]
    columns = torch.stack([torch.randint(size, (count,), generator=draw) for size in sizes], dim=1)
    nums = torch.rand(count, spec.nums, generator=draw) * 20 - 4
    nums[torch.rand(nums.shape, generator=draw) < 0.2] = torch.nan
    columns[:, sources.asked.cats] = columns[:1, sources.asked.cats]
    nums[:, sources.asked.nums] = nums[:1, sources.asked.nums]
    vectors, present = [], torch.ones(count, len(spec.embeddings))
    for at, (name, dim) in enumerate(spec.embeddings):
        asked = name in sources.asked_embeddings
        vector = torch.randn(1 if asked else count, dim, generator=draw).expand(count, -1)
        vectors.append(vector)
        if name in gone:
            present[:: 1 if asked else 2, at] = 0.0
    ids = tuple(columns[:, layout.columns] + torch.tensor(layout.offsets) for layout in table_layouts(spec))
    return RankerBatch(ids, nums, tuple(vectors), present)


def prepared_logits(model: Ranker, sources: Sources, batch: RankerBatch) -> Tensor:
    """Return the logits of the ranker that is made ready, from the same inputs."""
    ready, spec = RequestRanker(model, sources), model.spec
    columns = torch.empty(len(batch.nums), len(spec.cats) + len(spec.crosses), dtype=torch.long)
    for layout, ids in zip(table_layouts(spec), batch.ids, strict=True):
        columns[:, layout.columns] = ids - torch.tensor(layout.offsets)
    names = [name for name, _ in spec.embeddings]
    asked_at = [at for at, name in enumerate(names) if name in sources.asked_embeddings]
    own_at = [at for at in range(len(names)) if at not in asked_at]
    asked = Asked(
        ready.asked.ids(columns[:1].numpy()),
        batch.nums[:1, sources.asked.nums].numpy(),
        tuple(batch.vectors[at][:1] for at in asked_at),
        tuple(bool(batch.present[0, at]) for at in asked_at),
    )
    known = tuple(
        torch.from_numpy(ready.encode(at, ready.items[at].ids(columns.numpy()), batch.nums[:, part.nums].numpy()))
        for at, part in enumerate(sources.items)
    )
    own = batch.present[:, own_at]
    there = None if own.all() else own
    ids = ready.lookups.ids(columns.numpy())
    return ready(asked, Candidates(known, ids, tuple(batch.vectors[at] for at in own_at), there))


def assert_same(spec: RankerSpec, config: RankerConfig, sources: Sources = SOURCES, **request: Any) -> None:
    model = ranker_of(spec, config)
    batch = request_of(spec, sources, 50, **request)
    with torch.inference_mode():
        expected = model.double()(
            RankerBatch(
                batch.ids, batch.nums.double(), tuple(v.double() for v in batch.vectors), batch.present.double()
            )
        )
        model.float()
    found = prepared_logits(model, sources, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


SHAPES: dict[str, dict[str, Any]] = {
    "as the demo": {},
    "centred": {"centred": True},
    "one cross layer": {"cross_layers": 1},
    "no cross layer": {"cross_layers": 0},
    "three cross layers": {"cross_layers": 3},
    "full rank": {"cross_rank": 0},
    "no mlp": {"hidden": ()},
    "deep mlp": {"hidden": (16, 8, 8)},
    "no bins": {"numeric_bins": 0},
    "neither": {"hidden": (), "cross_layers": 0},
    "attention": {"attention_heads": 2, "centred": True},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gone", [(), ("user_v1",), ("item_v1",), ("user_v1", "user_v2", "item_v2", "item_v3")])
def test_every_shape_gives_the_rankers_logits(shape: str, gone: tuple[str, ...]) -> None:
    assert_same(SPEC, dataclasses.replace(CONFIG, **SHAPES[shape]), gone=gone)
    tokens = dataclasses.replace(SPEC, tokens=(("user_v1", 4), ("item_v1", 2), ("item_v2", 4)))
    assert_same(tokens, dataclasses.replace(CONFIG, **SHAPES[shape]), gone=gone)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), drawn=st.data())
def test_any_split_of_the_inputs_gives_the_rankers_logits(seed: int, drawn: st.DataObject) -> None:
    def dealt(count: int, hands: int) -> list[list[int]]:
        owner = drawn.draw(st.lists(st.integers(0, hands - 1), min_size=count, max_size=count))
        return [[at for at in range(count) if owner[at] == hand] for hand in range(hands)]

    cats, nums = dealt(len(SPEC.cats), 4), dealt(SPEC.nums, 3)  # the last categories are looked up
    parts = [Columns(tuple(c), tuple(n)) for c, n in zip(cats, nums, strict=False)]
    asked = frozenset(drawn.draw(st.sets(st.sampled_from([name for name, _ in SPEC.embeddings]))))
    gone = drawn.draw(st.lists(st.sampled_from([name for name, _ in SPEC.embeddings]), max_size=3))
    config = dataclasses.replace(CONFIG, **SHAPES[drawn.draw(st.sampled_from(sorted(SHAPES)))])
    assert_same(SPEC, config, Sources(parts[0], tuple(parts[1:]), asked), gone=gone, seed=seed)


def test_without_numbers_and_embeddings() -> None:
    spec = dataclasses.replace(SPEC, nums=0, embeddings=(), pairs=())
    assert_same(spec, CONFIG, Sources(Columns(cats=(0,)), (Columns(cats=(1, 3)),), frozenset()))


def test_a_number_without_a_source_and_a_field_with_two_are_refused() -> None:
    model = ranker_of(SPEC, CONFIG)
    for asked in (Columns(nums=(0, 1)), Columns(cats=(3,), nums=(6, 0, 1)), Columns(nums=(6, 0, 1, 2))):
        with pytest.raises(ValueError, match="each number needs one source"):
            RequestRanker(model, dataclasses.replace(SOURCES, asked=asked))


def test_one_candidate_and_its_place_among_others_make_no_difference() -> None:
    model = ranker_of(SPEC, CONFIG)
    batch = request_of(SPEC, SOURCES, 30)
    whole = prepared_logits(model, SOURCES, batch)
    last = RankerBatch(
        tuple(ids[-1:] for ids in batch.ids), batch.nums[-1:], tuple(v[-1:] for v in batch.vectors), batch.present[-1:]
    )
    torch.testing.assert_close(prepared_logits(model, SOURCES, last), whole[-1:], atol=1e-5, rtol=1e-5)


def test_changing_the_ranker_afterwards_changes_no_layer() -> None:
    model = ranker_of(SPEC, CONFIG)
    ready = RequestRanker(model, SOURCES)
    z, a = torch.randn(3, len(ready._layers._direct_Z)), torch.randn(1, len(ready._layers._direct_A))
    before = ready._layers(a, z)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(ready._layers(a, z), before)
