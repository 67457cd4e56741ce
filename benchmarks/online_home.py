"""A home folder to measure serving on: made-up vectors in clusters, counts, attributes, two rankers nobody trained.

Everything but the weights is real: snapshots, Feast views, the online store, the index, releases. How long a model
takes does not depend on what it has learned.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from feature_repo.contracts.naming import ENTITIES, attributes_view, choices_view, embedding_view, stats_view
from feature_repo.contracts.types import Check, Entity, Space, Verdict, Version, View
from feature_repo.lake import write_json
from jobs.config import Config, Consumer, Upstream, save
from jobs.features.encode import IdTable, Vocabulary
from jobs.features.history import STATS
from jobs.features.ranking import Fields, RankerEncoder
from jobs.publication import clocked, publish
from jobs.refresh import EMBEDDING_FIELDS, vector_table
from jobs.workspace import Workspace

START, DIM, CLUSTERS = datetime(2024, 1, 7, tzinfo=UTC), 64, 1_000
# Later than every refresh of a load test: what is published then can be read at once.
NOW = START + timedelta(days=60)
SPACE = "4444444444444444"
CHOICES, OWN_WEIGHT = 150, 0.2
YES = Verdict(True, (Check("rows", "critical", True, 1, ">= 1"),))
CONFIG = Config(
    ttl_days=365,
    upstreams=(Upstream(version="v1"),),
    consumers=(
        Consumer(name="ctr_ranker", task="ctr", versions=("v1",)),
        Consumer(name="cvr_ranker", task="cvr", versions=("v1",)),
        Consumer(name="retrieval", task="retrieval", versions=("v1",)),
    ),
)


def build(root: Path, *, items: int, users: int, text_ids: bool = False) -> Workspace:
    """Make the home folder with one snapshot, applied, materialized, and released as `both` and `clicks`.

    With `text_ids` the items are ``item-0``, ``item-1`` and so on, the users ``user-0``, and else numbers.
    """
    from jobs import apply, materialize, release

    save(CONFIG, Workspace.open(root).home)
    ws = Workspace.open(root)
    ws.ledger.put_space(Space(SPACE, DIM, START, "print", f"artifacts/{SPACE}", {"dim": DIM}))
    ws.ledger.put_version(Version("v1", SPACE, "made up", "me", None))
    sizes: dict[Entity, int] = {"user": users, "item": items}
    for entity, size in sizes.items():
        _publish_attributes(ws, entity, _ids(entity, size, text_ids))
    refresh(ws, START, sizes, text_ids=text_ids)
    views = [view(entity) for view in (attributes_view, stats_view) for entity in ENTITIES]
    views += [embedding_view(entity, "v1") for entity in ENTITIES]
    for task in ("ctr", "cvr"):
        folder = _ranker(ws, task, {entity: _ids(entity, size, text_ids) for entity, size in sizes.items()})
        ws.ledger.put_consumer(f"{task}_ranker", task, ["v1"], {"views": views, "artifact": folder})
    learned = {"space_id": SPACE, "own_choices": {"weight": OWN_WEIGHT}}
    write_json(learned, ws.home.artifacts / "retrieval-1" / "index.json")
    ws.ledger.put_consumer("retrieval", "retrieval", ["v1"], {"views": views[-2:], "artifact": "artifacts/retrieval-1"})
    apply.run(ws)
    materialize.run(ws, NOW)
    now = datetime.now(UTC)
    release.create(ws, ["ctr_ranker", "retrieval"], name="clicks", now=now)
    release.create(ws, ["ctr_ranker", "cvr_ranker", "retrieval"], name="both", now=now)
    release.promote(ws, "clicks", by="me", now=now)
    release.promote(ws, "both", by="me", now=now)
    return ws


def vectors(size: int, seed: int) -> np.ndarray:
    """Return unit vectors float32 [N, D] around common centres, as trained ones are, and not at random."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    values = centres[draw.integers(0, CLUSTERS, size)] + 0.6 * draw.normal(size=(size, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def _ids(entity: Entity, size: int, text: bool) -> pl.Series:
    numbers = pl.Series(np.arange(size, dtype=np.int64))
    return f"{entity}-" + numbers.cast(pl.String) if text else numbers


def refresh(ws: Workspace, as_of: datetime, sizes: dict[Entity, int], *, text_ids: bool = False) -> None:
    """Publish vectors, counts and what users chose of one moment."""
    available_at = as_of + ws.config.availability_lag
    seed = int((as_of - START) / timedelta(hours=1))
    for entity, size in sizes.items():
        ids = _ids(entity, size, text_ids)
        kind = "string" if text_ids else "int64"
        moved = vectors(size, seed + (1 if entity == "user" else 2))
        table = vector_table(f"{entity}_id", ids, moved, np.ones(size, np.float32))
        view = View(embedding_view(entity, "v1"), entity, "v1", kind, EMBEDDING_FIELDS, ws.config.ttl_days)
        _publish(ws, view, clocked(table, available_at), as_of, available_at, SPACE)
        draw = np.random.default_rng(seed + size)
        counts = {name: pa.array(draw.poisson(3.0, size).astype(np.float32)) for name in STATS}
        fields = {**dict.fromkeys(STATS, "float"), "available_us": "int64"}
        view = View(stats_view(entity), entity, None, kind, fields, ws.config.ttl_days)
        plain = clocked(pa.table({f"{entity}_id": _column(ids), **counts}), available_at)
        _publish(ws, view, plain, as_of, available_at, None)
    fields = {"items": f"list<{kind}>", "strengths": "list<float>", "available_us": "int64"}
    view = View(choices_view(), "user", None, kind, fields, ws.config.ttl_days)
    chosen = clocked(choices(sizes, seed, text_ids=text_ids), available_at)
    _publish(ws, view, chosen, as_of, available_at, None)


