"""Outcomes folded into vectors: the steps that it says they are, row by row, and nearer to the truth after them."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models.upstream import outcome_frame, outcome_solving
from models.upstream.fold_in_outcomes import fold_in_outcomes, published
from models.upstream.outcome_frame import Frame, Own, axes, fit_scale, own_directions, precisions, with_own
from models.upstream.outcome_settings import OutcomeFoldIn, Pace
from models.upstream.outcome_solving import OWN_PRIOR, Given, State, solve_outcomes, start
from models.upstream.outcomes import AGE_EDGES, BothSides, Outcomes, age_steps, step_ages

USERS, ITEMS, DIM, SCALE = 80, 60, 8, 6.0
STAYS = Pace(1e9, 0.0)
ONCE = OutcomeFoldIn(rounds=1, doubt=0.0, intercepts=False, user=STAYS, item=STAYS)
MOVING = OutcomeFoldIn(prior=20.0, doubt=0.4, user=Pace(40.0, 0.4, 5.0), item=Pace(30.0, 0.2, 10.0))


def unit(rows: int, seed: int, dim: int = DIM) -> Tensor:
    return functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)))


def outcomes(users: Tensor, items: Tensor, each: int = 200, seed: int = 0, then: Tensor | None = None) -> Outcomes:
    """Show every user but the last `each` items that it likes by its vector; some count half, some are activities.

    Those of the last three days by `users`, those of the 57 before, as many again, by `then`, if it is given.
    """
    draw = torch.Generator().manual_seed(seed)
    row = torch.arange(len(users) - 1).repeat_interleave(each)
    item = torch.randint(len(items), (len(row),), generator=draw)
    age = torch.rand(len(row), generator=draw) * 3
    late = torch.rand(len(row), generator=draw) < 0.5
    age = torch.where(late, age, 3 + 19 * age)
    offset = torch.full((len(row),), -1.0)
    mine = torch.where(late[:, None], users[row], (users if then is None else then)[row])
    product = ((mine - users.mean(0)) * (items - items.mean(0))[item]).sum(1)
    happened = torch.bernoulli(torch.sigmoid(offset + SCALE * product), generator=draw)
    weight = torch.where(torch.arange(len(row)) % 3 == 0, 0.5, 1.0)
    return Outcomes.by(row, item, happened, offset, weight, (torch.arange(len(row)) % 3 != 1).float(), age)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state_of(rows: int, config: OutcomeFoldIn) -> State:
    """Some state of users in which nothing is 0."""
    parts = len(config.user.precisions)
    return State(
        drawn((rows, parts, DIM), 11) / 10,
        drawn((rows, 2), 12) / 10 * torch.tensor([1.0, config.intercepts]),
        torch.full((rows, DIM), torch.nan),
    )


def given_of(items: Tensor, config: OutcomeFoldIn) -> Given:
    """Some items, as users are given them, with parts and variances that differ."""
    parts = torch.stack([items - items.mean(0)] + [drawn(items.shape, 13) / 5] * (len(config.item.precisions) - 1), 1)
    variance = torch.rand(items.shape, generator=torch.Generator().manual_seed(14)) / 20
    return Given(parts, variance, drawn((len(items), 2), 15) / 5 * config.intercepts)


def textbook(
    base: Tensor, state: State, given: Given, outcomes: Outcomes, row: int, told: Tensor, config: OutcomeFoldIn
) -> tuple[Tensor, Tensor]:
    """One Newton step of a row [parts + 2 own] and its variances, in double precision, one outcome after another."""
    mine = outcomes.take(outcomes.row == row)
    parts = state.moved.shape[1]
    was = torch.cat([state.moved[row].flatten(), state.own[row]]).double()
    own_prior = torch.tensor([OWN_PRIOR, OWN_PRIOR if config.intercepts else 1e12])
    precision = torch.cat([*(told * share for share in config.user.precisions), own_prior]).double()
    gradient, hessian = -precision * was, torch.diag(precision)
    for number in range(len(mine.row)):
        age = step_ages()[age_steps(mine.age[number])]
        own, theirs = config.user.parts(age).double(), config.item.parts(age).double()
        near = SCALE * (theirs[:, None] * given.parts[mine.other[number]].double()).sum(0)
        x = base[row].double() + (own[:, None] * state.moved[row].double()).sum(0)
        kind = torch.stack([mine.rated[number], 1 - mine.rated[number]]).double()
        offset = mine.offset[number] + kind @ (state.own[row] + given.own[mine.other[number]]).double()
        chance = torch.sigmoid(offset + x @ near)
        weight = mine.weight[number] * 2 ** (-age / config.user.fades_days)
        along = torch.cat([torch.kron(own, near), kind])
        gradient = gradient + weight * (mine.happened[number] - chance) * along
        hessian = hessian + weight * chance * (1 - chance) * torch.outer(along, along)
        unsure = weight * chance * (1 - chance) * config.doubt * SCALE**2 * given.variance[mine.other[number]]
        gradient[:-2] -= torch.kron(own, unsure * x)
        hessian[:-2, :-2] += torch.kron(torch.outer(own, own), torch.diag(unsure).double())
    together = torch.cat([torch.eye(DIM).repeat(1, parts), torch.zeros(DIM, 2)], dim=1).double()
    variance = torch.diagonal(together @ torch.linalg.inv(hessian) @ together.T)
    return was + torch.linalg.solve(hessian, gradient), variance


def frame(prior: Tensor, told: Tensor) -> Frame:
    nobody = torch.full((DIM,), torch.nan)
    return Frame(prior.mean(0), nobody, torch.eye(DIM), SCALE, told, nobody)


def both(given: Outcomes, rates: tuple[Tensor, Tensor] | None = None) -> BothSides:
    user_rates, item_rates = rates or (torch.zeros(USERS), torch.zeros(ITEMS))
    return BothSides(given, given.turned(), user_rates, item_rates, torch.zeros(ITEMS, 0))


def likeness(left: Tensor, right: Tensor, users: Tensor, items: Tensor) -> float:
    """Return how well products tell the true ones."""
    told = (left - left.mean(0)) @ (right - right.mean(0)).T
    truth = (users - users.mean(0)) @ (items - items.mean(0)).T
    return float(torch.corrcoef(torch.stack([told.flatten(), truth.flatten()]))[0, 1])


@pytest.mark.parametrize("config", [ONCE, MOVING, replace(MOVING, user=STAYS), replace(MOVING, item=STAYS, doubt=0)])
def test_every_row_takes_the_newton_step(config: OutcomeFoldIn) -> None:
    users, items, told = unit(USERS, 1), unit(ITEMS, 2), torch.linspace(2.0, 40.0, DIM)
    outcome, prior = outcomes(users, items, each=90), unit(USERS, 3)
    state, given = state_of(USERS, config), given_of(items, config)
    found = solve_outcomes("user", prior, state, given, outcome, frame(prior, told), config)
    for row in (0, 7, USERS - 2):
        exact, variance = textbook(prior - prior.mean(0), state, given, outcome, row, told, config)
        assert torch.allclose(torch.cat([found.moved[row].flatten(), found.own[row]]), exact.float(), atol=1e-4)
        assert torch.allclose(found.variance[row], variance.float(), rtol=1e-3)
    # Of the last user nothing is known: it is where its prior is, and as uncertain.
    assert found.moved[-1].abs().max() < 1e-6 and torch.allclose(found.variance[-1], 1 / told)


def test_chunks_segments_and_samples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, told = unit(USERS, 1), unit(ITEMS, 2), torch.full((DIM,), 100.0)
    outcome, prior = outcomes(users, items), unit(USERS, 3)
    state, given, shared = state_of(USERS, MOVING), given_of(items, MOVING), frame(prior, told)
    whole = solve_outcomes("user", prior, state, given, outcome, shared, MOVING)
    some = torch.tensor([7, 0, USERS - 1])
    again = solve_outcomes("user", prior[some], state.take(some), given, outcome.of(some), shared, MOVING)
    for left, right in zip(again, whole.take(some), strict=True):
        assert torch.allclose(left, right, atol=1e-5)
    monkeypatch.setattr(outcome_solving, "CHUNK_FLOATS", 300 * DIM)
    monkeypatch.setattr(outcome_solving, "LONGEST", 3)
    for left, right in zip(solve_outcomes("user", prior, state, given, outcome, shared, MOVING), whole, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_any_row_can_be_solved_again_from_what_is_kept() -> None:
    users, items = unit(USERS, 1, 40), unit(ITEMS, 2, 40)
    model = {
        "user": functional.normalize(users + unit(USERS, 5, 40)),
        "item": functional.normalize(items + unit(ITEMS, 6, 40)),
    }
    happened = both(outcomes(users, items))
    folded = fold_in_outcomes(model["user"], model["item"], happened, MOVING)
    some = torch.tensor([4, 1])
    for entity, whole in (("user", folded.users), ("item", folded.items)):
        before, rows = folded.before[entity].take(some), happened.of(entity).of(some)
        state = solve_outcomes(entity, model[entity][some], before, folded.given[entity], rows, folded.frame, MOVING)
        again = published(entity, model[entity][some], state, folded.own[entity].take(some), folded.frame, MOVING)
        assert torch.allclose(again, whole[some], atol=1e-5)


def test_what_was_known_badly_is_known_better_after_it() -> None:
    """The model's vectors are the truth and noise: after outcomes products are nearer to the true ones."""
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    given = outcomes(users, items, each=400)
    model = [functional.normalize(side + 0.6 * unit(len(side), 5)) for side in (users, items)]
    found = {}
    for config in (replace(ONCE, prior=10.0), OutcomeFoldIn(prior=10.0)):
        folded = fold_in_outcomes(*model, both(given), config)
        found[config.rounds] = likeness(folded.users, folded.items, users, items)
        assert found[config.rounds] > likeness(*model, users, items) + 0.08
        assert torch.allclose(torch.linalg.norm(folded.items, dim=1), torch.ones(ITEMS), atol=1e-5)
        # The same outcomes dealt to anybody do not follow the model's products, and move nothing.
        dealt = given.happened[torch.randperm(len(given.row), generator=torch.Generator().manual_seed(9))]
        deaf = Outcomes.by(given.row, given.other, dealt, given.offset, given.weight, given.rated, given.age)
        again = fold_in_outcomes(*model, both(deaf), config)
        assert likeness(again.users, again.items, users, items) <= likeness(*model, users, items) + 1e-6
    assert found[2] > found[1] + 0.01


