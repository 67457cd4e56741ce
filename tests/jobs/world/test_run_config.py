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
    assert written.truth == tmp_path / "truth" and (written.refresh_days, written.training_grid_days) == (1, 5)
    # A null that says "off" is written: left out, it would be the platform's default.
    assert written.smoothing is None and (written.upstreams[0].fold_in_of, written.min_item_events) == ("outcomes", 1)
    assert [consumer.each_alone for consumer in written.consumers] == [True, True, False]
    versions = [upstream.version for upstream in written.upstreams]
    assert [list(consumer.versions) for consumer in written.consumers] == [versions, versions, versions[:1]]
    plain = {"each_alone": False, "versions": ("v1", "v2")}
    assert [consumer.model_copy(update=plain) for consumer in written.consumers] == [
        consumer.model_copy(update=plain) for consumer in Config().consumers
    ]
