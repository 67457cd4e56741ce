"""What retrieval is asked: choices after a snapshot could be read, and nothing older or newer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from feature_repo.contracts.naming import choices_view
from feature_repo.contracts.types import Check, Entity, Space, Verdict, Version, View
from jobs import ingest, item_index, retrieve
from jobs.config import Config
from jobs.own_choices import OwnChoices, choices_before, known_choices
from jobs.popularity import VIEW, Popularity
from jobs.publication import Candidate, clocked, publish_together
from jobs.refresh import EMBEDDING_FIELDS, vector_table
from jobs.retrieve import Added, Learned, learn_added
from jobs.retrieve_questions import (
    HORIZON,
    Answered,
    Pair,
    answered_before,
    ask,
    before,
    pair_before,
    question,
    surfaces_of,
)
from jobs.serving.candidates import Candidates
from jobs.workspace import Workspace

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    lag = HOUR
    rows = [
        (AS_OF - timedelta(days=89), 1, 10, "view"),
        (AS_OF - timedelta(days=2), 1, 10, "view"),
        (AS_OF - timedelta(days=2), 2, 11, "view"),
        (AS_OF - timedelta(days=95), 2, 12, "view"),  # older than what is covered
        (AS_OF + lag / 2, 1, 11, "view"),  # before the snapshot could be read
        (AS_OF + lag, 1, 12, "view"),
        (AS_OF + timedelta(days=3), 1, 12, "view"),  # again: counts once
        (AS_OF + timedelta(days=3), 1, 10, "save"),  # another action
        (AS_OF + timedelta(days=4), 3, 10, "view"),  # a user without a vector
        (AS_OF + timedelta(days=4), 1, 13, "view"),  # an item without a vector
        (AS_OF + lag + HORIZON, 2, 10, "view"),  # too late
    ]
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    home = tmp_path / "home"
    events = (str(tmp_path / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=home, name="tiny", events=events, now=AS_OF + timedelta(days=99)))
    opened = Workspace.open(home)
    return Workspace(opened.home, Config(retrieval_actions=("view",)))


def test_only_choices_within_the_horizon_are_asked_for(ws: Workspace) -> None:
    asked = question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF)
    assert asked is not None
    assert asked.asked.tolist() == [0]
    assert [found.tolist() for found in asked.relevant] == [[2]]
    pairs = sorted(zip(*(side.tolist() for side in asked.pairs), strict=True))
    assert pairs == [(0, 0), (0, 0), (1, 1)]
    assert sorted(asked.ages.tolist()) == [2, 2, 89]
    assert asked.popular[0, :3].tolist() == [0, 1, 2]


def test_a_ranking_is_scored_against_popularity(ws: Workspace) -> None:
    asked = question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF)
    assert asked is not None
    users, items = np.eye(3, dtype=np.float32)[[2, 0]], np.eye(3, dtype=np.float32)
    ranked = asked.rank(users, items)
    assert ranked[0, 0] == 2
    assert asked.score(ranked).recall[10].value == 1.0


def test_nobody_asks_after_the_log_has_ended(ws: Workspace) -> None:
    assert question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF + timedelta(days=60)) is None


def test_choices_of_a_surface_are_those_that_followed_an_impression_on_it(tmp_path: Path) -> None:
    later = AS_OF + timedelta(days=1)
    rows = [
        (AS_OF - timedelta(days=3), 1, 10, "impression", 1, "feed"),
        (AS_OF - timedelta(days=3), 1, 10, "click", 1, None),
        (later, 1, 11, "impression", 2, "search"),
        (later, 1, 11, "click", 2, None),
        (later, 1, 12, "impression", 3, "feed"),
        (later, 1, 12, "click", 3, None),
        (later, 2, 10, "impression", 4, "feed"),
        (later, 2, 10, "click", 4, None),
    ]
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id", "surface"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    home, events = tmp_path / "home", (str(tmp_path / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=home, name="tiny", events=events, now=AS_OF + timedelta(days=99)))
    ws = Workspace.open(home)
    assert surfaces_of(ws) == ["feed", "search"]
    users, items = pl.Series([1, 2]), pl.Series([10, 11, 12])
    feed = question(ws, users, items, AS_OF, surface="feed")
    search = question(ws, users, items, AS_OF, surface="search")
    assert feed is not None and search is not None
    assert feed.asked.tolist() == [0, 1] and [found.tolist() for found in feed.relevant] == [[2], [0]]
    assert search.asked.tolist() == [0] and [found.tolist() for found in search.relevant] == [[1]]
    assert feed.pairs[1].tolist() == [0] and search.pairs[1].tolist() == []


FOUND = Verdict(True, (Check("rows", "critical", True, 1, ">= 1"),))
ITEMS = list(range(40))


def _publish(ws: Workspace, view: View, table: pa.Table, as_of: datetime, space: str | None) -> None:
    available_at = as_of + ws.config.availability_lag
    waiting = Candidate(view, clocked(table, available_at), lambda staged: FOUND)
    publish_together(ws, [waiting], as_of, space_id=space, available_at=available_at)


@pytest.fixture
def counted(tmp_path: Path) -> Workspace:
    """Vectors that say nothing of 40 items, and counts of views: the further down, the more often; so they go on."""
    later = AS_OF + timedelta(days=3)
    rows = [(AS_OF - timedelta(days=day), user, item, "view") for user in (1, 2) for item in ITEMS for day in (1, 2)]
    rows += [(later, user, item, "view") for user in (1, 2) for item in ITEMS[-4:]]
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    home = tmp_path / "home"
    events = (str(tmp_path / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=home, name="tiny", events=events, now=AS_OF + timedelta(days=99)))
    ws = Workspace(Workspace.open(home).home, Config(retrieval_actions=("view",)))
    ws.ledger.put_space(Space("a", 2, AS_OF, "print", "artifacts/a", {}))
    ws.ledger.put_version(Version("v1", "a", "", "me", None))
    angles = {"user": np.array([0.0, 0.1]), "item": np.linspace(0, 0.01, len(ITEMS))}
    for entity, ids in (("user", [1, 2]), ("item", ITEMS)):
        vectors = np.stack([np.cos(angles[entity]), np.sin(angles[entity])], axis=1).astype(np.float32)
        table = vector_table(f"{entity}_id", pl.Series(ids), vectors, np.ones(len(ids), np.float32))
        table = table.replace_schema_metadata({"space_id": "a", "version": "v1"})
        kind: Entity = "user" if entity == "user" else "item"
        _publish(ws, View(f"{entity}_embedding_v1", kind, "v1", "int64", EMBEDDING_FIELDS, 30), table, AS_OF, "a")
    counts = pa.table({"item_id": ITEMS, "activity_28d": pa.array(ITEMS, pa.float32())})
    _publish(ws, View(VIEW, "item", None, "int64", {"activity_28d": "float"}, 30), counts, AS_OF, None)
    return ws


def test_the_weight_of_popularity_is_learned_where_it_finds_more(counted: Workspace) -> None:
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    both = learn_added(counted, Answered(pair, HORIZON))
    learned = both.added.popularity
    assert both.added == both.without_own and both.added.own.weight == 0  # nobody's choices are published
    assert learned.weight > 0 and learned.columns == ("activity_28d",)
    found = ask(counted, pair)
    assert found is not None
    offsets = learned.offsets(counted, pair.items, found.item_ids)
    assert offsets == pytest.approx(learned.weight * np.log1p(ITEMS))
    ranked = found.question.rank(found.users, found.items, offsets)
    assert sorted(ranked[0, :4].tolist()) == ITEMS[-4:]
    assert ranked[0, 0] != found.question.rank(found.users, found.items)[0, 0]


def _answered(ws: Workspace) -> Answered:
    pair = pair_before(ws, "v1", AS_OF)
    assert pair is not None
    return Answered(pair, HORIZON)


def test_settings_are_learned_on_what_there_is_where_refreshes_begin_late(counted: Workspace) -> None:
    found = {kind: counted.ledger.snapshots(f"{kind}_embedding_v1", accepted=True)[0] for kind in ("user", "item")}
    first = Pair(found["user"], found["item"])

    def used(days: float) -> Answered | None:
        at = AS_OF + timedelta(days=days) + counted.config.availability_lag
        return answered_before(counted, Pair(replace(first.users, as_of=at), replace(first.items, as_of=at)))

    assert used(0) is None and used(6.9) is None
    assert used(28) == Answered(first, HORIZON) and used(40) == Answered(first, HORIZON)
    short = used(12)
    assert short == Answered(first, timedelta(days=12))
    # An index from before, when such a home learned nothing, is not taken for this one.
    places = [retrieve._folder("retrieval", [first.users], each) for each in (None, used(28), short)]
    assert places[0] == places[1] != places[2]
    # What was chosen after the index was made has no part in it: all of it was chosen on the third day.
    assert learn_added(counted, short).added.popularity.weight > 0
    assert learn_added(counted, Answered(first, timedelta(days=2))) == Learned()


def test_no_choice_counts_that_had_not_happened_when_the_index_is_used(counted: Workspace) -> None:
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    moment = before(counted, pair)
    assert moment + counted.config.availability_lag + HORIZON == pair.users.as_of
    # Before them there is no pair of snapshots to learn from.
    assert pair_before(counted, "v1", moment) is None and learn_added(counted, None) == Learned()


def _publish_choices(ws: Workspace, items: list[list[int]], strengths: list[list[float]], as_of: datetime) -> None:
    """Publish what users 1 and 2 chose themselves."""
    columns = {
        "user_id": pa.array([1, 2]),
        "items": pa.array(items, pa.list_(pa.int64())),
        "strengths": pa.array(strengths, pa.list_(pa.float32())),
    }
    fields = {"items": "list<int64>", "strengths": "list<float>"}
    _publish(ws, View(choices_view(), "user", None, "int64", fields, 30), pa.table(columns), as_of, None)


def test_own_choices_add_to_what_one_chose_and_to_nothing_else(counted: Workspace) -> None:
    _publish_choices(counted, [[*ITEMS[:8], 99], ITEMS[2:4]], [[4.0] * 9, [1.0, 2.0]], AS_OF)
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    found = ask(counted, pair)
    assert found is not None
    known = known_choices(counted, pair.users, found.user_ids, found.item_ids)
    own = OwnChoices(0.1).of(known)
    assert own is not None and OwnChoices(0.0).of(known) is None
    assert own.positions.tolist() == [list(range(8)), [2, 3] + [-1] * 6]  # 99 has no vector
    assert own.added[0] == pytest.approx(0.1 * np.log(5)) and own.added[1, 0] == pytest.approx(0.1 * np.log(2))
    ranked = found.question.rank(found.users, found.items, own=own)
    expected = found.users @ found.items.T
    expected[0, :8] += 0.1 * np.log(5)
    expected[1, 2:4] += 0.1 * np.log([2, 3])
    for row in range(2):
        assert ranked[row, : len(ITEMS)].tolist() == np.argsort(-expected[row], kind="stable").tolist()


def test_the_weight_of_own_choices_is_learned_where_they_are_made_again(counted: Workspace) -> None:
    _publish_choices(counted, [ITEMS[-4:]] * 2, [[0.5] * 4] * 2, AS_OF)
    learned = learn_added(counted, _answered(counted))
    assert learned.added.own.weight > 0 and learned.added.popularity == Popularity()  # the least that finds all
    # Alone popularity is worth something.
    assert learned.without_own.popularity.weight > 0 and learned.without_own.own.weight == 0


def test_own_choices_weigh_nothing_where_others_are_made(counted: Workspace) -> None:
    _publish_choices(counted, [ITEMS[:8]] * 2, [[4.0] * 8] * 2, AS_OF)
    learned = learn_added(counted, _answered(counted))
    assert learned.added == learned.without_own
    assert learned.added.own.weight == 0 and learned.added.popularity.weight > 0


def test_own_choices_are_those_as_of_the_moment_or_before(counted: Workspace) -> None:
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    _publish_choices(counted, [ITEMS[-4:]] * 2, [[0.5] * 4] * 2, AS_OF + timedelta(days=2))
    assert choices_before(counted, pair.users) is None
    assert learn_added(counted, _answered(counted)).added.own.weight == 0
    _publish_choices(counted, [ITEMS[:4]] * 2, [[0.5] * 4] * 2, AS_OF - timedelta(days=2))
    read = choices_before(counted, pair.users)
    assert read is not None and read.as_of == AS_OF - timedelta(days=2)
    # What serving would not read any more is not evaluated either, nor what the settings leave out.
    settings = counted.config
    assert choices_before(Workspace(counted.home, settings.model_copy(update={"ttl_days": 1})), pair.users) is None
    assert choices_before(Workspace(counted.home, settings.model_copy(update={"own_choices": 0})), pair.users) is None


@pytest.mark.parametrize(
    ("learned", "rows"),
    [
        (
            Learned(
                Added(Popularity(0.02, ("activity_28d",)), OwnChoices(0.1)), Added(Popularity(0.01, ("activity_28d",)))
            ),
            3,
        ),
        (Learned(Added(own=OwnChoices(0.1)), Added()), 2),
        (Learned(), 1),
    ],
)
def test_each_row_of_the_table_takes_something_away(counted: Workspace, learned: Learned, rows: int) -> None:
    _publish_choices(counted, [ITEMS[-4:]] * 2, [[0.5] * 4] * 2, AS_OF)
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    scores = retrieve._score(counted, pair, learned)
    assert scores is not None
    names = [row["model"] for row in scores["table"]]
    expected = ["DERM v1", "DERM v1, popularity added", "DERM v1, vectors alone"]
    assert names[:-2] == (expected if rows == 3 else [expected[0], expected[2]][:rows])
    assert names[-2:] == ["popularity (view)", "ALS (2 factors, implicit)"]


def test_popularity_goes_the_whole_way_to_what_is_served(counted: Workspace) -> None:
    pair = pair_before(counted, "v1", AS_OF)
    assert pair is not None
    popularity = Popularity(0.02, ("activity_28d",))
    plain = item_index.find_or_build(counted, pair.items, Popularity(0.0))
    folder = item_index.find_or_build(counted, pair.items, Popularity.read(popularity.told()))
    assert folder != plain and folder == item_index.find_or_build(counted, pair.items, popularity)
    found = ask(counted, pair)
    assert found is not None
    candidates = Candidates(folder, {}, 0)
    positions, similarity = candidates.search(found.users, "a", 10, None)
    evaluated = found.question.rank(found.users, found.items, popularity.offsets(counted, pair.items, found.item_ids))
    assert (positions == evaluated[:, :10]).all()
    # What is told of an item is the product of the vectors alone, as ranking tells it.
    products = found.users @ found.items.T
    assert similarity == pytest.approx(np.take_along_axis(products, positions, axis=1), abs=1e-6)
    assert candidates.notes["counts"] == "item_stats-20240301T000000Z"
