"""The peers are given what they may know, and what they are given is what they read."""

from __future__ import annotations

import dataclasses
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse

from benchmarks import peers_retrieval, peers_sasrec, peers_tables, peers_trees, quality_records
from benchmarks.one_request import OneRequest, of_one_user, sources_of
from benchmarks.peers import Contest
from benchmarks.peers_monolith import Monolith, MonolithBatch
from benchmarks.peers_own import NOTHING, POPULARITY_WEIGHTS, WEIGHTS, Weights, dense_scores, rank
from benchmarks.peers_retrieval import SEARCH, Asked, K, model_of
from benchmarks.peers_rows import svd_refreshes
from benchmarks.peers_trees import PRIOR, statistics, vector_columns
from jobs.features.encode import IdTable, Vocabulary
from jobs.features.ranking import Fields, RankerEncoder
from jobs.retrieve_questions import Question
from jobs.serving.rankers import ranker_data
from models.downstream.batches import RankerBatch, RankerTensors
from models.downstream.fit import FitConfig, predict, train_ranker
from models.downstream.inputs import RankerData, RankerSpec
from models.downstream.ranker import Ranker, RankerConfig
from models.downstream.retrieval import Own
from models.metrics import roc_auc, sigmoid
from models.presets import debug
from models.upstream import DERM, InputSpec, ItemBatch, UserBatch

