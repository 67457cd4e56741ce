"""Runs rules as Great Expectations suites over narrow tables, and believes nothing it cannot verify.

A result counts only if it is there, names its rule, raised nothing, is exactly True or False, looked at
every row of its table and carries a finite value. Anything else is an error, and an error refuses.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

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
    """One ephemeral Great Expectations context with one checkpoint over the narrow tables. Not thread-safe.

    Each table is a Parquet asset with a suite of its own, as results of two files under one asset would
    overwrite each other. Rules come in as code with every run: bounds follow a version's history.
    """

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
                analytics_enabled=False,
            )
            # The mode is named because stray cloud variables would otherwise choose another one.
            self._context = gx.get_context(mode="ephemeral", project_config=config)
            self._source: Any = cast("Any", self._context.data_sources.add_pandas("gate"))
            for table in get_args(Table):
                # Each run points the asset at its own file.
                batch = self._source.add_parquet_asset(table, path=f"{table}.parquet").add_batch_definition(table)
                suite = self._context.suites.add(gx.ExpectationSuite(name=table))
                self._context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
            self._checkpoints: dict[tuple[str, ...], Any] = {}

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
        chosen = {table: [rule for rule in rules if rule.table == table] for table in get_args(Table)}
        chosen = {table: own for table, own in chosen.items() if own}
        rows = {table: pq.read_metadata(tables[table]).num_rows for table in chosen}
        empty = [table for table in chosen if rows[table] == 0]
        if empty:
            raise UntrustedResult(f"the table '{empty[0]}' is empty, so nothing was checked")
        with quiet():
            answers = self.validate({table: tables[table] for table in chosen}, chosen)
        for table, own in chosen.items():
            for rule, result in _matched(table, own, answers.get(table, [])):
                try:
                    checks[rule.name] = to_check(rule, result, rows[table])
                except UntrustedResult as doubt:
                    doubts.append(f"'{rule.name}' {doubt}")
                    checks[rule.name] = Check(rule.name, rule.severity, False, None, rule.bound(), str(doubt))
        return [checks[name] for name in names], doubts

    def validate(self, tables: Mapping[Table, Path], rules: Mapping[Table, Sequence[Rule]]) -> dict[str, list[Any]]:
        """Run the checkpoint over some tables and return the raw Great Expectations results of each."""
        checkpoint = self._checkpoint(tuple(rules))
        for definition in checkpoint.validation_definitions:
            table = definition.name
            self._source.get_asset(table).path = tables[table]
            definition.suite.expectations = [to_expectation(rule) for rule in rules[table]]
            definition.suite.save()
        outcome = checkpoint.run()
        self._forget(outcome)
        return {result.suite_name: result.results for result in outcome.run_results.values()}

    def _checkpoint(self, tables: tuple[str, ...]) -> Any:
        import great_expectations as gx

        if tables not in self._checkpoints:
            definitions = [self._context.validation_definitions.get(table) for table in tables]
            self._checkpoints[tables] = self._context.checkpoints.add(
                gx.Checkpoint(
                    name="gate of " + " and ".join(tables),
                    validation_definitions=definitions,
                    result_format=RESULT_FORMAT,
                )
            )
        return self._checkpoints[tables]

    def _forget(self, outcome: Any) -> None:
        """Let go of the tables and results, which Great Expectations would keep as long as the process lives."""
        for key in outcome.run_results:
            self._context.validation_results_store.remove_key(key)
        batches = self._source.get_execution_engine().batch_manager
        batches.batch_data_cache.clear()
        batches.reset_batch_cache()


def _matched(table: str, rules: Sequence[Rule], results: Sequence[Any]) -> list[tuple[Rule, Any]]:
    if len(results) != len(rules):
        raise UntrustedResult(f"{len(rules)} expectations on '{table}' gave {len(results)} results")
    by_name = {result.expectation_config.meta.get("check"): result for result in results}
    if set(by_name) != {rule.name for rule in rules}:
        raise UntrustedResult(f"results on '{table}' do not belong to the expectations that were asked")
    return [(rule, by_name[rule.name]) for rule in rules]


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
