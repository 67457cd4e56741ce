"""The gate's pages say what the gate said, and open in a real browser without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contracts.errors import NotFoundError, NotReadyError
from feature_repo.contracts.types import Check, Decision, Snapshot, Space, Verdict, Version, View
from feature_repo.lake import write_parquet
from jobs import docs, ingest
from jobs.publication import clocked
from jobs.refresh import vector_table
from jobs.workspace import Workspace

NOW = datetime(2018, 1, 2, tzinfo=UTC)
START = datetime(2017, 7, 2, tzinfo=UTC)
WEEKS, USERS, DIM = 6, 120, 8
NASTY = "<script>alert('x')</script>"


def check(name: str, observed: float, passed: bool = True, severity: str = "critical") -> Check:
    return Check(name, severity, passed, observed, "at least 0.7", f"why {name}")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Six refreshes of one view: the fourth with a warning, the last refused with NaN in it."""
    root = tmp_path_factory.mktemp("docs")
    events = pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(minutes=n) for n in range(USERS)],
            "user_id": list(range(USERS)),
            "item_id": [n % 7 for n in range(USERS)],
            "event_type": ["click"] * USERS,
        }
    )
    users = pl.DataFrame({"user_id": range(USERS), "town": [NASTY if n % 3 else "Ulm" for n in range(USERS)]})
    users = users.with_columns(plan=pl.Series([("free", "paid", "trial")[n % 3] for n in range(USERS)]))
    events.write_parquet(root / "events.parquet")
    users.write_parquet(root / "users.parquet")
    home = root / "home"
    ingest.run(
        ingest.IngestConfig(
            home=home,
            name="toy",
            events=(str(root / "events.parquet"),),
            users=(str(root / "users.parquet"),),
            items=(),
            now=NOW,
            max_bad_rows=0,
            replace=False,
        )
    )
    opened = Workspace.open(home)
    opened.ledger.put_space(Space("s1", DIM, START, "f", "artifacts/s1"))
    opened.ledger.put_version(Version("v1", "s1", "toy", "us", 0.8))
    opened.ledger.put_view(View("user_embedding_v1", "user", "v1", "int64", {"embedding": "list<float>"}, 30))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(USERS, DIM)).astype(np.float32)
    for week in range(WEEKS):
        at = START + week * timedelta(days=7)
        vectors = vectors + 0.1 * rng.normal(size=vectors.shape).astype(np.float32)
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        bad = week == WEEKS - 1
        if bad:
            unit[4, 2] = np.nan
        table = clocked(vector_table("user_id", pl.Series(range(USERS)), unit, np.linalg.norm(vectors, axis=1)), at)
        name = f"user_embedding_v1-{week}"
        path = home / ("quarantine" if bad else "lake") / f"{name}.parquet"
        write_parquet(table, path)
        checks = (check("vector_finite", int(bad), not bad), check("coverage", 1 - week / 100))
        checks += (check("identity", 0.99), check("psi_usual", 0.1, week != 3, "warning"))
        opened.ledger.put_snapshot(
            Snapshot(
                name,
                "user_embedding_v1",
                "user",
                "v1",
                "s1",
                at,
                at,
                USERS,
                str(path.relative_to(home)),
                name,
                not bad,
                Verdict(not bad, checks, seconds=0.25),
            )
        )
    return opened


@pytest.fixture(scope="module")
def folder(ws: Workspace) -> Path:
    result = docs.run(ws, NOW)
    assert result.pages == WEEKS
    return result.path.parent


def text_of(path: Path) -> str:
    body = path.read_text(encoding="utf-8").split("<body>")[1]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_a_page_shows_verdict_checks_bounds_and_history(folder: Path) -> None:
    page = folder / "user_embedding_v1-5.html"
    text = text_of(page)
    assert "✗ Refused" in text and "vector_finite" in text and "at least 0.7" in text and "why coverage" in text
    assert "0.25 s" in text and "1 with NaN or infinite values: 4" in text
    raw = page.read_text(encoding="utf-8")
    assert 'aria-label="coverage over 6 refreshes: from 1 to 0.95"' in raw
    for title in ("Norms before scaling", "Spectrum", "Drift and coverage over time", "Projection, by plan"):
        assert title in text
    assert "Farthest from their previous vector" in text


def test_the_index_lists_every_refresh_and_links_to_pages_that_exist(folder: Path) -> None:
    text = text_of(folder / "index.html")
    assert "5 published, 1 refused" in text and "psi_usual" in text
    for path in folder.rglob("*.html"):
        for target in re.findall(r'href="([^"#]+)"', path.read_text(encoding="utf-8")):
            if "report.html" not in target:
                assert (path.parent / target).resolve().exists(), (path.name, target)


def test_only_the_named_pages_are_written(ws: Workspace, folder: Path) -> None:
    page = folder / "user_embedding_v1-2.html"
    other = folder / "user_embedding_v1-1.html"
    before = page.stat().st_mtime_ns, other.stat().st_mtime_ns
    assert docs.run(ws, NOW, only=["user_embedding_v1-2"]).pages == 1
    assert page.stat().st_mtime_ns != before[0] and other.stat().st_mtime_ns == before[1]
    for index in (folder / "index.html", folder / "data_docs" / "index.html"):
        assert all(f"user_embedding_v1-{week}.html" in index.read_text(encoding="utf-8") for week in range(WEEKS))
    with pytest.raises(NotFoundError, match="nothing"):
        docs.run(ws, NOW, only=["nothing"])


