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
import pytest
from hypothesis import HealthCheck, given, settings

from tests.feature_repo.stores.pit_cases import Case, answers, cases, expected, label_table, labels_of, views_of

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
        views = views_of(case, Path(scratch), view_on)
        labels = labels_of(case, Path(scratch))
        # Without broadcasting, stored vectors move to the labels instead of the other way round.
        result = ask(views, labels, strict=case.strict, broadcast_rows=0 if case.threads == 1 else 1_000_000)
        for view, name in zip(case.views, views, strict=True):
            assert answers(result, name) == expected(case, view)
        assert result["row"].to_pylist() == list(range(len(case.labels)))
        if case.from_file:
            assert result["event_timestamp"].to_pylist() == label_table(case)["event_timestamp"].to_pylist()
