"""Data Docs show every check of a verdict and ask nothing of the network."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.contracts.types import Check, Verdict
from validation.docs import build_data_docs

CHECKED_AT = datetime(2017, 8, 7, 12, tzinfo=UTC)
GOOD = Verdict(
    True,
    (
        Check("file_readable", "critical", True, "512 bytes", "a Parquet file with a whole footer"),
        Check("vector_norm", "critical", True, 0, "at least 0.99 and at most 1.01, in every row", "scaled"),
        Check("coverage_usual", "warning", False, 0.85, "at least 0.9", "costs < $5 & more"),
    ),
)
BAD = Verdict(
    False,
    (
        Check("identity", "critical", False, 0.51, "at least 0.7", "shuffled ids; e.g. <script>alert(1)</script>"),
        Check("file_types", "critical", False, "<b>", "embedding list<item: float>"),
    ),
    "<reason>",
)


def build(folder: Path) -> dict[str, str]:
    index = build_data_docs({"user-1": GOOD, "item-1": BAD}, folder, checked_at=CHECKED_AT)
    assert index == folder / "index.html"
    return {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def test_no_page_refers_to_a_host_or_runs_a_script_of_its_own(tmp_path: Path) -> None:
    for name, page in build(tmp_path).items():
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page), name
        scripts = re.findall(r"<script\b[^>]*>", page)
        assert len(scripts) == 3 and all("/js/" in script for script in scripts)
        assert not re.search(r"\son\w+=", page) and "@import" not in page
        policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
        assert "default-src 'none'" in policy and "script-src 'self' file:;" in policy


def test_everything_that_a_page_loads_lies_beside_it(tmp_path: Path) -> None:
    build(tmp_path)
    loaded = 0
    for path in tmp_path.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#]+)"', path.read_text(encoding="utf-8")):
            assert (path.parent / target).resolve().exists(), (path.name, target)
            loaded += target.endswith((".css", ".js", ".png", ".ico"))
    assert loaded == 3 * 9
    for style in (tmp_path / "static" / "css").glob("*.css"):
        for target in re.findall(r"url\(([^)]+)\)", style.read_text(encoding="utf-8")):
            # Browsers that read woff2 never ask for the old format behind it.
            there = (style.parent / target).resolve().exists()
            assert target.startswith(("data:", '"data:')) or target.endswith(".ttf") or there, (style.name, target)


def test_every_vendored_package_has_its_licence(tmp_path: Path) -> None:
    build(tmp_path)
    licences = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "static" / "licenses").iterdir()}
    assert set(licences) == {"bootstrap", "jquery", "fontawesome"}
    assert all("license" in text.lower() or "Permission is hereby granted" in text for text in licences.values())


def test_every_icon_is_one_that_the_vendored_style_knows(tmp_path: Path) -> None:
    pages = build(tmp_path)
    style = (tmp_path / "static" / "css" / "fontawesome.min.css").read_text(encoding="utf-8")
    icons = {icon for page in pages.values() for icon in re.findall(r"fa-[a-z-]+", page)}
    assert {"fa-check-circle", "fa-times"} <= icons
    assert all(re.search(rf"\.{icon}\b", style) for icon in icons), icons


def test_every_check_shows_severity_value_and_bound(tmp_path: Path) -> None:
    pages = build(tmp_path)
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", pages["user-1.html"].split("<body>")[1])))
    for check in GOOD.checks:
        assert f"{check.name} {check.severity} {check.bound}" in text
        assert check.detail in text
        assert str(check.observed) in text
    assert "accepted" in text and "The file" in text and "Every row" in text
    assert "rendering" not in text.lower()


def test_a_refusal_comes_first_with_its_reason_and_no_markup_slips_in(tmp_path: Path) -> None:
    pages = build(tmp_path)
    assert pages["index.html"].index("item-1") < pages["index.html"].index("user-1")
    assert "1 accepted, 1 refused" in pages["index.html"]
    assert "&lt;reason&gt;" in pages["item-1.html"] and "<reason>" not in pages["item-1.html"]
    assert "list&lt;item: float&gt;" in pages["item-1.html"] and "&lt;b&gt;" in pages["item-1.html"]


def test_equal_verdicts_give_equal_indexes(tmp_path: Path) -> None:
    assert build(tmp_path / "a")["index.html"] == build(tmp_path / "b")["index.html"]