def choices(sizes: dict[Entity, int], seed: int, *, text_ids: bool = False) -> pa.Table:
    """Return up to `CHOICES` items of each user, and strengths that fall."""
    draw = np.random.default_rng(seed)
    kept = min(CHOICES, sizes["item"])
    # Each user's items are a stretch of the catalogue that begins anywhere, so that none is there twice.
    places = (draw.integers(sizes["item"], size=(sizes["user"], 1)) + np.arange(kept)) % sizes["item"]
    strengths = -np.sort(-draw.exponential(2.0, places.shape).astype(np.float32), axis=1)
    items = _column(_ids("item", sizes["item"], text_ids)).take(pa.array(places.ravel()))
    ends = pa.array(np.arange(len(places) + 1, dtype=np.int32) * kept)
    return pa.table(
        {
            "user_id": _column(_ids("user", sizes["user"], text_ids)),
            "items": pa.ListArray.from_arrays(ends, items),
            "strengths": pa.ListArray.from_arrays(ends, pa.array(strengths.ravel())),
        }
    )


def _column(ids: pl.Series) -> pa.Array:
    """Return ids as Arrow; Polars' own text type is not the one that Feast reads."""
    return ids.to_arrow() if ids.dtype == pl.Int64 else ids.to_arrow().cast(pa.string())


def _publish_attributes(ws: Workspace, entity: Entity, ids: pl.Series) -> None:
    always = datetime(1970, 1, 1, tzinfo=UTC)
    values = {
        name: pa.array([f"{name}-{i % kinds}" for i in range(len(ids))]) for name, kinds in _attributes(entity).items()
    }
    fields = {**dict.fromkeys(values, "string"), "available_us": "int64"}
    table = clocked(pa.table({f"{entity}_id": _column(ids), **values}), always)
    kind = "int64" if ids.dtype == pl.Int64 else "string"
    _publish(ws, View(attributes_view(entity), entity, None, kind, fields, 0), table, always, always, None)


def _attributes(entity: Entity) -> dict[str, int]:
    return {"age": 6, "income": 12} if entity == "user" else {"department": 26, "category": 300, "brand": 3}


def _publish(
    ws: Workspace, view: View, table: pa.Table, as_of: datetime, available_at: datetime, space_id: str | None
) -> None:
    publish(ws, view, table, as_of, space_id=space_id, available_at=available_at, gate=lambda staged: YES)


def _ranker(ws: Workspace, task: str, ids: dict[Entity, pl.Series]) -> str:
    """Write a ranker of the usual shape with the weights it starts with."""
    import torch

    from models.downstream.artifact import save_ranker
    from models.downstream.ranker import Ranker, RankerConfig

    names = {f"{attributes_view(e)}__{name}": (name, kinds) for e in ENTITIES for name, kinds in _attributes(e).items()}
    encoder = RankerEncoder(
        Fields(
            ids=("user_id", "item_id"),
            cats=(*names, "hour"),
            nums=tuple(f"{stats_view(entity)}__{name}" for entity in ENTITIES for name in STATS),
            crosses=tuple(("user_id", name) for name in names if name.startswith("item"))[:3],
            versions=("v1",),
        ),
        {f"{e}_id": IdTable(known[:5_000].cast(pl.String).to_list(), 0) for e, known in ids.items()},
        {
            **{name: Vocabulary([f"{short}-{i}" for i in range(kinds)]) for name, (short, kinds) in names.items()},
            "hour": Vocabulary([str(hour) for hour in range(24)]),
        },
    )
    folder = ws.home.artifacts / f"{task}_ranker-1"
    encoder.save(folder / "encoder.json")
    views = {embedding_view(entity, "v1"): DIM for entity in ENTITIES}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(task))
        model = Ranker(encoder.spec(views), RankerConfig())
    if model.numeric is not None:
        model.numeric.set_statistics(np.random.default_rng(0).poisson(3.0, (1_000, model.spec.nums)).astype(np.float32))
    place = folder / "-".join(views) / "seed-0"
    save_ranker(model.eval(), place, dict.fromkeys(views, SPACE), {"offset": -2.0})
    write_json({"points": [{"valid_loss": 0.1}]}, place / "curve.json")
    write_json({"spaces": {"v1": SPACE}, "variants": []}, folder / "consumer.json")
    return str(folder.relative_to(ws.home.root))
