"""Feast objects built from the ledger: entities, sources, a view per version, a service per consumer."""

from feature_repo.views.build import feast_objects

__all__ = ["feast_objects"]