def test_who_has_changed_is_followed_and_who_has_not_is_remembered() -> None:
    """Users liked something else until three days ago: a part that moves follows."""
    now, items = unit(USERS, 1), unit(ITEMS, 2)
    model = functional.normalize(now + 0.7 * unit(USERS, 5))
    shared = {"prior": 5.0, "rate": 0.0, "even": True, "item": STAYS}
    two = OutcomeFoldIn(**shared, user=Pace(1e9, 0.5, 3.0))
    one = OutcomeFoldIn(**shared, user=STAYS)
    changed = both(outcomes(now, items, each=400, then=unit(USERS, 8)))
    moves, stays = (likeness(*told(model, items, changed, config), now, items) for config in (two, one))
    assert moves > stays + 0.03
    same = both(outcomes(now, items, each=400))
    moves, stays = (likeness(*told(model, items, same, config), now, items) for config in (two, one))
    assert moves > stays - 0.02


def told(users: Tensor, items: Tensor, happened: BothSides, config: OutcomeFoldIn) -> tuple[Tensor, Tensor]:
    folded = fold_in_outcomes(users, items, happened, config)
    return folded.users, folded.items


def test_what_is_not_known_of_an_item_makes_users_move_less() -> None:
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    config, prior, outcome = replace(ONCE, doubt=1.0), unit(USERS, 3), outcomes(users, items)
    shared, known = (
        frame(prior, torch.full((DIM,), 5.0)),
        start("user", USERS, frame(prior, torch.full((DIM,), 5.0)), ONCE),
    )
    sizes = []
    for variance in (0.0, 0.02, 1.0):
        given = Given((items - items.mean(0))[:, None], torch.full((ITEMS, DIM), variance), torch.zeros(ITEMS, 2))
        x = prior - prior.mean(0) + solve_outcomes("user", prior, known, given, outcome, shared, config).moved[:, 0]
        sizes.append(float(torch.linalg.norm(x[:-1], dim=1).mean()))
    assert sizes[0] > 1.1 * sizes[1] > 2 * sizes[2]
    # What is known of a row grows with its outcomes.
    found = solve_outcomes("user", prior, known, given._replace(variance=0 * given.variance), outcome, shared, config)
    assert found.variance[:-1].max() < found.variance[-1].min()


