"""A version whose refreshes fold recent choices in: the gate recomputes it, and it sees nothing of the future."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity, Version
from jobs import folding, refresh, train_upstream
from jobs.config import Upstream
from jobs.features.log import Columns, EventLog
from jobs.features.numbers import ItemNumbers
from jobs.publication import clocked
from jobs.snapshot_gate import judge
from jobs.workspace import Workspace
from models.upstream.derm import DERM
from models.upstream.fold_in import FoldIn
from models.upstream.outcome_frame import own_directions
from models.upstream.outcome_settings import OutcomeFoldIn
from tests.lifecycle.conftest import CUT


@pytest.fixture
def folded(learned: Workspace) -> Workspace:
    """The same model once more, as v2 that folds in."""
    space = learned.ledger.space(learned.ledger.version("v1").space_id)
    learned.ledger.put_space(replace(space, space_id="f01ded", config={**space.config, **folding.setting(10.0)}))
    learned.ledger.put_version(Version("v2", "f01ded", "folds in", "upstream team", 0.5))
    return learned


def assert_agreed(done: refresh.Result) -> None:
    """Hold that the gate accepted all that a refresh published, and solved a sample of it again."""
    for publication in done.publications:
        told = {check.name: check.passed for check in publication.snapshot.verdict.checks}
        assert publication.snapshot.verdict.accepted and told["agreement"] is True


def test_refreshes_pass_the_gate_and_unfolded_ones_do_not(folded: Workspace) -> None:
    upstream = refresh.upstream_at(folded, "v2", CUT)
    for back in (28, 14, 0):
        as_of = CUT - timedelta(days=back)
        done = refresh.run(folded, "v2", as_of, upstream=upstream)
        assert_agreed(done)
    # The model's own vectors are not what v2 says.
    first = folded.ledger.snapshots("item_embedding_v2", accepted=True)[0]
    plain = refresh.upstream_at(folded, "v1", first.as_of)
    ids, vectors, norms = plain.infer("item", first.as_of)
    path = folded.home.root / "plain.parquet"
    available_at = first.as_of + folded.config.availability_lag
    pq.write_table(clocked(refresh.vector_table("item_id", ids, vectors, norms), available_at), path)
    verdict = judge(folded, upstream, "v2", "item", path, first.as_of)
    assert "agreement" in {check.name for check in verdict.checks if not check.passed} and not verdict.accepted


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_sample_is_what_the_whole_is(folded: Workspace, entity: Entity) -> None:
    upstream = refresh.upstream_at(folded, "v2", CUT)
    ids, vectors, norms = upstream.infer(entity, CUT)
    places = np.array([5, 0, len(ids) - 1])
    again = upstream.infer(entity, CUT, places)
    assert again[0].to_list() == ids.gather(places).to_list()
    assert np.allclose(again[1], vectors[places], atol=1e-5) and np.allclose(again[2], norms[places], rtol=1e-5)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    plain = refresh.upstream_at(folded, "v1", CUT)
    assert np.abs(plain.infer(entity, CUT)[1] - vectors).max() > 0.05


def test_a_choice_fades(folded: Workspace) -> None:
    activity = refresh.upstream_at(folded, "v2", CUT).tables.activity
    start, days = CUT - timedelta(days=28), timedelta(days=1)
    users, items, weights = activity.fading(start, CUT, 7 * days)
    assert np.array_equal((users, items), activity.between(start, CUT)) and len(users) > 100
    # Four half-lives back at most; with one twice as long each counts its square root.
    assert 0.0625 <= weights.min() < 0.1 < 0.9 < weights.max() <= 1
    assert np.allclose(activity.fading(start, CUT, 14 * days)[2], np.sqrt(weights))


def test_choices_count_until_they_have_faded_however_long_a_history_is_read(folded: Workspace) -> None:
    """A half-life of 60 days reads 399 of them; who has a vector is still decided by the days that are covered."""
    space = folded.ledger.space("f01ded")
    config = {**space.config, **folding.setting(10.0, 60.0)}
    folded.ledger.put_space(replace(space, space_id="faded", config=config))
    folded.ledger.put_version(Version("v3", "faded", "folds all in", "upstream team", 0.5))
    before = refresh.upstream_at(folded, "v3", CUT)
    ids, vectors, _ = before.infer("user", CUT)
    changed = refresh.upstream_at(folded, "v3", CUT)
    activity = changed.tables.activity
    old = activity.time_us < int((CUT - folded.config.coverage).timestamp() * 1_000_000)
    assert old.any()
    activity.item = np.where(old, activity.item[::-1], activity.item)
    again, others, _ = changed.infer("user", CUT)
    assert again.to_list() == ids.to_list() and np.abs(others - vectors).max() > 0.01


@pytest.fixture
def outcomes(folded: Workspace) -> Workspace:
    """The same model once more, as v3 that folds in what was chosen out of what was shown."""
    space = folded.ledger.space("f01ded")
    own = {name: value for name, value in space.config.items() if name != folding.KEY}
    config = {**own, **folding.setting(20.0, 30.0, "outcomes")}
    folded.ledger.put_space(replace(space, space_id="shown", config=config))
    folded.ledger.put_version(Version("v3", "shown", "folds outcomes in", "upstream team", None))
    return folded


def test_outcomes_are_folded_in_and_pass_the_gate(outcomes: Workspace) -> None:
    upstream = refresh.upstream_at(outcomes, "v3", CUT)
    for back in (14, 0):
        done = refresh.run(outcomes, "v3", CUT - timedelta(days=back), upstream=upstream)
        assert_agreed(done)
    plain = refresh.upstream_at(outcomes, "v1", CUT)
    for entity in ENTITIES:
        ids, vectors, norms = upstream.infer(entity, CUT)
        raw = plain.infer(entity, CUT)
        assert np.abs(raw[1] - vectors).max() > 0.05 and np.array_equal(raw[2], norms)
        places = np.array([5, 0, len(ids) - 1])
        assert np.allclose(upstream.infer(entity, CUT, places)[1], vectors[places], atol=1e-5)


def test_a_space_goes_on_as_it_began(outcomes: Workspace) -> None:
    space = outcomes.ledger.space("shown")
    prior = space.config[folding.OUTCOMES_KEY]["prior"]
    told = {"prior": prior, "half_life_days": 30.0, "after_click": []}
    outcomes.ledger.put_space(replace(space, space_id="older", config={**space.config, folding.OUTCOMES_KEY: told}))
    outcomes.ledger.put_version(Version("v4", "older", "folds outcomes in", "upstream team", None))
    upstream = refresh.upstream_at(outcomes, "v4", CUT)
    days = timedelta(days=90)
    method = folding.of_space(upstream.space.config, outcomes.log, lambda: upstream.tables.activity, days)
    assert isinstance(method, folding.OutcomeFolding) and method.config.rate == 0 and method.config.even
    assert method.config.rounds == 1 and method.config.doubt == 0 == method.config.user.moving
    with_rates = refresh.upstream_at(outcomes, "v3", CUT)
    assert np.abs(upstream.infer("user", CUT)[1] - with_rates.infer("user", CUT)[1]).max() > 0.01


SINCE = CUT - timedelta(days=60)


def priced(log: EventLog, entity: Entity, plain: Any = EventLog.attributes) -> pl.DataFrame:
    """Attributes with a price of items; every other item is known later than `SINCE`, and dear."""
    table: pl.DataFrame = plain(log, entity)
    if entity == "user":
        return table
    late = pl.col("item_id").hash(seed=2) % 2 == 1
    price = 1.0 + (pl.col("item_id").hash(seed=1) % 100).cast(pl.Float64)
    return table.with_columns(
        price=pl.when(late).then(price + 500).otherwise(price),
        event_timestamp=pl.when(late).then(CUT - timedelta(days=20)).otherwise(CUT - timedelta(days=300)),
    )


def test_slopes_of_numbers_pass_the_gate(outcomes: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space whose users have slopes of a price, which is dear or not beside the catalogue of when it was made."""
    monkeypatch.setattr(EventLog, "attributes", priced)
    space = outcomes.ledger.space("shown")
    for version, reads, slope in (("v4", "outcomes", 1.0), ("v5", "conversions", 2.0)):
        own = {name: value for name, value in space.config.items() if name != folding.OUTCOMES_KEY}
        config = {**own, **folding.setting(20.0, 30.0, reads, numbers=("price",), since=SINCE)}
        assert config[folding.OUTCOMES_KEY]["slope"] == slope
        outcomes.ledger.put_space(replace(space, space_id=f"of-{version}", config=config))
        outcomes.ledger.put_version(Version(version, f"of-{version}", "slopes", "upstream team", None))
        upstream = refresh.upstream_at(outcomes, version, CUT)
        for back in (14, 0):
            assert_agreed(refresh.run(outcomes, version, CUT - timedelta(days=back), upstream=upstream))
        ids, vectors, _ = upstream.infer("item", CUT)
        told = vectors @ own_directions(vectors.shape[1], 1)[:, 2].numpy()
        codes = outcomes.log.codes["item"]
        place = ids.to_frame("item_id").join(codes, on="item_id", how="left", maintain_order="left")["item_code"]
        found = [
            ItemNumbers.fit(outcomes.log, ("price",), moment).of(outcomes.log, CUT)[place.to_numpy(), 0]
            for moment in (SINCE, CUT)
        ]
        frozen, fresh = (np.corrcoef(told, number)[0, 1] for number in found)
        assert frozen > 0.99 and frozen > fresh + 0.005
        places = np.array([5, 0, len(ids) - 1])
        assert np.allclose(upstream.infer("item", CUT, places)[1], vectors[places], atol=1e-5)