def test_values_of_the_data_never_become_markup(folder: Path) -> None:
    for path in folder.glob("*.html"):
        assert "<script" not in path.read_text(encoding="utf-8").lower()


def test_a_run_writes_the_newest_and_the_refused_and_the_index_links_to_those_alone(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = "user_embedding_v1-5"
    assert docs.worth_a_page(ws) == {newest}
    record = ws.ledger.snapshot("user_embedding_v1-2")
    ws.ledger.put_snapshot(replace(record, accepted=False))
    assert docs.worth_a_page(ws) == {newest, record.snapshot_id}
    ws.ledger.put_snapshot(record)

    monkeypatch.setattr(type(ws.home), "reports", property(lambda home: tmp_path))
    docs.run(ws, NOW, only=docs.worth_a_page(ws))
    pages = tmp_path / "gate"
    assert {path.stem for path in pages.glob("*.html")} == {"index", newest}
    index = (pages / "index.html").read_text(encoding="utf-8")
    assert f'href="{newest}.html"' in index and "user_embedding_v1-4.html" not in index
    assert "headwater docs" in index and "2017-07-30" in index
    assert 'rel="prev"' not in (pages / f"{newest}.html").read_text(encoding="utf-8")


def test_a_lost_or_unreadable_file_still_has_its_page(ws: Workspace, folder: Path) -> None:
    record = ws.ledger.snapshot("user_embedding_v1-5")
    broken = ws.home.root / "quarantine" / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    for path in ("quarantine/broken.parquet", "quarantine/gone.parquet"):
        ws.ledger.put_snapshot(replace(record, path=path))
        docs.run(ws, NOW, only=[record.snapshot_id])
        assert "vector_finite" in text_of(folder / f"{record.snapshot_id}.html")
    ws.ledger.put_snapshot(record)


def test_a_decision_is_shown_with_name_and_reason(ws: Workspace, folder: Path) -> None:
    record = ws.ledger.snapshot("user_embedding_v1-5")
    ws.ledger.put_decision(Decision(record.snapshot_id, record.sha256, "discard", "Ada", "wrong model", NOW))
    docs.run(ws, NOW, only=[record.snapshot_id])
    assert "Discarded by Ada: wrong model" in text_of(folder / f"{record.snapshot_id}.html")
    assert "discarded by Ada" in text_of(folder / "index.html")


def test_there_are_no_pages_without_snapshots(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="headwater backfill"):
        docs.run(Workspace.open(tmp_path), NOW)


def browse(page: Path, folder: Path) -> tuple[list[str], set[str], int]:
    """Open a page in chromium: return its console lines, the addresses that it asked for, and the screenshot's size."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    log, shot = folder / "net.json", folder / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=400,900"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--enable-logging=stderr", f"--log-net-log={log}", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    # What the browser asks for itself (updates, dictionaries) has no origin; what a page asks for has its own.
    events = json.loads(log.read_text(encoding="utf-8", errors="replace"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    urls = {item["url"] for item in asked if item.get("initiator") not in (None, "not an origin")}
    return console, {url for url in urls if not url.startswith(("file:", "data:"))}, shot.stat().st_size


PAGES = ["index", "user_embedding_v1-5", "user_embedding_v1-0", "data_docs/index"]


@pytest.mark.parametrize("name", [*PAGES, "data_docs/validations/user_embedding_v1-5"])
def test_pages_open_in_a_browser_without_error_or_request(folder: Path, tmp_path: Path, name: str) -> None:
    console, urls, size = browse(folder / f"{name}.html", tmp_path)
    assert console == [] and urls == set()
    assert size > 5_000


PROBE = """
$(function () {
  const all = $("td .badge-danger:visible").length;
  const closed = $(".collapse").is(":visible");
  $("a[data-toggle=collapse]").trigger("click");
  $("[data-show=failed]").trigger("click");
  const failed = $("td .badge-danger:visible").length;
  const icon = getComputedStyle(document.querySelector(".fa-times"), "::before").fontFamily;
  document.fonts.load('900 16px "Font Awesome 6 Free"').then(function (fonts) {
    const opened = $(".collapse.show, .collapsing").length;
    document.title = [all, failed, closed, opened, fonts.length, icon].join("|");
  });
});
"""


def test_data_docs_work_as_their_authors_meant(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data_docs", tmp_path / "docs")
    page = tmp_path / "docs" / "validations" / "user_embedding_v1-5.html"
    (tmp_path / "docs" / "static" / "js" / "probe.js").write_text(PROBE)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</head>", '<script defer src="../static/js/probe.js"></script></head>', 1))
    title = re.findall(r"<title>(.*?)</title>", dump(page, tmp_path))[0]
    every, failed, closed, opened, fonts, icon = html.unescape(title).split("|")
    # Three critical checks, of which one failed; the details open on a click; icons come from the vendored font.
    assert (every, failed) == ("3", "1")
    assert (closed, opened, fonts) == ("false", "1", "1")
    assert "Font Awesome 6 Free" in icon


def dump(page: Path, folder: Path) -> str:
    """Return the document that chromium has made of a page once its scripts have run."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_browser_test_would_see_a_request_and_an_error(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<!DOCTYPE html><img src="https://example.org/x.png"><script>console.error("oh")</script>')
    console, urls, _ = browse(page, tmp_path)
    assert urls == {"https://example.org/x.png"}
    assert any("oh" in line for line in console)
