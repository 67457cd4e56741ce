"""Real HTTP on a free port, on the tiny demo: answers, switches under load, limits, the audit of what was served."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from feature_repo import releases
from jobs import audit, materialize, release
from jobs.serving import worker
from jobs.serving.background import serving
from jobs.serving.settings import ServeSettings
from jobs.workspace import Workspace
from tests.integration.http_client import call

FUZZ_CASES = int(os.environ.get("FUZZ_CASES", "40"))


def settings(ws: Workspace, **changes: Any) -> ServeSettings:
    now = materialize.last_available(ws, datetime.now(UTC))
    values = {"home": ws.home.root, "port": 0, "now": now, "timeout_s": 30.0, "poll_s": 0.1, "log_sample": 1.0}
    return ServeSettings.model_validate({**values, **changes})


def users(ws: Workspace, view: str = "user_embedding_v1") -> list[int]:
    latest = ws.ledger.snapshots(view, accepted=True)[-1]
    return pl.read_parquet(ws.home.root / latest.path)["user_id"].to_list()


@pytest.fixture(scope="module")
def url(released: Workspace) -> Any:
    with serving(settings(released)) as address:
        yield address


def test_recommendations_are_the_best_of_the_nearest(released: Workspace, url: str) -> None:
    user = users(released)[3]
    context = {"hour": 18, "day_of_week": 2, "display": "0", "mailer": "A", "store_id": 367}
    asked = {"user_id": user, "k": 10, "candidates": 50, "context": context}
    status, answer = call(f"{url}/v1/recommend", asked)
    assert status == 200 and answer["release"] == "both" and answer["fallback"] is None
    status, nearest = call(f"{url}/v1/retrieve", {"user_id": user, "k": 50})
    found = [item["item_id"] for item in nearest["items"]]
    assert status == 200 and len(set(found)) == 50
    status, ranked = call(f"{url}/v1/rank", {"user_id": user, "item_ids": found, "context": context})
    by_score = sorted(ranked["items"], key=lambda item: -item["score"])
    assert status == 200 and [item["item_id"] for item in ranked["items"]] == found
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in by_score[:10]]
    for item in ranked["items"]:
        assert item["score"] == pytest.approx(item["ctr"] * item["cvr"])
    assert "ignored" not in answer and "ignored" not in ranked
    status, typo = call(f"{url}/v1/rank", {"user_id": user, "item_ids": found, "context": context | {"hours": 3}})
    assert status == 200 and typo["ignored"] == ["hours"] and typo["items"] == ranked["items"]
    assert re.search(r"^headwater_ignored_context_total [1-9]", call(f"{url}/metrics")[1], re.M)
    status, own = call(f"{url}/v1/rank", {"user_id": user, "item_ids": found, "formula": "log(ctr) + 2 * similarity"})
    for item in own["items"]:
        assert item["score"] == pytest.approx(np.log(item["ctr"]) + 2 * item["similarity"])


def own_choices(released: Workspace, user: int) -> pl.DataFrame:
    """Return what a user chose, by the latest snapshot: item_id, strengths."""
    latest = released.ledger.snapshots("user_choices", accepted=True)[-1]
    mine = pl.read_parquet(released.home.root / latest.path).filter(pl.col("user_id") == user)
    return mine.explode("items", "strengths").select("strengths", item_id="items")


def added(released: Workspace, user: int) -> pl.DataFrame:
    """Return what retrieval adds to every item's product, by the release and what is published: item_id, added."""
    release = releases.current_release(released.ledger)
    assert release is not None and release.index is not None
    learned = release.index.get("popularity", {"weight": 0.0, "columns": ["activity_28d"]})
    assert learned["columns"] == ["activity_28d"]  # purchases are no outcome of an impression
    latest = released.ledger.snapshots("item_stats", accepted=True)[-1]
    counts = pl.read_parquet(released.home.root / latest.path)
    popular = counts.select("item_id", added=learned["weight"] * (1 + pl.col("activity_28d").cast(pl.Float64)).log())
    weight = release.index["own_choices"]["weight"]
    assert weight > 0
    rows = own_choices(released, user).select("item_id", own=weight * (1 + pl.col("strengths")).log())
    both = popular.join(rows, on="item_id", how="left")
    return both.select("item_id", added=pl.col("added") + pl.col("own").fill_null(0))