def test_what_goes_on_from_a_space_folds_in_as_it_does() -> None:
    """A retrain of an older version keeps to what its vectors mean, but for what config.yaml says by now."""
    began = {"prior": 20.0, "half_life_days": 30.0, "after_click": [], "rate": 0.3}
    new = folding.setting(50.0, None, "outcomes", numbers=("price",), since=CUT)
    (kept,) = folding.continued(new, {folding.OUTCOMES_KEY: began}, ()).values()
    assert OutcomeFoldIn.of(kept) == OutcomeFoldIn.of({**began, "prior": 50.0})
    later = folding.setting(20.0, None, "outcomes", numbers=("weight",), since=SINCE)
    (kept,) = folding.continued(new, later, ()).values()
    assert (kept["prior"], kept["numbers"], kept["numbers_since"]) == (50.0, ["weight"], SINCE.isoformat())
    (kept,) = folding.continued(new, later, ("numbers",)).values()
    assert (kept["numbers"], kept["numbers_since"]) == (["price"], CUT.isoformat())
    slower = folding.setting(20.0, 90.0, "outcomes")
    for old in (began, later[folding.OUTCOMES_KEY]):
        (kept,) = folding.continued(slower, {folding.OUTCOMES_KEY: old}, ("fades_days",)).values()
        assert OutcomeFoldIn.of(kept).user == replace(OutcomeFoldIn.of(old).user, fades_days=90.0)
    # Where the other folds nothing in, or choices, there is nothing to keep to.
    assert folding.continued(new, folding.setting(20.0), ()) == new and folding.continued({}, later, ()) == {}


