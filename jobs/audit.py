"""Skew audit: what serving read for real requests, held against what the offline join says it should have read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import releases
from feature_repo.contracts.errors import HeadwaterError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import write_json
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from feast import FeatureStore

KINDS = ("equal", "different", "missing", "extra", "early", "stale")
SCORE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ViewSkew:
    """How the rows of one view that one release served compare with the offline join.

    Attributes
    ----------
    equal
        The same values of the same snapshot, or no row on both sides.
    different
        The same snapshot, other values.
    missing
        The offline join finds a row, serving found none.
    extra
        Serving found a row, the offline join finds none.
    early
        Serving read a later snapshot than the offline join allows.
    stale
        Serving read an earlier one.
    covered
        Rows for which serving found something.
    age_p50_s, age_max_s
        Of what was served, in seconds; None where nothing was.
    """

    release: str
    view: str
    version: str | None
    rows: int
    equal: int
    different: int
    missing: int
    extra: int
    early: int
    stale: int
    covered: int
    age_p50_s: float | None
    age_max_s: float | None

    @property
    def skewed(self) -> int:
        """Rows that are wrong, and not only late."""
        return self.different + self.missing + self.extra + self.early


@dataclass(frozen=True)
class ScoreSkew:
    """How one score that one release served compares with that of the offline rows."""

    release: str
    score: str
    rows: int
    differing: int
    max_difference: float


@dataclass(frozen=True)
class Result:
    """The audit's findings, and whether they keep the limits."""

    requests: int
    rows: int
    rows_exact: int
    views: tuple[ViewSkew, ...]
    scores: tuple[ScoreSkew, ...]
    passed: bool
    path: Path


def run(
    ws: Workspace,
    *,
    since: datetime | None = None,
    max_skew: float = 0.0,
    max_stale: float = 0.01,
    score_tolerance: float = SCORE_TOLERANCE,
    progress: Progress = silent,
) -> Result:
    """Replay the logged requests through the offline join, as far as it was known when each was answered.

    A snapshot that was written after an answer is left out of its replay.

    Parameters
    ----------
    since
        Only requests answered from here on.
    max_skew, max_stale
        Largest share of wrong and of late rows, of any view.
    score_tolerance
        Scores that differ by more count as different: sums in another order differ in their last bits.

    Raises
    ------
    NotReadyError
        If nothing was logged.
    """
    from jobs.store import open_store

    logged = _read_log(ws, since)
    store = open_store(ws.home)
    views: list[ViewSkew] = []
    scores: list[ScoreSkew] = []
    exact = 0
    for step, (release, frame) in enumerate(logged):
        progress(f"audit {release}", step, len(logged))
        offline = _offline(ws, store, frame)
        names = frame["views"][0].split(",")
        from jobs.serving.feature_log import feature_hashes

        exact += sum(
            one == other
            for one, other in zip(frame["feature_hash"].to_list(), feature_hashes(offline, names), strict=True)
        )
        views += [_compare(release, view, frame, offline) for view in names]
        scores += _compare_scores(ws, release, frame, offline, score_tolerance)
    views, scores = _summed(views), sorted(scores, key=lambda item: (item.release, item.score))
    passed = all(v.skewed <= max_skew * v.rows and v.stale <= max_stale * v.rows for v in views)
    passed = passed and all(score.differing == 0 or max_skew > 0 for score in scores)
    path = ws.home.reports / "skew.json"
    frames = [frame for _, frame in logged]
    result = Result(
        requests=sum(frame["request_id"].n_unique() for frame in frames),
        rows=sum(frame.height for frame in frames),
        rows_exact=exact,
        views=tuple(views),
        scores=tuple(scores),
        passed=passed,
        path=path,
    )
    limits = {"max_skew": max_skew, "max_stale": max_stale, "score_tolerance": score_tolerance}
    write_json({**asdict(result), "limits": limits, "audited_at": datetime.now(UTC)}, path)
    progress("audit", len(logged), len(logged))
    return result


