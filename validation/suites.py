"""Runs rules as Great Expectations suites over narrow tables, and believes nothing it cannot verify.

A result counts only if it is there, names its rule, raised nothing, is exactly True or False, looked at
every row of its table and carries a finite value. Anything else is an error, and an error refuses.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from feature_repo.contracts.types import Check
from validation.rules import Rule, Table

RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": 5}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence third-party warnings: where warnings are errors, they would refuse good snapshots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class UntrustedResult(Exception):
    """Great Expectations answered in a way that proves nothing; the gate turns it into a refusal."""


class SuiteRunner:
    """One ephemeral Great Expectations context, reused for every check of this process. Not thread-safe."""

    def __init__(self) -> None:
        with quiet():
            import great_expectations as gx
            from great_expectations.data_context.types.base import (
                DataContextConfig,
                InMemoryStoreBackendDefaults,
                ProgressBarsConfig,
            )

            config = DataContextConfig(
                store_backend_defaults=InMemoryStoreBackendDefaults(),
                progress_bars=ProgressBarsConfig(globally=False),
            )
            # The mode is named because stray cloud variables would otherwise choose another one.
            self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._numbers = itertools.count()

    def run(self, tables: Mapping[Table, Path], rules: Sequence[Rule]) -> tuple[list[Check], list[str]]:
        """Validate each table with its rules.

        Returns
        -------
        checks
            One per rule, in the order of `rules`; not passed where the result proves nothing.
        doubts
            Why results prove nothing. Any doubt must refuse, whatever the severity of its rule.

        Raises
        ------
        UntrustedResult
            If rules or results are missing, double or of another suite.
        """
        names = [rule.name for rule in rules]
        if not rules or len(set(names)) != len(names):
            raise UntrustedResult(f"a suite needs at least one rule and unique names, got: {names}")
        checks: dict[str, Check] = {}
        doubts: list[str] = []
        for table in dict.fromkeys(rule.table for rule in rules):
            chosen = [rule for rule in rules if rule.table == table]
            rows = pq.read_metadata(tables[table]).num_rows
            for rule, result in self._results(table, tables[table], rows, chosen):
                try:
                    checks[rule.name] = to_check(rule, result, rows)
                except UntrustedResult as doubt:
                    doubts.append(f"'{rule.name}' {doubt}")
                    checks[rule.name] = Check(rule.name, rule.severity, False, None, rule.bound(), str(doubt))
        return [checks[name] for name in names], doubts

    def _results(self, table: Table, path: Path, rows: int, rules: Sequence[Rule]) -> list[tuple[Rule, Any]]:
        if rows == 0:
            raise UntrustedResult(f"the table '{table}' is empty, so nothing was checked")
        with quiet():
            results = self.validate(table, path, rules)
        if len(results) != len(rules):
            raise UntrustedResult(f"{len(rules)} expectations on '{table}' gave {len(results)} results")
        by_name = {result.expectation_config.meta.get("check"): result for result in results}
        if set(by_name) != {rule.name for rule in rules}:
            raise UntrustedResult(f"results on '{table}' do not belong to the expectations that were asked")
        return [(rule, by_name[rule.name]) for rule in rules]

    def validate(self, table: str, path: Path, rules: Sequence[Rule]) -> list[Any]:
        """Return the raw Great Expectations results of one table.

        The engine is new every time, as metrics are kept per engine and batch name: a second file under one
        name could inherit the result of the first. Data sources and checkpoints would write the whole project's
        settings as YAML four times per table, a third of the time (docs/adr/0010-the-gate-drives-validators.md).
        """
        import great_expectations as gx
        import pandas as pd
        from great_expectations.execution_engine import PandasExecutionEngine
        from great_expectations.validator.validator import Validator

        engine = PandasExecutionEngine()
        engine.load_batch_data(f"{table}-{next(self._numbers)}", pd.read_parquet(path))
        suite = gx.ExpectationSuite(name=table, expectations=[to_expectation(rule) for rule in rules])
        return Validator(execution_engine=engine, data_context=self._context).graph_validate(
            configurations=suite.expectation_configurations, runtime_configuration={"result_format": RESULT_FORMAT}
        )


def to_expectation(rule: Rule) -> Any:
    """Return the Great Expectations expectation of a rule, with the rule's name in its meta."""
    import great_expectations.expectations as gxe

    from validation.expectations import ExpectColumnNumbersToBeInside, ExpectStatisticToBeInside

    meta = {"check": rule.name, "bound": rule.bound(), "why": rule.why}
    common: dict[str, Any] = {"severity": rule.severity, "meta": meta}
    if rule.kind == "custom":
        assert rule.expectation is not None
        return rule.expectation().copy(update=common)
    if rule.kind == "not_null":
        return gxe.ExpectColumnValuesToNotBeNull(column=rule.column, **common)
    if rule.kind == "unique":
        return gxe.ExpectColumnValuesToBeUnique(column=rule.column, **common)
    kind = ExpectColumnNumbersToBeInside if rule.table == "rows" else ExpectStatisticToBeInside
    return kind(column=rule.column, low=rule.low, high=rule.high, above=rule.above, **common)


def to_check(rule: Rule, result: Any, rows: int) -> Check:
    """Return the Check of one result, or raise UntrustedResult if the result proves nothing."""
    info = result.exception_info or {}
    # One exception is a flat dictionary; several are a dictionary of dictionaries by metric.
    nested = [value for value in info.values() if isinstance(value, dict)]
    for entry in nested or [info]:
        if entry.get("raised_exception"):
            raise UntrustedResult(f"raised: {entry.get('exception_message')}")
    if result.success is not True and result.success is not False:
        raise UntrustedResult(f"answered {result.success!r}, which is neither True nor False")
    values = result.result or {}
    if "observed_value" in values:
        return _aggregate_check(rule, result.success, values["observed_value"])
    return _row_check(rule, result.success, values, rows)


def _aggregate_check(rule: Rule, success: bool, value: Any) -> Check:
    if rule.kind == "custom" and not isinstance(value, int | float):
        return Check(rule.name, rule.severity, success, str(value), rule.bound(), rule.why)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UntrustedResult(f"has no value: {rule.column} is {value!r}")
    observed = int(number) if number.is_integer() else number
    return Check(rule.name, rule.severity, success, observed, rule.bound(), rule.why)


def _row_check(rule: Rule, success: bool, values: Mapping[str, Any], rows: int) -> Check:
    seen, unexpected = values.get("element_count"), values.get("unexpected_count")
    if seen != rows:
        raise UntrustedResult(f"looked at {seen} of {rows} rows")
    if unexpected is None or success is not (int(unexpected) == 0):
        raise UntrustedResult(f"answered {success} with {unexpected} unexpected rows")
    detail = rule.why
    examples = values.get("partial_unexpected_list") or []
    if not success and examples:
        shown = ", ".join(str(example) for example in examples[:5])
        detail = f"{detail}; e.g. {shown}" if detail else f"e.g. {shown}"
    return Check(rule.name, rule.severity, success, int(unexpected), f"{rule.bound()}, in every row", detail)
