"""Feast's vector search on the embedded SQLite store: exact, over the stored bytes, with no extension to load.

Feast's own needs the extension sqlite-vec, which it loads under Python 3.10 alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from feast import FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores.wire_lists import list_header

Found = tuple[datetime | None, EntityKey | None, dict[str, Value] | None]
METRICS = ("inner_product", "cosine", "l2")


def search(
    config: Any,
    connection: Any,
    view: FeatureView,
    requested: list[str],
    query: list[float],
    top_k: int,
    metric: str | None,
) -> list[Found]:
    """Return the rows of a view whose vectors are nearest to a query, by entity.

    Feast 0.67 sorts the entities of an answer and leaves the features as they came, so that in any other order than
    theirs it gives an entity the features and the distance of another. Sort the answer by ``distance``.

    Parameters
    ----------
    requested
        Features to return; ``distance`` comes with them: the product, 1 - cosine, or the Euclidean distance.
    metric
        One of `METRICS`; inner_product by default.

    Raises
    ------
    ConfigError
        If the view has no vector field, the metric is unknown, or the query has another length.
    """
    fields = [field for field in view.features if field.vector_index]
    chosen = (metric or METRICS[0]).lower()
    if len(fields) != 1 or chosen not in METRICS:
        raise ConfigError(
            f"{view.name} is searched by one field with vector_index (it has {len(fields)}) and one of "
            f"{', '.join(METRICS)}, not '{metric}'."
        )
    table = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    marks = ",".join("?" * len(requested))
    stored = connection.execute(
        f'SELECT entity_key, value, event_ts FROM "{table}" WHERE feature_name = ?', (fields[0].name,)
    ).fetchall()
    vectors = _vectors([value for _, value, _ in stored], len(query), view.name)
    distance, order = _nearest(vectors, np.asarray(query, np.float32), chosen)
    found: list[Found] = []
    for place in order[:top_k]:
        key, _, moment = stored[place]
        values = {"distance": Value(float_val=float(distance[place]))}
        rows = connection.execute(
            f'SELECT feature_name, value FROM "{table}" WHERE entity_key = ? AND feature_name IN ({marks})',
            (key, *requested),
        )
        for name, value in rows:
            values[name] = Value.FromString(value)
        entity = deserialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version)
        found.append((moment.replace(tzinfo=UTC), entity, values))  # Feast's connection gives naive moments
    return sorted(found, key=_as_feast_sorts)


def _as_feast_sorts(row: Found) -> tuple[Any, ...]:
    assert row[1] is not None
    return tuple(getattr(value, value.WhichOneof("val")) for value in row[1].entity_values)


def _vectors(stored: list[bytes], dim: int, name: str) -> np.ndarray:
    header = list_header(ValueType.FLOAT_LIST, 4 * dim)
    if not all(len(value) == len(header) + 4 * dim and value.startswith(header) for value in stored):
        raise ConfigError(f"{name} holds vectors of another length than the query's {dim}. Query with its own length.")
    rows = np.frombuffer(b"".join(stored), np.uint8).reshape(len(stored), len(header) + 4 * dim)
    return np.ascontiguousarray(rows[:, len(header) :]).view("<f4")


def _nearest(vectors: np.ndarray, query: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what is reported per row, and the rows in their order, best first."""
    if metric == "l2":
        distance = np.linalg.norm(vectors - query, axis=1)
        return distance, np.argsort(distance, kind="stable")
    products = vectors @ query
    if metric == "inner_product":
        return products, np.argsort(-products, kind="stable")
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    distance = 1.0 - products / np.maximum(lengths, 1e-12)
    return distance, np.argsort(distance, kind="stable")