def _read_log(ws: Workspace, since: datetime | None) -> list[tuple[str, pl.DataFrame]]:
    """Return the logged rows by release; rows of one frame have one set of columns."""
    from jobs.serving.feature_log import log_folder

    files = sorted(log_folder(ws.home).glob("*/*.parquet"))
    groups: dict[tuple[str, ...], list[pl.DataFrame]] = {}
    for file in files:
        frame = pl.read_parquet(file)
        if since is not None:
            frame = frame.filter(pl.col("answered_us") >= int(since.timestamp() * 1e6))
        for (release,), part in frame.group_by(["release"], maintain_order=True):
            groups.setdefault((str(release), *part.columns), []).append(part)
    if not groups:
        raise NotReadyError(
            f"No served request was logged in {log_folder(ws.home)}. Serve with --log-sample above 0 and ask something."
        )
    return [(name[0], pl.concat(parts)) for name, parts in groups.items()]


def _offline(ws: Workspace, store: FeatureStore, frame: pl.DataFrame) -> pl.DataFrame:
    """Return what the offline join finds for every logged row, in their order: ids, context and features."""
    names = frame["views"][0].split(",")
    written = {view: _written(ws, ws.ledger.snapshots(view, accepted=True)) for view in names}
    borders = np.array(sorted({at for found in written.values() for _, at in found}), np.int64)
    # Rows between whose answers nothing was written see the same files.
    known = np.searchsorted(borders, frame["answered_us"].to_numpy(), side="right")
    found = []
    for group in np.unique(known):
        places = np.flatnonzero(known == group)
        part = frame[places.tolist()]
        hidden = {int(at) for at in borders[group:]}
        with TemporaryDirectory() as scratch:
            sources = {
                view: _known_files(Path(scratch) / view, [path for path, at in rows if at not in hidden])
                for view, rows in written.items()
                if any(at in hidden for _, at in rows)
            }
            found.append(_joined(store, part, names, sources).with_columns(pl.Series("_place", places)))
    return pl.concat(found).sort("_place").drop("_place")


def _written(ws: Workspace, snapshots: Sequence[Snapshot]) -> list[tuple[Path, int]]:
    """Return each snapshot's file and when it was written, microseconds."""
    found = []
    for snapshot in snapshots:
        path = ws.home.root / snapshot.path
        if path.exists() and snapshot.rows:
            created = pq.ParquetFile(path).read_row_group(0, columns=["created"])["created"][0].as_py()
            found.append((path, int(created.timestamp() * 1e6)))
    return found