def test_who_turns_to_much_that_he_likes_is_not_thought_to_like_all() -> None:
    """Choices among items, each beside some that others chose: who likes few much chooses all others less."""
    # Tastes of different strengths: what is chosen is a softmax, whose normalizer no product tells.
    strength = torch.linspace(0.0, 2.0, USERS)[:, None]
    users, items, draw = unit(USERS, 1) * strength, unit(ITEMS, 2), torch.Generator().manual_seed(7)
    share = torch.softmax(SCALE * users @ items.T, dim=1)
    row = torch.arange(USERS).repeat_interleave(150)
    chosen = torch.multinomial(share, 150, replacement=True, generator=draw).flatten()
    others = chosen[torch.randint(len(chosen), (8 * len(row),), generator=draw)]
    happened = (torch.arange(9 * len(row)) < len(row)).float()
    same = torch.ones_like(happened)
    offset, age = -same * torch.log(torch.tensor(8.0)), same
    given = both(Outcomes.by(row.repeat(9), torch.cat([chosen, others]), happened, offset, same, 0 * same, age))
    model = functional.normalize(users + 0.7 * unit(USERS, 5)), functional.normalize(items + 0.7 * unit(ITEMS, 6))
    found = {}
    for intercepts in (True, False):
        config = OutcomeFoldIn(prior=5.0, rate=0.0, even=True, intercepts=intercepts, user=STAYS, item=STAYS)
        folded = fold_in_outcomes(*model, given, config)
        found[intercepts] = likeness(folded.users, folded.items, unit(USERS, 1), items)
        state = solve_outcomes(
            "user", model[0], folded.before["user"], folded.given["user"], given.user, folded.frame, config
        )
        if intercepts:
            # The normalizer of a softmax grows with the strength.
            assert torch.corrcoef(torch.stack([state.own[:, 1], strength[:, 0]]))[0, 1] < -0.5
        else:
            assert state.own[:, 1].abs().max() < 1e-3
    assert found[True] > found[False] + 0.01