CODE = np.array([1, 1, 2, 1, 1, 0])
LABEL = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0], np.float32)
TRAIN = np.array([True, True, True, True, False, False])
WEEK = np.array([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize(("weeks", "counts"), [("other", [1, 1, 0, 2, 3, 0]), ("earlier", [0, 0, 0, 2, 3, 0])])
def test_a_training_row_counts_no_row_of_its_own_week(weeks: str, counts: list[int]) -> None:
    found = statistics(CODE, 3, LABEL, TRAIN, WEEK, weeks)
    assert found[:, 0].tolist() == counts
    mean = LABEL[TRAIN].mean()
    assert found[3, 1] == pytest.approx((1 + PRIOR * mean) / (2 + PRIOR))  # the two rows of week 0, one with a label
    assert found[5, 1] == pytest.approx(mean)  # unknown: nothing but the prior


def test_labels_after_the_training_rows_change_no_statistic() -> None:
    later = LABEL.copy()
    later[~TRAIN] = 0.0
    for weeks in ("other", "earlier"):
        assert np.array_equal(
            statistics(CODE, 3, LABEL, TRAIN, WEEK, weeks), statistics(CODE, 3, later, TRAIN, WEEK, weeks)
        )


def test_trees_read_components_and_the_product_of_a_pair() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(5, 40)).astype(np.float32), rng.normal(size=(7, 40)).astype(np.float32)
    at_left, at_right = np.array([0, 4, -1]), np.array([6, -1, 2])
    user, item, product = vector_columns({"l": (left, at_left), "r": (right, at_right)}, np.ones(3, bool))
    assert user.shape == item.shape == (3, 32)
    assert np.isnan(user[2]).all() and np.isnan(item[1]).all() and np.isfinite(user[:2]).all()
    assert product[0, 0] == pytest.approx(left[0] @ right[6], rel=1e-5)
    assert np.isnan(product[1:]).all()


def _log(last: int) -> Any:
    """Return a workspace over twelve users who buy of two kinds of items, the last so many events left out."""
    start, rng = datetime(2024, 1, 1, tzinfo=UTC), np.random.default_rng(1)
    users = rng.integers(12, size=400)
    items = 10 * (users % 2) + rng.integers(10, size=400)
    times = [start + timedelta(hours=3 * step) for step in range(400)]
    events = pl.DataFrame(
        {"event_timestamp": times, "event_type": "purchase", "user_code": users, "item_code": items},
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC"), "event_type": pl.String},
    )
    codes = {
        entity: pl.DataFrame({f"{entity}_id": np.arange(size) + 100, f"{entity}_code": np.arange(size)})
        for entity, size in (("user", 12), ("item", 21))
    }
    cut, end = start + timedelta(days=21), start + timedelta(days=49)
    known = events.head(400 - last).lazy()
    record = SimpleNamespace(counts={"purchase": 400 - last})
    return SimpleNamespace(
        log=SimpleNamespace(scan=lambda: known, coded=lambda read: read, record=record, codes=codes, start=start),
        config=SimpleNamespace(history_actions=None, coverage=timedelta(days=28)),
        splits=SimpleNamespace(upstream_end=cut, end=end),
        refresh_moments=lambda first, stop: [first + timedelta(days=7 * step) for step in range(4)],
    )


def test_the_plain_svd_knows_nothing_of_later_events_and_tells_the_kinds_apart(monkeypatch: Any) -> None:
    monkeypatch.setattr("benchmarks.peers_rows.RANK", 2)
    whole, cut = svd_refreshes(_log(0)), svd_refreshes(_log(160))  # the last event that is left is of day 30
    for entity in ("user", "item"):
        assert len(whole[entity]) == 4
        for (moment, ids, vectors), (_, other_ids, others) in zip(whole[entity][:2], cut[entity][:2], strict=True):
            assert moment < datetime(2024, 1, 30, tzinfo=UTC)
            assert ids.equals(other_ids) and np.array_equal(vectors, others)
    (_, ids, users), (_, item_ids, items) = whole["user"][-1], whole["item"][-1]
    assert 120 not in item_ids.to_list()  # nobody ever bought it
    scores = users @ items.T
    same = (ids.to_numpy() % 2)[:, None] == (item_ids.to_numpy() - 100 >= 10)[None, :]
    assert scores[same].min() > np.abs(scores[~same]).max()


@pytest.fixture
def monolith() -> tuple[Monolith, MonolithBatch]:
    """Return a monolith with small towers, and a batch of four rows of two users and three items."""
    torch.manual_seed(0)
    inputs = InputSpec((3,), 2, (4,), 1, item_rows=9, actions=3, sequence_length=4, interests=2, top_items=3)
    towers = DERM(debug().model(inputs))
    spec = RankerSpec(nums=1, embeddings=(("u", towers.dim), ("i", towers.dim)), pairs=(("u", "i"),))
    users = UserBatch(
        cats=torch.tensor([[1], [2]]),
        nums=torch.randn(2, 2),
        seq_item=torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]),
        seq_cats=torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]).unsqueeze(-1),
        seq_action=torch.tensor([[1, 2, 0, 0], [1, 0, 0, 0]]),
        seq_age=torch.rand(2, 4),
        interest_value=torch.tensor([[[1, 2]], [[3, 0]]]),
        interest_weight=torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]),
        top_item=torch.tensor([[1, 2, 0], [3, 0, 0]]),
        top_weight=torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
    )
    items = ItemBatch(torch.tensor([1, 2, 3]), torch.tensor([[1], [2], [3]]), torch.randn(3, 1))
    nums, present = torch.randn(4, 1), torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    at = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0])
    model = Monolith(spec, RankerConfig(embedding_dropout=0.0), towers)
    return model, MonolithBatch((), nums, (), present, users, items, *at)


def test_the_monolith_ranks_as_a_ranker_that_is_given_its_towers_vectors(
    monolith: tuple[Monolith, MonolithBatch],
) -> None:
    model, batch = monolith
    model.eval()
    users, items = model.user_tower(batch.users, model.items)[0], model.item_tower(batch.items, model.items)[0]
    ranker = Ranker(model.spec, model.config).eval()
    ranker.load_state_dict({name: model.state_dict()[name] for name in ranker.state_dict()})
    given = RankerBatch(batch.ids, batch.nums, (users[batch.user_at], items[batch.item_at]), batch.present)
    assert torch.allclose(model(batch), ranker(given), atol=1e-6)


def test_the_monoliths_towers_learn_from_the_rankers_loss_where_a_user_is_known(
    monolith: tuple[Monolith, MonolithBatch],
) -> None:
    model, batch = monolith
    model.train()
    model(batch)[:3].sum().backward()
    assert model.items.rows.weight.grad is not None and model.items.rows.weight.grad.abs().sum() > 0
    model.zero_grad()
    model(dataclasses.replace(batch, present=torch.zeros(4, 2))).sum().backward()
    assert model.items.rows.weight.grad is None or not model.items.rows.weight.grad.abs().sum()


