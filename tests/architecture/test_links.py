"""Every file that the documentation links to, or that code and documentation name, exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [path for folder in ("feature_repo", "jobs", "models", "validation") for path in (ROOT / folder).rglob("*.py")]


def test_relative_links_lead_to_files() -> None:
    found = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", link)
    ]
    assert len(found) > 100
    dead = [f"{page.relative_to(ROOT)}: {link}" for page, link in found if not (page.parent / link).exists()]
    assert not dead, "\n".join(dead)


def test_pages_that_are_named_exist() -> None:
    dead = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*PAGES, *CODE)
        for name in re.findall(r"\bdocs/(?:[\w-]+\.md|adr/\d{4})", path.read_text(encoding="utf-8"))
        if not any(ROOT.glob(f"{name}*"))
    ]
    assert not dead, "\n".join(dead)
