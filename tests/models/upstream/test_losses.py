"""The losses against matrices and probabilities written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from feature_repo.contracts.errors import ConfigError
from models.upstream.losses import LossConfig, Losses, contrastive_loss, esmm_loss, masked_bce

# Two users, three items; u0.i = (1, 0, 0.6), u1.i = (0, 1, 0.8).
USERS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
ITEMS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
NO_Q = torch.zeros(3)
USER_KEYS, ITEM_KEYS = torch.arange(2), torch.arange(3)


def loss_of(
    pairs: list[tuple[int, int]],
    *,
    temperature: float = 1.0,
    log_q: Tensor = NO_Q,
    user_keys: Tensor = USER_KEYS,
    item_keys: Tensor = ITEM_KEYS,
    weights: list[float] | None = None,
) -> float:
    users, items = torch.tensor(pairs).T if pairs else torch.zeros(2, 0, dtype=torch.int64)
    return contrastive_loss(
        USERS,
        ITEMS,
        users,
        items,
        temperature,
        item_log_q_I=log_q,
        user_key_U=user_keys,
        item_key_I=item_keys,
        weight_N=None if weights is None else torch.tensor(weights),
    ).item()


def test_plain_softmax() -> None:
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(0) + math.exp(0.6)))
    second = -math.log(math.exp(0.8) / (math.exp(0) + math.exp(1) + math.exp(0.8)))
    assert loss_of([(0, 0), (1, 2)]) == pytest.approx((first + second) / 2, rel=1e-6)


def test_temperature_divides_the_logits() -> None:
    expected = -math.log(math.exp(4) / (math.exp(4) + math.exp(0) + math.exp(2.4)))
    assert loss_of([(0, 0)], temperature=0.25) == pytest.approx(expected, rel=1e-6)


def test_log_q_is_taken_off_every_candidate() -> None:
    q = torch.tensor([0.5, 0.1, 0.25])
    expected = -math.log((math.exp(1) / 0.5) / (math.exp(1) / 0.5 + 1 / 0.1 + math.exp(0.6) / 0.25))
    assert loss_of([(0, 0)], log_q=q.log()) == pytest.approx(expected, rel=1e-6)
    assert loss_of([(0, 0)], log_q=q.log() + 3.0) == pytest.approx(expected, rel=1e-5)


def test_weights_make_a_weighted_mean() -> None:
    first, second = loss_of([(0, 0)]), loss_of([(1, 2)])
    assert loss_of([(0, 0), (1, 2)], weights=[3.0, 1.0]) == pytest.approx((3 * first + second) / 4, rel=1e-6)
    assert loss_of([(0, 0), (1, 2)], weights=[0.0, 0.0]) == 0.0


def test_a_column_with_the_same_key_is_no_negative() -> None:
    expected = -math.log(math.exp(1) / (math.exp(1) + math.exp(0)))
    assert loss_of([(0, 0)], item_keys=torch.tensor([7, 8, 7])) == pytest.approx(expected, rel=1e-6)


def test_another_positive_of_the_user_is_no_negative() -> None:
    # User 0 is positive with items 0 and 2: each has item 1 as its only negative.
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(0)))
    second = -math.log(math.exp(0.6) / (math.exp(0.6) + math.exp(0)))
    assert loss_of([(0, 0), (0, 2)]) == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_positive_of_the_same_user_in_another_row_is_no_negative() -> None:
    # Both rows are one user: item 1, a positive of row 1, is no negative of row 0 and the reverse.
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(0.6)))
    second = -math.log(math.exp(1) / (math.exp(1) + math.exp(0.8)))
    actual = loss_of([(0, 0), (1, 1)], user_keys=torch.tensor([5, 5]))
    assert actual == pytest.approx((first + second) / 2, rel=1e-6)


def test_nothing_left_to_contrast_costs_nothing() -> None:
    assert loss_of([(0, 0), (0, 1), (0, 2)]) == pytest.approx(0.0, abs=1e-6)
    assert loss_of([]) == 0.0


def test_contrastive_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    users = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    items = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_q, weights = torch.randn(7, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    pair_user, pair_item = torch.tensor([0, 0, 1, 3, 3, 4]), torch.tensor([0, 1, 2, 3, 3, 6])
    user_key, item_key = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 3, 4, 0, 5])

    def loss(u: Tensor, i: Tensor, t: Tensor) -> Tensor:
        return contrastive_loss(
            u,
            i,
            pair_user,
            pair_item,
            t,
            item_log_q_I=log_q,
            user_key_U=user_key,
            item_key_I=item_key,
            weight_N=weights,
        )

    assert torch.autograd.gradcheck(loss, (users, items, temperature))


def test_a_user_with_nothing_to_contrast_has_no_gradient() -> None:
    users, items = USERS.clone().requires_grad_(), ITEMS.clone().requires_grad_()
    pairs = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])
    keys = {"item_log_q_I": NO_Q, "user_key_U": USER_KEYS, "item_key_I": ITEM_KEYS}
    contrastive_loss(users, items, *pairs, 0.05, **keys).backward()
    assert torch.equal(users.grad, torch.zeros_like(USERS))
    assert torch.equal(items.grad, torch.zeros_like(ITEMS))


def test_esmm_is_the_cross_entropy_of_the_product() -> None:
    click, conversion = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([-0.5, 0.7, 1.5])
    both, known = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([True, True, False])
    p = torch.sigmoid(click.double()) * torch.sigmoid(conversion.double())
    expected = (-math.log(p[0]) - math.log(1 - p[1])) / 2
    assert esmm_loss(click, conversion, both, known).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [-200.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_esmm_survives_extreme_logits(size: float, label: float) -> None:
    click = torch.tensor([size], requires_grad=True)
    conversion = torch.tensor([size], requires_grad=True)
    loss = esmm_loss(click, conversion, torch.tensor([label]), torch.tensor([True]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(click.grad).all() and torch.isfinite(conversion.grad).all()
    right = (size > 0) == (label > 0)
    assert loss.item() == pytest.approx(0.0 if right else (200.0 if size > 0 else 400.0), abs=1.0)


def test_unknown_labels_count_nowhere_even_as_nan() -> None:
    logit, target = torch.tensor([0.2, 1.0, -3.0]), torch.tensor([1.0, math.nan, 0.0])
    known = torch.tensor([True, False, True])
    expected = (-math.log(torch.sigmoid(logit[0])) - math.log(1 - torch.sigmoid(logit[2]))) / 2
    assert masked_bce(logit, target, known).item() == pytest.approx(expected, rel=1e-5)
    assert masked_bce(logit, target, torch.zeros(3, dtype=torch.bool)).item() == 0.0


@pytest.fixture
def parts(spec, make_batch):  # type: ignore[no-untyped-def]
    """A batch with random unit vectors and logits to put into Losses."""
    batch = make_batch(spec)
    torch.manual_seed(1)
    user = torch.nn.functional.normalize(torch.randn(20, 8), dim=1)
    item = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    return batch, user, item, torch.randn(64), torch.randn(64)


def test_total_is_the_weighted_sum_of_what_is_recorded(parts) -> None:  # type: ignore[no-untyped-def]
    config = LossConfig(click_weight=2.0, conversion_weight=0.5, contrastive_weight=0.3)
    losses = Losses(config)(*parts)
    expected = 2.0 * losses["click"] + 0.5 * losses["conversion"] + 0.3 * losses["contrastive"]
    torch.testing.assert_close(losses["total"], expected)
    assert losses["temperature"].item() == pytest.approx(config.temperature)


def test_conversions_are_learned_from_clicked_rows_alone(parts) -> None:  # type: ignore[no-untyped-def]
    batch, user, item, click, conversion = parts
    conversion = conversion.requires_grad_()
    Losses(LossConfig())(batch, user, item, click, conversion)["conversion"].backward()
    used = conversion.grad != 0
    assert torch.equal(used, (batch.click == 1) & batch.click_known & batch.conversion_known)


def test_esmm_learns_conversions_from_all_known_rows(parts) -> None:  # type: ignore[no-untyped-def]
    batch, user, item, click, conversion = parts
    click, conversion = click.requires_grad_(), conversion.requires_grad_()
    Losses(LossConfig(conversion="esmm"))(batch, user, item, click, conversion)["conversion"].backward()
    assert torch.equal(conversion.grad != 0, batch.conversion_known)
    assert torch.equal(click.grad != 0, batch.conversion_known)


def test_a_head_learns_from_the_rows_of_its_source_alone(parts) -> None:  # type: ignore[no-untyped-def]
    batch, user, item, click, conversion = parts
    click, conversion = click.requires_grad_(), conversion.requires_grad_()
    of_click = torch.arange(64) < 40
    split = replace(batch, click_trains=of_click, conversion_trains=~of_click)
    losses = Losses(LossConfig())(split, user, item, click, conversion)
    (losses["click"] + losses["conversion"]).backward()
    assert torch.equal(click.grad != 0, of_click & batch.click_known)
    clicked = (batch.click == 1) & batch.click_known & batch.conversion_known
    assert torch.equal(conversion.grad != 0, clicked & ~of_click)


def test_the_click_head_is_unbiased_where_negatives_are_left_out() -> None:
    """Fitted to a sample that keeps a fifth of the rows without a click, a constant logit says the whole log's rate."""
    click = torch.tensor([1.0] * 30 + [0.0] * 34)  # of 30 clicks and 170 others
    logit = torch.zeros((), requires_grad=True)
    shift = torch.tensor(-math.log(34 / 170))
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = masked_bce(logit.expand(64) + shift, click, torch.ones(64, dtype=torch.bool))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    assert torch.sigmoid(logit).item() == pytest.approx(30 / 200, abs=1e-4)