def test_rates_are_those_beside_what_vectors_tell() -> None:
    """Who is shown what he likes clicks more, and what is shown to who likes it is clicked more: no rate of theirs."""
    draw = torch.Generator().manual_seed(3)
    users, items = unit(USERS, 1, 40), unit(ITEMS, 2, 40)
    liked = 10 * (users - users.mean(0)) @ (items - items.mean(0)).T
    user_bias, item_bias = (torch.randn(count, generator=draw) * 0.45 for count in (USERS, ITEMS))
    # Some users are shown what they like, others the opposite.
    policy = torch.linspace(-1.0, 1.0, USERS)[:, None]
    row = torch.arange(USERS).repeat_interleave(800)
    item = torch.multinomial(torch.softmax(policy * liked, dim=1), 800, replacement=True, generator=draw).flatten()
    logit = -1.5 + user_bias[row] + item_bias[item] + liked[row, item]
    happened = torch.bernoulli(torch.sigmoid(logit), generator=draw)
    same = torch.ones(len(row))
    clicks = Outcomes.by(row, item, happened, -1.5 * same, same, same, same)
    folded = fold_in_outcomes(users, items, both(clicks), OutcomeFoldIn(user=STAYS, item=STAYS))
    for entity, at, truth, least in (("user", row, user_bias, 0.9), ("item", item, item_bias, 0.9)):
        share = torch.bincount(at, happened, len(truth)) / torch.bincount(at, minlength=len(truth)).clamp_min(1)
        marginal = torch.logit(share.clamp(0.01, 0.99))
        found, plain = (
            float(torch.corrcoef(torch.stack([x, truth]))[0, 1]) for x in (folded.own[entity].rates, marginal)
        )
        assert found > least > plain + 0.05, (entity, found, plain)
    # Rates that the offsets know already are not told twice, and a space from before tells those alone.
    known = folded.own["user"].rates, folded.own["item"].rates
    offset = -1.5 + known[0][row] + known[1][item]
    again = fold_in_outcomes(
        users,
        items,
        both(Outcomes.by(row, item, happened, offset, same, same, same), known),
        OutcomeFoldIn(user=STAYS, item=STAYS),
    )
    assert all((again.own[entity].rates - folded.own[entity].rates).abs().mean() < 0.1 for entity in ("user", "item"))
    before = fold_in_outcomes(users, items, both(clicks, known), replace(ONCE, rate=0.3))
    assert torch.equal(before.own["user"].rates, known[0])


