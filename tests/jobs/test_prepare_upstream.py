"""What an upstream's settings make of its training: moments, labels, inputs, length of vectors, passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contracts.errors import ConfigError
from jobs import ingest, refresh, train_upstream
from jobs.config import Config, Splits, Upstream
from jobs.config import save as save_config
from jobs.prepare_upstream import Prepared, prepare
from jobs.workspace import Workspace
from models import presets

START, DAYS = datetime(2024, 1, 1, tzinfo=UTC), 70
CUTS = dict(zip(("upstream_end", "train_end", "valid_end", "end"), (50, 60, 65, DAYS), strict=True))
SPLITS = Splits(**{name: START + timedelta(days=days) for name, days in CUTS.items()})
PLAIN = Upstream(version="v1")
LATER = 1000  # ids from here on are first seen after the cut-off


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw, rows = np.random.default_rng(5), []
    for number in range(2000):
        time = START + timedelta(minutes=int(draw.integers(0, DAYS * 1440)))
        user, item = int(draw.integers(30)), int(40 * draw.random() ** 2)
        item += LATER if time > SPLITS.upstream_end and number % 2 else 0
        follows = ["impression"]
        if draw.random() < 0.5:
            follows += ["click", *(["add_to_cart"] if draw.random() < 0.5 else [])]
            follows += ["conversion"] if draw.random() < 0.1 else []
        rows += [(time + timedelta(minutes=at), user, item, kind, number) for at, kind in enumerate(follows)]
    folder = tmp_path_factory.mktemp("log")
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    events, root = (str(folder / "events.parquet"),), folder / "home"
    ingest.run(ingest.IngestConfig(home=root, name="carts", events=events, now=START + timedelta(days=90)))
    return root


def prepared(home: Path, folder: Path, settings: Upstream, **config: int) -> Prepared:
    """Prepare a training in an empty folder."""
    ws = Workspace.open(home)
    save_config(Config(preset="debug", splits=SPLITS, upstreams=(settings,), consumers=(), **config), ws.home)
    return prepare(Workspace.open(home), settings, presets.debug(), folder)


def test_training_reads_the_moments_of_its_own_grid(home: Path, tmp_path: Path) -> None:
    found = {}
    for name, config in {
        "daily": {"refresh_days": 1},
        "weekly": {"refresh_days": 7},
        "daily, trained weekly": {"refresh_days": 1, "training_grid_days": 7},
    }.items():
        prepared(home, tmp_path / name, PLAIN, **config)
        found[name] = sorted(path.name for path in (tmp_path / name).glob("moment-*"))
    assert found["daily, trained weekly"] == found["weekly"] and len(found["weekly"]) < len(found["daily"]) / 4


def test_a_training_is_the_same_however_often_vectors_are_refreshed(home: Path) -> None:
    ws, spaces = Workspace.open(home), []
    for config in ({"refresh_days": 7}, {"refresh_days": 1, "training_grid_days": 7}):
        save_config(Config(preset="debug", upstreams=(PLAIN,), consumers=(), splits=SPLITS, **config), ws.home)
        spaces.append(train_upstream.run(Workspace.open(home), "v1"))
    assert spaces[0].space.space_id == spaces[1].space.space_id and [s.reused for s in spaces] == [False, True]


def test_the_conversion_head_starts_from_the_rate_of_the_events_that_it_learns(home: Path, tmp_path: Path) -> None:
    carts = PLAIN.model_copy(update={"conversion_events": ("add_to_cart", "conversion")})
    rates = [
        prepared(home, tmp_path / str(at), settings).model.conversion_rate for at, settings in enumerate((PLAIN, carts))
    ]
    assert 0.05 < rates[0] < 0.15 and 0.45 < rates[1] < 0.65


def test_an_event_that_nobody_logged_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="basket"):
        prepared(home, tmp_path / "rows", PLAIN.model_copy(update={"conversion_events": ("basket",)}))


def test_profiles_and_the_length_of_vectors_are_an_upstreams_own(home: Path, tmp_path: Path) -> None:
    plain = prepared(home, tmp_path / "plain", PLAIN)
    told = prepared(home, tmp_path / "told", PLAIN.model_copy(update={"profiles": True, "out_dim": 3}))
    assert not plain.encoder.reads_profiles and told.encoder.reads_profiles
    assert told.model.out_dim == 3 != plain.model.out_dim
    assert told.model.inputs.user_nums > plain.model.inputs.user_nums
    assert told.model.inputs.item_nums > plain.model.inputs.item_nums


def test_passes_are_an_upstreams_own(home: Path) -> None:
    ws = Workspace.open(home)
    taken = {}
    for epochs in (1, 3):
        upstream = Upstream(version=f"v{epochs + 1}", epochs=epochs)
        save_config(Config(preset="debug", epochs=2, upstreams=(upstream,), consumers=()), ws.home)
        result = train_upstream.train(Workspace.open(home), upstream)
        taken[epochs] = max(point["epoch"] for point in result.curve)
    assert taken[3] - taken[1] == 2


def test_ids_that_no_training_saw_say_nothing(home: Path) -> None:
    ws = Workspace.open(home)
    save_config(Config(preset="debug", epochs=1, splits=SPLITS, upstreams=(PLAIN,), consumers=()), ws.home)
    space = train_upstream.train(Workspace.open(home), PLAIN).space
    upstream = refresh.load_upstream(Workspace.open(home), space)
    rows = upstream.tables.item_rows[ws.log.codes["item"]["item_code"].to_numpy()]
    length = upstream.model.items.rows.weight.norm(dim=1).detach().numpy()[rows]
    later = ws.log.codes["item"]["item_id"].to_numpy() >= LATER
    assert later.sum() > 10 and not length[later].any()
    assert (~later).sum() > 30 and (length[~later] > 0).all()