def test_named_parameters_get_their_own_learning_rate() -> None:
    rng = np.random.default_rng(0)
    rows = RankerData(
        cats=rng.integers(0, 5, (300, 1)).astype(np.int32),
        crosses=np.zeros((300, 0), np.int64),
        nums=rng.normal(size=(300, 2)).astype(np.float32),
        embeddings={},
        label=(rng.random(300) < 0.3).astype(np.float32),
        weight=np.ones(300, np.float32),
        user=np.arange(300),
    )
    spec = RankerSpec(cats=(("c", 5, 4),), nums=2)
    model = Ranker(spec, RankerConfig())
    model.set_statistics(rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = RankerTensors(rows, spec)
    train_ranker(model, tensors, tensors, FitConfig(batch_size=64, max_epochs=1), 0.0, rates={"mlp.": 0.0})
    after = model.state_dict()
    assert torch.equal(before["mlp.0.weight"], after["mlp.0.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("peer", SEARCH)
def test_every_retrieval_peer_finds_what_its_users_like(peer: str) -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(60, size=3000)
    items = 150 * (users % 2) + rng.integers(150, size=3000)
    asked = np.arange(40)
    relevant = [150 * (user % 2) + rng.permutation(150)[:20] for user in asked]
    popular = np.tile(np.argsort(-np.bincount(items, minlength=300))[:100], (40, 1))
    question = Question(asked, relevant, popular, (users, items), np.zeros(3000))
    vectors = rng.normal(size=(60, 8)).astype(np.float32), rng.normal(size=(300, 8)).astype(np.float32)
    found = Asked(question, question, question, *vectors)
    alone = found.peer(peer, SEARCH[peer][0]).recall()
    assert alone.mean() > 1.3 * found.recall(popular).mean()
    # What is added counts, whatever the scale of a peer's scores.
    chosen = Own(np.stack([items[:15] for items in relevant]), np.ones((40, 15), np.float32))
    added = dataclasses.replace(found, chosen=chosen).peer(peer, SEARCH[peer][0])
    assert (added.recall() == alone).all() and (added.recall(Weights(own=1.0)) >= 15 / 20).all()
    liked = np.zeros(300, np.float32)
    liked[relevant[0]] = 1.0
    shown = dataclasses.replace(found, popular=liked).peer(peer, SEARCH[peer][0])
    assert shown.recall(Weights(popularity=100.0))[0] == 1.0 and (shown.recall() == alone).all()


@pytest.mark.parametrize("peer", SEARCH)
def test_a_peer_is_ranked_as_its_library_ranks(peer: str) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(60, size=900), rng.integers(300, size=900)
    model = model_of(peer, SEARCH[peer][0] | {"K": 200} if peer == "item-kNN" else SEARCH[peer][0], 8, 0)
    matrix = sparse.csr_matrix((np.ones(900, np.float32), (users, items)), shape=(60, 300))
    model.fit(matrix, show_progress=False)
    theirs, scores = model.recommend(np.arange(40), matrix[:40], N=20, filter_already_liked_items=False)
    ours = dense_scores(model, matrix, np.arange(40))
    assert np.take_along_axis(ours, theirs, axis=1) == pytest.approx(scores, rel=1e-4)
    assert np.take_along_axis(ours, rank(ours, 20), axis=1) == pytest.approx(scores, rel=1e-4)


def test_a_peers_choices_fade_where_its_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[float]] = []

    class Kept:
        user_factors, item_factors = np.zeros((3, 8)), np.zeros((100, 8))

        def fit(self, matrix: Any, show_progress: bool) -> None:
            given.append([float(matrix[user, item]) for user, item in ((0, 3), (1, 2), (1, 0))])

    monkeypatch.setattr(peers_retrieval, "model_of", lambda *given: Kept())
    pairs, ages = (np.array([0, 1, 1]), np.array([3, 2, 0])), np.array([0.0, 90.0, 180.0])
    question = Question(np.array([0, 1]), [np.array([1]), np.array([2])], np.zeros((2, 4), int), pairs, ages)
    found = Asked(question, question, question, np.zeros((3, 8)), np.zeros((100, 8)))
    fading = {"past": "all", "half_life_days": 90.0, "kind": "cosine", "K": 20}
    found.peer("item-kNN", fading)
    found.peer("item-kNN", {"past": "all", "kind": "cosine", "K": 20})
    assert given == [[1.0, 0.5, 0.25], [1.0, 1.0, 1.0]]
    turned_to = dataclasses.replace(question, pairs=tuple(np.r_[side, side[:1]] for side in pairs), ages=np.zeros(4))
    dataclasses.replace(found, activity=turned_to).peer("item-kNN", {"past": "activity", "kind": "cosine", "K": 20})
    assert given[2] == [2.0, 1.0, 1.0]
    assert fading in SEARCH["item-kNN"]


def test_the_search_chooses_with_and_without_what_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Told(peers_retrieval.Scored):
        known: float = 0.0

        def recall(self, weights: Weights = NOTHING) -> np.ndarray:
            if not any(weights):
                return np.full(2, self.known)
            # What does best alone does not do best with what is added.
            return np.full(2, 0.9 - self.known - abs(weights.own - 0.5) / 2 - abs(weights.popularity - 0.3) / 10)

    def peer(self: Asked, peer: str, setting: Any, seed: int = 0) -> Told:
        return Told(self, np.zeros((2, 4)), 1.0, {"cosine": 0.3, "tfidf": 0.4}.get(setting["kind"], 0.1))

    monkeypatch.setattr(Asked, "peer", peer)
    question = Question(np.array([0, 1]), [np.array([1])] * 2, np.zeros((2, 4), int), (np.zeros(0),) * 2, np.zeros(0))
    alone = Asked(question, question, question, np.zeros((3, 8)), np.zeros((4, 8)))
    chosen = Own(np.zeros((2, 1), int), np.ones((2, 1), np.float32))
    given = dataclasses.replace(alone, chosen=chosen, popular=np.ones(4, np.float32))
    found = peers_retrieval._search("item-kNN", given, tmp_path / "with", lambda *told: None)
    name = f"item-kNN, {peers_retrieval.ADDED}"
    assert set(found) == {"item-kNN", name}
    setting, weights, told = found["item-kNN"]
    assert setting["kind"] == "tfidf" and weights == NOTHING and "own" not in told
    setting, weights, told = found[name]
    assert setting["kind"] == "bm25" and weights == Weights(0.5, 0.3) == (told["own"], told["popularity"])
    files = [file.name for file in (tmp_path / "with").iterdir()]
    settings, by_itself = len(files), sum("tfidf" in file for file in files)
    # Own choices are tried beside the best popularity, and beside none; that is one and the same where none is best.
    assert 0 < by_itself < settings
    assert told["tried"] == settings * (len(POPULARITY_WEIGHTS) + 2 * len(WEIGHTS)) - by_itself * len(WEIGHTS)
    # Asked again, what lies there is read.
    again = peers_retrieval._search("item-kNN", given, tmp_path / "with", lambda *told: None)
    assert again == found and len(list((tmp_path / "with").iterdir())) == settings
    assert set(peers_retrieval._search("item-kNN", alone, tmp_path / "alone", lambda *told: None)) == {"item-kNN"}


def test_timing_again_keeps_the_lifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contest, "_cost", lambda self: {"candidates": 500})
    contest = Contest(None, None, lambda *told: None)  # type: ignore[arg-type]
    known = {"lift": [{"model": "monolith"}], "ranking_cost": None}
    assert contest.run(["retrieval", "cost"], known) == known | {"ranking_cost": {"candidates": 500}}


def test_training_again_keeps_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = {"none": np.zeros((1, 2)), "v1": np.ones((1, 2)), "all": np.ones((1, 2))}
    monkeypatch.setattr("benchmarks.peers.our_logits", lambda *given: logits)
    monkeypatch.setattr(Contest, "_table", lambda self, found: {"lift": [list(name) for name in found]})
    found = Contest(None, None, lambda *told: None).run([], {"ranking_cost": {"candidates": 500}})  # type: ignore[arg-type]
    assert found["ranking_cost"] == {"candidates": 500} and len(found["lift"]) == 3


def test_rankers_that_the_home_has_are_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, trained = np.ones((1, 2)), []
    views = {version: [f"user_{version}", f"item_{version}"] for version in ("v2", "v3")}
    logits = {"none": 0 * one, "v1": one, "all": one, "user_v2-item_v2": 7 * one}
    monkeypatch.setattr("benchmarks.peers.our_logits", lambda *given: logits)
    further = {peers_tables.alone(version): dict.fromkeys(names) for version, names in views.items()}
    monkeypatch.setattr(Contest, "further", further)
    monkeypatch.setattr(Contest, "seeds", lambda self, name, compute: trained.append(name) or 3 * one)
    monkeypatch.setattr(
        Contest, "_table", lambda self, found: {"found": {name: float(at[0, 0]) for name, at in found.items()}}
    )
    found = Contest(None, None, lambda *told: None).run(["rankers"], {"ranking_cost": None})["found"]  # type: ignore[arg-type]
    assert found["ranker", peers_tables.alone("v2")] == 7 and found["ranker", peers_tables.alone("v3")] == 3
    assert trained == ["ranker-SVD-32", "ranker-user+item-of-v3"]


def test_own_choices_again_come_before_what_is_popular() -> None:
    pairs = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([3, 3, 1, 2, 2, 2, 0])
    question = Question(np.array([0, 2]), [np.array([1]), np.array([2])], np.zeros((2, 4), int), pairs, np.zeros(7))
    ranked = Asked(question, question, question, np.zeros((3, 8)), np.zeros((4, 8))).again("coverage")
    assert ranked.tolist() == [[3, 1, 2, 0], [2, 3, 0, 1]]


def test_records_are_what_the_file_of_records_takes(tmp_path: Any) -> None:
    figures = {"auc": 0.7, "log_loss": 0.1, "normalized_entropy": 0.9, "calibration": 1.0, "relative_auc_lift": 0.01}
    row = figures | {"ci95": [0.0, 0.02], "seed_auc_lifts": [], "share_of_possible_gain": None, "share_ci95": None}
    models = (
        ("ranker", "none"),
        ("ranker", peers_tables.ALL),
        ("ranker", peers_tables.SVD),
        ("ranker", peers_tables.alone("v3")),
        ("LightGBM", peers_tables.OURS),
        ("monolith", "inside"),
    )
    lift = [row | {"model": model, "embeddings": embeddings} for model, embeddings in models]
    fastest = {peers_tables.OURS: 2.0, "monolith": 9.0, peers_tables.ALL: 3.0, peers_tables.alone("v3"): 1.0}
    cost = {"candidates": 500, "milliseconds": {"monolith": 11.0}, "fastest_milliseconds": fastest}
    task = {"lift": lift, "rows": 10, "positives": 2, "seeds": 3, "ranking_cost": cost}
    recall = {"model": "ALS", "recall_at_100": 0.2, "ci95": [0.1, 0.3], "users": 5, "seeds": 3}
    found = {"ctr": task, "retrieval": [recall | {"ours_minus_it": 0.0, "ours_minus_it_ci95": [-0.1, 0.1]}]}
    kept = quality_records.put(peers_tables.records("d", found), tmp_path / "quality.json")
    told = [(r["task"], r["model"].split(" ")[0], r["embeddings"], r["ranking_cost"]) for r in kept]
    assert told == [
        ("ctr", "LightGBM", peers_tables.OURS, None),
        ("ctr", "monolith", "inside", 9.0),
        ("ctr", "ranker", peers_tables.SVD, None),
        ("ctr", "ranker", peers_tables.alone("v3"), 1.0),
        ("retrieval", "ALS", "none", None),
    ]


def test_trees_learn_and_are_calibrated_for_the_log_before_sampling() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9000, 3)).astype(np.float32)
    label = (rng.random(9000) < sigmoid(values[:, 0] - 2.0)).astype(np.float32)
    kept = (label > 0) | (rng.random(9000) < 0.5)  # half of the negatives are dropped, the rest weigh twice
    values, label = values[kept], label[kept]
    period = np.arange(len(label)) % 3
    rows: Any = SimpleNamespace(
        chosen=tuple(period == part for part in range(3)),
        known_train=label,
        known_valid=label,
        data=SimpleNamespace(weight=np.where(label > 0, 1.0, 2.0)),
    )
    setting = dataclasses.replace(peers_trees.SEARCH[0], leaves=7)
    found = peers_trees.fit(rows, peers_trees.Table(values, []), setting, seed=0)
    test, weight = label[period == 2], rows.data.weight[period == 2]
    assert roc_auc(test, found.logits) > 0.7
    assert (sigmoid(found.logits) * weight).sum() == pytest.approx(test.sum(), rel=0.1)