def sloped(spread: float, draw: torch.Generator) -> tuple[BothSides, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Clicks of users who take to items for a number of theirs, each his own way; slopes, numbers, the model."""
    count = 20 * ITEMS  # vectors of 32 directions would tell any number of few items
    users, items = unit(USERS, 1, 40), unit(count, 2, 40)
    number = torch.randn(count, 1, generator=draw)
    slopes = -0.3 + spread * torch.randn(USERS, generator=draw)
    row, item = torch.arange(USERS).repeat_interleave(1500), torch.randint(count, (USERS * 1500,), generator=draw)
    product = ((users - users.mean(0))[row] * (items - items.mean(0))[item]).sum(1)
    logit = -1.5 + SCALE * product + slopes[row] * number[item, 0]
    happened, same = torch.bernoulli(torch.sigmoid(logit), generator=draw), torch.ones(len(row))
    clicks = Outcomes.by(row, item, happened, -1.5 * same, same, same, same)
    happened_to = BothSides(clicks, clicks.turned(), torch.zeros(USERS), torch.zeros(count), number)
    return happened_to, slopes, number, (users, items)


def test_users_have_slopes_of_items_numbers() -> None:
    happened, slopes, number, model = sloped(0.3, torch.Generator().manual_seed(3))
    config = OutcomeFoldIn(user=STAYS, item=STAYS, numbers=("price",))
    folded = fold_in_outcomes(*model, happened, config)
    found = folded.own["user"].along[:, 0]
    assert torch.corrcoef(torch.stack([found, slopes]))[0, 1] > 0.9
    # What all of them make of it is a rate of the items.
    assert (
        abs(found.mean()) < 0.1 and torch.corrcoef(torch.stack([folded.own["item"].rates, number[:, 0]]))[0, 1] < -0.8
    )
    assert torch.equal(folded.own["item"].along, number)
    # Products hold them, along a direction that is no one else's; without the setting nothing does.
    direction = own_directions(40, 1)[:, 2]
    products = (folded.users @ direction)[:, None] * (folded.items @ direction)
    wanted = config.slope * config.number * found[:, None] * number[:, 0]
    assert torch.corrcoef(torch.stack([products.flatten(), wanted.flatten()]))[0, 1] > 0.98
    # Shorter by the scaling to length 1, as all of a vector.
    assert 0.6 < products.flatten() @ wanted.flatten() / wanted.square().sum() < 1.05
    plain = fold_in_outcomes(*model, replace(happened, item_numbers=number[:, :0]), replace(config, numbers=()))
    assert plain.own["user"].along.shape == (USERS, 0) and plain.frame.directions.shape[1] == outcome_frame.DIRECTIONS


def test_slopes_that_do_not_differ_are_held_together() -> None:
    """How much they may differ is read from the outcomes."""
    config = OutcomeFoldIn(user=STAYS, item=STAYS, numbers=("price",))
    spreads = []
    for spread in (0.0, 0.3):
        happened, _, _, model = sloped(spread, torch.Generator().manual_seed(4))
        spreads.append(float(fold_in_outcomes(*model, happened, config).own["user"].along.std()))
    assert spreads[0] < 0.04 and 0.2 < spreads[1] < 0.35


@pytest.mark.parametrize(("clicks", "followed"), [(500, 8), (500, 1), (20, 2), (5000, 50)])
def test_few_outcomes_of_many_numbers_tell_no_slopes(clicks: int, followed: int) -> None:
    """What is told by chance turns no user's vector to where all the others' are."""
    draw = torch.Generator().manual_seed(clicks)
    users, items = unit(USERS, 1, 40), unit(ITEMS, 2, 40)
    row, item = (torch.randint(count, (clicks,), generator=draw) for count in (USERS, ITEMS))
    happened, same = (torch.arange(clicks) < followed).float(), torch.ones(clicks)
    offset = torch.full((clicks,), followed / clicks).logit()
    numbers = torch.randn(ITEMS, 8, generator=draw)
    rows = Outcomes.by(row, item, happened, offset, same, same, same)
    given = BothSides(rows, rows.turned(), torch.zeros(USERS), torch.zeros(ITEMS), numbers)
    config = OutcomeFoldIn(user=STAYS, item=STAYS, numbers=tuple("abcdefgh"), slope=2.0, number=0.2)
    found = fold_in_outcomes(users, items, given, config).users
    plain = fold_in_outcomes(users, items, replace(given, item_numbers=numbers[:, :0]), replace(config, numbers=()))
    alike, plainly = (float((side @ functional.normalize(side.mean(0), dim=0)).mean()) for side in (found, plain.users))
    assert alike < plainly + 0.1


def test_the_scale_is_the_slope_of_the_logits() -> None:
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    assert fit_scale(users, items, outcomes(users, items, each=2000), 1e9) == pytest.approx(SCALE, rel=0.05)
    # What was liked long ago counts less.
    turned = outcomes(users, items, each=2000, then=-users)
    assert fit_scale(users, items, turned, 2.0) > fit_scale(users, items, turned, 1e9) + 1
    # Vectors that say the opposite are no reason to turn round.
    assert fit_scale(-users, items, outcomes(users, items), 1e9) == 0.0


def test_long_vectors_move_where_vectors_vary() -> None:
    wide = 40
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=torch.Generator().manual_seed(4)))[0][:, :DIM]
    users, items = unit(USERS, 1) @ turn.T, unit(ITEMS, 2) @ turn.T
    config = replace(MOVING, rate=0.0, even=True)
    directions = axes(users, items, config)
    assert directions.shape == (wide, outcome_frame.DIRECTIONS)
    assert torch.allclose(directions.T @ directions, torch.eye(outcome_frame.DIRECTIONS), atol=1e-5)
    assert torch.allclose(directions @ (directions.T @ turn), turn, atol=1e-4)
    given = outcomes(users, items)
    # The other side may vary in 32 directions here and in 8 there, so that it is left out of account.
    config = replace(config, doubt=0.0)
    folded = fold_in_outcomes(users, items, both(given), config)
    narrow = fold_in_outcomes(users @ turn, items @ turn, both(given), config)
    assert torch.allclose(folded.users @ turn, narrow.users, atol=1e-3)


def test_nothing_to_fold_in_leaves_the_model() -> None:
    users, items = unit(USERS, 1), unit(ITEMS, 2)
    nothing = outcomes(users, items).take(slice(0))
    folded = fold_in_outcomes(users, items, both(nothing), OutcomeFoldIn(rate=0.0))
    assert torch.allclose(folded.users, users, atol=1e-6) and torch.allclose(folded.items, items, atol=1e-6)
    told = fold_in_outcomes(users, items, both(nothing), OutcomeFoldIn())
    assert torch.isfinite(told.users).all() and not any(own.rates.any() for own in told.own.values())


def test_an_age_is_that_of_its_step() -> None:
    ages = torch.tensor([0.0, 0.9, 1.0, 9.5, 13.9, 500.0])
    steps = age_steps(ages)
    assert steps.tolist() == [0, 0, 1, 9, 11, len(AGE_EDGES) - 1]
    assert step_ages()[steps].tolist() == [0.5, 0.5, 1.5, 9.5, 13.0, 179.0]
    # No step is longer than a fifth of its age from eleven days on.
    wide = AGE_EDGES.diff()[11:] / AGE_EDGES[11:-1]
    assert wide.max() < 0.22


def test_a_space_goes_on_as_it_began() -> None:
    """Settings of before two paces, rounds and doubt; and those of now, read back."""
    old = OutcomeFoldIn.of({"prior": 30.0, "half_life_days": 20.0, "rate": 0.3, "even": False, "after_click": ["cart"]})
    one = Pace(20.0, 0.0)
    assert (old.user, old.item, old.rounds, old.doubt, old.after_click) == (one, one, 1, 0.0, ("cart",))
    assert not old.intercepts and old.numbers == ()
    assert OutcomeFoldIn.of({"prior": 30.0, "half_life_days": 20.0}).even
    assert OutcomeFoldIn.of(asdict(MOVING)) == MOVING


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
    columns = torch.cat([axes(users, items, OutcomeFoldIn()), own_directions(dim)], dim=1)
    assert columns.shape[1] == min(dim, outcome_frame.DIRECTIONS + 2)
    assert torch.allclose(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5)
    assert (own_directions(dim).abs() > 0.05).all()
    # Rates stand where they always did, whatever stands beside them.
    assert torch.allclose(own_directions(dim, 2)[:, :2], own_directions(dim), atol=1e-6)
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
        (folded.users, silent.users, folded.own["user"].rates, 0),
        (folded.items, silent.items, folded.own["item"].rates, 1),
    ):
        told = side @ own_directions(dim)
        assert torch.allclose(torch.linalg.norm(side, dim=1), torch.ones(len(side)), atol=1e-5)
        assert torch.corrcoef(torch.stack([told[:, at], own]))[0, 1] > 0.99
        assert (told[:, at] / own).median() == pytest.approx(0.5, rel=0.1)
        assert told[:, 1 - at].abs().max() < 1e-6
        # What is left of a vector is what it would be without rates, shortened.
        left, rest = (functional.normalize(x - x @ own_directions(dim) @ own_directions(dim).T) for x in (side, other))
        assert torch.allclose(left, rest, atol=1e-5)
    some = torch.tensor([3, 0])
    own = Own(rates[0], torch.zeros(USERS, 0))
    whole = with_own("user", users, own, config)
    assert torch.allclose(with_own("user", users[some], own.take(some), config), whole[some])
    assert with_own("user", users, own, OutcomeFoldIn(rate=0.0)) is users


@pytest.mark.parametrize(
    "bad",
    [
        {"prior": 0.0},
        {"slope": 0.0},
        {"number": -0.1},
        {"rounds": 0},
        {"rate": -0.1},
        {"doubt": -0.1},
    ],
)
def test_settings_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"above 0|below 0"):
        OutcomeFoldIn(**bad)


@pytest.mark.parametrize("dim", [32, 64, 192, 42])
def test_every_number_has_a_direction(dim: int) -> None:
    directions = own_directions(dim, 8)
    assert torch.allclose(directions.T @ directions, torch.eye(10), atol=1e-5)
    # No float is 0 on a side: it would look like one that died.
    assert (directions.square().sum(1) > 0.5 * 10 / dim).all() and (directions.abs() > 1e-3).float().mean() > 0.95
    users, items = unit(USERS, 1, dim), unit(ITEMS, 2, dim)
    config = OutcomeFoldIn(numbers=tuple("abcdefgh"))
    columns = torch.cat([axes(users, items, config), directions], dim=1)
    assert torch.allclose(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5)


def test_slopes_stand_beside_rates() -> None:
    for without in ({"rate": 0.0}, {"intercepts": False}):
        with pytest.raises(ConfigError, match="need rates and intercepts"):
            OutcomeFoldIn(numbers=("price",), **without)


@pytest.mark.parametrize("bad", [{"fades_days": 0.0}, {"half_life_days": -1.0}, {"moving": 1.0}, {"moving": -0.1}])
def test_paces_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"above 0|below 1"):
        Pace(**bad)
