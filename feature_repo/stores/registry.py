"""Feast's registry file, replaced whole: a reader sees the registry before or the one after.

Feast writes the file in place; who reads it meanwhile finds views and entities missing.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

from feature_repo.lake import replacing


class WholeFileRegistryStore(FileRegistryStore):
    """To be named as `registry_store_type`; everything but the way of writing is Feast's."""

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        with replacing(self._filepath) as staged:
            staged.write_bytes(registry_proto.SerializeToString())