@pytest.mark.parametrize("conversion", ["clicked", "esmm"])
def test_the_shift_enters_click_and_esmm(parts, conversion: str) -> None:  # type: ignore[no-untyped-def]
    batch, user, item, click, given_click = parts
    config = LossConfig(conversion=conversion)  # type: ignore[arg-type]
    shifted = Losses(config)(replace(batch, click_shift=torch.tensor(0.7)), user, item, click, given_click)
    moved = Losses(config)(batch, user, item, click + 0.7, given_click)
    torch.testing.assert_close(shifted, moved)


def test_learned_weights_start_at_the_fixed_ones_and_find_their_optimum(parts) -> None:  # type: ignore[no-untyped-def]
    config = LossConfig(click_weight=2.0, conversion_weight=0.0, contrastive_weight=0.3, weighting="uncertainty")
    losses = Losses(config)
    assert set(losses.log_variances) == {"click", "contrastive"}  # a weight of 0 leaves its part out
    found = losses(*parts)
    assert found["click_weight"].item() == pytest.approx(2.0) and found["contrastive_weight"].item() == pytest.approx(
        0.3
    )
    expected = 2.0 * found["click"] + 0.3 * found["contrastive"] - 0.5 * math.log(2.0) - 0.5 * math.log(0.3)
    torch.testing.assert_close(found["total"], expected)
    optimizer = torch.optim.Adam(losses.log_variances.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        losses(*parts)["total"].backward()
        optimizer.step()
    found = losses(*parts)
    # The minimum of exp(-s) L + s / 2 is at exp(-s) = 1 / (2 L).
    for name in ("click", "contrastive"):
        assert found[f"{name}_weight"].item() == pytest.approx(0.5 / found[name].item(), rel=1e-2)


def test_a_part_without_an_example_leaves_its_learned_weight_alone(parts) -> None:  # type: ignore[no-untyped-def]
    batch, *rest = parts
    losses = Losses(LossConfig(weighting="uncertainty"))
    no_clicks = replace(batch, click_trains=torch.zeros(64, dtype=torch.bool))
    losses(no_clicks, *rest)["total"].backward()
    gradients = {name: value.grad.item() for name, value in losses.log_variances.items()}
    assert gradients["click"] == 0.0 and gradients["conversion"] != 0.0 and gradients["contrastive"] != 0.0


def test_activity_pairs_and_positive_rows_have_their_weights(parts) -> None:  # type: ignore[no-untyped-def]
    batch, user, item, click, conversion = parts
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = batch.positive.nonzero().squeeze(1)
    pairs = {
        "rows": replace(batch, pos_user_index=nothing, pos_item_index=nothing),
        "activity": replace(batch, positive=torch.zeros_like(batch.positive)),
    }
    losses = {n: Losses(LossConfig())(b, user, item, click, conversion)["contrastive"] for n, b in pairs.items()}
    none = Losses(LossConfig(activity_weight=0.0))(batch, user, item, click, conversion)["contrastive"]
    both = Losses(LossConfig(activity_weight=2.0))(batch, user, item, click, conversion)["contrastive"]
    # Alone, each kind has fewer accidental hits to mask, hence at least the negatives it has in company.
    assert none <= losses["rows"]
    count_rows, count_pairs = len(rows), len(batch.pos_user_index)
    upper = (count_rows * losses["rows"] + 2 * count_pairs * losses["activity"]) / (count_rows + 2 * count_pairs)
    assert none.item() > 0 and both <= upper


def test_temperature_stays_within_its_bounds_and_can_leave_them(parts) -> None:  # type: ignore[no-untyped-def]
    losses = Losses(LossConfig(temperature=0.1, temperature_min=0.05, temperature_max=0.5))
    with torch.no_grad():
        losses.log_temperature.fill_(math.log(10.0))
    result = losses(*parts)
    assert result["temperature"].item() == pytest.approx(0.5)
    result["total"].backward()
    assert losses.log_temperature.grad is not None and losses.log_temperature.grad != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.0}, "temperature"),
        ({"temperature_min": 0.0}, "temperature"),
        ({"click_weight": -1.0}, "negative"),
        ({"click_weight": 0.0, "conversion_weight": 0.0, "contrastive_weight": 0.0}, "nothing to train"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**change)
