"""The store on Spark against the brute-force loop of the DuckDB store's tests (pit_cases.py), on random frames.

Somebody else's session is there already, in a time zone of their own. `make oracle-spark` runs 500 cases in each.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from pit_cases import MICROSECOND, Case, cases, expected, label_table, write

from feature_repo.stores.reading import LAG_TAG

pytest.importorskip("pyspark", reason="needs the extra `spark`: pip install -e '.[spark]', and Java 17")
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore")]

CASES = int(os.environ.get("SPARK_CASES", "5"))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@given(case=cases())
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.timeout(7200)
def test_every_label_sees_exactly_what_the_rules_give_it(
    zone: str, case: Case, session: Any, view_on: Callable[..., Any], ask: Callable[..., pa.Table]
) -> None:
    session.conf.set("spark.sql.session.timeZone", zone)
    with tempfile.TemporaryDirectory() as scratch:
        views = []
        for number, view in enumerate(case.views):
            write(view, case.keys, Path(scratch) / f"view {number}")
            views.append(
                view_on(
                    Path(scratch) / f"view {number}",
                    f"view_{number}",
                    keys=case.keys,
                    ttl=view.ttl * MICROSECOND,
                    created="created" if view.has_created else "",
                    tags={LAG_TAG: str(view.lag // 1_000_000)},
                )
            )
        table = label_table(case)
        labels: Any = table.to_pandas()
        if case.from_file:
            labels = f"{scratch}/labels.parquet"
            pq.write_table(table, labels)
        # Without broadcasting, stored vectors move to the labels instead of the other way round.
        result = ask(views, labels, strict=case.strict, broadcast_rows=0 if case.threads == 1 else 1_000_000)
        for view, name in zip(case.views, views, strict=True):
            columns = (result[f"{name.name}__{part}"].to_pylist() for part in ("number", "text", "vector"))
            assert list(zip(*columns, strict=True)) == expected(case, view)
        assert result["row"].to_pylist() == list(range(len(case.labels)))
        if case.from_file:
            assert result["event_timestamp"].to_pylist() == table["event_timestamp"].to_pylist()