def test_retrieval_is_exact_and_keeps_to_filters_and_exclusions(released: Workspace, url: str) -> None:
    user = users(released)[0]
    snapshots = {e: released.ledger.snapshots(f"{e}_embedding_v1", accepted=True)[-1] for e in ("user", "item")}
    frames = {e: pl.read_parquet(released.home.root / snapshot.path) for e, snapshot in snapshots.items()}
    vector = np.array(frames["user"].filter(pl.col("user_id") == user)["embedding"][0])
    products = frames["item"]["embedding"].list.to_array(len(vector)).to_numpy() @ vector
    attributes = pl.read_parquet(released.home.lake / "item_attributes" / "*.parquet")
    grocery = attributes.filter(pl.col("department") == "GROCERY")["item_id"]
    told = frames["item"].select("item_id").with_columns(similarity=pl.Series(products))
    told = told.join(added(released, user), on="item_id", how="left").with_columns(pl.col("added").fill_null(0))
    scored = told.sort(pl.col("similarity") + pl.col("added"), descending=True)
    expected = scored.filter(pl.col("item_id").is_in(grocery.implode()))["item_id"].to_list()
    asked = {"user_id": user, "k": 20, "filters": {"department": ["GROCERY"]}, "exclude": expected[:3]}
    _, answer = call(f"{url}/v1/retrieve", asked)
    assert [item["item_id"] for item in answer["items"]] == expected[3:23]
    _, answer = call(f"{url}/v1/retrieve", {"user_id": user, "k": 30})
    assert [item["item_id"] for item in answer["items"]] == scored["item_id"].to_list()[:30]
    # Retrieval and ranking tell the same similarity: that of the vectors.
    similarity = [item["similarity"] for item in answer["items"]]
    assert similarity == pytest.approx(scored["similarity"].to_list()[:30], abs=1e-5)


def test_own_choices_are_the_same_online_and_in_the_offline_join(released: Workspace) -> None:
    from jobs.store import open_store

    store, ids = open_store(released.home), users(released)[:20]
    features = ["user_choices:items", "user_choices:strengths", "user_choices:available_us"]
    now = settings(released).now
    assert now is not None
    labels = pd.DataFrame({"user_id": ids, "event_timestamp": pd.to_datetime([now] * len(ids), utc=True)})
    offline = store.get_historical_features(labels, features).to_arrow().sort_by("user_id")
    online = store.get_online_features(features, [{"user_id": user} for user in sorted(ids)]).to_dict()
    assert offline["items"].to_pylist() == online["items"] and max(map(len, online["items"])) > 3
    assert offline["strengths"].to_pylist() == online["strengths"]
    assert offline["available_us"].to_pylist() == online["available_us"]
    # A moment that had not seen the last refresh reads the one before it.
    labels["event_timestamp"] -= pd.Timedelta(hours=1)
    earlier = store.get_historical_features(labels, features).to_arrow().sort_by("user_id")
    snapshot = released.ledger.snapshots("user_choices", accepted=True)[-2]
    rows = pl.read_parquet(released.home.root / snapshot.path).filter(pl.col("user_id").is_in(ids)).sort("user_id")
    told = {
        user: mine for user, mine in zip(*(earlier[name].to_pylist() for name in ("user_id", "items")), strict=True)
    }
    assert {user: told[user] for user in rows["user_id"]} == dict(rows.select("user_id", "items").iter_rows())


def test_an_unknown_user_gets_what_is_popular_and_a_score(released: Workspace, url: str) -> None:
    status, answer = call(f"{url}/v1/recommend", {"user_id": -7, "k": 5, "candidates": 20})
    assert status == 200 and answer["fallback"] == "popular"
    assert len(answer["items"]) == 5 and all(0 < item["ctr"] < 1 for item in answer["items"])
    status, popular = call(f"{url}/v1/retrieve", {"user_id": -7, "k": 20})
    latest = released.ledger.snapshots("item_stats", accepted=True)[-1]
    counts = pl.read_parquet(released.home.root / latest.path).select("item_id", "conversions_28d")
    listed = pl.DataFrame({"item_id": [item["item_id"] for item in popular["items"]]}).join(
        counts, on="item_id", maintain_order="left"
    )
    assert listed["conversions_28d"].to_list() == sorted(listed["conversions_28d"].to_list(), reverse=True)
    assert listed["conversions_28d"][0] > 0


