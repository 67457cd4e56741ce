"""Writing so that no reader ever sees half a file, and models as such files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from feature_repo.contracts.errors import LakeError

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


def write_durably(path: Path, payload: bytes) -> None:
    """Write `payload` and wait until it is on disk, so that a later rename cannot outrun the content."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, payload: bytes) -> None:
    """Put `payload` in the place of `path` in one step; a kill leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(beside, payload)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save_model(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write weights and config into `folder`, each beside its place and renamed, the config last."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
    document = {"model": config, "weights_sha256": hashlib.sha256(payload).hexdigest()}
    replace_file(folder / WEIGHTS_FILE, payload)
    replace_file(folder / CONFIG_FILE, json.dumps(document, indent=2, sort_keys=True).encode())


def load_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights that :func:`save_model` wrote.

    Raises
    ------
    LakeError
        If a file is missing or the weights are not those the config was written with.
    """
    try:
        document = json.loads((folder / CONFIG_FILE).read_text())
        payload = (folder / WEIGHTS_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise LakeError(f"No complete model in {folder}: {error}. Train it again.") from error
    if hashlib.sha256(payload).hexdigest() != document.get("weights_sha256"):
        raise LakeError(f"The weights in {folder} are not those of its config.json. Train it again.")
    return document["model"], safetensors.torch.load(payload)


def weights_digest(weights: Mapping[str, Tensor], *notes: str) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `weights` in name order, and `notes`."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    for note in notes:
        digest.update(f"|{len(note)}|{note}".encode())
    return digest.hexdigest()
