"""Records of quality: replaced by their key, kept otherwise, in the same order whoever wrote first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality_records import REQUIRED, put, read


def record(model: str = "ranker", embeddings: str = "none", **figures: Any) -> dict[str, Any]:
    made = dict.fromkeys(REQUIRED) | {"dataset": "world", "task": "ctr", "model": model, "embeddings": embeddings}
    return made | figures


def test_same_key_replaces_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    put([record(auc=0.7), record("peer", auc=0.6)], path)
    put([record(auc=0.8, note="again"), record(embeddings="user", auc=0.9)], path)
    found = {(row["model"], row["embeddings"]): row["auc"] for row in read(path)}
    assert found == {("peer", "none"): 0.6, ("ranker", "none"): 0.8, ("ranker", "user"): 0.9}


def test_a_cost_that_was_not_measured_again_stays(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    put([record(auc=0.7, ranking_cost=1.5), record("peer", ranking_cost=2.0)], path)
    put([record(auc=0.8), record("peer", ranking_cost=2.5)], path)
    assert {row["model"]: (row["auc"], row["ranking_cost"]) for row in read(path)} == {
        "ranker": (0.8, 1.5),
        "peer": (None, 2.5),
    }


def test_file_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    rows = [record(), record("peer"), record(embeddings="user")]
    put(rows, first)
    for row in reversed(rows):
        put([dict(reversed(row.items()))], second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"auc": float("nan")}, "finite"), ({"ci95": [0.1, float("inf")]}, "finite"), ({"recall": 1.0}, "nobody reads")],
)
def test_a_record_that_nobody_could_read_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "quality.json"
    put([record()], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        put([record(**change)], path)
    with pytest.raises(ValueError, match="lacks command"):
        put([{name: value for name, value in record().items() if name != "command"}], path)
    assert path.read_bytes() == before
