"""From a summary to records, and from records to the page: what is written is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality_ablations
from benchmarks.quality import records_of
from benchmarks.quality_records import RESULTS, put
from benchmarks.quality_tables import ABSENT, IN_SHORT, PAGES, filled, table
from models import presets
from models.upstream.derm import DERM
from models.upstream.dhen import DHEN


def _row(embeddings: str, lift: float) -> dict[str, Any]:
    figures = dict.fromkeys(("auc", "log_loss", "normalized_entropy"), 0.5)
    counts = {"rows": 1000, "positives": 100, "seeds": 3, "comparisons": 2}
    tests = {"adjusted_ci95": [lift - 0.002, lift + 0.002], "p_value": 0.01, "adjusted_p_value": 0.02}
    share = {"share_of_possible_gain": 10 * lift, "share_ci95": [0.0, 1.0]}
    names = {"task": "ctr", "embeddings": embeddings, "relative_auc_lift": lift, "ci95": [lift - 0.001, lift + 0.001]}
    return figures | counts | tests | share | names


@pytest.fixture
def summary() -> dict[str, Any]:
    retrieval = {"model": "DERM v1", "recall_at_100": 0.25, "ci95_at_100": [0.24, 0.26]}
    return {
        "dataset": {"name": "world"},
        "lift": [_row("none", 0.0), _row("shuffled", -0.02), _row("user", 0.0005), _row("user+item", 0.02)],
        "oracle": [_row("oracle", 0.1)],
        "retrieval": [retrieval, retrieval | {"model": "popularity", "recall_at_100": 0.1}],
        "retrieval_setup": {"users": 77},
    }


def test_a_summary_becomes_records_and_those_the_page(summary: dict[str, Any], tmp_path: Path) -> None:
    records = records_of(summary, {("ctr", "user+item"): 1.5}, "make this")
    put(records, tmp_path / "quality.json")
    by_name = {(row["task"], row["model"], row["embeddings"]): row for row in records}
    assert by_name["ctr", "ranker", "none"]["relative_auc_lift"] is None
    assert by_name["ctr", "ranker", "user+item"]["ranking_cost"] == 1.5
    assert by_name["ctr", "true probabilities", "none"]["share_of_possible_gain"] == 1.0
    assert by_name["retrieval", "DERM v1", "user+item"]["rows"] == 77
    page = "before\n<!-- table world ctr -->\nold\n<!-- end -->\nafter <!-- table helped not world -->\n<!-- end -->\n"
    written = filled(page, tmp_path)
    assert written.startswith("before\n<!-- table world ctr -->\n\n| model |") and "old" not in written
    assert "| ranker | user+item | 0.5000 | +2.00% (+1.90% to +2.10%) | 0.5000 | 20.0% | 1.50 | 3 |" in written
    assert "Made by `make this`" in written
    assert "- ctr: ranker (user): no lift that the interval can tell, +0.05% (-0.05% to +0.15%)." in written
    assert "- ctr: ranker (shuffled): worse than without embeddings, -2.00% (-2.10% to -1.90%)." in written
    assert filled(written, tmp_path) == written
    assert "| DERM v1 | 0.2500 | 0.2400 to 0.2600 |" in table("retrieval world", tmp_path)


def test_whoever_does_better_than_ours_is_named(summary: dict[str, Any], tmp_path: Path) -> None:
    records = records_of(summary, {}, "make this")
    peer = records[0] | {"model": "LightGBM", "auc": 0.6, "command": "peers"}
    als = records[-1] | {"model": "ALS", "recall_at_100": 0.3}
    put([*records, peer, peer | {"model": "weak", "auc": 0.4}, als], tmp_path / "quality.json")
    written = table("helped not world", tmp_path)
    assert "- ctr: LightGBM has ROC-AUC 0.6000, ranker (none) 0.5000." in written
    assert "- retrieval: ALS has recall@100 0.3000, DERM v1 0.2500." in written
    assert "weak" not in written and "true probabilities" not in written


def test_what_was_not_measured_is_said_so(tmp_path: Path) -> None:
    for name in ("world ctr", "retrieval world", "helped not world", "staleness", "sanity"):
        assert table(name, tmp_path) == ABSENT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_records_say(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    assert filled(before, RESULTS.parent) == before, "run `python -m benchmarks.quality_tables`"


def test_what_stands_in_short_is_measured() -> None:
    lines = table("in short", RESULTS.parent).splitlines()[2:]
    assert len(lines) == len(IN_SHORT) and all(line.count(" to ") == 1 for line in lines)


def test_staleness_and_sanity_tables(tmp_path: Path) -> None:
    point = {"embeddings": "user+item", "refreshes": 1, "days": 10.4, "lift": 0.01, "ci95": [0.0, 0.02]}
    point |= {"against_fresh": -0.001, "against_fresh_ci95": [-0.002, 0.0], "hit_rates": {"item": 0.8, "user": 0.9}}
    curve = {"seeds": 3, "rows": 1000, "command": "make it", "curve": [point, point | {"refreshes": 0, "days": 3.5}]}
    (tmp_path / "staleness.json").write_text(json.dumps({"world ctr": curve}))
    lines = table("staleness", tmp_path).splitlines()
    assert lines[-2] == "| user+item | 3.5 | +1.00% (+0.00% to +2.00%) |  | 80.0% |"
    assert lines[-1] == "| user+item | 10.4 | +1.00% (+0.00% to +2.00%) | -0.10% (-0.20% to +0.00%) | 80.0% |"
    found = {"experiment": "shuffled ids", "found": "lift", "as_expected": False}
    sanity = {"dataset": "world", "seeds": 2, "rows": 1000, "command": "make it", "experiments": [found]}
    (tmp_path / "sanity.json").write_text(json.dumps(sanity))
    assert "| shuffled ids | lift | **no** |" in table("sanity", tmp_path)


def test_ablations_change_the_one_thing_that_they_name() -> None:
    config = _derm_config(DHEN.Config(layers=1))
    for name, modules in (("masknet + transformer", ("masknet", "transformer")), ("transformer + mlp", None)):
        change = quality_ablations.SETTINGS[name].model
        assert change is not None
        changed = change(config)
        expected = modules or ("transformer", "mlp")
        assert {tower.dhen.modules for tower in (changed.user, changed.item, changed.interaction)} == {expected}
        assert changed.out_dim == config.out_dim
    narrow = quality_ablations.SETTINGS["64 floats"].model
    assert narrow is not None and narrow(config).out_dim * config.out_tokens == 64
    original = presets.small
    with quality_ablations.preset_changed(narrow):
        assert presets.by_name("small").batch_rows == original().batch_rows and presets.small is not original
    assert presets.small is original


def _derm_config(dhen: DHEN.Config) -> DERM.Config:
    from dataclasses import replace

    from models.upstream.inputs import InputSpec

    config = DERM.Config(InputSpec.__new__(InputSpec))
    towers = {name: replace(getattr(config, name), dhen=dhen) for name in ("user", "item", "interaction")}
    return replace(config, **towers)


def test_ablation_records_hold_every_setting_against_the_default() -> None:
    generator = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 20)
    truth = generator.normal(size=4000)
    label = (generator.random(4000) < 1 / (1 + np.exp(-truth))).astype(float)
    facts = (label, np.ones(4000), user)
    noise = generator.normal(size=(2, 4000))

    def scored(weight: float) -> quality_ablations.Scored:
        return quality_ablations.Scored(facts, noise, truth + weight * noise, truth)

    found = {"default": scored(1.0), "64 floats": scored(2.0)}
    base, default, narrow = quality_ablations.records_of(found, 2, 600_000)
    assert base["embeddings"] == "none" and base["ci95"] is None
    assert default["relative_auc_lift"] > narrow["relative_auc_lift"] > 0
    assert narrow["against_default_ci95"][1] < 0 and "against_default" not in default
    assert 0 < narrow["share_of_possible_gain"] < default["share_of_possible_gain"] < 1
