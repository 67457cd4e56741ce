"""The report: every number is on the page, nothing is loaded, nothing absent or hostile breaks it."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import LakeError, NotReadyError
from jobs import report, report_charts
from jobs.report import render, run
from jobs.report_quality import facts, headline, retrieval

_VOID = {"meta", "link", "br", "hr", "img", "input"}
_LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href"}
_MINUS = "\N{MINUS SIGN}"


class Page(HTMLParser):
    """The page's tags, texts and attributes; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def text(self, *inside: str) -> str:
        return " ".join(data for tag, data in self.texts if (tag in inside if inside else tag != "style"))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def sample() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "report_sample.json").read_text(encoding="utf-8"))


def _lift(change: float, ci: list[float] | None, embeddings: str = "user+item", task: str = "ctr") -> dict[str, Any]:
    base = {"task": task, "embeddings": "none", "auc": 0.7, "relative_auc_lift": 0, "ci95": [0, 0]}
    row = {"task": task, "embeddings": embeddings, "auc": 0.7 * (1 + change), "relative_auc_lift": change}
    return {"lift": [base, row if ci is None else {**row, "ci95": ci}]}


def test_every_required_number_is_on_the_page(sample: dict[str, Any]) -> None:
    text = Page(render(sample)).text()
    data = sample["dataset"]
    expected = [data["name"]] + [f"{data[key]:,}" for key in ("impressions", "clicks", "conversions", "users", "items")]
    for row in sample["versions"]:
        expected += [row["version"], row["space_id"], str(row["dim"]), str(row["snapshots"]), row["description"]]
    expected += [str(sample["gate"]["accepted"]), str(sample["gate"]["refused"])]
    for row in sample["training_sets"]:
        expected += [row["service"], f"{row['rows']:,}", str(row["leaks"]), f"{row['rows_per_s']:,.0f}"]
    for row in sample["lift"]:
        expected += [row["embeddings"], *(f"{row[key]:.4f}" for key in ("auc", "log_loss", "normalized_entropy"))]
        if row["embeddings"] != "none":
            expected += [f"{100 * value:+.2f}%" for value in (row["relative_auc_lift"], *row["ci95"])]
    for row in sample["retrieval"]:
        expected += [row["model"], *(f"{row[key]:.4f}" for key in row if key.startswith("recall"))]
    for stage, seconds in sample["timings_s"].items():
        expected += [stage, f"{seconds:.1f}"]
    expected += [sample["skipped"][0]["task"], sample["skipped"][0]["why"]]
    missing = [value for value in expected if value.replace("-", _MINUS) not in text and value not in text]
    assert missing == []


def test_refusals_stand_with_value_bound_and_reason(sample: dict[str, Any]) -> None:
    refused = next(row for row in sample["gate"]["snapshots"] if not row["accepted"])
    check = next(check for check in refused["checks"] if not check["passed"])
    page = Page(render(sample))
    for value in (check["name"], str(check["observed"]), check["bound"], check["detail"], refused["as_of"][:10]):
        assert value in page.text()
    strips = [svg["aria-label"] for svg in page.all("svg") if svg.get("class") == "strip"]
    assert f"{refused['view']}: 9 accepted, 1 refused (as of {refused['as_of'][:10]})" in strips


def test_a_refusal_without_a_failed_check_still_has_a_line() -> None:
    snapshot = {"view": "user_embedding_v1", "as_of": "2024-07-01T00:00:00+00:00", "accepted": False, "checks": []}
    text = Page(
        render({"gate": {"accepted": 0, "refused": 1, "snapshots": [{**snapshot, "error": "disk full"}]}})
    ).text()
    assert "disk full" in text
    assert "ran to its end" in text


def test_more_failures_than_fit_are_counted() -> None:
    check = {"name": "finite", "severity": "critical", "passed": False, "observed": 1, "bound": "0"}
    snapshot = {"view": "v", "as_of": "2024-07-01", "accepted": False, "checks": [check] * 50}
    assert "10 more in summary.json" in render({"gate": {"accepted": 0, "refused": 1, "snapshots": [snapshot]}})


