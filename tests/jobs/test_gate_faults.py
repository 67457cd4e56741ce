"""`make gate-faults` keeps what a killed run found, as long as the gate is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gate_faults
from benchmarks.gate_faults import Kept
from jobs.gate_faults import Outcome

OUTCOME = Outcome("user", "NaN", "refused", "vector_finite", "refused", ("vector_finite",), 0.5, 60)


def never() -> Outcome:
    raise AssertionError("the gate was asked again")


def test_a_killed_run_asks_only_for_what_it_has_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.jsonl"
    assert Kept(path).once("a NaN", lambda: OUTCOME) == OUTCOME
    with path.open("a") as file:
        file.write('{"key": "a zero", "code": "x", "outcome": {"entity"')

    again = Kept(path)
    assert again.once("a NaN", never) == OUTCOME
    with pytest.raises(AssertionError, match="asked again"):
        again.once("a zero", never)
    again.once("a zero", lambda: OUTCOME)
    assert Kept(path).once("a zero", never) == OUTCOME

    monkeypatch.setattr(gate_faults, "CODE", ("validation/gate.py",))
    with pytest.raises(AssertionError, match="asked again"):
        Kept(path).once("a NaN", never)
    again.forget()
    assert not path.exists()
