"""Outcomes folded into vectors: the step that it says it is, row by row, and nearer to the truth after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models.upstream import fold_in_outcomes as module
from models.upstream.fold_in_outcomes import (
    RATE_PRIOR,
    BothSides,
    Frame,
    OutcomeFoldIn,
    Outcomes,
    axes,
    fit_scale,
    fold_in_outcomes,
    precisions,
    rate_directions,
    solve_outcomes,
    with_rates,
)

USERS, ITEMS, DIM, SCALE = 80, 60, 8, 6.0


def unit(rows: int, seed: int, dim: int = DIM) -> Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)))


def outcomes(users: Tensor, items: Tensor, each: int = 200, seed: int = 0) -> Outcomes:
    """Show every user but the last `each` items that it likes by its vector; some count half, some are activities."""
    draw = torch.Generator().manual_seed(seed)
    row = torch.arange(len(users) - 1).repeat_interleave(each)
    item = torch.randint(len(items), (len(row),), generator=draw)
    offset = torch.full((len(row),), -1.0)
    product = ((users - users.mean(0))[row] * (items - items.mean(0))[item]).sum(1)
    happened = torch.bernoulli(torch.sigmoid(offset + SCALE * product), generator=draw)
    weight = torch.where(torch.arange(len(row)) % 3 == 0, 0.5, 1.0)
    return Outcomes.by(row, item, happened, offset, weight, (torch.arange(len(row)) % 3 != 1).float())


def textbook(prior: Tensor, centre: Tensor, other: Tensor, given: Outcomes, row: int, told: Tensor) -> Tensor:
    """One Newton step of a logistic regression with a Gaussian prior, in double precision."""
    mine = given.take(given.row == row)
    near = torch.cat([(other - other.mean(0))[mine.other] * SCALE, mine.rated[:, None]], dim=1).double()
    start = torch.cat([prior[row] - centre, torch.zeros(1)]).double()
    chance = torch.sigmoid(mine.offset.double() + near @ start)
    precision = torch.cat([told, torch.tensor([RATE_PRIOR])]).double()
    gradient = near.T @ ((mine.happened - chance) * mine.weight)
    hessian = near.T @ ((mine.weight * chance * (1 - chance))[:, None] * near) + torch.diag(precision)
    return prior[row] + torch.linalg.solve(hessian, gradient)[:-1].float()


def frame(prior: Tensor, told: Tensor) -> Frame:
    nobody = torch.full((DIM,), torch.nan)
    return Frame(prior.mean(0), nobody, torch.eye(DIM), SCALE, told, nobody)


def both(given: Outcomes, rates: tuple[Tensor, Tensor] | None = None) -> BothSides:
    user_rates, item_rates = rates or (torch.zeros(USERS), torch.zeros(ITEMS))
    return BothSides(given, given.turned(), user_rates, item_rates)


def solved(prior: Tensor, other: Tensor, given: Outcomes, told: Tensor) -> Tensor:
    return solve_outcomes("user", prior, other, given, frame(prior, told))


def test_every_row_takes_the_newton_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 30)
    users, items, told = unit(USERS, 1), unit(ITEMS, 2), torch.linspace(2.0, 40.0, DIM)
    given = outcomes(users, items)
    found = solved(unit(USERS, 3), items, given, told)
    for row in range(USERS - 1):
        exact = textbook(unit(USERS, 3), unit(USERS, 3).mean(0), items, given, row, told)
        assert torch.allclose(found[row], exact, atol=1e-4)
    # Of the last user nothing is known.
    assert torch.equal(found[-1], unit(USERS, 3)[-1])


def test_the_steps_that_are_taken_come_near_it() -> None:
    users, items, told = unit(USERS, 1), unit(ITEMS, 2), torch.linspace(10.0, 80.0, DIM)
    given = outcomes(users, items)
    found = solved(unit(USERS, 3), items, given, told)
    exact = [textbook(unit(USERS, 3), unit(USERS, 3).mean(0), items, given, row, told) for row in range(USERS - 1)]
    moved = torch.linalg.norm(torch.stack(exact) - unit(USERS, 3)[:-1], dim=1)
    assert (torch.linalg.norm(found[:-1] - torch.stack(exact), dim=1) / moved).max() < 0.05


def test_chunks_and_samples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, told = unit(USERS, 1), unit(ITEMS, 2), torch.full((DIM,), 100.0)
    given, prior = outcomes(users, items), unit(USERS, 3)
    whole = solved(prior, items, given, told)
    some = torch.tensor([7, 0, USERS - 1])
    again = solve_outcomes("user", prior[some], items, given.of(some), frame(prior, told))
    assert torch.allclose(again, whole[some], atol=1e-5)
    monkeypatch.setattr(module, "CHUNK_FLOATS", 16 * DIM)
    assert torch.allclose(solved(prior, items, given, told), whole, atol=1e-5)


def test_what_was_known_badly_is_known_better_after_it() -> None:
    """The model's vectors are the truth and noise: after outcomes products are nearer to the true ones."""
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    given = outcomes(users, items, each=400)
    model = [functional.normalize(side + 0.6 * unit(len(side), 5)) for side in (users, items)]

    def likeness(left: Tensor, right: Tensor) -> float:
        told = (left - left.mean(0)) @ (right - right.mean(0)).T
        truth = (users - users.mean(0)) @ (items - items.mean(0)).T
        return float(torch.corrcoef(torch.stack([told.flatten(), truth.flatten()]))[0, 1])

    config = OutcomeFoldIn(prior=10.0)
    folded = fold_in_outcomes(*model, both(given), config)
    assert likeness(folded.users, folded.items) > likeness(*model) + 0.08
    assert torch.allclose(torch.linalg.norm(folded.items, dim=1), torch.ones(ITEMS), atol=1e-5)
    # The same outcomes dealt to anybody do not follow the model's products, and move nothing.
    dealt = given.happened[torch.randperm(len(given.row), generator=torch.Generator().manual_seed(9))]
    deaf = Outcomes.by(given.row, given.other, dealt, given.offset, given.weight, given.rated)
    again = fold_in_outcomes(*model, both(deaf), config)
    assert likeness(again.users, again.items) <= likeness(*model) + 1e-6


