"""Data Docs of the gate's verdicts: one page per snapshot and an index, readable without a network.

The pages are rendered by Great Expectations from the verdicts themselves, so they cannot tell another story
than the gate did. Stock pages load their style and scripts from six web hosts; here they are taken from
`validation/assets/`, copied beside the pages. A content security policy forbids everything else.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feature_repo.contracts.types import Check, Verdict
from feature_repo.lake import replacing

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("bootstrap.min", "fontawesome.min", "solid.min", "data_docs")
_SCRIPTS = ("jquery.min", "bootstrap.bundle.min", "data_docs")
_IMAGES = ("favicon.ico", "logo-long.png")
# Opened from a disk, a page's own folder is `file:` to some browsers and 'self' to others.
_HERE = "'self' file:"
_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src {_HERE} 'unsafe-inline'",
        *(f"{kind}-src {_HERE}" for kind in ("script", "font")),
        f"img-src {_HERE} data:",
    ]
)
_REMOVED = (
    r"<script\b.*?</script>",
    r"<link\b[^>]*>",
    r"<title>.*?</title>",
    r"<footer\b.*?</footer>",
)
_FILTERS = {"showAllValidations()": "all", "hideSucceededValidations()": "failed"}


def build_data_docs(
    verdicts: Mapping[str, Verdict], folder: Path, *, checked_at: datetime, only: Collection[str] | None = None
) -> Path:
    """Write Data Docs of verdicts and return the path of their index.

    Takes about 0.03 s per page, so build them once at the end of a run, or for some snapshots only.

    Parameters
    ----------
    verdicts
        Snapshot id to verdict; the ids become file names.
    folder
        Written: ``index.html``, ``validations/<snapshot_id>.html`` and the assets in ``static/``. Pages of other
        snapshots are kept.
    checked_at
        The moment that the pages show; passed in, so that equal verdicts give equal pages.
    only
        Ids whose pages to write, None for all; the index always lists all verdicts that have a page.
    """
    pages = folder / "validations"
    pages.mkdir(parents=True, exist_ok=True)
    _copy_assets(folder / "static")
    for snapshot_id, verdict in verdicts.items():
        if only is not None and snapshot_id not in only:
            continue
        (pages / f"{snapshot_id}.html").write_text(page(snapshot_id, verdict, checked_at), encoding="utf-8")
    index = folder / "index.html"
    shown = {name: verdict for name, verdict in verdicts.items() if (pages / f"{name}.html").exists()}
    index.write_text(_index(shown), encoding="utf-8")
    return index


def add_page(folder: Path, snapshot_id: str, text: str) -> None:
    """File one page among the Data Docs of a folder, whose index is renewed by :func:`build_data_docs`.

    Raises
    ------
    LakeError
        If the disk refuses.
    """
    if not (folder / "static").exists():
        _copy_assets(folder / "static")
    with replacing(folder / "validations" / f"{snapshot_id}.html") as staged:
        staged.write_text(text, encoding="utf-8")


def _copy_assets(target: Path) -> None:
    import great_expectations.render.view

    for name in ("css", "js", "webfonts", "licenses"):
        shutil.copytree(_ASSETS / name, target / name, dirs_exist_ok=True)
    images = Path(great_expectations.render.view.__file__).parent / "static" / "images"
    (target / "images").mkdir(exist_ok=True)
    for name in _IMAGES:
        shutil.copyfile(images / name, target / "images" / name)


@cache
def _view() -> Any:
    """Return the one view for all pages: every new one would compile its 17 templates again."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def page(snapshot_id: str, verdict: Verdict, checked_at: datetime) -> str:
    """Return one snapshot's page as HTML, which expects the assets in ``../static``."""
    from validation.suites import quiet

    with quiet():
        from great_expectations.render.renderer import ValidationResultsPageRenderer

        document = ValidationResultsPageRenderer().render(_result(snapshot_id, verdict, checked_at))
        return _offline(_view().render(document), snapshot_id, verdict)


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
    page = re.sub(r'src="https://[^"]*/(logo-long\.png)[^"]*"', r'src="../static/images/\1"', page)
    page = page.replace("Data asset: None", f"Data asset: {html.escape(snapshot_id)}", 1)
    for call, shown in _FILTERS.items():
        page = page.replace(f'onclick="{call}"', f'data-show="{shown}"')
    page = page.replace("<html>", '<html lang="en">', 1)
    page = page.replace("<head>", f"<head>{_head(snapshot_id, '../static')}", 1)
    word = "accepted" if verdict.accepted else "refused"
    reason = f"<p>{html.escape(verdict.error)}</p>" if verdict.error else ""
    title = f"<h1>{html.escape(snapshot_id)}: {word}</h1>{reason}"
    return page.replace(
        '<div class="container-fluid pt-4',
        f'<div class="container-fluid pt-3 pl-5">{title}</div>\n<div class="container-fluid pt-4',
        1,
    )


def _index(verdicts: Mapping[str, Verdict]) -> str:
    rows = []
    # Refused ones first: that is what a person comes for.
    for snapshot_id, verdict in sorted(verdicts.items(), key=lambda item: (item[1].accepted, item[0])):
        name = html.escape(snapshot_id)
        warnings = [check for check in verdict.checks if check.severity == "warning" and not check.passed]
        failed = ", ".join(check.name for check in verdict.failures()) or verdict.error or ""
        icon, word = ("check-circle text-success", "accepted") if verdict.accepted else ("times", "refused")
        rows.append(
            f'<tr><td class="text-nowrap"><i class="fas fa-{icon}" aria-hidden="true"></i> {word}</td>'
            f'<td><a href="validations/{name}.html">{name}</a></td>'
            f"<td>{html.escape(failed)}</td>"
            f"<td>{html.escape(', '.join(check.name for check in warnings))}</td></tr>"
        )
    accepted = sum(verdict.accepted for verdict in verdicts.values())
    return (
        f'<!DOCTYPE html><html lang="en"><head>{_head("The gate", "static")}</head><body>'
        '<nav class="navbar border-bottom"><img src="static/images/logo-long.png" alt="Great Expectations" height="50">'
        '</nav><main class="container-fluid pt-4 pl-5 pr-5"><h1>The gate</h1>'
        f"<p>{accepted} accepted, {len(verdicts) - accepted} refused.</p>"
        '<div class="table-responsive"><table class="table table-sm table-hover index">'
        "<thead><tr><th>Verdict</th><th>Snapshot</th><th>Refused by</th><th>Warnings</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></main></body></html>\n"
    )


def _head(title: str, static: str) -> str:
    links = [f'<link rel="stylesheet" href="{static}/css/{name}.css">' for name in _STYLES]
    links += [f'<script defer src="{static}/js/{name}.js"></script>' for name in _SCRIPTS]
    return (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="{static}/images/favicon.ico">{"".join(links)}'
    )
