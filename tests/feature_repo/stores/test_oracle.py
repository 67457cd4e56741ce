"""The store against a brute-force loop that knows only the rules (pit_cases.py), on random frames.

`make oracle` runs 2,000 cases.
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

from feature_repo.stores import pit
from feature_repo.stores.pit import PitOfflineStoreConfig
from tests.feature_repo.stores.pit_cases import Case, answers, cases, expected, labels_of, views_of

CASES = int(os.environ.get("ORACLE_CASES", "100"))


@given(case=cases())
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.timeout(3600)
def test_every_label_sees_exactly_what_the_rules_give_it(
    case: Case, feast_view: Callable[..., Any], historical: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pit, "_BYTES_PER_KEY", 4e9 / 16 / case.piece_rows)
    with tempfile.TemporaryDirectory() as scratch:
        views = views_of(case, Path(scratch), feast_view)
        labels = labels_of(case, Path(scratch))
        for view, name in zip(case.views, views, strict=True):
            offline = PitOfflineStoreConfig(strict=case.strict, threads=case.threads, twins=view.twins)
            result = historical(offline, [name], labels)
            assert answers(result, name) == expected(case, view)
            assert result["row"].to_pylist() == list(range(len(case.labels)))
        together = historical(PitOfflineStoreConfig(strict=case.strict, threads=case.threads), views, labels)
        for view, name in zip(case.views, views, strict=True):
            assert together[f"{name.name}__vector"].to_pylist() == [row[2] for row in expected(case, view)]
