"""Formulas of requests: arithmetic, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.errors import ConfigError
from jobs.serving.formula import Formula

SCORES = {"ctr": np.array([0.1, 0.4]), "cvr": np.array([0.5, 0.25])}
NAMES = tuple(SCORES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ctr * cvr", [0.05, 0.1]),
        ("ctr*cvr**0.5", [0.1 * 0.5**0.5, 0.4 * 0.5]),
        ("-(1 - ctr) / 2", [-0.45, -0.3]),
        ("log(exp(ctr)) + sqrt(abs(-cvr))", [0.1 + 0.5**0.5, 0.4 + 0.5]),
        ("3", [3.0, 3.0]),
    ],
)
def test_arithmetic(text: str, expected: list[float]) -> None:
    assert Formula(text, NAMES).apply(SCORES) == pytest.approx(expected)


REFUSED = """ctr cvr|price|ctr.real|ctr[0]|__import__('os')|lambda: 1|log(ctr, cvr)|open('x')|'a' * 9|True|1j|ctr < cvr
ctr if cvr else 1|ctr // cvr|[ctr]|f'{ctr}'|(x := 1)|ctr and cvr|~ctr""".replace("\n", "|").split("|")


@pytest.mark.parametrize("text", ["", "1" * 201, *REFUSED])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Formula(text, NAMES)


@pytest.mark.parametrize("text", ["1 / (ctr - ctr)", "log(ctr - 1)", "9 ** 9 ** 9 ** 9", "1e308 * 10"])
def test_a_value_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no finite number"):
        Formula(text, NAMES).apply(SCORES)


@given(st.text(alphabet="ctrv0123456789.+-*/() ,logexp_'[]", max_size=60))
def test_any_text_is_a_formula_or_a_named_error(text: str) -> None:
    try:
        found = Formula(text, NAMES).apply(SCORES)
    except ConfigError:
        return
    assert found.shape == (2,) and np.isfinite(found).all()
