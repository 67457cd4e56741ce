"""Checkpoints of a training run: one folder each, renamed into place whole, safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from feature_repo.contracts.errors import ConfigError, LakeError
from models.upstream.files import write_durably

_TENSORS, _STATE = "state.safetensors", "state.json"


class CheckpointStore:
    """The newest checkpoint of one run in one folder.

    Parameters
    ----------
    folder
        Made when needed. Holds ``step-NNNNNNNN/`` and, while one is written, ``.step-...tmp/``.
    identity
        Hash of what the run is; a checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def write(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write model, optimizer and `state` (JSON values with a "step"), then remove older checkpoints."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        payload = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        document = {"identity": self.identity, "sha256": hashlib.sha256(payload).hexdigest(), **state}
        final = self.folder / f"step-{state['step']:08d}"
        beside = self.folder / f".{final.name}.{os.getpid()}.tmp"
        beside.mkdir(parents=True)
        write_durably(beside / _TENSORS, payload)
        write_durably(beside / _STATE, json.dumps(document).encode())
        beside.rename(final)
        for other in self.folder.glob("step-*"):
            if other != final:
                shutil.rmtree(other)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Load the newest checkpoint into model and optimizer and return its state; None if there is none.

        Raises
        ------
        ConfigError
            If the checkpoint belongs to another model or training config.
        LakeError
            If its files are damaged.
        """
        for unfinished in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(unfinished)
        found = max(self.folder.glob("step-*"), default=None)
        if found is None:
            return None
        try:
            state = json.loads((found / _STATE).read_text())
            payload = (found / _TENSORS).read_bytes()
        except (OSError, ValueError) as error:
            raise LakeError(f"Checkpoint {found} cannot be read: {error}. Remove it to start anew.") from error
        if state.pop("identity") != self.identity:
            raise ConfigError(
                f"Checkpoint {found} belongs to a run with another model or training config. "
                "Remove it, or train into another folder."
            )
        if state.pop("sha256") != hashlib.sha256(payload).hexdigest():
            raise LakeError(f"Checkpoint {found} is damaged. Remove it to start anew.")
        _load(model, optimizer, safetensors.torch.load(payload))
        return state


def _load(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    weights: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        kind, rest = full_name.split(".", 1)
        if kind == "model":
            weights[rest] = tensor
        else:
            key, name = rest.split(".", 1)
            # A copy: the loaded tensors share one buffer that no kernel's alignment was chosen for.
            optimizer.state[parameters[name]][key] = tensor.clone().to(parameters[name].device)
    model.load_state_dict(weights)
