"""What a request says of itself, as the models take it."""

from __future__ import annotations

import pytest

from feature_repo.contracts.errors import ConfigError
from jobs.serving.served import _number, _text


@pytest.mark.parametrize("value", [1e39, -1e39, 2**200])
def test_a_number_that_no_float32_holds_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="largest"):
        _number(value)


def test_numbers_and_text_are_read_as_the_log_has_them() -> None:
    assert [_number(value) for value in (3, -2.5, 3.4e38, None, "3")] == [3.0, -2.5, 3.4e38, None, None]
    assert [_text(value) for value in (3.0, 2.5, True, None, "a")] == ["3", "2.5", "true", None, "a"]
