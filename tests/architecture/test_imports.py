"""Who may import whom, and what must not be imported early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"feature_repo", "models", "validation", "jobs"}
# package -> what of ours, and which libraries, it must not import
RULES = {
    "feature_repo/contracts": (OURS - {"feature_repo"}, {"feast", "torch", "polars", "pyarrow", "duckdb"}),
    "feature_repo": ({"models", "validation", "jobs"}, {"torch", "great_expectations"}),
    "models": ({"validation", "jobs"}, {"feast", "polars", "duckdb", "great_expectations"}),
    "validation": ({"models", "jobs"}, {"feast", "torch"}),
    "jobs": (set(), set()),
}


def imports(path: Path) -> set[str]:
    """Return the dotted names a module imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", RULES)
def test_import_rules(package: str) -> None:
    ours, libraries = RULES[package]
    files = list((ROOT / package).rglob("*.py"))
    assert files
    broken = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imports(file)
        if name.split(".")[0] in ours | libraries
    }
    assert not broken


def test_contracts_import_only_contracts() -> None:
    for file in (ROOT / "feature_repo/contracts").glob("*.py"):
        inside = {name for name in imports(file) if name.split(".")[0] == "feature_repo"}
        assert all(name.startswith("feature_repo.contracts") for name in inside), file


def test_models_import_of_ours_only_contracts() -> None:
    for file in (ROOT / "models").rglob("*.py"):
        inside = {name for name in imports(file) if name.split(".")[0] == "feature_repo"}
        assert all(name.startswith("feature_repo.contracts") for name in inside), file


def test_the_scanned_facade_is_the_only_module_feast_sees() -> None:
    from feast.repo_operations import get_ignore_files, get_repo_files

    repository = ROOT / "feature_repo"
    ignored = get_ignore_files(repository, [])
    seen = {path.name for path in get_repo_files(repository) if path.resolve() not in ignored}
    assert seen == {"definitions.py"}


def test_command_line_imports_nothing_heavy() -> None:
    code = "import sys, jobs.cli; print(','.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    heavy = {"feast", "torch", "polars", "pandas", "great_expectations", "duckdb", "pyarrow", "faiss", "numpy"}
    assert not heavy & set(loaded.strip().split(","))