def test_which_numbers_have_slopes(outcomes: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Columns((), tuple("abcdefghij"))
    monkeypatch.setattr(EventLog, "attribute_columns", lambda _, entity: there)
    log = outcomes.log
    assert folding.numbers_of(log, None, 64) == tuple("abcdefgh") and folding.numbers_of(log, None, 11) == ("a", "b")
    assert folding.numbers_of(log, ("j", "b"), 64) == ("j", "b") and folding.numbers_of(log, (), 64) == ()
    with pytest.raises(ConfigError, match="no number price; there are: a, b"):
        folding.numbers_of(log, ("price",), 64)
    for named, dim, most in (("aa", 64, 8), ("abcdefghi", 64, 8), ("abc", 11, 2)):
        with pytest.raises(ConfigError, match=f"once, and {most} at most with vectors of {dim} floats"):
            folding.numbers_of(log, tuple(named), dim)
    for settings in ({"fold_in_numbers": ("a",)}, {"fold_in": 20.0, "fold_in_numbers": ("a",)}):
        with pytest.raises(ValidationError, match=r"set fold_in too|choices tell nothing"):
            Upstream(version="v9", **settings)


def test_outcomes_of_later_do_not_show(outcomes: Workspace) -> None:
    """A log that ends at the moment gives the same vectors as one that goes on."""
    as_of = CUT - timedelta(days=14)
    before = refresh.upstream_at(outcomes, "v3", as_of).infer("item", as_of)[1]
    changed = refresh.upstream_at(outcomes, "v3", as_of)
    whole = outcomes.log.window

    def ends(start: Any, end: Any) -> pl.LazyFrame:
        return whole(start, end).filter(pl.col("event_timestamp") < as_of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes.log, "window", ends)
        assert np.array_equal(changed.infer("item", as_of)[1], before)
        assert not np.array_equal(changed.infer("item", CUT)[1], before)


def test_conversions_are_folded_in_and_pass_the_gate(outcomes: Workspace) -> None:
    """What followed clicks says more of some users and items than the model does, and the gate solves it again."""
    space = outcomes.ledger.space("shown")
    own = {name: value for name, value in space.config.items() if name != folding.OUTCOMES_KEY}
    kinds = ("add_to_cart", "conversion") if "add_to_cart" in outcomes.log.record.counts else None
    config = {**own, **folding.setting(20.0, 30.0, "conversions", kinds)}
    outcomes.ledger.put_space(replace(space, space_id="after", config=config))
    outcomes.ledger.put_version(Version("v4", "after", "folds conversions in", "upstream team", None))
    upstream = refresh.upstream_at(outcomes, "v4", CUT)
    for back in (14, 0):
        done = refresh.run(outcomes, "v4", CUT - timedelta(days=back), upstream=upstream)
        assert_agreed(done)
    of_clicks = refresh.upstream_at(outcomes, "v3", CUT)
    for entity in ENTITIES:
        ids, vectors, _ = upstream.infer(entity, CUT)
        assert np.abs(of_clicks.infer(entity, CUT)[1] - vectors).max() > 0.05
        places = np.array([5, 0, len(ids) - 1])
        assert np.allclose(upstream.infer(entity, CUT, places)[1], vectors[places], atol=1e-5)


def test_outcomes_need_impressions(outcomes: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes.log, "record", replace(outcomes.log.record, opportunity="click"))
    with pytest.raises(ConfigError, match="no impressions"):
        refresh.upstream_at(outcomes, "v3", CUT)
    settings = Upstream(version="v9", fold_in=20.0, fold_in_of="outcomes")
    with pytest.raises(ConfigError, match="fold_in_of: choices"):
        train_upstream.train(outcomes, settings)
    space = outcomes.ledger.space("shown")
    own = {name: value for name, value in space.config.items() if name != folding.OUTCOMES_KEY}
    of_clicks = {**own, **folding.setting(20.0, None, "conversions")}
    assert folding.of_space(of_clicks, outcomes.log, lambda: pytest.fail("not asked for"), timedelta(days=90))


def test_conversions_need_an_event_that_is_one(outcomes: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {kind: count for kind, count in outcomes.log.record.counts.items() if kind != "conversion"}
    monkeypatch.setattr(outcomes.log, "record", replace(outcomes.log.record, counts=counts))
    settings = Upstream(version="v9", fold_in=20.0, fold_in_of="conversions")
    with pytest.raises(ConfigError, match="followed by conversion, and this log has none"):
        train_upstream.train(outcomes, settings)


def test_how_choices_fade_is_a_setting_of_what_folds_in() -> None:
    assert folding.setting(None) == {} and folding.setting(5.0)[folding.KEY]["half_life_days"] == 30
    kept = FoldIn(**folding.setting(5.0, 90.0)[folding.KEY])
    assert (kept.prior, kept.half_life_days) == (5.0, 90.0)
    assert kept.reach_days == pytest.approx(598, abs=1)
    (told,) = folding.setting(50.0, reads="outcomes").values()
    assert told == json.loads(json.dumps(told)) and OutcomeFoldIn.of(told) == OutcomeFoldIn(50.0)
    (slower,) = folding.setting(50.0, 90.0, "outcomes").values()
    changed = OutcomeFoldIn.of(slower)
    assert changed.user == replace(OutcomeFoldIn().user, fades_days=90.0) and changed.item.fades_days == 90
    told = [folding.setting(50.0, reads="conversions", conversions=kinds) for kinds in (None, ("add_to_cart",))]
    assert [one[folding.OUTCOMES_KEY]["after_click"] for one in told] == [["conversion"], ["add_to_cart"]]
    with pytest.raises(ValidationError, match="set fold_in too"):
        Upstream(version="v1", fold_in_half_life_days=90.0)
    with pytest.raises(ValidationError, match="set fold_in too"):
        Upstream(version="v1", fold_in_of="outcomes")


def test_what_is_folded_in_needs_no_training_of_its_own(learned: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by another name, or one that folds in otherwise, takes over the weights; another seed does not."""
    settings = learned.config.upstream("v1")
    # The fixture trained with three passes and left twenty in its config.
    learned = Workspace(learned.home, learned.config.model_copy(update={"epochs": 3}))
    monkeypatch.setattr(train_upstream, "fit_upstream", lambda *given, **named: pytest.fail("trained again"))
    folds = Upstream(version="v2", description="folds in", fold_in=20.0, fold_in_of="conversions")
    again = train_upstream.train(learned, folds)
    first = train_upstream.train(learned, settings)
    assert first.reused and again.weights_of == first.space.space_id != again.space.space_id and not again.reused
    assert again.space.config[folding.OUTCOMES_KEY]["prior"] == 20 and again.rows == first.rows
    weights = [DERM.load(learned.home.root / done.space.artifact).state_dict() for done in (first, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert train_upstream.train(learned, folds).weights_of == first.space.space_id
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        train_upstream.train(learned, folds.model_copy(update={"seed": 1}))
    for done in (first, again):
        shutil.rmtree(learned.home.root / done.space.artifact)
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # the weights are gone
        train_upstream.train(learned, folds.model_copy(update={"fold_in": 50.0}))


def test_what_happens_later_does_not_show(folded: Workspace) -> None:
    as_of = CUT - timedelta(days=14)
    before = refresh.upstream_at(folded, "v2", as_of).infer("item", as_of)[1]
    changed = refresh.upstream_at(folded, "v2", as_of)
    activity = changed.tables.activity
    later = activity.time_us >= int(as_of.timestamp() * 1_000_000)
    assert later.any()
    activity.item = np.where(later, activity.item[::-1], activity.item)
    assert np.array_equal(changed.infer("item", as_of)[1], before)


def test_two_sides_of_one_moment_are_solved_once(folded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.upstream import fold_in as module

    asked: list[int] = []
    real = module.fold_in

    def counted(*given: Any) -> Any:
        asked.append(1)
        return real(*given)

    monkeypatch.setattr(module, "fold_in", counted)
    upstream = refresh.upstream_at(folded, "v2", CUT)
    for entity in ENTITIES:
        upstream.infer(entity, CUT)
        upstream.infer(entity, CUT, np.array([1]))
    assert len(asked) == 1
