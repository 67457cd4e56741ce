"""Data Docs of the gate's verdicts: one page per snapshot and an index, readable without a network.

The pages are rendered by Great Expectations from the verdicts themselves, so they cannot tell another story
than the gate did. Stock pages load their style from six web hosts; here every reference to a host is taken
out and a small style of our own put in, and a content security policy forbids any request that were left.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feature_repo.contracts.types import Check, Verdict

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1, h4, h5, h6 { margin: 0.5rem 0; }
a { color: LinkText; }
nav ol, nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; }
.table-responsive, .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.6rem; border-bottom: 1px solid #8886; }
td { overflow-wrap: anywhere; }
.alert { border-left: 4px solid #4a7; padding: 0.2rem 0.8rem; margin: 1rem 0 0.5rem; background: #8881; }
.badge { border-radius: 0.3rem; padding: 0.1rem 0.4rem; background: #8883; white-space: nowrap; }
.badge-danger { background: none; border: 1px solid #d1242f; }
.badge-warning { background: none; border: 1px solid #bf8700; }
.fa-check-circle::before { content: "\\2713"; color: #1a7f37; font-weight: bold; }
.fa-times::before { content: "\\2717"; color: #d1242f; font-weight: bold; }
.fa-exclamation-triangle::before { content: "!"; color: #d1242f; font-weight: bold; }
i { font-style: normal; }
.card.mb-3, thead[hidden] { display: none; }
"""
_REMOVED = (
    r"<script\b.*?</script>",
    r"<link\b[^>]*>",
    r"<img\b[^>]*>",
    r"<title>.*?</title>",
    r'<style>.*?</style>',
    r"<footer\b.*?</footer>",
    r'\sonclick="[^"]*"',
)  # fmt: skip


def build_data_docs(
    verdicts: Mapping[str, Verdict], folder: Path, *, checked_at: datetime, only: Collection[str] | None = None
) -> Path:
    """Write Data Docs of verdicts and return the path of their index.

    Takes about 0.05 s per page, so build them once at the end of a run, or for refused snapshots only.

    Parameters
    ----------
    verdicts
        Snapshot id to verdict; the ids become file names.
    folder
        Written: ``index.html`` and ``validations/<snapshot_id>.html``. Pages of other snapshots are kept.
    checked_at
        The moment that the pages show; passed in, so that equal verdicts give equal pages.
    only
        Ids whose pages to write, None for all; the index always lists all verdicts that have a page.
    """
    pages = folder / "validations"
    pages.mkdir(parents=True, exist_ok=True)
    for snapshot_id, verdict in verdicts.items():
        if only is not None and snapshot_id not in only:
            continue
        (pages / f"{snapshot_id}.html").write_text(_page(snapshot_id, verdict, checked_at), encoding="utf-8")
    index = folder / "index.html"
    shown = {name: verdict for name, verdict in verdicts.items() if (pages / f"{name}.html").exists()}
    index.write_text(_index(shown), encoding="utf-8")
    return index


def _page(snapshot_id: str, verdict: Verdict, checked_at: datetime) -> str:
    from validation.suites import quiet

    with quiet():
        from great_expectations.render.renderer import ValidationResultsPageRenderer
        from great_expectations.render.view import DefaultJinjaPageView

        document = ValidationResultsPageRenderer().render(_result(snapshot_id, verdict, checked_at))
        return _offline(DefaultJinjaPageView().render(document), snapshot_id, verdict)


def _result(snapshot_id: str, verdict: Verdict, checked_at: datetime) -> Any:
    """Return a verdict in the shape in which Great Expectations renders results."""
    from great_expectations.core import ExpectationSuiteValidationResult

    passed = sum(check.passed is True for check in verdict.checks)
    count = len(verdict.checks)
    return ExpectationSuiteValidationResult(
        success=verdict.accepted,
        results=[_expectation_result(check) for check in verdict.checks],
        suite_name="gate",
        statistics={
            "evaluated_expectations": count,
            "successful_expectations": passed,
            "unsuccessful_expectations": count - passed,
            "success_percent": 100.0 * passed / count if count else 0.0,
        },
        meta={
            "run_id": {"run_name": snapshot_id, "run_time": checked_at.isoformat()},
            "great_expectations_version": version("great_expectations"),
            "active_batch_definition": {"data_asset_name": snapshot_id},
        },
    )


def _expectation_result(check: Check) -> Any:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    import validation.expectations  # noqa: F401  (registers the expectation that renders the sentence)

    if check.name.startswith("file_"):
        section = "The file"
    else:
        section = "Every row" if check.bound.endswith("in every row") else "The snapshot as a whole"
    configuration = ExpectationConfiguration(
        type="expect_statistic_to_be_inside",
        kwargs={"column": section, "low": 0.0},
        meta={"check": check.name, "bound": check.bound, "why": check.detail},
        severity=FailureSeverity(check.severity),
    )
    # Values of the data end up in a page, and Great Expectations does not escape them.
    value = html.escape(check.observed) if isinstance(check.observed, str) else check.observed
    return ExpectationValidationResult(
        success=check.passed is True,
        expectation_config=configuration,
        result={"observed_value": "none" if value is None else value},
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )


def _offline(page: str, snapshot_id: str, verdict: Verdict) -> str:
    for pattern in _REMOVED:
        page = re.sub(pattern, "", page, flags=re.DOTALL | re.IGNORECASE)
    page = re.sub(r'href="(\.\./)+index\.html"', 'href="../index.html"', page)
    page = re.sub(r'<a href="(?:\.\./)+expectations/[^"]*"[^>]*>(.*?)</a>', r"\1", page, flags=re.DOTALL)
    page = page.replace("<html>", '<html lang="en">', 1)
    page = page.replace("<head>", f"<head>{_head(snapshot_id)}", 1)
    word = "accepted" if verdict.accepted else "refused"
    reason = f"<p>{html.escape(verdict.error)}</p>" if verdict.error else ""
    return page.replace("<body>", f"<body><h1>{html.escape(snapshot_id)}: {word}</h1>{reason}", 1)


def _index(verdicts: Mapping[str, Verdict]) -> str:
    rows = []
    # Refused ones first: that is what a person comes for.
    for snapshot_id, verdict in sorted(verdicts.items(), key=lambda item: (item[1].accepted, item[0])):
        name = html.escape(snapshot_id)
        warnings = [check for check in verdict.checks if check.severity == "warning" and not check.passed]
        failed = ", ".join(check.name for check in verdict.failures()) or verdict.error or ""
        icon, word = ("check-circle", "accepted") if verdict.accepted else ("times", "refused")
        rows.append(
            f'<tr><td><i class="fa-{icon}"></i> {word}</td>'
            f'<td><a href="validations/{name}.html">{name}</a></td>'
            f"<td>{html.escape(failed)}</td>"
            f"<td>{html.escape(', '.join(check.name for check in warnings))}</td></tr>"
        )
    accepted = sum(verdict.accepted for verdict in verdicts.values())
    return (
        f'<!DOCTYPE html><html lang="en"><head>{_head("The gate")}</head><body><h1>The gate</h1>'
        f"<p>{accepted} accepted, {len(verdicts) - accepted} refused.</p><div class='scroll'><table>"
        "<thead><tr><th>Verdict</th><th>Snapshot</th><th>Refused by</th><th>Warnings</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></body></html>\n"
    )


def _head(title: str) -> str:
    return (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
