"""Formulas that a request may bring: arithmetic over named scores, and nothing else."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from feature_repo.contracts.errors import ConfigError

LONGEST = 200
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_CALLS: dict[str, Callable[..., Any]] = {"log": np.log, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}


class Formula:
    """An expression such as ``ctr * cvr ** 0.5``.

    Parameters
    ----------
    text
        Numbers, names, ``+ - * / **``, brackets, and log, exp, sqrt, abs.
    names
        The scores that it may use.

    Raises
    ------
    ConfigError
        If it is something else; the message says what.
    """

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self.text, self._names = text, names
        if len(text) > LONGEST:
            raise ConfigError(f"A formula has at most {LONGEST} characters.")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError("The formula is no expression. Write one such as ctr * cvr.") from None
        self._check(self._tree)

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            self._check(node.operand)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            if len(node.args) != 1 or node.keywords:
                raise ConfigError(f"{node.func.id} takes one value.")
            self._check(node.args[0])
        elif isinstance(node, ast.Name):
            if node.id not in self._names:
                raise ConfigError(f"The formula may use {', '.join(self._names)}; it names something else.")
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ConfigError("A formula holds numbers, names of scores, + - * / ** and log, exp, sqrt, abs only.")

    def apply(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the value per candidate, float64 [N].

        Raises
        ------
        ConfigError
            If it is not finite for a candidate.
        """
        count = len(next(iter(scores.values())))
        with np.errstate(all="ignore"):
            found = np.broadcast_to(self._value(self._tree, scores), (count,)).astype(np.float64)
        if not np.isfinite(found).all():
            raise ConfigError("The formula gives no finite number for a candidate. Keep it away from 0 and infinity.")
        return found

    def _value(self, node: ast.expr, scores: Mapping[str, np.ndarray]) -> Any:
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](self._value(node.left, scores), self._value(node.right, scores))
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, scores)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return _CALLS[node.func.id](self._value(node.args[0], scores))
        if isinstance(node, ast.Name):
            return scores[node.id]
        assert isinstance(node, ast.Constant)
        # As numpy numbers: 10 ** 10 ** 10 of Python's whole numbers would never end.
        return np.float64(float(node.value) if abs(node.value) < 1e300 else np.inf)  # type: ignore[arg-type]
