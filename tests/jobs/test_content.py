"""A content upstream in a home folder of its own: who has a vector, and what it is made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from feature_repo.contracts.errors import ConfigError, NotReadyError
from jobs import config as settings
from jobs import ingest, refresh, train_upstream
from jobs.config import Config, Splits, Upstream
from jobs.content import ContentUpstream
from jobs.workspace import Workspace

START = datetime(2024, 1, 1, tzinfo=UTC)
CUT = START + timedelta(days=40)
ITEMS = 60
pytestmark = pytest.mark.filterwarnings("ignore")


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def make(folder: Path, *, attributes: bool = True) -> Workspace:
    """Sixty items of three kinds, one born on day 50; users 0 to 9 buy of one kind each, user 10 an unknown item."""
    rows = [(day(0.1 + n % 60), n % 10, (n % 10) % 3 + 3 * (n % 15), "purchase", None) for n in range(600)]
    rows += [(day(1 + n * 0.05), n % 10, n % 45, "impression", n) for n in range(1000)]
    rows += [(day(1.01 + n * 0.05), n % 10, n % 45, "click", n) for n in range(0, 1000, 3)]
    rows += [(day(39), 10, 999, "purchase", None)]
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).write_parquet(folder / "events.parquet")
    kinds = ["whole milk", "rye bread", "red wine"]
    items = pl.DataFrame(
        {
            "item_id": list(range(ITEMS)),
            "event_timestamp": [day(50) if item == ITEMS - 1 else day(-1) for item in range(ITEMS)],
            "title": [f"{kinds[item % 3]} no. {item % 7}" for item in range(ITEMS)],
            "price": [1.0 + item % 3 for item in range(ITEMS)],
        }
    )
    items.write_parquet(folder / "items.parquet")
    given: dict[str, Any] = {"items": (str(folder / "items.parquet"),)} if attributes else {}
    events = (str(folder / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=folder / "home", name="tiny", events=events, now=day(70), **given))
    opened = Workspace.open(folder / "home")
    splits = Splits(upstream_end=CUT, train_end=day(47), valid_end=day(54), end=day(60))
    upstreams = (Upstream(version="v1", kind="content", content_dim=4),)
    settings.save(Config(splits=splits, upstreams=upstreams, consumers=(), history_actions=("purchase",)), opened.home)
    return Workspace.open(folder / "home")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    opened = make(tmp_path_factory.mktemp("content"))
    train_upstream.run(opened, "v1")
    return opened


def test_items_without_an_event_have_a_vector_from_their_birth_on(ws: Workspace) -> None:
    model = refresh.upstream_at(ws, "v1", CUT)
    assert isinstance(model, ContentUpstream)
    # Items 45 to 58 were never met; 59 is not born yet, and of 999 nothing is known.
    assert model.ids("item", CUT).to_list() == list(range(59))
    assert model.ids("item", day(50.5)).to_list() == list(range(60))
    ids, vectors, _ = model.infer("item", CUT)
    wine, cold = ids.to_list().index(2), ids.to_list().index(47)
    assert cold % 3 == wine % 3 == 2 and vectors[cold] @ vectors[wine] > 0.5
    assert vectors[cold] @ vectors[ids.to_list().index(0)] < 0.5


def test_a_user_is_the_mean_of_what_he_acted_on(ws: Workspace) -> None:
    model = refresh.upstream_at(ws, "v1", CUT)
    ids, users, norms = model.infer("user", CUT)
    assert ids.to_list() == list(range(10))  # of what user 10 bought nothing is known
    item_ids, items, _ = model.infer("item", CUT)
    events = (
        ws.log.scan()
        .collect()
        .filter((pl.col("event_type") == "purchase") & (pl.col("user_id") == 4) & (pl.col("event_timestamp") < CUT))
    )
    age = (CUT - events["event_timestamp"]).dt.total_seconds().to_numpy() / 86_400
    counts = np.zeros(len(item_ids))
    np.add.at(counts, events["item_id"].to_numpy(), 0.5 ** (age / 30))
    weights = np.log1p(counts)
    expected = (weights / weights.sum()) @ items
    np.testing.assert_allclose(users[4] * norms[4], expected, atol=1e-5)
    alone = model.infer("user", CUT, np.array([4]))
    np.testing.assert_allclose(alone[1][0], users[4], atol=1e-6)


def test_its_snapshots_pass_the_gate(ws: Workspace) -> None:
    done = refresh.run(ws, "v1", CUT)
    again = refresh.run(ws, "v1", CUT + timedelta(days=7))
    snapshots = [publication.snapshot for publication in (*done.publications, *again.publications)]
    assert [snapshot.view for snapshot in snapshots] == ["user_embedding_v1", "item_embedding_v1"] * 2
    assert all(snapshot.accepted for snapshot in snapshots)
    assert [snapshot.rows for snapshot in snapshots] == [10, 59, 10, 59]


def test_another_cut_off_is_another_space(ws: Workspace) -> None:
    first = ws.ledger.space(ws.ledger.version("v1").space_id)
    later = train_upstream.train(
        ws, ws.config.upstream("v1").model_copy(update={"version": "v2", "train_end": day(44)})
    )
    assert later.space.space_id != first.space_id
    assert ws.ledger.space(first.space_id).train_end == CUT
    from_weights = ws.config.upstream("v1").model_copy(update={"version": "v3", "start_from": first.space_id})
    with pytest.raises(ConfigError, match="factorized anew"):
        train_upstream.train(ws, from_weights)


def test_without_item_attributes_there_is_nothing_to_embed(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="no item attributes"):
        train_upstream.run(make(tmp_path, attributes=False), "v1")


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="click_weight: no setting of a content embedding"):
        Upstream(version="v1", kind="content", click_weight=0.5)
    with pytest.raises(ValidationError, match="content_dim belongs to kind: content"):
        Upstream(version="v1", content_dim=8)