def test_nothing_is_loaded_from_anywhere(sample: dict[str, Any]) -> None:
    html = render(sample)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "video", "audio", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in _LOADING:
                assert value is not None and value.startswith(("#", "data:,")), f"{tag} {name}={value}"
    assert "http:" not in html and "https:" not in html
    style = page.text("style")
    assert "url(" not in style and "@import" not in style and "//" not in style
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_links_lead_to_sections_in_reading_order(sample: dict[str, Any]) -> None:
    page = Page(render(sample))
    sections = [section["id"] for section in page.all("section")]
    assert sections == ["lift", "retrieval", "data", "versions", "gate", "training-sets", "curves", "timings", "limits"]
    assert {link["href"] for link in page.all("a")} == {f"#{name}" for name in sections}


def test_the_gates_pages_are_linked_where_they_are(sample: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(sample))

    def links() -> set[str]:
        found = Page(run(tmp_path).path.read_text(encoding="utf-8")).all("a")
        return {str(link["href"]) for link in found if not str(link["href"]).startswith("#")}

    assert links() == set()
    (folder / "gate").mkdir()
    (folder / "gate" / "index.html").write_text("pages")
    assert links() == {"gate/index.html", "gate/data_docs/index.html"}


def test_tables_and_pictures_can_be_read_aloud(sample: dict[str, Any]) -> None:
    page = Page(render(sample))
    assert [attributes["lang"] for attributes in page.all("html")] == ["en"]
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(heading.get("scope") in {"row", "col"} for heading in page.all("th"))
    outer = [svg for svg in page.all("svg") if "preserveaspectratio" not in svg]
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in outer)
    labels = " ".join(svg.get("aria-label") or "" for svg in outer)
    assert "CTR, embeddings user+item: +0.42%, above zero, 95% interval +0.31% to +0.52%" in labels
    assert "rankers learn 2024-07-01 to 2024-08-05" in labels


@pytest.mark.parametrize(
    ("change", "ci", "expected"),
    [
        (0.0042, [0.0031, 0.0052], "Embeddings lift CTR ROC-AUC by +0.42% (95% CI +0.31% to +0.52%)"),
        (-0.003, [-0.005, -0.001], f"Embeddings lower CTR ROC-AUC by 0.30% (95% CI {_MINUS}0.50% to {_MINUS}0.10%)"),
        (
            0.0005,
            [-0.001, 0.002],
            "No CTR lift could be shown: ROC-AUC changes by +0.05% "
            f"(95% CI {_MINUS}0.10% to +0.20%, which includes zero)",
        ),
        (
            0.0,
            [0.0, 0.0],
            "No CTR lift could be shown: ROC-AUC changes by +0.00% (95% CI +0.00% to +0.00%, which includes zero)",
        ),
        (0.0042, None, "CTR ROC-AUC changes by +0.42% with embeddings; without an interval that is no lift"),
        (float("nan"), [0.1, 0.2], "No CTR ranker with embeddings was compared with the one without"),
    ],
)
def test_headline_claims_only_what_the_interval_allows(change: float, ci: list[float] | None, expected: str) -> None:
    summary = _lift(change, ci)
    assert headline(summary) == expected
    assert expected in Page(render(summary)).text("h1")


def test_nothing_is_claimed_of_a_handful_of_outcomes() -> None:
    summary = _lift(-0.31, [-0.41, -0.21])
    why = "fewer than 20 users with either outcome"
    summary["lift"][1] |= {"rows": 457, "positives": 12, "too_few": why}
    assert headline(summary) == f"Nothing can be told about CTR: 12 of 457 test rows are positive, {why}"
    card = facts(summary)[0]
    assert (card["value"], card["note"]) == ("unknown", "12 positive test rows, too few to tell")
    assert "below zero" not in Page(render(summary)).text()


def test_headline_takes_the_row_named_beforehand_not_the_luckiest(sample: dict[str, Any]) -> None:
    ctr = [row for row in sample["lift"] if row["task"] == "ctr"]
    assert max(row["relative_auc_lift"] for row in ctr) > 0.0042  # another row is luckier
    assert headline(sample).startswith("Embeddings lift CTR ROC-AUC by +0.42%")
    assert headline({"lift": [row for row in sample["lift"] if row["task"] == "cvr"]}).startswith("No CVR lift")
    assert headline(_lift(0.01, [0.005, 0.02], "user")).startswith("Embeddings (user) lift CTR")
    assert headline({"lift": ctr[:1]}) == "No CTR ranker with embeddings was compared with the one without"
    assert headline({}) == "No lift was measured in this run"


