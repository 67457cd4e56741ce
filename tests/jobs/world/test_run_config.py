"""The settings that are written beside a world."""

from __future__ import annotations

from pathlib import Path

from jobs import config as settings
from jobs.config import Config
from jobs.simulate import _write_run_config
from jobs.world.config import checked


def test_a_worlds_rankers_are_the_default_ones_with_each_upstream_alone_beside_them(tmp_path: Path) -> None:
    _write_run_config(checked(users=20, items=100, days=60), tmp_path)
    written = settings.read(tmp_path / "config.yaml")
    assert written.truth == tmp_path / "truth" and written.refresh_days == 5
    assert [consumer.each_alone for consumer in written.consumers] == [True, True, False]
    assert [consumer.model_copy(update={"each_alone": False}) for consumer in written.consumers] == [
        *Config().consumers
    ]
