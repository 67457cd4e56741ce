"""Settings of consumers that go with some tasks only, and what they decide."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import small_home
from jobs.config import Consumer
from jobs.train_downstream import _request, fit_config


def test_retrieval_has_no_settings_of_a_ranker() -> None:
    with pytest.raises(ValidationError, match="calibration: settings of a ranker"):
        Consumer(name="retrieval", task="retrieval", versions=("v1",), calibration="platt")
    with pytest.raises(ValidationError, match="reads no version"):
        Consumer(name="ctr", task="ctr", versions=())


def test_a_setting_decides_what_is_trained_only_where_it_is_set(tmp_path: Path) -> None:
    ws = small_home.build(tmp_path / "home", refreshes=1)
    manifest = {"request": {"service": "ctr"}}
    plain = Consumer(name="ctr", task="ctr", versions=("v1",), centred=False)
    fit = fit_config(100_000, plain)
    before = asdict(fit)
    del before["ranker"]["attention_heads"], before["ranker"]["centred"]
    # As it was before these settings were there: finished rankers of a home folder are not trained again.
    request = {"training_set": {"service": "ctr"}, "seeds": ws.config.seeds, "fit": before}
    assert _request(ws, plain, manifest, fit) == request
    changes = (
        {"tokens": True},
        {"calibration": "platt"},
        {"attention_heads": 2},
        {"each_alone": True},
        {"centred": True},
        {"seeds": ws.config.seeds + 1},
    )
    for change in changes:
        other = plain.model_copy(update=change)
        assert _request(ws, other, manifest, fit_config(100_000, other)) != request, change