def test_recall_is_held_against_popularity_and_not_against_a_model_that_it_is_added_to() -> None:
    rows = [
        {"model": "DERM v1", "recall_at_100": 0.4},
        {"model": "DERM v1, popularity added", "recall_at_100": 0.3},
        {"model": "popularity (purchase)", "recall_at_100": 0.1},
    ]
    found = retrieval(rows)
    assert found is not None
    assert [row["ratio"] for row in found["rows"]] == pytest.approx([4, 3, 1])


def test_the_share_of_the_possible_gain_stands_only_where_the_truth_is_known(sample: dict[str, Any]) -> None:
    assert "possible gain" not in Page(render(sample)).text()
    known = copy.deepcopy(sample)
    known["lift"][1]["share_of_possible_gain"] = 0.3141
    text = Page(render(known)).text()
    assert "Share of the possible gain" in text and "31.4%" in text


def test_hostile_names_are_text(sample: dict[str, Any]) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=y>{{ 7 * 7 }}"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value if not isinstance(value, str) or report_charts.moment(value) else value + evil

    poisoned = poison(sample)
    poisoned["timings_s"][evil] = 1.0
    poisoned["training_sets"][0]["hit_rates"][evil] = 0.5
    poisoned["training_sets"][0]["leak_report"][evil] = {evil: 1}
    for curve in poisoned["learning_curves"]:
        for point in curve["points"]:
            point[evil + "loss"] = 1.0
    page = Page(render(poisoned))
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert evil in page.text()
    assert "{{ 7 * 7 }}" in page.text()


