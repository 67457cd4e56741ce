"""Sub-groups and other models on the report page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import LakeError
from jobs.report import render, run

MINUS = "\N{MINUS SIGN}"


def _group(name: str, lift: float | None, embeddings: str | None = "user+item") -> dict[str, Any]:
    row = {"task": "ctr", "kind": "users", "group": name, "rows": 1573, "users": 44, "positives": 439}
    if lift is None:
        return {**row, "embeddings": None, "why": "fewer than 20 users with either outcome"}
    figures = {"relative_auc_lift": lift, "ci95": [lift - 0.01, lift + 0.01], "auc": 0.7, "baseline_auc": 0.69}
    return {**row, "embeddings": embeddings, **figures}


def _record(model: str, lift: float | None, **figures: Any) -> dict[str, Any]:
    ends = None if lift is None else [lift - 0.001, lift + 0.001]
    row = {"dataset": "d", "task": "ctr", "model": model, "embeddings": "none", "relative_auc_lift": lift, "ci95": ends}
    return {**row, **figures}


def test_sub_groups_stand_with_their_rows_and_the_headlines_lift() -> None:
    rows = [_group("new users", -0.02), _group("new users", 0.5, "user+item, v2 added"), _group("tiny", None)]
    page = render({"groups": rows})
    assert "CTR by sub-group" in page and "1,573" in page and f"{MINUS}2.00%" in page
    assert "+50.00%" not in page  # the other embeddings' row
    assert "fewer than 20 users with either outcome" in page
    assert "CTR, sub-group new users: " + MINUS + "2.00%, below zero" in page
    assert "by sub-group" not in render({})


def test_other_models_are_drawn_in_order_and_the_truth_does_not_flatten_them() -> None:
    rows = [
        _record("ranker", 0.01, embeddings="user+item", ranking_cost=1.25, share_of_possible_gain=0.2),
        _record("LightGBM", 0.004),
        _record("ranker", None),
        _record("true probabilities", 0.5),
        _record("DERM v1", None, task="retrieval", recall_at_100=0.25, ci95=[0.24, 0.26]),
        _record("popularity", None, task="retrieval", recall_at_100=0.1),
    ]
    page = render({"records": rows})
    assert 'href="#records"' in page and "true probabilities" not in page
    section = page[page.index('<section id="records">') : page.index('<section id="retrieval">')]
    assert section.index("LightGBM") < section.index("ranker, user+item")
    assert "+0.40%" in section and "20.0%" in section and "1.25" in section
    assert "0.2500" in section and "0.1000" in section
    assert 'id="records"' not in render({})


def test_records_are_read_from_beside_the_summary(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    assert "LightGBM" not in run(tmp_path).path.read_text()
    (folder / "quality.json").write_text(json.dumps([_record("LightGBM", 0.004)]))
    assert "LightGBM" in run(tmp_path).path.read_text()
    (folder / "quality.json").write_text("[")
    with pytest.raises(LakeError, match="not valid JSON"):
        run(tmp_path)


def test_the_lift_table_says_how_many_rows_there_are() -> None:
    base = {"task": "ctr", "embeddings": "none", "auc": 0.7, "relative_auc_lift": 0.0, "ci95": [0, 0]}
    row = {**base, "embeddings": "user", "relative_auc_lift": 0.01, "adjusted_p_value": 0.0421, "comparisons": 6}
    assert "p 0.042 of 6" in render({"lift": [base, row]})
    assert "p &lt; 0.001 of 6" in render({"lift": [base, {**row, "adjusted_p_value": 1e-9}]})
    assert " of 6" not in render({"lift": [base, {**row, "adjusted_p_value": None}]})
