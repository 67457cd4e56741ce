"""The gate fails closed where Great Expectations would let a bad file pass or tell nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Check, Verdict
from validation.gate import Gate, decide
from validation.rules import Rule
from validation.suites import SuiteRunner, UntrustedResult


@pytest.fixture(scope="module")
def runner(gate: Gate) -> SuiteRunner:
    return gate.runner


def judge_good_file_with(
    kit: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    tables: tuple[str, ...] = ("rows", "summary"),
) -> Verdict:
    """Check a good snapshot while the results of Great Expectations on some tables are changed by `change`."""
    original = SuiteRunner.validate

    def validate(self: SuiteRunner, files: Any, rules: Any) -> Any:
        answers = copy.deepcopy(original(self, files, rules))
        return {table: change(results) if table in tables else results for table, results in answers.items()}

    monkeypatch.setattr(SuiteRunner, "validate", validate)
    return gate.check(kit.write(kit.table(kit.vectors()), "good"), kit.spec(), workdir=kit.folder)


def first(change: Callable[[Any], None]) -> Callable[[list[Any]], list[Any]]:
    def apply(results: list[Any]) -> list[Any]:
        change(results[0])
        return results

    return apply


def raised(result: Any) -> None:
    result.exception_info = {"raised_exception": True, "exception_message": "boom", "exception_traceback": ""}


def raised_by_metric(result: Any) -> None:
    result.exception_info = {"('column.statistic', 1)": {"raised_exception": True, "exception_message": "boom"}}


def hide_observation(result: Any) -> None:
    result.result = {}


def set_result(name: str, value: Any) -> Callable[[Any], None]:
    return lambda result: result.result.update({name: value})


UNTRUSTED: dict[str, Callable[[list[Any]], list[Any]]] = {
    "no results": lambda results: [],
    "one result fewer": lambda results: results[1:],
    "one result more": lambda results: [*results, results[0]],
    "a result twice": lambda results: [*results[1:], results[1]],
    "a result of another suite": first(lambda result: result.expectation_config.meta.update(check="other")),
    "a truthy string": first(lambda result: setattr(result, "success", "yes")),
    "one instead of True": first(lambda result: setattr(result, "success", 1)),
    "numpy's True": first(lambda result: setattr(result, "success", np.bool_(True))),
    "nothing": first(lambda result: setattr(result, "success", None)),
    "an exception": first(raised),
    "an exception of one metric": first(raised_by_metric),
    "no observation": first(hide_observation),
}
UNTRUSTED_ROWS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "fewer rows than the table": first(set_result("element_count", 12)),
    "success with unexpected rows": first(set_result("unexpected_count", 3)),
    "a missing count": first(set_result("unexpected_count", None)),
}
UNTRUSTED_SUMMARY: dict[str, Callable[[list[Any]], list[Any]]] = {
    "not a number": first(set_result("observed_value", math.nan)),
    "infinity": first(set_result("observed_value", math.inf)),
    "text": first(set_result("observed_value", "many")),
}
CASES = [
    *((name, table) for name in UNTRUSTED for table in ("rows", "summary")),
    *((name, "rows") for name in UNTRUSTED_ROWS),
    *((name, "summary") for name in UNTRUSTED_SUMMARY),
]


@pytest.mark.parametrize(("name", "table"), CASES)
def test_a_result_that_proves_nothing_refuses(
    name: str, table: str, kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = (UNTRUSTED | UNTRUSTED_ROWS | UNTRUSTED_SUMMARY)[name]
    verdict = judge_good_file_with(kit, gate, monkeypatch, change, (table,))

    assert verdict.accepted is False
    assert verdict.error


def test_a_warning_that_could_not_run_refuses_too(kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_warning(results: list[Any]) -> list[Any]:
        for result in results:
            if result.expectation_config.severity == "warning":
                raised(result)
        return results

    verdict = judge_good_file_with(kit, gate, monkeypatch, break_warning)

    assert verdict.accepted is False
    assert "boom" in (verdict.error or "")
    assert verdict.failures() == ()


def test_a_crash_of_great_expectations_refuses(kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(SuiteRunner, "validate", crash)
    verdict = gate.check(kit.write(kit.table(kit.vectors()), "good"), kit.spec(), workdir=kit.folder)

    assert verdict.accepted is False
    assert "out of order" in (verdict.error or "")


def test_a_crash_of_the_statistics_refuses(kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr("validation.gate.snapshot_statistics", crash)
    verdict = gate.check(kit.write(kit.table(kit.vectors()), "good"), kit.spec(), workdir=kit.folder)

    assert verdict.accepted is False
    assert "no memory left" in (verdict.error or "")


def test_an_empty_suite_is_no_success(runner: SuiteRunner) -> None:
    with pytest.raises(UntrustedResult, match="at least one rule"):
        runner.run({}, [])


def test_two_rules_of_one_name_are_refused(runner: SuiteRunner) -> None:
    rule = Rule("same", "summary", "value", 0)
    with pytest.raises(UntrustedResult, match="unique"):
        runner.run({}, [rule, rule])


def test_a_verdict_without_critical_checks_is_no_acceptance() -> None:
    warning = Check("shape", "warning", True, 1, "at least 0")
    assert decide([]).accepted is False
    assert decide([warning]).accepted is False


def test_only_the_exact_true_accepts() -> None:
    truthy: Any = "yes"
    assert decide([Check("shape", "critical", truthy, 1, "at least 0")]).accepted is False


def run_one(runner: SuiteRunner, folder: Path, rule: Rule, values: pa.Array) -> tuple[list[Check], list[str]]:
    path = folder / "table.parquet"
    pq.write_table(pa.table({"value": values}), path)
    return runner.run({rule.table: path}, [rule])


def test_a_statistic_that_is_no_number_refuses(runner: SuiteRunner, tmp_path: Path) -> None:
    rule = Rule("value", "summary", "value", 0, 10)
    for value in (math.nan, math.inf, None):
        checks, doubts = run_one(runner, tmp_path, rule, pa.array([value], pa.float64()))
        assert checks[0].passed is False
        assert doubts


def test_a_summary_of_two_rows_proves_nothing(runner: SuiteRunner, tmp_path: Path) -> None:
    checks, doubts = run_one(runner, tmp_path, Rule("value", "summary", "value", 0, 10), pa.array([1.0, 2.0]))
    assert checks[0].passed is False
    assert doubts


def test_missing_values_fail_a_range_over_rows(runner: SuiteRunner, tmp_path: Path) -> None:
    rule = Rule("value", "rows", "value", 0, 10)
    for values in ([1.0, None], [1.0, math.nan], [None, None], [math.nan] * 3):
        checks, doubts = run_one(runner, tmp_path, rule, pa.array(values, pa.float64()))
        assert checks[0].passed is False, values
        assert not doubts


def test_an_empty_table_proves_nothing(runner: SuiteRunner, tmp_path: Path) -> None:
    with pytest.raises(UntrustedResult, match="empty"):
        run_one(runner, tmp_path, Rule("value", "rows", "value", 0, 10), pa.array([], pa.float64()))


def test_a_missing_column_proves_nothing(runner: SuiteRunner, tmp_path: Path) -> None:
    for table in ("rows", "summary"):
        rule = Rule("gone", table, "gone", 0, 10)  # type: ignore[arg-type]
        checks, doubts = run_one(runner, tmp_path, rule, pa.array([1.0]))
        assert checks[0].passed is False
        assert doubts


def test_exclusive_and_inclusive_bounds(runner: SuiteRunner, tmp_path: Path) -> None:
    for table in ("rows", "summary"):
        inclusive = Rule("value", table, "value", 1, 1)  # type: ignore[arg-type]
        exclusive = Rule("value", table, "value", 1, above=True)  # type: ignore[arg-type]
        assert run_one(runner, tmp_path, inclusive, pa.array([1.0]))[0][0].passed is True
        assert run_one(runner, tmp_path, exclusive, pa.array([1.0]))[0][0].passed is False


def test_a_good_file_cannot_vouch_for_a_bad_one_of_the_same_name(kit: Any, gate: Gate) -> None:
    good = kit.table(kit.vectors())
    vectors = kit.vectors()
    vectors[0] = np.nan
    path = kit.write(good, "same-name")
    assert gate.check(path, kit.spec(), workdir=kit.folder).accepted is True
    kit.write(kit.table(vectors), "same-name")
    assert gate.check(path, kit.spec(), workdir=kit.folder).accepted is False
    kit.write(good, "same-name")
    assert gate.check(path, kit.spec(), workdir=kit.folder).accepted is True


def test_rules_that_could_only_pass_are_refused_when_made() -> None:
    with pytest.raises(ConfigError, match="always pass"):
        Rule("open", "summary", "rows")
    with pytest.raises(ConfigError, match="no number"):
        Rule("nan", "summary", "rows", math.nan)
    with pytest.raises(ConfigError, match="brings no expectation"):
        Rule("custom", "summary", "rows", kind="custom")


def test_an_own_expectation_runs_and_blocks(kit: Any) -> None:
    def few_rows() -> Any:
        import great_expectations.expectations as gxe

        return gxe.ExpectColumnMaxToBeBetween(column="rows", max_value=10)

    own = (
        Rule("mean_raw_norm", "summary", "mean_raw_norm", 0.1, 100),
        Rule("few_rows", "summary", "rows", kind="custom", expectation=few_rows),
    )
    path = kit.write(kit.table(kit.vectors()), "good")

    verdict = Gate(extra=own).check(path, kit.spec(), workdir=kit.folder)

    assert [failure.name for failure in verdict.failures()] == ["few_rows"]
    assert "mean_raw_norm" in {check.name for check in verdict.checks}


def test_claims_that_make_no_sense_are_refused_when_made(kit: Any) -> None:
    with pytest.raises(ConfigError, match="no time zone"):
        kit.spec(as_of=kit.as_of.replace(tzinfo=None))
    with pytest.raises(ConfigError, match="before as_of"):
        kit.spec(available_at=kit.as_of - kit.week)
    with pytest.raises(ConfigError, match="at least 1"):
        kit.spec(min_rows=0)
    with pytest.raises(ConfigError, match="slashes"):
        kit.spec(name="user/2017")


def test_a_relative_scratch_folder_works(kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kit.write(kit.table(kit.vectors()), "good")
    monkeypatch.chdir(kit.folder)
    assert gate.check(Path(path.name), kit.spec(), workdir=Path("scratch")).accepted is True


def test_two_gates_of_one_process_do_not_mix(tmp_path: Path) -> None:
    first_gate, second_gate = SuiteRunner(), SuiteRunner()
    strict, lenient = Rule("value", "summary", "value", 2, 3), Rule("value", "summary", "value", 0, 10)
    for _ in range(2):
        assert run_one(first_gate, tmp_path, strict, pa.array([1.0]))[0][0].passed is False
        assert run_one(second_gate, tmp_path, lenient, pa.array([1.0]))[0][0].passed is True


def test_tables_and_results_are_let_go(runner: SuiteRunner, tmp_path: Path) -> None:
    run_one(runner, tmp_path, Rule("value", "rows", "value", 0, 10), pa.array([1.0]))

    assert not runner._source.get_execution_engine().batch_manager.batch_data_cache
    assert not runner._context.validation_results_store.list_keys()


def test_a_page_that_cannot_be_made_refuses(kit: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kit.write(kit.table(kit.vectors()), "good")
    shown = gate.check(path, kit.spec(), workdir=kit.folder)

    def crash(*_: Any) -> None:
        raise KeyError("template")

    monkeypatch.setattr("validation.docs.page", crash)
    hidden = gate.check(path, kit.spec(), workdir=kit.folder)

    assert shown.accepted is True
    assert "vector_finite" in (shown.page or "")
    assert hidden.accepted is False
    assert "page of the verdict could not be made" in (hidden.error or "")
    assert hidden.checks == shown.checks
