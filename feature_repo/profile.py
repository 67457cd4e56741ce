"""Which stores the definitions live on: the profile that ``$HEADWATER_PROFILE`` names, the embedded one by default.

An environment variable and not an option of Feast's, because definitions depend on it: `feast -f` shows them nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from feature_repo.contracts.errors import ConfigError

VARIABLE = "HEADWATER_PROFILE"
REPOSITORY = Path(__file__).resolve().parent


def settings_file() -> Path:
    """Return the chosen profile's yaml.

    Raises
    ------
    ConfigError
        If there is no such profile.
    """
    profile = os.environ.get(VARIABLE)
    if not profile:
        return REPOSITORY / "feature_store.yaml"
    known = sorted(path.stem for path in (REPOSITORY / "profiles").glob("*.yaml"))
    if profile not in known:
        raise ConfigError(
            f"There is no profile '{profile}'; there are {', '.join(known)}. "
            f"For the default set neither --profile nor {VARIABLE}."
        )
    return REPOSITORY / "profiles" / f"{profile}.yaml"


def reads_with_spark() -> bool:
    """Return whether the chosen profile's offline store is on Spark: then sources are Spark's."""
    return ".spark" in yaml.safe_load(settings_file().read_text(encoding="utf-8"))["offline_store"]["type"]
