"""The whole upstream model: shapes, gradients, padding, edge cases, saving, identity of a space."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feature_repo.contracts.errors import ConfigError, LakeError
from models import presets
from models.upstream import DERM, InputSpec, TrainBatch, UserBatch, space_id
from models.upstream.dhen import DHEN
from models.upstream.losses import LossConfig
from models.upstream.sequence import SequenceTokens
from models.upstream.towers import UserTower


@pytest.fixture
def config(spec: InputSpec) -> DERM.Config:
    return presets.debug().model(spec)


def test_outputs_have_their_shapes_and_unit_length(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    model, batch = DERM(config), make_batch(spec)
    out = model(batch)
    assert out.click_logit.shape == out.conversion_logit.shape == (64,)
    assert out.user_vector.shape == (20, model.dim) and out.item_vector.shape == (30, model.dim)
    assert model.dim == config.out_tokens * config.out_dim
    for vector, norm in ((out.user_vector, out.user_norm), (out.item_vector, out.item_norm)):
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(len(vector)))
        assert norm.shape == (len(vector),) and (norm > 0).all()
    assert all(loss.shape == () and torch.isfinite(loss) for loss in out.losses.values())


def test_user_and_item_vectors_are_those_of_the_forward_pass(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    model, batch = DERM(config).eval(), make_batch(spec)
    out = model(batch)
    for actual, expected in zip(
        (*model.user_vectors(batch.user), *model.item_vectors(batch.item)),
        (out.user_vector, out.user_norm, out.item_vector, out.item_norm),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("conversion", ["clicked", "esmm"])
@pytest.mark.parametrize("layers", [0, 1])
def test_every_parameter_is_trained(config, spec, make_batch, conversion: str, layers: int) -> None:  # type: ignore[no-untyped-def]
    sequence = SequenceTokens.Config(layers=layers, tokens=2)
    model = DERM(
        replace(
            config,
            user=replace(config.user, sequence=sequence, history_dropout=0.0),
            losses=LossConfig(conversion=conversion),  # type: ignore[arg-type]
        )
    )
    model(make_batch(spec)).losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_a_narrow_interaction_tower_reads_every_published_float(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    model = DERM(replace(config, interaction=replace(config.interaction, dim=3)))
    out = model(make_batch(spec))
    assert out.user_vector.shape == (20, 16)
    user, item = torch.autograd.grad(out.click_logit.sum(), [out.user_vector, out.item_vector], allow_unused=True)
    for gradient in (user, item):
        assert gradient is not None and (gradient.abs().sum(0) > 0).all()


def test_a_preset_uses_the_dhen_pair_it_names(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    pair = DHEN.Config(layers=1, modules=("transformer", "mlp"))
    model = DERM(replace(config, item=replace(config.item, dhen=pair)))
    names = {name for name, _ in model.item_tower.named_modules()}
    assert any(name.endswith("qkv") for name in names) and not any("guide" in name for name in names)
    assert torch.isfinite(model(make_batch(spec)).losses["total"])


def test_every_layer_may_have_a_pair_of_its_own(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    pairs = (("transformer", "mlp"), ("masknet", "mlp"), ("transformer", "masknet"))
    stack = DHEN.Config(layers=3, pairs=pairs)
    model = DERM(replace(config, item=replace(config.item, dhen=stack)))
    built = [[type(module).__name__.lower() for module in layer.ensemble] for layer in model.item_tower.dhen.layers]  # type: ignore[union-attr]
    assert [tuple(pair) for pair in built] == list(pairs)
    assert torch.isfinite(model(make_batch(spec)).losses["total"])
    assert DERM.Config.from_dict(json.loads(json.dumps(model.config.to_dict()))) == model.config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 2, "pairs": (("masknet", "mlp"),)}, "needs as many pairs"),
        ({"layers": 1, "pairs": (("mlp", "mlp"),)}, "two different modules"),
        ({"layers": 1, "pairs": (("mlp", "attention"),)}, "two different modules"),
    ],
)
def test_pairs_that_fit_no_stack_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DHEN.Config(**wrong)


def test_settings_that_came_later_change_no_older_identity(config) -> None:  # type: ignore[no-untyped-def]
    """What stands in the config of a model that uses none of them is what stood there before they existed."""
    values = config.to_dict()
    assert set(values["losses"]) == {
        "click_weight",
        "conversion_weight",
        "contrastive_weight",
        "conversion",
        "activity_weight",
        "temperature",
        "temperature_min",
        "temperature_max",
    }
    assert set(values["user"]["dhen"]) == {"layers", "modules", "masknet", "transformer", "mlp"}
    assert DERM.Config.from_dict(values) == config
    learned = replace(config, losses=replace(config.losses, weighting="uncertainty"))
    assert learned.to_dict()["losses"]["weighting"] == "uncertainty"
    assert DERM.Config.from_dict(learned.to_dict()) == learned


@pytest.mark.parametrize("layers", [0, 1])
def test_more_padding_changes_nothing(config, spec, make_batch, layers: int) -> None:  # type: ignore[no-untyped-def]
    user = replace(config.user, sequence=SequenceTokens.Config(layers=layers, tokens=2))
    model, users = DERM(replace(config, user=user)).eval(), make_batch(spec).user

    def wider(tensor: torch.Tensor, dim: int, front: int, back: int) -> torch.Tensor:
        shape = list(tensor.shape)
        parts = []
        for size in (front, back):
            shape[dim] = size
            parts.append(torch.zeros(shape, dtype=tensor.dtype))
        return torch.cat([parts[0], tensor, parts[1]], dim)

    padded = replace(
        users,
        seq_item=wider(users.seq_item, 1, 2, 3),
        seq_cats=wider(users.seq_cats, 1, 2, 3),
        seq_action=wider(users.seq_action, 1, 2, 3),
        seq_age=wider(users.seq_age, 1, 2, 3),
        interest_value=wider(users.interest_value, 2, 0, 4),
        interest_weight=wider(users.interest_weight, 2, 0, 4),
        top_item=wider(users.top_item, 1, 1, 2),
        top_weight=wider(users.top_weight, 1, 1, 2),
    )
    torch.testing.assert_close(model.user_vectors(padded), model.user_vectors(users))
    # What stands in a padded position is not read either.
    pad = users.seq_item == 0
    noisy = replace(
        users,
        seq_cats=torch.where(pad[:, :, None], 1, users.seq_cats),
        seq_action=torch.where(pad, 2, users.seq_action),
        seq_age=torch.where(pad, 5.0, users.seq_age),
    )
    torch.testing.assert_close(model.user_vectors(noisy), model.user_vectors(users))


def test_a_user_of_whom_nothing_is_known_gets_a_finite_unit_vector(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    users = make_batch(spec).user
    blank = UserBatch(**{name: torch.zeros_like(value) for name, value in vars(users).items()})
    model = DERM(config)
    vectors, norms = model.user_vectors(blank)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))
    vectors.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(norms).all()


@pytest.mark.parametrize(
    "change",
    [
        {"context_cats": ()},
        {"context_nums": 0},
        {"context_cats": (), "context_nums": 0},
        {"user_nums": 0},
        {"user_cats": (), "user_nums": 0},
        {"item_nums": 0},
        {"item_cats": (), "item_nums": 0},
        {"interests": 0},
        {"top_items": 0},
        {"item_rows": 1},
    ],
)
def test_features_may_be_absent(spec: InputSpec, make_batch, change: dict) -> None:  # type: ignore[no-untyped-def]
    changed = replace(spec, **change)
    batch = make_batch(changed) if changed.item_rows > 1 else _without_rows(make_batch(replace(changed, item_rows=2)))
    model = DERM(presets.debug().model(changed))
    out = model(batch)
    out.losses["total"].backward()
    assert torch.isfinite(out.losses["total"]) and out.user_vector.shape == (20, 16)


def _without_rows(batch: TrainBatch) -> TrainBatch:
    return replace(
        batch,
        user=replace(
            batch.user, seq_item=torch.zeros_like(batch.user.seq_item), top_item=torch.zeros_like(batch.user.top_item)
        ),
        item=replace(batch.item, row=torch.zeros_like(batch.item.row)),
    )


def test_batches_without_rows_or_without_pairs(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    model = DERM(config)
    only_pairs = model(make_batch(spec, rows=0))
    assert only_pairs.losses["click"].item() == 0.0 and only_pairs.losses["contrastive"].item() > 0
    no_pairs = make_batch(spec, pairs=0)
    no_positives = replace(no_pairs, positive=torch.zeros_like(no_pairs.positive))
    assert model(no_positives).losses["contrastive"].item() == 0.0
    for batch in (make_batch(spec, rows=0), no_positives):
        model(batch).losses["total"].backward()


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("user", lambda u: replace(u, seq_cats=u.seq_cats + 6), "user.seq_cats, column 0"),
        ("user", lambda u: replace(u, interest_value=u.interest_value - 1), "user.interest_value"),
        ("user", lambda u: replace(u, nums=u.nums[:, :1]), "user.nums has shape"),
        ("user", lambda u: replace(u, seq_item=u.seq_item + 50), "knows 0..49"),
        ("item", lambda i: replace(i, cats=i.cats + 20), "item.cats"),
        ("item", lambda i: replace(i, row=i.row[:3]), "item.row has shape|item.cats has shape"),
        ("context", lambda c: replace(c, cats=c.cats + 5), "context.cats"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(config, spec, make_batch, where: str, change, message: str) -> None:  # type: ignore[no-untyped-def]
    batch = make_batch(spec)
    wrong = replace(batch, **{where: change(getattr(batch, where))})
    with pytest.raises(ConfigError, match=message):
        DERM(config)(wrong)


def test_the_seed_decides_the_first_weights_and_leaves_the_global_state_alone(config) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = DERM(config).state_dict()
    assert torch.equal(torch.rand(1), expected)
    same, other = DERM(config).state_dict(), DERM(replace(config, seed=1)).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_save_and_load_keep_every_bit(config, spec, make_batch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, batch = DERM(config).eval(), make_batch(spec)
    model.save(tmp_path / "model")
    loaded = DERM.load(tmp_path / "model")
    assert loaded.config == config and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(model.user_vectors(batch.user)[0], loaded.user_vectors(batch.user)[0])
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_an_incomplete_or_mixed_artifact_is_refused(config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    DERM(config).save(tmp_path / "a")
    DERM(replace(config, seed=1)).save(tmp_path / "b")
    (tmp_path / "a/model.safetensors").replace(tmp_path / "b/model.safetensors")
    with pytest.raises(LakeError, match="not those of its config"):
        DERM.load(tmp_path / "b")
    with pytest.raises(LakeError, match="No complete model"):
        DERM.load(tmp_path / "a")


def test_config_survives_json_and_refuses_what_it_does_not_know(config) -> None:  # type: ignore[no-untyped-def]
    for preset in (presets.debug(), presets.small(), presets.full()):
        built = preset.model(config.inputs)
        assert DERM.Config.from_dict(json.loads(json.dumps(built.to_dict()))) == built
    values = config.to_dict()
    assert InputSpec.from_dict(json.loads(json.dumps(values["inputs"]))) == config.inputs
    with pytest.raises(ConfigError, match=r"model\.user has unknown settings \['colour'\]"):
        DERM.Config.from_dict(values | {"user": values["user"] | {"colour": 1}})
    with pytest.raises(ConfigError, match=r"model\.dim must be a int"):
        DERM.Config.from_dict(values | {"dim": "wide"})
    with pytest.raises(ConfigError, match="lacks the settings"):
        DERM.Config.from_dict({})
    with pytest.raises(ConfigError, match="choose one of"):
        DERM.Config.from_dict(values | {"losses": values["losses"] | {"conversion": "sometimes"}})


def test_space_id_depends_on_weights_config_and_data(config) -> None:  # type: ignore[no-untyped-def]
    weights, values = DERM(config).state_dict(), config.to_dict()
    identity = space_id(weights, values, "data")
    assert len(identity) == 16 and int(identity, 16) >= 0
    assert space_id(dict(reversed(weights.items())), values, "data") == identity
    name = next(iter(weights))
    assert space_id(weights | {name: weights[name] + 1e-6}, values, "data") != identity
    assert space_id(weights, values | {"seed": 9}, "data") != identity
    assert space_id(weights, values, "other") != identity


def test_history_dropout_hides_only_in_training(config, spec, make_batch) -> None:  # type: ignore[no-untyped-def]
    tower = replace(config.user, history_dropout=0.5)
    model, users = DERM(replace(config, user=tower)), make_batch(spec).user
    assert isinstance(model.user_tower, UserTower)
    assert not torch.equal(model.user_vectors(users)[0], model.user_vectors(users)[0])
    model.eval()
    assert torch.equal(model.user_vectors(users)[0], model.user_vectors(users)[0])


def test_an_unknown_preset_is_refused() -> None:
    assert presets.by_name("small").batch_rows == 4096
    with pytest.raises(ConfigError, match="debug, small, full"):
        presets.by_name("huge")
