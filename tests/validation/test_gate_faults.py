"""Every kind of corruption of a good snapshot is refused, and by the check that names it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Change = Callable[[pa.Table], pa.Table]
SEED = 11


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.stack(table.column("embedding").to_numpy())


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_vectors(change: Callable[[np.ndarray], np.ndarray], *, unit: bool = False) -> Change:
    """Return a corruption that rewrites the matrix of vectors (rows, D)."""

    def apply(table: pa.Table) -> pa.Table:
        changed = change(vectors_of(table).copy())
        if unit:
            changed = changed / np.linalg.norm(changed, axis=1, keepdims=True)
        flat = pa.array(changed.astype(np.float32).ravel())
        offsets = pa.array(np.arange(0, changed.size + 1, changed.shape[1], dtype=np.int32))
        return with_column(table, "embedding", pa.ListArray.from_arrays(offsets, flat))

    return apply


def with_lists(change: Callable[[list[Any]], None], kind: pa.DataType = pa.list_(pa.float32())) -> Change:  # noqa: B008
    """Return a corruption that rewrites the vectors as Python lists (null, ragged, another type)."""

    def apply(table: pa.Table) -> pa.Table:
        lists = table.column("embedding").to_pylist()
        change(lists)
        return with_column(table, "embedding", pa.array(lists, kind))

    return apply


def with_values(name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> Change:
    """Return a corruption that rewrites another column as Python values."""

    def apply(table: pa.Table) -> pa.Table:
        values = change(table.column(name).to_pylist())
        return with_column(table, name, pa.array(values, kind or table.schema.field(name).type))

    return apply


def put(row: int, column: int, value: float) -> Change:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[row, column] = value
        return matrix

    return with_vectors(change)


def rows_scaled(share: float, factor: float) -> Change:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[: max(1, int(len(matrix) * share))] *= factor
        return matrix

    return with_vectors(change)


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(SEED).normal(size=(dim, dim)))[0]


def half_rotated(matrix: np.ndarray) -> np.ndarray:
    half = len(matrix) // 2
    matrix[:half] = matrix[:half] @ rotation(matrix.shape[1])
    return matrix


def one_direction(matrix: np.ndarray) -> np.ndarray:
    side = np.where(np.arange(len(matrix)) % 2 == 0, 1.0, -1.0)
    return side[:, None] * matrix[:1]


def set_row(row: int, value: Any) -> Callable[[list[Any]], None]:
    def change(lists: list[Any]) -> None:
        lists[row] = value

    return change


def cut_row(lists: list[Any]) -> None:
    lists[7] = lists[7][:-1]


def cut_all(lists: list[Any]) -> None:
    lists[:] = [values[:-1] for values in lists]


def shifted(delta: timedelta) -> Callable[[list[Any]], list[Any]]:
    return lambda moments: [moment + delta for moment in moments]


def naive(name: str) -> Change:
    return lambda table: with_column(table, name, table.column(name).cast(pa.timestamp("us")))


def as_type(name: str, kind: pa.DataType) -> Change:
    return lambda table: with_column(table, name, table.column(name).cast(kind))


# What was done to the file, and the check that must fail. With a previous snapshot unless said otherwise.
TABLE_FAULTS: dict[str, tuple[Change, str]] = {
    "missing embedding": (lambda table: table.drop_columns(["embedding"]), "file_columns"),
    "missing id": (lambda table: table.drop_columns(["user_id"]), "file_columns"),
    "missing created": (lambda table: table.drop_columns(["created"]), "file_columns"),
    "item file for a user view": (
        lambda table: table.rename_columns(["item_id", *table.column_names[1:]]),
        "file_columns",
    ),
    "extra column": (lambda table: table.append_column("note", table.column("norm")), "file_columns"),
    "string ids": (as_type("user_id", pa.string()), "file_types"),
    "32-bit ids": (as_type("user_id", pa.int32()), "file_types"),
    "float64 vectors": (as_type("embedding", pa.list_(pa.float64())), "file_types"),
    "float16 type": (as_type("embedding", pa.list_(pa.float16())), "file_types"),
    "fixed-size vectors": (as_type("embedding", pa.list_(pa.float32(), 16)), "file_types"),
    "vectors as text": (lambda t: with_column(t, "embedding", t.column("norm").cast(pa.string())), "file_types"),
    "float64 norm": (as_type("norm", pa.float64()), "file_types"),
    "nanosecond clock": (as_type("event_timestamp", pa.timestamp("ns", "UTC")), "file_types"),
    "clock as a number": (as_type("created", pa.int64()), "file_types"),
    "naive event clock": (naive("event_timestamp"), "file_time_zone"),
    "naive created clock": (naive("created"), "file_time_zone"),
    "other time zone": (as_type("created", pa.timestamp("us", "Europe/Berlin")), "file_time_zone"),
    "empty": (lambda table: table.slice(0, 0), "file_not_empty"),
    "null id": (with_values("user_id", lambda ids: [None, *ids[1:]]), "id_not_null"),
    "all ids null": (with_values("user_id", lambda ids: [None] * len(ids)), "id_not_null"),
    "duplicate id": (with_values("user_id", lambda ids: [ids[1], *ids[1:]]), "id_unique"),
    "rows written twice": (lambda table: pa.concat_tables([table, table]), "id_unique"),
    "null vector": (with_lists(set_row(3, None)), "vector_not_null"),
    "all vectors null": (
        with_lists(lambda lists: lists.__setitem__(slice(None), [None] * len(lists))),
        "vector_not_null",
    ),
    "null inside a vector": (with_lists(lambda lists: lists[5].__setitem__(2, None)), "vector_finite"),
    "empty vector": (with_lists(set_row(3, [])), "vector_length"),
    "one short vector": (with_lists(cut_row), "vector_length"),
    "all vectors short": (with_lists(cut_all), "vector_length"),
    "one long vector": (with_lists(lambda lists: lists[9].append(0.0)), "vector_length"),
    "NaN": (put(5, 2, np.nan), "vector_finite"),
    "infinity": (put(5, 2, np.inf), "vector_finite"),
    "minus infinity in the last row": (put(-1, 15, -np.inf), "vector_finite"),
    "all NaN": (with_vectors(lambda matrix: np.full_like(matrix, np.nan)), "vector_finite"),
    "zero vector": (with_vectors(lambda m: np.where(np.arange(len(m))[:, None] == 4, 0, m)), "vector_not_zero"),
    "all zero": (with_vectors(np.zeros_like), "vector_not_zero"),
    "one row scaled": (rows_scaled(0, 3.0), "vector_norm"),
    "1% scaled": (rows_scaled(0.01, 1.05), "vector_norm"),
    "all scaled": (rows_scaled(1, 0.5), "vector_norm"),
    "huge values": (put(0, 0, 1e30), "vector_norm"),
    "norm missing": (with_values("norm", lambda norms: [None, *norms[1:]]), "raw_norm"),
    "norm NaN": (with_values("norm", lambda norms: [float("nan"), *norms[1:]]), "raw_norm"),
    "norm zero": (with_values("norm", lambda norms: [0.0, *norms[1:]]), "raw_norm"),
    "stale event clock": (with_values("event_timestamp", shifted(-timedelta(days=7))), "event_timestamp"),
    "one stale row": (
        with_values("event_timestamp", lambda m: [m[0] - timedelta(microseconds=1), *m[1:]]),
        "event_timestamp",
    ),
    "future event clock": (with_values("event_timestamp", shifted(timedelta(days=365))), "event_timestamp"),
    "copied clock differs": (with_values("available_us", lambda us: [us[0] + 1, *us[1:]]), "available_us"),
    "copied clock missing": (with_values("available_us", lambda us: [None, *us[1:]]), "available_us"),
    "null clock": (with_values("event_timestamp", lambda m: [None, *m[1:]]), "clocks_present"),
    "created before as_of": (with_values("created", shifted(-timedelta(days=1))), "created_after_as_of"),
    "created in the future": (with_values("created", shifted(timedelta(days=2))), "created_not_future"),
    "half the rows missing": (lambda table: table.slice(0, len(table) // 2), "coverage"),
    "below the least row count": (lambda table: table.slice(0, 299), "row_count"),
    "two cohorts of five missing": (lambda t: t.filter(pa.array(np.arange(len(t)) % 5 > 1)), "row_count"),
    "other entities": (with_values("user_id", lambda ids: [i + 10_000 for i in ids]), "coverage"),
    "constant vectors": (with_vectors(lambda m: np.repeat(m[:1], len(m), axis=0)), "effective_rank"),
    "one direction": (with_vectors(one_direction), "effective_rank"),
    "narrow cone": (with_vectors(lambda m: m * 0.02 + m[:1], unit=True), "mean_vector"),
    "dead dimension": (with_vectors(lambda m: m * (np.arange(m.shape[1]) != 3), unit=True), "dead_dimensions"),
    "four dead dimensions": (with_vectors(lambda m: m * (np.arange(m.shape[1]) > 3), unit=True), "dead_dimensions"),
    "shuffled ids": (
        with_values("user_id", lambda ids: list(np.random.default_rng(SEED).permutation(ids))),
        "identity",
    ),
    "rows shifted by one": (with_values("user_id", lambda ids: [*ids[1:], ids[0]]), "identity"),
    "vectors of others": (with_vectors(lambda m: m[np.random.default_rng(SEED).permutation(len(m))]), "identity"),
    "rotated space": (with_vectors(lambda m: m @ rotation(m.shape[1])), "space"),
    "half from another model": (with_vectors(half_rotated), "turned_share"),
    "mirrored space": (with_vectors(lambda m: -m), "space"),
    "permuted dimensions": (
        with_vectors(lambda m: m[:, np.random.default_rng(SEED).permutation(m.shape[1])]),
        "space",
    ),
    "one sign flipped": (with_vectors(lambda m: m * np.where(np.arange(m.shape[1]) == 2, -1, 1)), "dimension_order"),
    "random vectors": (
        with_vectors(lambda m: np.random.default_rng(SEED).normal(size=m.shape), unit=True),
        "cosine_mean",
    ),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_a_fault_is_refused_by_the_check_that_names_it(fault: str, kit: Any, gate: Any) -> None:
    change, check = TABLE_FAULTS[fault]
    path = kit.write(change(kit.table(kit.vectors())), "bad")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous())

    assert verdict.accepted is False
    assert check in {failure.name for failure in verdict.failures()}, (verdict.error, verdict.failures())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    path.write_bytes(bytes(content))


def not_parquet(path: Path) -> None:
    path.write_text("user_id,embedding\n1,0.5\n")


def cut_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


FILE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated file": (truncate, "file_readable"),
    "zero bytes": (lambda path: path.write_bytes(b""), "file_readable"),
    "missing file": (lambda path: path.unlink(), "file_readable"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "file_readable"),
    "not Parquet": (not_parquet, "file_readable"),
    "cut footer": (cut_footer, "file_readable"),
    "damaged pages": (damage_pages, "file_row_groups"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_broken_file_is_refused(fault: str, kit: Any, gate: Any) -> None:
    change, check = FILE_FAULTS[fault]
    path = kit.write(kit.table(kit.vectors()), "bad")
    change(path)

    verdict = gate.check(path, kit.spec(), workdir=kit.folder)

    assert verdict.accepted is False
    assert check in {failure.name for failure in verdict.failures()}


def test_an_unknown_id_is_refused(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors()), "bad")
    spec = kit.spec(known_ids=pa.array(np.arange(kit.rows - 1)))

    verdict = gate.check(path, spec, workdir=kit.folder)

    assert [failure.name for failure in verdict.failures()] == ["id_known"]


def test_an_older_snapshot_cannot_follow_a_newer_one(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors(), at=kit.as_of - 2 * kit.week), "late")

    verdict = gate.check(path, kit.spec(at=kit.as_of - 2 * kit.week), workdir=kit.folder, previous=kit.previous())

    assert [failure.name for failure in verdict.failures()] == ["after_previous"]


def test_a_previous_snapshot_of_another_length_is_no_comparison(kit: Any, gate: Any) -> None:
    table = kit.table(np.random.default_rng(3).normal(size=(kit.rows, 8)), at=kit.as_of - kit.week)
    path = kit.write(kit.table(kit.vectors()), "good")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.write(table, "previous"))

    assert [failure.name for failure in verdict.failures()] == ["comparable"]


def test_an_unreadable_previous_snapshot_refuses_without_blaming_the_new_file(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors()), "good")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.folder / "gone.parquet")

    assert verdict.accepted is False
    assert "previous snapshot" in (verdict.error or "")
    assert not verdict.failures()


def test_lists_with_another_inner_name_are_the_same_type(kit: Any, gate: Any) -> None:
    table = kit.table(kit.vectors())
    other = pa.list_(pa.field("element", pa.float32(), nullable=False))
    path = kit.folder / "other.parquet"
    pq.write_table(with_column(table, "embedding", table.column("embedding").cast(other)), path)

    assert gate.check(path, kit.spec(), workdir=kit.folder).accepted is True
