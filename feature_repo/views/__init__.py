"""Feast objects built from the ledger: entities, sources, one view per embedding version, one service per consumer."""

from feature_repo.views.build import feast_objects

__all__ = ["feast_objects"]
