"""Two Great Expectations expectations that cannot pass silently.

The built-in ranges treat NaN as "no value" and skip it, and call a column without any value a success.
These fail there. Imports Great Expectations (seconds): import this module inside functions only.
"""

from __future__ import annotations

import html
import math
from typing import Any

import pandas as pd
from great_expectations.compatibility import pydantic
from great_expectations.core.metric_function_types import SummarizationMetricNameSuffixes
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation, ColumnMapExpectation
from great_expectations.expectations.metrics import (
    ColumnAggregateMetricProvider,
    ColumnMapMetricProvider,
    column_aggregate_value,
    column_condition_partial,
)
from great_expectations.render import RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer


def inside(value: Any, low: float | None, high: float | None, above: bool) -> Any:
    """Return whether a number, or each number of a series, is finite and within the bounds."""
    ok = (value > -math.inf) & (value < math.inf)
    if low is not None:
        ok &= (value > low) if above else (value >= low)
    if high is not None:
        ok &= value <= high
    return ok


class NumbersInside(ColumnMapMetricProvider):
    """Row condition: the value is a finite number within bounds; nulls are looked at, not skipped."""

    condition_metric_name = "column_values.numbers_inside"
    condition_value_keys = ("low", "high", "above")
    filter_column_isnull = False

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **kwargs: Any) -> Any:
        low, high, above = (kwargs.get(name) for name in ("low", "high", "above"))
        return inside(column.astype("float64"), low, high, bool(above))


class _Remembering:
    """Makes an expectation's configuration once: Great Expectations asks for it fifty times per check."""

    _made: Any

    @property
    def configuration(self) -> Any:
        # Copies inherit what was made for another, and saving a suite gives its expectations an id.
        asked = (id(self), self.id)  # type: ignore[attr-defined]
        if self._made is None or self._made[0] != asked:
            self._made = (asked, super().configuration)  # type: ignore[misc]
        return self._made[1]


class ExpectColumnNumbersToBeInside(_Remembering, ColumnMapExpectation):
    """Expect every value of a column to be a finite number within bounds; null and NaN fail."""

    low: float | None = None
    high: float | None = None
    above: bool = False

    _made: Any = pydantic.PrivateAttr(default=None)
    map_metric = "column_values.numbers_inside"
    success_keys = ("low", "high", "above", "mostly")

    def _validate(self, metrics: dict, runtime_configuration: Any = None, execution_engine: Any = None) -> dict:
        result = super()._validate(metrics, runtime_configuration, execution_engine)
        suffix = SummarizationMetricNameSuffixes.UNEXPECTED_COUNT.value
        unexpected = metrics.get(f"{self.map_metric}.{suffix}")
        rows = metrics.get("table.row_count")
        # The base class calls an empty table and an all-null column a success.
        result["success"] = bool(rows) and unexpected is not None and int(unexpected) == 0
        return result

    @classmethod
    @renderer(renderer_type="renderer.prescriptive")
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None
    ) -> list:
        return sentence(configuration)


class ColumnStatistic(ColumnAggregateMetricProvider):
    """The one value of a one-row table; NaN unless there is exactly one row."""

    metric_name = "column.statistic"

    @column_aggregate_value(engine=PandasExecutionEngine, filter_column_isnull=False)
    def _pandas(cls, column: pd.Series, **_: Any) -> float:
        return float(column.iloc[0]) if len(column) == 1 else math.nan


class ExpectStatisticToBeInside(_Remembering, ColumnAggregateExpectation):
    """Expect the single value of a one-row table to be a finite number within bounds."""

    low: float | None = None
    high: float | None = None
    above: bool = False

    _made: Any = pydantic.PrivateAttr(default=None)
    metric_dependencies = ("column.statistic",)
    success_keys = ("low", "high", "above")

    def _validate(self, metrics: dict, runtime_configuration: Any = None, execution_engine: Any = None) -> dict:
        value = metrics["column.statistic"]
        return {
            "success": bool(inside(value, self.low, self.high, self.above)),
            "result": {"observed_value": value},
        }

    @classmethod
    @renderer(renderer_type="renderer.prescriptive")
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None
    ) -> list:
        return sentence(configuration)


def sentence(configuration: Any) -> list:
    """Return one check as Data Docs show it: name, severity, bound, and what a failure usually means."""
    meta = configuration.meta or {}
    severity = getattr(configuration.severity, "value", configuration.severity)
    text = meta.get("bound", "")
    if meta.get("why"):
        text += f". A failure means: {meta['why']}"
    # Great Expectations puts the text into the page as it is, and takes a dollar sign for a parameter.
    template = "$check $severity " + html.escape(text).replace("$", "&#36;")
    badge = ["badge", "badge-danger" if severity == "critical" else "badge-warning"]
    content: dict[str, Any] = {
        "content_block_type": "string_template",
        "string_template": {
            "template": template,
            "params": {"check": meta.get("check", ""), "severity": severity},
            "styling": {"params": {"check": {"classes": ["badge", "badge-secondary"]}, "severity": {"classes": badge}}},
        },
    }
    return [RenderedStringTemplateContent(**content)]