def test_embeddings_are_those_of_the_online_store(released: Workspace, url: str) -> None:
    from jobs.store import open_store

    ids = users(released)[:5]
    status, answer = call(f"{url}/v1/embeddings", {"entity": "user", "ids": [*ids, -1], "version": "v2"})
    assert status == 200 and answer["found"] == [True] * 5 + [False] and answer["vectors"][5] is None
    rows = [{"user_id": user} for user in ids]
    stored = open_store(released.home).get_online_features(["user_embedding_v2:embedding"], rows).to_dict()
    # Numbers are written as short as float32 allows, and read back to the same bits.
    served = np.array(answer["vectors"][:5], np.float32)
    assert served.tobytes() == np.array(stored["embedding"], np.float32).tobytes()
    assert answer["space_id"] == released.ledger.version("v2").space_id
    assert call(f"{url}/v1/embeddings", {"entity": "user", "ids": ids, "version": "v9"})[0] == 404


def test_feasts_own_vector_search_agrees(released: Workspace, url: str) -> None:
    """The online table keeps items that the latest snapshot lacks; of those that both know, the order is the same."""
    from jobs.store import open_store

    user, latest = users(released)[2], released.ledger.snapshots("item_embedding_v1", accepted=True)[-1]
    known = set(pl.read_parquet(released.home.root / latest.path)["item_id"].to_list())
    store = open_store(released.home)
    rows = store.get_online_features(["user_embedding_v1:embedding"], [{"user_id": user}]).to_dict()
    asked = ["item_embedding_v1:embedding", "item_embedding_v1:available_us"]
    found = store.retrieve_online_documents_v2(features=asked, query=rows["embedding"][0], top_k=300).to_dict()
    popular = dict(added(released, user).iter_rows())
    near = zip(found["item_id"], found["distance"], strict=True)
    pairs = sorted(near, key=lambda pair: -pair[1] - popular.get(pair[0], 0.0))
    own = own_choices(released, user)["item_id"].to_list()  # of these also such as Feast does not find
    expected = [(item, distance) for item, distance in pairs if item in known - set(own)][:25]
    _, answer = call(f"{url}/v1/retrieve", {"user_id": user, "k": 25, "exclude": own})
    assert [item["item_id"] for item in answer["items"]] == [item for item, _ in expected]
    similarity = [item["similarity"] for item in answer["items"]]
    assert similarity == pytest.approx([distance for _, distance in expected], abs=1e-6)


def test_what_does_not_fit_is_refused_with_a_reason(url: str) -> None:
    refused = {
        "no user": {},
        "text for a number": {"user_id": "a"},
        "beyond 64 bits": {"user_id": 2**64},
        "an unknown setting": {"user_id": 1, "limit": 3},
        "too many": {"user_id": 1, "candidates": 5_000},
        "a filter of nothing": {"user_id": 1, "filters": {"colour": ["red"]}},
        "code": {"user_id": 1, "formula": "().__class__"},
        "no number": {"user_id": 1, "formula": "1 / (ctr - ctr)"},
        "a tower of powers": {"user_id": 1, "formula": "9**9**9**9**9"},
        "a lone surrogate": {"user_id": 1, "filters": {"\ud800": ["x"]}},
    }
    for reason, body in refused.items():
        status, answer = call(f"{url}/v1/recommend", body)
        assert status == 422 and answer["error"]["message"], (reason, status, answer)
    assert call(f"{url}/v1/recommend", raw=b"{")[0] == 400
    assert call(f"{url}/v1/recommend", raw=b"[" * 100_000)[0] in (400, 422)
    assert call(f"{url}/v1/recommend", raw=b"\xff\xfe{}")[0] in (400, 422)
    assert call(f"{url}/v1/recommend", raw=b" " * 300_000)[0] == 413
    assert call(f"{url}/v1/nothing")[0] == 404
    status, text = call(f"{url}/metrics")
    assert status == 200 and 'headwater_requests_total{path="/v1/recommend",status="422"}' in text


