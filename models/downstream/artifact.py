"""A ranker on disk: safetensors beside JSON, with the spaces of the embeddings that it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file, save_file

from feature_repo.contracts.errors import NotFoundError, SpaceMismatchError
from feature_repo.contracts.spaces import check_pins
from models.downstream.calibration import Calibration
from models.downstream.inputs import RankerSpec
from models.downstream.ranker import Ranker, RankerConfig

WEIGHTS_FILE = "ranker.safetensors"
CONFIG_FILE = "ranker.json"


def save_ranker(
    model: Ranker, folder: Path, space_ids: Mapping[str, str], extra: Mapping[str, Any] | None = None
) -> None:
    """Write weights (safetensors) and configuration (JSON) into a folder.

    Parameters
    ----------
    space_ids
        Embedding name to the space it was trained with; one entry per embedding of the specification.
    extra
        More JSON values to keep beside them, e.g. the sampling offset.

    Raises
    ------
    SpaceMismatchError
        If an embedding has no space, or a pair joins two spaces.
    """
    _check_spaces(model.spec, space_ids)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "spec": model.spec.to_dict(),
        "config": asdict(model.config),
        "space_ids": {name: space_ids[name] for name, _ in model.spec.embeddings},
        "extra": dict(extra or {}),
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class SavedRanker:
    """What :func:`save_ranker` wrote."""

    model: Ranker
    space_ids: dict[str, str]
    extra: dict[str, Any]

    def log_odds(self, predicted: ArrayLike) -> NDArray[np.float64]:
        """Return what the model's outputs mean for the log before down-sampling: offset added, calibrated if it is."""
        odds = np.asarray(predicted).astype(np.float64) + self.extra["offset"]
        known = self.extra.get("calibration")
        return odds if known is None else Calibration.from_dict(known).apply(odds)


def load_ranker(folder: Path, space_ids: Mapping[str, str]) -> SavedRanker:
    """Read a ranker, ready to predict.

    Parameters
    ----------
    space_ids
        Embedding name to the space that the caller is going to feed.

    Raises
    ------
    NotFoundError
        If the folder holds no ranker.
    SpaceMismatchError
        If the ranker was trained with another space than the caller is going to feed.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise NotFoundError(f"No ranker in {folder}: train one with `headwater train-downstream`.")
    values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    trained: dict[str, str] = values["space_ids"]
    check_pins(trained, space_ids, who=f"The ranker in {folder}")
    model = Ranker(RankerSpec.from_dict(values["spec"]), RankerConfig.from_dict(values["config"]))
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return SavedRanker(model.eval(), trained, values["extra"])


def _check_spaces(spec: RankerSpec, space_ids: Mapping[str, str]) -> None:
    unnamed = [name for name, _ in spec.embeddings if name not in space_ids]
    if unnamed:
        raise SpaceMismatchError(f"Embeddings without a space: {', '.join(unnamed)}. Name the space of each.")
    for left, right in spec.pairs:
        if space_ids[left] != space_ids[right]:
            raise SpaceMismatchError(
                f"Pair ({left}, {right}) joins spaces {space_ids[left]} and {space_ids[right]}; "
                "their product means nothing. Pair embeddings of one space."
            )
