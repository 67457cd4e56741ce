"""Feast's own commands find what they import."""

from __future__ import annotations

import importlib

import pytest


# `feast ui` answers over the registry server, which needs gRPC: an extra that Feast does not install by itself.
@pytest.mark.parametrize("module", ["feast.ui_server", "feast.registry_server", "feast.feature_server"])
def test_what_feast_serves_can_be_imported(module: str) -> None:
    assert importlib.import_module(module).__name__ == module