def test_the_scale_is_the_slope_of_the_logits() -> None:
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    assert fit_scale(users, items, outcomes(users, items, each=2000)) == pytest.approx(SCALE, rel=0.05)
    # Vectors that say the opposite are no reason to turn round.
    assert fit_scale(-users, items, outcomes(users, items)) == 0.0


def test_long_vectors_move_where_vectors_vary() -> None:
    wide = 40
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=torch.Generator().manual_seed(4)))[0][:, :DIM]
    users, items = unit(USERS, 1) @ turn.T, unit(ITEMS, 2) @ turn.T
    directions = axes(users, items, OutcomeFoldIn(rate=0.0))
    assert directions.shape == (wide, module.DIRECTIONS)
    assert torch.allclose(directions.T @ directions, torch.eye(module.DIRECTIONS), atol=1e-5)
    assert torch.allclose(directions @ (directions.T @ turn), turn, atol=1e-4)
    given = outcomes(users, items)
    config = OutcomeFoldIn(rate=0.0, even=True)
    folded = fold_in_outcomes(users, items, both(given), config)
    narrow = fold_in_outcomes(users @ turn, items @ turn, both(given), config)
    assert torch.allclose(folded.users @ turn, narrow.users, atol=1e-3)


def test_nothing_to_fold_in_leaves_the_model() -> None:
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    nothing = outcomes(users, items).take(slice(0))
    folded = fold_in_outcomes(users, items, both(nothing), OutcomeFoldIn(rate=0.0))
    assert torch.allclose(folded.users, users, atol=1e-6) and torch.allclose(folded.items, items, atol=1e-6)


def test_where_vectors_vary_more_they_may_move_more() -> None:
    spread = torch.tensor([0.4, 0.2, 0.1, 0.0])
    vectors = torch.randn(5000, 4, generator=torch.Generator().manual_seed(8)) * spread
    found = precisions(vectors, OutcomeFoldIn(prior=100.0))
    assert found[:3] * vectors.var(0)[:3] == pytest.approx([100.0 * float(vectors.var(0).mean())] * 3, rel=1e-4)
    assert torch.isfinite(found).all() and found[3] > 10 * found[2]
    assert (precisions(vectors, OutcomeFoldIn(prior=7.0, even=True)) == 7.0).all()
    # Vectors that are all the same keep a prior.
    assert (precisions(vectors[:1].repeat(9, 1), OutcomeFoldIn(prior=7.0)) >= 7.0).all()
    assert (precisions(vectors[:1], OutcomeFoldIn(prior=7.0)) == 7.0).all()


@pytest.mark.parametrize("dim", [5, DIM, 42])
def test_vectors_move_beside_the_directions_of_rates(dim: int) -> None:
    users, items = unit(USERS, 1, dim), unit(ITEMS, 2, dim)
    columns = torch.cat([axes(users, items, OutcomeFoldIn()), rate_directions(dim)], dim=1)
    assert columns.shape[1] == min(dim, module.DIRECTIONS + 2)
    assert torch.allclose(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5)
    assert (rate_directions(dim).abs() > 0.05).all()
    assert torch.isfinite(axes(users[:0], items, OutcomeFoldIn())).all()


def test_rates_are_told_and_products_know_nothing_of_them() -> None:
    dim = 40
    users, items = unit(USERS, 1, dim), unit(ITEMS, 2, dim)
    draw = torch.Generator().manual_seed(6)
    rates = torch.randn(USERS, generator=draw) * 0.4, torch.randn(ITEMS, generator=draw) * 0.4
    given, config = outcomes(users, items), OutcomeFoldIn(rate=0.5)
    folded = fold_in_outcomes(users, items, both(given, rates), config)
    silent = fold_in_outcomes(users, items, both(given), config)
    for side, other, own, at in (
        (folded.users, silent.users, rates[0], 0),
        (folded.items, silent.items, rates[1], 1),
    ):
        told = side @ rate_directions(dim)
        assert torch.allclose(torch.linalg.norm(side, dim=1), torch.ones(len(side)), atol=1e-5)
        assert torch.corrcoef(torch.stack([told[:, at], own]))[0, 1] > 0.99
        assert (told[:, at] / own).median() == pytest.approx(0.5, rel=0.1)
        assert told[:, 1 - at].abs().max() < 1e-6
        # What is left of a vector is what it would be without rates, shortened.
        left = functional.normalize(side - told @ rate_directions(dim).T)
        assert torch.allclose(left, other, atol=1e-5)
    some = torch.tensor([3, 0])
    whole = with_rates("user", users, rates[0], config)
    assert torch.allclose(with_rates("user", users[some], rates[0][some], config), whole[some])
    assert with_rates("user", users, rates[0], OutcomeFoldIn(rate=0.0)) is users


@pytest.mark.parametrize("bad", [{"prior": 0.0}, {"half_life_days": -1.0}, {"rate": -0.1}])
def test_settings_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"above 0|below 0"):
        OutcomeFoldIn(**bad)
