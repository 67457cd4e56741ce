"""Write the report of one run: `reports/summary.json` in, one HTML page that opens offline out.

Layout and words are in `templates/report.html.jinja`, pictures in `report_charts.py`; here is what has to be
computed first. A section whose numbers are not in the summary says so in a word: the page never fails over a
missing key.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.contracts.errors import LakeError, NotReadyError
from jobs import report_quality as quality
from jobs import report_records as beside
from jobs import report_time as history
from jobs.page_templates import environment
from jobs.report_charts import day, duration, number, percent
from jobs.report_summary import Part, bounds_text, part, rows_of, tasks_of

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class ReportResult:
    """Where the report lies and its size."""

    path: Path
    bytes: int


def run(home: Path) -> ReportResult:
    """Read `<home>/reports/summary.json` and write `<home>/reports/report.html`.

    Parameters
    ----------
    home
        The home folder.

    Returns
    -------
    ReportResult
        Path and size of the page. A reader sees the old page or the new one, never half of one.

    Raises
    ------
    NotReadyError
        There is no summary yet.
    LakeError
        The summary is not a JSON object.
    """
    source = home / "reports" / "summary.json"
    try:
        summary = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotReadyError(f"{source} does not exist. Run `headwater evaluate` first; it writes this file.") from None
    except ValueError as error:
        raise LakeError(f"{source} is not valid JSON ({error}). Run `headwater evaluate` again.") from error
    if not isinstance(summary, dict):
        raise LakeError(f"{source} holds no JSON object. Run `headwater evaluate` again.")
    summary["records"] = _records(source.with_name("quality.json"))
    page = render(summary, pages=source.with_name("gate").joinpath("index.html").exists()).encode()
    target = source.with_name("report.html")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(page)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return ReportResult(target, len(page))


def render(summary: Part, *, pages: bool = False) -> str:
    """Return the report as one HTML page with its style and pictures inside.

    Parameters
    ----------
    summary
        What `reports/summary.json` holds. Every key may be absent.
    pages
        Whether the gate's own pages lie beside it (`headwater docs`): then it links to them.

    Returns
    -------
    str
        The page. It loads nothing: no script, no font and no picture from anywhere.
    """
    return _template().render(
        dataset=part(summary, "dataset"),
        headline=quality.headline(summary),
        facts=quality.facts(summary),
        lift=[quality.lift(task, rows) for task, rows in tasks_of(summary).items()],
        groups=beside.groups(rows_of(summary, "groups")),
        records=beside.records(rows_of(summary, "records")),
        skipped=rows_of(summary, "skipped"),
        retrieval=quality.retrieval(rows_of(summary, "retrieval")),
        retrieval_setup=part(summary, "retrieval_setup"),
        retrieval_before=quality.retrieval(rows_of(part(summary, "retrieval_validation"), "table")),
        splits=history.splits(summary),
        versions=rows_of(summary, "versions"),
        gate=history.gate(part(summary, "gate")),
        pages=pages,
        training_sets=[{**row, "leak_table": history.leaks(row)} for row in rows_of(summary, "training_sets")],
        curves=history.curves(rows_of(summary, "learning_curves")),
        timings=history.timings(part(summary, "timings_s")),
        machine=part(summary, "machine"),
    )


def _records(path: Path) -> list[Part]:
    """Return the records of quality that a benchmark put beside the summary; none where it did not."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LakeError(f"{path} is not valid JSON ({error}). Remove it, or run the benchmark again.") from error
    return found if isinstance(found, list) else []


@cache
def _template() -> Template:
    names = {"number": number, "percent": percent, "day": day, "duration": duration, "bounds": bounds_text}
    return environment(**names).get_template("report.html.jinja")
