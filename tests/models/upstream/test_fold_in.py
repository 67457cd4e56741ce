"""Choices folded into vectors: the minimum that it says it is, row by row, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models.upstream import fold_in as module
from models.upstream.fold_in import Choices, FoldIn, fold_in, solve

USERS, ITEMS, DIM = 60, 90, 12


def unit(rows: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)))


def choices(seed: int = 0, users: int = USERS, items: int = ITEMS, each: int = 6) -> Choices:
    """`each` distinct items of every user but the last, some of them chosen several times."""
    draw = np.random.default_rng(seed)
    found = [np.sort(draw.choice(items, each, replace=False)) for _ in range(users - 1)]
    count = draw.integers(1, 4, (users - 1) * each).astype(np.float32)
    return Choices(
        torch.arange(users - 1).repeat_interleave(each),
        torch.from_numpy(np.concatenate(found)),
        torch.from_numpy(count),
    )


def minimum(prior: Tensor, other: Tensor, rows: Choices, row: int, config: FoldIn) -> Tensor:
    """Solve the normal equations of one row as a textbook does, in double precision."""
    mine = rows.user == row
    near, extra = other[rows.item[mine]].double(), rows.count[mine].double() * config.confidence
    weight = config.prior * config.confidence
    left = other.double().T @ other.double() + near.T @ (extra[:, None] * near) + weight * torch.eye(DIM).double()
    right = ((1 + extra)[:, None] * near).sum(0) + weight * prior[row].double()
    return torch.linalg.solve(left, right).float()


def test_every_row_is_at_its_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 30)
    config, given, prior, other = FoldIn(prior=2.0), choices(), unit(USERS, 1), unit(ITEMS, 2)
    solved = solve(prior, other, given, config)
    for row in range(USERS - 1):
        assert torch.allclose(solved[row], minimum(prior, other, given, row, config), atol=1e-4)


def test_the_steps_that_are_taken_come_near_it() -> None:
    config, given, prior, other = FoldIn(), choices(), unit(USERS, 1), unit(ITEMS, 2)
    solved = solve(prior, other, given, config)
    exact = torch.stack([minimum(prior, other, given, row, config) for row in range(USERS - 1)])
    assert functional.cosine_similarity(solved[:-1], exact).min() > 0.999


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fold_in(unit(USERS, 1), unit(ITEMS, 2), choices(), FoldIn())
    monkeypatch.setattr(module, "CHUNK_PAIRS", 7)
    cut = fold_in(unit(USERS, 1), unit(ITEMS, 2), choices(), FoldIn())
    assert torch.allclose(whole.users, cut.users, atol=1e-6) and torch.allclose(whole.items, cut.items, atol=1e-6)


def test_some_rows_alone_are_what_they_are_together() -> None:
    users, items, given, config = unit(USERS, 1), unit(ITEMS, 2), choices(), FoldIn()
    folded = fold_in(users, items, given, config)
    rows = torch.tensor([41, 3, USERS - 1, 17])
    alone = functional.normalize(solve(users[rows], folded.for_users, given.of(rows), config))
    assert torch.allclose(alone, folded.users[rows], atol=1e-6)
    rows = torch.tensor([80, 0, 33])
    alone = functional.normalize(solve(items[rows], folded.for_items, given.by_item().of(rows), config))
    assert torch.allclose(alone, folded.items[rows], atol=1e-6)


def test_who_chose_nothing_keeps_the_models_vector() -> None:
    users, items, given = unit(USERS, 1), unit(ITEMS, 2), choices()
    folded = fold_in(users, items, given, FoldIn())
    assert torch.allclose(folded.users[-1], users[-1], atol=1e-6)
    untouched = np.setdiff1d(np.arange(ITEMS), given.item.numpy())
    assert len(untouched) and torch.allclose(folded.items[untouched], items[untouched], atol=1e-6)
    nothing = Choices(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    same = fold_in(users, items, nothing, FoldIn())
    assert torch.allclose(same.users, users, atol=1e-6) and torch.allclose(same.items, items, atol=1e-6)


def test_a_stronger_prior_moves_less() -> None:
    users, items, given = unit(USERS, 1), unit(ITEMS, 2), choices()
    moved = [
        float((fold_in(users, items, given, FoldIn(prior=prior)).items * items).sum(1).mean())
        for prior in (1.0, 10.0, 100.0)
    ]
    assert moved == sorted(moved) and moved[2] > 0.99 > moved[0]


def test_an_item_that_the_model_never_saw_is_found_by_those_who_will_like_it() -> None:
    """Two tastes, one direction each; a new item of the first has a vector of nowhere until choices say what it is."""
    taste = torch.arange(USERS) % 2
    users = functional.normalize(functional.one_hot(taste, DIM).float() + 0.2 * unit(USERS, 3))
    items = functional.normalize(functional.one_hot(torch.arange(ITEMS) % 2, DIM).float() + 0.2 * unit(ITEMS, 4))
    items[0] = unit(1, 5)[0]
    draw = np.random.default_rng(6)
    pairs = [(user, item) for user in range(USERS) for item in sorted(draw.choice(44, 5, False) * 2 + 2 - user % 2)]
    pairs = sorted([*pairs, *((user, 0) for user in range(0, 20, 2))])
    given = Choices(*torch.tensor(pairs).unbind(1), torch.ones(len(pairs)))
    others = torch.arange(20, USERS)

    def told_apart(users_UE: Tensor, items_IE: Tensor) -> float:
        """Share of pairs of others in which the one of the first taste stands nearer to the new item."""
        near = users_UE[others] @ items_IE[0]
        return float((near[taste[others] == 0][:, None] > near[taste[others] == 1]).float().mean())

    folded = fold_in(users, items, given, FoldIn(prior=2.0))
    assert told_apart(users, items) < 0.7 and told_apart(folded.users, folded.items) > 0.95


@pytest.mark.parametrize("wrong", [{"prior": 0.0}, {"confidence": -1.0}, {"rounds": 0}, {"half_life_days": 0.0}])
def test_settings_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FoldIn(**wrong)