def test_a_timed_request_gives_the_rankers_logits() -> None:
    rng = np.random.default_rng(0)
    stats = tuple(f"{entity}_stats__{name}_28d" for entity in ("user", "item") for name in ("impressions", "clicks"))
    stats += tuple(f"{entity}_stats__conversions_28d" for entity in ("user", "item"))
    fields = Fields(
        ids=("user_id", "item_id"),
        cats=("user_attributes__age", "item_attributes__brand", "hour"),
        nums=(*stats, "depth"),
        crosses=(("user_id", "item_attributes__brand"),),
        versions=("v1",),
    )
    known = [str(at) for at in range(9)]
    encoder = RankerEncoder(
        fields,
        {name: IdTable(known, 0) for name in fields.ids},
        {name: Vocabulary(known) for name in fields.cats},
    )
    frame = pl.DataFrame(
        {name: [known[at] for at in rng.integers(9, size=40)] for name in (*fields.ids, *fields.cats)}
        | {name: rng.poisson(5.0, 40).astype(float) for name in fields.nums}
    )
    spec = encoder.spec({"user_embedding_v1": 8, "item_embedding_v1": 8})
    table = rng.normal(size=(9, 8)).astype(np.float32)
    vectors = {"user_embedding_v1": (table, np.full(40, 2)), "item_embedding_v1": (table, rng.integers(-1, 9, 40))}
    data = of_one_user(encoder, ranker_data(*encoder.arrays(encoder.encode(frame)), vectors), 3)
    torch.manual_seed(0)
    ranker = Ranker(spec, RankerConfig(centred=True, table_init=0.3)).eval()
    ranker.set_statistics(data)
    sources = sources_of(encoder, ())
    assert sorted(at for part in sources.items for at in part.nums) == [2, 3, 5, 9, 10]  # its rates among them
    np.testing.assert_allclose(OneRequest(ranker, encoder, data)().numpy(), predict(ranker, data), atol=2e-6)


