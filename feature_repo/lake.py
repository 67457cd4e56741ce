"""The lake: Parquet files under one home folder, written beside their place and renamed into it.

A reader never sees half a file: everything is written under a hidden name in the folder it belongs
to, flushed to disk, and moved with `os.replace`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.errors import BusyError, LakeError
from feature_repo.contracts.naming import moment_stem
from feature_repo.failpoints import durable


@dataclass(frozen=True)
class Home:
    """Where everything the platform writes lies; removing the folder removes it all."""

    root: Path

    @property
    def lake(self) -> Path:
        """Event log, attribute tables and published snapshots."""
        return self.root / "lake"

    @property
    def ledger_file(self) -> Path:
        """The ledger's SQLite file."""
        return self.root / "ledger.db"

    @property
    def feast(self) -> Path:
        """Registry and online store of the embedded profile."""
        return self.root / "feast"

    @property
    def artifacts(self) -> Path:
        """Model weights, encoders and indexes."""
        return self.root / "artifacts"

    @property
    def training_sets(self) -> Path:
        """Training sets with their manifests."""
        return self.root / "training_sets"

    @property
    def quarantine(self) -> Path:
        """Refused snapshots and bad input rows, each with its reasons."""
        return self.root / "quarantine"

    @property
    def reports(self) -> Path:
        """What a person reads."""
        return self.root / "reports"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' pages, one per snapshot that the gate judged."""
        return self.reports / "gate" / "data_docs"

    def view_folder(self, view: str) -> Path:
        """Return the folder of one view's snapshots."""
        return self.lake / view

    def snapshot_file(self, view: str, as_of: datetime) -> Path:
        """Return where the snapshot of `view` at `as_of` is published."""
        return self.view_folder(view) / f"{moment_stem(as_of)}.parquet"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock of this home folder; it ends with the process, however that dies.

        Raises
        ------
        BusyError
            If another process holds it.
        LakeError
            If the folder cannot be written.
        """
        path = self.root / f".{name}.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = open(path, "a+")  # noqa: SIM115 (closed below; an error of the body is not one of opening)
        except OSError as error:
            raise LakeError(f"Could not open {path}: {error}. Free space or fix permissions and run again.") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BusyError(
                    f"Another headwater process holds {self.root} ({name}). Wait for it to end, or stop it."
                ) from error
            yield


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield a hidden path beside `final`; on success flush it and move it into place.

    Raises
    ------
    LakeError
        If the disk refuses (full, read-only), naming the path.
    """
    staged = final.parent / f".{final.name}.{os.getpid()}.part"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final)
        yield staged
        with open(staged, "rb") as handle:
            os.fsync(handle.fileno())
        with durable(f"file {final.parent.name}/{final.name}"):
            os.replace(staged, final)
            _sync_folder(final.parent)
    except OSError as error:
        raise LakeError(f"Could not write {final}: {error}. Free space or fix permissions and run again.") from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


@contextmanager
def replacing_folder(final: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `final` to be filled; on success flush its files and rename it into place.

    Raises
    ------
    LakeError
        If the disk refuses, naming the path.
    """
    staged = final.parent / f".{final.name}.{os.getpid()}.part"
    try:
        sweep(final)
        staged.mkdir(parents=True)
        yield staged
        for path in staged.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        with durable(f"file {final.parent.name}/{final.name}"):
            os.rename(staged, final)
            _sync_folder(final.parent)
    except OSError as error:
        raise LakeError(f"Could not write {final}: {error}. Free space or fix permissions and run again.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sweep(final: Path) -> None:
    """Remove what killed processes left of earlier tries at the same file or folder."""
    for left in final.parent.glob(f".{final.name}.*.part"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except ProcessLookupError:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_parquet(table: pa.Table, final: Path, *, row_group_size: int = 128 * 1024) -> None:
    """Write `table` to `final` atomically as zstd Parquet with microsecond timestamps."""
    with replacing(final) as staged:
        pq.write_table(table, staged, compression="zstd", row_group_size=row_group_size, coerce_timestamps="us")


def write_json(value: Any, final: Path) -> None:
    """Write `value` to `final` atomically as indented JSON."""
    with replacing(final) as staged:
        staged.write_text(json.dumps(value, indent=2, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote; LakeError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LakeError(f"Could not read {path}: {error}. Run the stage that writes it again.") from error


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 over the names and bytes of all files of a folder, hidden ones left out.

    Raises
    ------
    LakeError
        If the folder is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        for path in files:
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    except OSError as error:
        raise LakeError(f"Could not read {folder}: {error}. Run the stage that writes it again.") from error
    if not files:
        raise LakeError(f"{folder} is missing or empty. Run the stage that writes it again.")
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""

    def blocks(handle: IO[bytes]) -> Iterator[bytes]:
        while block := handle.read(1 << 20):
            yield block

    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in blocks(handle):
            digest.update(block)
    return digest.hexdigest()
