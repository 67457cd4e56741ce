"""The Feast store of a home folder: the repository's yaml with this home's registry and online store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from feature_repo.lake import Home

if TYPE_CHECKING:
    from feast import FeatureStore

REPOSITORY = Path(__file__).resolve().parent.parent / "feature_repo"


def open_store(home: Home) -> FeatureStore:
    """Return the FeatureStore that reads and writes `home`, as `feast -c feature_repo` does by default."""
    import ibis
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    # Feast's DuckDB store goes through ibis, which calls a deprecated name and draws a progress bar of its own.
    warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)
    ibis.get_backend().raw_sql("SET enable_progress_bar = false")
    home.feast.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text(encoding="utf-8"))
    values["registry"]["path"] = str(home.feast / "registry.db")
    if "path" in values["online_store"]:
        values["online_store"]["path"] = str(home.feast / "online.db")
    return FeatureStore(config=RepoConfig(**values, repo_path=REPOSITORY))