def test_what_the_other_environment_writes_where_it_runs_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "model.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "Path('log.txt').write_text('')\n"
        "given = np.load(Path(sys.argv[1]) / 'asked.npz')\n"
        "scores = np.full((len(given['asked']), given['count']), -9.0)\n"
        "scores[:, given['items'][0]] = -1.0\n"
        "scores[2:] = np.nan\n"
        "np.savez(Path(sys.argv[1]) / 'scored.npz', scores=scores)\n"
        "(Path(sys.argv[1]) / 'training.json').write_text('{\"epochs\": 3}')\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(peers_sasrec, "SCRIPT", script)
    pairs = (np.array([0, 1, 1]), np.array([2, 1, 1]))
    ages = np.array([3.0, 2.0, 1.0])
    question = Question(np.array([0, 1, 2]), [np.array([1])] * 3, np.zeros((3, K), int), pairs, ages)
    test = Asked(question, question, question, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    # A relative folder and a relative Python, as the command line gives them.
    python = Path(os.path.relpath(sys.executable))

    def scored(asked: Asked) -> tuple[list[list[float]], Any]:
        found, told = peers_sasrec.scored(asked, python, Path("sasrec"), lambda told: None)
        assert found.scale == 1.0  # logits may be below 0
        return found.scores.tolist(), told

    # The last one chose nothing: for it counts what is chosen most.
    assert scored(test) == ([[-9, -9, -1], [-9, -9, -1], [0, 2, 1]], {"past": "all", "epochs": 3})
    assert [found.relative_to(elsewhere).parts[0] for found in elsewhere.rglob("log.txt")] == ["sasrec"]
    assert [found.name for found in elsewhere.iterdir()] == ["sasrec"]
    # Asked the same, what lies there is the answer; another question or another model is trained anew.
    scored(test)
    assert len(list(elsewhere.rglob("log.txt"))) == 1
    # Where users turn to more than what is to be foreseen, that is read.
    turned_to = (np.array([1, 0, 1, 1]), np.array([0, 2, 1, 1])), np.array([4.0, 3.0, 2.0, 1.0])
    more = dataclasses.replace(question, pairs=turned_to[0], ages=turned_to[1])
    found, told = scored(dataclasses.replace(test, activity=more))
    assert found == [[-1, -9, -9], [-1, -9, -9], [1, 2, 1]] and told["past"] == "activity"
    script.write_text(script.read_text() + "# other settings\n")
    scored(test)
    assert len(list(elsewhere.rglob("log.txt"))) == 3


def test_a_peer_with_one_setting_gets_weights_from_before_the_test_period(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = (np.array([0, 0, 1]), np.array([0, 0, 1]))
    popular = np.array([[0, 1]] * 2)
    chosen = Own(np.array([[1], [0]]), np.ones((2, 1), np.float32))
    # Before the test period all choose again what they chose themselves; in it what the peer says is right.
    before, after = (
        Asked(
            Question(np.array([0, 1]), [np.array([at]) for at in relevant], popular, pairs, np.ones(3)),
            *[Question(np.array([0, 1]), [np.array([at]) for at in relevant], popular, pairs, np.ones(3))] * 2,
            np.eye(2, dtype=np.float32),
            np.eye(2, dtype=np.float32)[::-1].copy(),
            chosen=chosen,
        )
        for relevant in ((1, 0), (0, 1))
    )
    monkeypatch.setattr(peers_retrieval, "K", 1)
    monkeypatch.setattr(peers_retrieval, "SEARCH", {})
    monkeypatch.setattr(peers_retrieval, "windows", lambda ws, version: (after, before))
    monkeypatch.setattr(peers_retrieval, "recall_at_k", lambda ranked, relevant, ks: {1: _first(ranked, relevant)})

    def fit(asked: Asked) -> tuple[peers_retrieval.Scored, Any]:
        return peers_retrieval.Scored(asked, np.eye(2, dtype=np.float32), 1.0), {"fitted": asked is after}

    rows = peers_retrieval.compare(None, "v1", Path(), 1, lambda *told: None, {"X": fit})  # type: ignore[arg-type]
    found = {row["model"]: row for row in rows}
    assert found["X"]["recall_at_100"] == 1.0 and found["X"]["setting"]["valid_recall_at_100"] == 0.0
    added = found[f"X, {peers_retrieval.ADDED}"]
    assert added["recall_at_100"] == 0.0 and added["setting"]["valid_recall_at_100"] == 1.0
    assert added["setting"]["own"] > 1.0 and added["setting"]["fitted"]


def _first(ranked: np.ndarray, relevant: list[np.ndarray]) -> np.ndarray:
    return np.array([float(row[0] in known) for row, known in zip(ranked, relevant, strict=True)])


def test_choices_of_one_moment_are_in_no_order_of_ids() -> None:
    ages = np.repeat([9.0, 5.0, 2.0], 200)
    pairs = np.zeros(600, int), np.tile(np.arange(200), 3)
    question = Question(np.array([0]), [np.array([1])], np.zeros((1, 4), int), pairs, ages)
    users, items = peers_sasrec.in_sequence(question)
    assert (users == 0).all()
    for moment in range(3):
        bought = items[200 * moment : 200 * (moment + 1)]
        assert sorted(bought) == list(range(200))
        assert 0.35 < (np.diff(bought) > 0).mean() < 0.65
    assert (items == peers_sasrec.in_sequence(question)[1]).all()