def test_a_failure_shows_no_trace(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the secret of /etc/passwd")

    monkeypatch.setattr(worker, "compute", fail)
    status, answer = call(f"{url}/v1/recommend", {"user_id": 1})
    assert status == 500 and "secret" not in str(answer) and "Traceback" not in str(answer)


def test_requests_together_get_the_answers_they_get_alone(released: Workspace) -> None:
    from jobs.serving.holder import Holder
    from jobs.serving.worker import Task, compute

    held = Holder(settings(released))
    held.refresh()
    some = [*users(released)[:6], -3]
    tasks = [Task(user, retrieve=40 + at, keep=9, context={"hour": at}) for at, user in enumerate(some)]
    tasks += [Task(user, item_ids=[1_029_743, 995_242, 5]) for user in some]
    together = compute(held.served, tasks, settings(released))
    for task, outcome in zip(tasks, together, strict=True):
        alone = compute(held.served, [task], settings(released))[0]
        assert outcome.item_ids == alone.item_ids and outcome.fallback == alone.fallback
        for name, values in outcome.scores.items():
            assert values == pytest.approx(alone.scores[name], abs=1e-6), name


def test_a_switch_falls_between_requests(released: Workspace) -> None:
    """Constant requests while the pointer moves to and fro: none fails, and none mixes two releases."""
    ws, asked = released, users(released)[:4]
    answers: list[tuple[int, int, Any]] = []
    stop = threading.Event()

    def ask(url: str, number: int) -> None:
        while not stop.is_set():
            user = asked[number]
            answers.append((user, *call(f"{url}/v1/recommend", {"user_id": user, "k": 5, "candidates": 30})))

    with serving(settings(ws, log_sample=0.0)) as url:
        threads = [threading.Thread(target=ask, args=(url, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for name in ("clicks", "both", "clicks", "both"):
            release.promote(ws, name, by="me", now=datetime.now(UTC))
            end = time.monotonic() + 30
            while call(f"{url}/v1/release")[1]["release"] != name and time.monotonic() < end:
                time.sleep(0.05)
            assert call(f"{url}/v1/release")[1]["release"] == name
            time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 20 and {status for _, status, _ in answers} == {200}
    assert {answer["release"] for _, _, answer in answers} == {"clicks", "both"}
    seen: dict[tuple[int, str], Any] = {}
    for user, _, answer in answers:
        assert all(("cvr" in item) == (answer["release"] == "both") for item in answer["items"])
        ids = [item["item_id"] for item in answer["items"]]
        assert seen.setdefault((user, answer["release"]), ids) == ids


def test_a_token_is_asked_for(released: Workspace) -> None:
    with serving(settings(released, token="s3cret", log_sample=0.0)) as url:
        assert call(f"{url}/healthz")[0] == 200
        assert call(f"{url}/v1/release")[0] == 401
        assert call(f"{url}/v1/release", token="other")[0] == 401
        assert call(f"{url}/v1/release", token="s3cret")[0] == 200


def test_malformed_requests_never_break_it(url: str, tmp_path: Path) -> None:
    """Schemathesis on the OpenAPI document: no answer is a 5xx. `make fuzz-serving` runs more cases."""
    program = Path(sys.executable).parent / "schemathesis"
    command = [str(program), "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--seed", "1"]
    command += ["--max-examples", str(FUZZ_CASES), "--phases", "examples,coverage,fuzzing", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_500, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-1_000:]
    generated = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert generated and int(generated[1].replace(",", "")) >= FUZZ_CASES, done.stdout[-1_000:]
    print(generated[0])


# The audit


@pytest.fixture
def audited(released: Workspace, tmp_path: Path) -> Workspace:
    """A copy of its own, with an empty log."""
    import shutil

    from jobs import apply

    shutil.copytree(released.home.root, tmp_path / "home", ignore=shutil.ignore_patterns("serving"))
    ws = Workspace.open(tmp_path / "home")
    apply.run(ws)
    return ws


def ask_some(ws: Workspace) -> None:
    """Serve known and unknown users, items with and without vectors, three ways."""
    items = pl.read_parquet(ws.home.lake / "item_attributes" / "*.parquet")["item_id"].to_list()[:200:7]
    with serving(settings(ws)) as url:
        for number, user in enumerate([*users(ws)[:12], -1]):
            context = {"hour": number, "display": "0"}
            for path, body in (
                ("recommend", {"user_id": user, "k": 15, "candidates": 60, "context": context}),
                ("rank", {"user_id": user, "item_ids": [*items, -4], "context": context}),
            ):
                assert call(f"{url}/v1/{path}", body)[0] == 200


def views(result: audit.Result) -> dict[str, audit.ViewSkew]:
    return {skew.view: skew for skew in result.views}


def test_what_was_served_is_what_training_reads_exactly(audited: Workspace) -> None:
    ask_some(audited)
    result = audit.run(audited)
    assert result.passed and result.rows_exact == result.rows > 300 and result.requests == 26
    assert all(skew.equal == skew.rows for skew in result.views)
    assert {"user_embedding_v1", "item_embedding_v1", "user_stats", "item_stats", "item_attributes"} <= views(
        result
    ).keys()
    assert all(skew.covered > 0 for skew in result.views)
    assert views(result)["user_embedding_v1"].covered < result.rows  # the unknown user was among them
    assert {score.score for score in result.scores} == {"ctr", "cvr", "similarity"}
    assert all(score.differing == 0 for score in result.scores)


def test_changed_and_lost_vectors_are_found(audited: Workspace) -> None:
    ws, (changed, lost) = audited, users(audited)[:2]
    with sqlite3.connect(ws.home.feast / "online.db") as connection:
        table = "headwater_user_embedding_v1"
        rows = connection.execute(f"SELECT entity_key, value FROM {table} WHERE feature_name = 'embedding'").fetchall()
        keys = {int.from_bytes(key[-8:], "little"): (key, value) for key, value in rows}
        key, value = keys[changed]
        damaged = value[:-4] + np.float32(0.5).tobytes()
        assert damaged != value
        connection.execute(
            f"UPDATE {table} SET value = ? WHERE entity_key = ? AND feature_name = 'embedding'", (damaged, key)
        )
        connection.execute(f"DELETE FROM {table} WHERE entity_key = ?", (keys[lost][0],))
    ask_some(ws)
    result = audit.run(ws)
    found = views(result)["user_embedding_v1"]
    assert not result.passed
    assert found.different > 0 and found.missing > 0 and found.extra == found.early == found.stale == 0
    assert found.different + found.missing + found.equal == found.rows
    assert all(skew.equal == skew.rows for skew in result.views if skew.view != "user_embedding_v1")
    assert {score.score for score in result.scores if score.differing} >= {"similarity"}
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "audit", "skew", "--home", str(ws.home.root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 4 and "skewed" in done.stderr
    assert audit.run(ws, max_skew=1.0).passed


def test_a_snapshot_written_later_is_not_held_against_serving(audited: Workspace) -> None:
    """The replay knows what was known: rows written after the answer are hidden, and the ones before come up."""
    ws = audited
    ask_some(ws)
    latest = ws.ledger.snapshots("item_stats", accepted=True)[-1]
    path = ws.home.root / latest.path
    later = datetime.now(UTC) + timedelta(days=1)
    pl.read_parquet(path).with_columns(pl.lit(later).cast(pl.Datetime("us", "UTC")).alias("created")).write_parquet(
        path
    )
    found = views(audit.run(ws))
    assert found["item_stats"].early > 0 and found["item_stats"].stale == found["item_stats"].different == 0
    assert found["user_stats"].equal == found["user_stats"].rows


def test_late_rows_are_told_from_wrong_ones(audited: Workspace) -> None:
    """Users that the online store still has as of an earlier moment are stale; a limit decides whether that passes."""
    from jobs.store import open_store

    ws = audited
    snapshots = ws.ledger.snapshots("user_stats", accepted=True)
    store = open_store(ws.home)
    (ws.home.feast / "online.db").unlink()
    store.registry.refresh()
    from feature_repo.views import feast_objects

    store.apply([value for value in feast_objects(ws.home, ws.ledger).values()], partial=False)
    for view in store.list_feature_views():
        end = snapshots[-2].available_at if view.name == "user_stats" else snapshots[-1].available_at
        start = datetime(1969, 1, 1, tzinfo=UTC) if not view.ttl else end - view.ttl
        store.materialize(start, end, feature_views=[view.name])
    ask_some(ws)
    result = audit.run(ws)
    stale = views(result)["user_stats"]
    assert stale.stale > 0 and stale.skewed == 0 and not result.passed
    assert views(result)["user_embedding_v1"].equal == views(result)["user_embedding_v1"].rows
    # The values differ with the rows, and so may the scores; both limits have to allow it.
    assert audit.run(ws, max_stale=1.0, score_tolerance=1.0).passed