def test_each_section_may_be_missing(sample: dict[str, Any]) -> None:
    text = Page(render({})).text()
    for words in ("lift table", "retrieval models", "gate verdicts", "training sets", "learning curves", "timings"):
        assert f"This run has no {words}." in text
    for key in sample:
        page = Page(render({name: value for name, value in sample.items() if name != key}))
        assert len(page.all("section")) == 9


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value; of a list the first, second and last entries stand for the rest."""
    if path:
        yield path
    entries = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        entries = [(index, value[index]) for index in sorted({0, min(1, len(value) - 1), len(value) - 1} - {-1})]
    for key, item in entries:
        yield from _paths(item, (*path, key))


def test_no_single_missing_or_broken_value_breaks_the_page(sample: dict[str, Any]) -> None:
    sample["gate"]["snapshots"] = sample["gate"]["snapshots"][12:16]  # a refusal and its repetition among them
    sample["learning_curves"] = [sample["learning_curves"][0], *sample["learning_curves"][2:4]]
    for path in _paths(sample):
        for wrong in (None, "text", float("nan"), {}, "delete"):
            broken = {path[0]: copy.deepcopy(sample[path[0]])}  # sections do not depend on each other's values
            holder: Any = broken
            for key in path[:-1]:
                holder = holder[key]
            if wrong == "delete":
                del holder[path[-1]]
            else:
                holder[path[-1]] = wrong
            assert "</html>" in render(broken), (path, wrong)


def test_same_summary_same_page(sample: dict[str, Any]) -> None:
    before = copy.deepcopy(sample)
    assert render(sample) == render(sample)
    assert sample == before


def test_seeds_share_a_panel_and_upstream_losses_do_not(sample: dict[str, Any]) -> None:
    page = Page(render(sample))
    panels = [svg["aria-label"] or "" for svg in page.all("svg") if svg.get("class") == "curve"]
    assert len(panels) == 2 * 4 + 8
    assert any(re.match(r"ctr user\+item : validation at best 0\.10\d\d, .* means of 3 seeds", text) for text in panels)
    assert any(text.startswith("upstream v1 contrastive loss: from ") for text in panels)


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    points = [{"step": step, "loss": 2.0 - step / 10_000} for step in range(5_000)]
    page = Page(render({"learning_curves": [{"name": "upstream v1", "points": points}]}))
    drawn = max((line["points"] or "" for line in page.all("polyline")), key=len).split()
    assert len(drawn) < 260
    assert (drawn[0], drawn[-1]) == ("0.0,0.0", "100.0,100.0")


def test_run_writes_the_page_beside_the_summary(sample: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(sample), encoding="utf-8")
    result = run(tmp_path)
    assert result.path == folder / "report.html"
    assert result.path.read_text(encoding="utf-8") == render(sample)
    assert result.bytes == result.path.stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "summary.json"]


def test_a_failing_write_keeps_the_old_page(
    sample: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(sample), encoding="utf-8")
    (folder / "report.html").write_text("the old page", encoding="utf-8")
    seen = []

    def refuse(source: Path, target: Path) -> None:
        seen.append((source.parent == target.parent, source.read_text(encoding="utf-8") == render(sample)))
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        report.run(tmp_path)
    assert seen == [(True, True)]  # the whole page lay beside its place before it was moved
    assert (folder / "report.html").read_text(encoding="utf-8") == "the old page"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "summary.json"]


def test_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"summary\.json does not exist.*headwater evaluate"):
        run(tmp_path)
    source = tmp_path / "reports" / "summary.json"
    source.parent.mkdir()
    for text, words in (('{"lift": [', "not valid JSON"), ("[1, 2]", "no JSON object")):
        source.write_text(text, encoding="utf-8")
        with pytest.raises(LakeError, match=words):
            run(tmp_path)
    assert [path.name for path in source.parent.iterdir()] == ["summary.json"]


def test_numbers_are_written_for_people() -> None:
    number, percent, duration = report_charts.number, report_charts.percent, report_charts.duration
    assert [number(value) for value in (1234567, 0.123456, -2.5, None, float("inf"), True, "as is")] == [
        "1,234,567",
        "0.1235",
        f"{_MINUS}2.5",
        "\N{EM DASH}",
        "\N{EM DASH}",
        "yes",
        "as is",
    ]
    assert [number(value, 2, signed=True) for value in (1, -1)] == ["+1.00", f"{_MINUS}1.00"]
    assert [percent(value, signed=True) for value in (0.00421, -0.1)] == ["+0.42%", f"{_MINUS}10.00%"]
    assert [duration(value) for value in (9.61, 271.0, 7300, None)] == [
        "9.6 s",
        "4 min 31 s",
        "2 h 1 min",
        "\N{EM DASH}",
    ]
    assert report_charts.day("2024-07-01T02:00:00+02:00") == "2024-07-01"
    assert report_charts.day("2024-07-01T12:30:00Z") == "2024-07-01 12:30"


@pytest.mark.parametrize(("lo", "hi"), [(-0.0066, 0.0154), (0.0, 0.0000004), (-3.0, 12.0), (5.0, 5.0)])
def test_ticks_are_few_round_and_inside(lo: float, hi: float) -> None:
    ticks = report_charts.ticks(lo, hi)
    assert 1 <= len(ticks) <= 7
    assert all(lo - 1e-12 <= tick <= hi + 1e-12 for tick in ticks)


@pytest.mark.parametrize("days", [0, 1, 5, 40, 75, 76, 200, 400, 2000])
def test_calendar_labels_are_few_and_inside(days: int) -> None:
    start = datetime(2023, 11, 20, tzinfo=UTC)
    end = datetime.fromtimestamp(start.timestamp() + 86400 * days, UTC)
    labels = report_charts.time_ticks(start, end, 6)
    assert len(labels) <= 7
    assert all(start <= time <= end for time, _ in labels)


def test_snapshots_that_hold_at_any_time_do_not_stretch_the_axis() -> None:
    summary = json.loads(Path(__file__).with_name("report_sample.json").read_text(encoding="utf-8"))
    plain = render(summary)
    always = {"snapshot_id": "a", "view": "item_attributes", "as_of": "1970-01-01T00:00:00+00:00", "accepted": True}
    summary["gate"]["snapshots"].append({**always, "rows": 5, "checks": []})
    page = render(summary)
    assert "item_attributes" in page
    calendars = [re.findall(r"<text[^>]*>([^<]*)</text>", text) for text in (plain, page)]
    assert calendars[0] == calendars[1]
