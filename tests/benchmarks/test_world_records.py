"""What is measured beside a world's truth: printed as it comes, kept when complete, and on the page as it was kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality_tables import ABSENT, filled, table
from benchmarks.world_records import Measured, command_line, read


def _measured(dataset: str, kind: str, share: float) -> Measured:
    found = Measured(dataset, kind, "python -m it --home world-home")
    found.say("Day 78: 1,000 impressions.")
    found.row({"vectors": "v1", "share": share, "expected ROC-AUC": 0.71234})
    return found


def test_a_table_replaces_that_of_the_same_world_and_kind_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "worlds.json"
    for found in (_measured("b", "vectors", 0.1), _measured("a", "ranker", 0.2), _measured("b", "vectors", 0.586)):
        found.write(path)
    known = read(path)
    assert list(known) == ["a", "b"] and known["b"]["vectors"]["rows"][0]["share"] == 0.586
    assert known["a"]["ranker"]["rows"][0]["share"] == 0.2
    assert "| v1 | 58.6% | 0.7123 |" in capsys.readouterr().out
    page = filled("<!-- table truth vectors b -->\n<!-- end -->\n<!-- table truth ways b -->\n<!-- end -->", tmp_path)
    assert "Day 78: 1,000 impressions." in page and "| v1 | 58.6% | 0.7123 |" in page
    assert "`python -m it --home world-home`" in page and page.count(ABSENT) == 1
    assert table("truth vectors c", tmp_path) == ABSENT


def test_rows_of_other_columns_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    found = _measured("a", "vectors", 0.1)
    with pytest.raises(ValueError, match="is not one of"):
        found.row({"vectors": "v2", "share": 0.2})
    with pytest.raises(ValueError, match="is not one of vectors"):
        _measured("a", "guesses", 0.1).write(tmp_path / "worlds.json")
    assert not (tmp_path / "worlds.json").exists()


def test_a_command_names_the_home_folder_and_not_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/world_vectors.py", "--home", "/data/world-home", "--seed", "6"])
    assert command_line(Path("/data/world-home")) == "python -m benchmarks.world_vectors --home world-home --seed 6"