def _known_files(folder: Path, files: Sequence[Path]) -> Path:
    """Make a folder in which only the given files are seen."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def _joined(store: FeatureStore, frame: pl.DataFrame, names: list[str], sources: Mapping[str, Path]) -> pl.DataFrame:
    """Join the features of some views to logged rows by the store that training sets come from."""
    from feature_repo.stores.pit import PitOfflineStore

    context = [name for name in frame["context"][0].split(",") if name]
    keys = ["user_id", "item_id", *context]
    moments = pl.col("moment_us").cast(pl.Datetime("us", "UTC")).alias("event_timestamp")
    labels = frame.select(*keys, moments)
    views = []
    for name in names:
        view = copy.copy(store.get_feature_view(name))
        if name in sources:
            source: Any = copy.deepcopy(view.batch_source)
            source.file_options.uri = str(sources[name])
            view.batch_source = source
        views.append(view)
    wanted = [column for column in frame.columns if column.split("__")[0] in names and "__" in column]
    # Labels as a frame keep whole numbers whole only where none is missing; a file keeps them always.
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "labels.parquet"
        pq.write_table(_small_strings(labels.to_arrow()), path)
        job = PitOfflineStore.get_historical_features(
            config=store.config,
            feature_views=views,
            feature_refs=[column.replace("__", ":", 1) for column in wanted],
            entity_df=str(path),
            registry=store.registry,
            project=store.project,
            full_feature_names=True,
        )
        joined = pl.DataFrame(pl.from_arrow(job.to_arrow()))
    return joined.select(*(pl.col(name).cast(frame.schema[name]) for name in [*keys, *wanted]))


def _small_strings(table: pa.Table) -> pa.Table:
    fields = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _compare(release: str, view: str, served: pl.DataFrame, offline: pl.DataFrame) -> ViewSkew:
    """Sort the rows of a view into the kinds of skew."""
    columns = [name for name in served.columns if name.startswith(f"{view}__")]
    same = np.ones(served.height, np.bool_)
    for name in columns:
        same &= _same(served[name], offline[name])
    clock = f"{view}__available_us"
    here, there = (frame[clock].fill_null(-1).to_numpy() for frame in (served, offline))
    count = {
        "equal": same,
        "missing": ~same & (here < 0) & (there >= 0),
        "extra": ~same & (here >= 0) & (there < 0),
        "early": ~same & (there >= 0) & (here > there),
        "stale": ~same & (here >= 0) & (here < there),
    }
    count["different"] = ~np.logical_or.reduce(list(count.values()))
    covered = here >= 0
    ages = (served["moment_us"].to_numpy()[covered] - here[covered]) / 1e6
    version = view.rsplit("_", 1)[1] if view.split("_")[1] == "embedding" else None
    return ViewSkew(
        release=release,
        view=view,
        version=version,
        rows=served.height,
        **{kind: int(count[kind].sum()) for kind in KINDS},
        covered=int(covered.sum()),
        age_p50_s=float(np.median(ages)) if len(ages) else None,
        age_max_s=float(ages.max()) if len(ages) else None,
    )


def _same(one: pl.Series, other: pl.Series) -> np.ndarray:
    """Return where two columns hold the same bits, nulls included."""
    if one.dtype == pl.List(pl.Float32):
        left, right = one.to_list(), other.to_list()
        return np.array(
            [
                a is b is None or (a is not None and b is not None and _bits(a) == _bits(b))
                for a, b in zip(left, right, strict=True)
            ],
            np.bool_,
        )
    return one.eq_missing(other).to_numpy()


def _bits(vector: Sequence[float]) -> bytes:
    return np.asarray(vector, np.float32).tobytes()


def _compare_scores(
    ws: Workspace, release: str, served: pl.DataFrame, offline: pl.DataFrame, tolerance: float
) -> list[ScoreSkew]:
    """Score the offline rows with the release's own models and compare."""
    from jobs.serving.rankers import ServedRanker

    record = releases.get(ws.ledger, release)
    spaces = {embedding_view(e, v): space for v, space in record.versions.items() for e in ENTITIES}
    expected: dict[str, np.ndarray] = {}
    for name, part in record.consumers.items():
        try:
            ranker = ServedRanker.load(ws.home.root, name, part, spaces)
        except HeadwaterError as error:
            raise NotReadyError(
                f"The models of {release} are gone, so its scores cannot be replayed: {error}"
            ) from error
        expected[part["task"]] = ranker.score_frame(offline)
    version = served["index_version"][0]
    if version:
        users, items = (_vectors(offline[f"{embedding_view(e, version)}__embedding"]) for e in ENTITIES)
        expected["similarity"] = np.einsum("nd,nd->n", users, items).astype(np.float64)
    found = []
    for name, values in expected.items():
        difference = np.abs(served[f"score_{name}"].to_numpy() - values)
        wrong = int((~(difference <= tolerance)).sum())
        found.append(ScoreSkew(release, name, served.height, wrong, float(difference.max())))
    return found


def _vectors(column: pl.Series) -> np.ndarray:
    """Return vectors float32 [N, D], zeros where there is none."""
    rows = column.to_list()
    dim = next((len(row) for row in rows if row is not None), 1)
    return np.array([row if row is not None else [0.0] * dim for row in rows], np.float32)


def _summed(views: Sequence[ViewSkew]) -> list[ViewSkew]:
    """Put the findings of several frames of one release together."""
    found: dict[tuple[str, str], ViewSkew] = {}
    for skew in views:
        key = (skew.release, skew.view)
        before = found.get(key)
        if before is None:
            found[key] = skew
            continue
        counts = {name: getattr(before, name) + getattr(skew, name) for name in ("rows", *KINDS, "covered")}
        oldest = max((age for age in (before.age_max_s, skew.age_max_s) if age is not None), default=None)
        larger = before if before.rows >= skew.rows else skew
        found[key] = ViewSkew(
            skew.release, skew.view, skew.version, **counts, age_p50_s=larger.age_p50_s, age_max_s=oldest
        )
    return [found[key] for key in sorted(found)]
