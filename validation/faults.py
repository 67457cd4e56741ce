"""Every kind of corruption that the gate is proven against.

Used by the tests and by `make gate-faults`, on real snapshots. Each fault names the check that has to find it: a
refusal for another reason does not count. docs/gate.md says what each check is about.
"""

from __future__ import annotations

import gzip
from datetime import timedelta

import numpy as np
import pyarrow as pa

from validation.corruptions import (
    Fault,
    alien,
    before_smoothing,
    cell,
    exchanged,
    flip,
    half_from,
    int8,
    lists_of,
    matrix,
    part_of,
    put,
    rewrite,
    rng,
    rotation,
    scaled,
    shift,
    shuffled_fresh,
    swap,
    typed,
    values_of,
    without,
    zero_dimensions,
    zeroed_pages,
)

WEEK = timedelta(days=7)
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00"

FAULTS: tuple[Fault, ...] = (
    # The file
    Fault("truncated file", "file_readable", file=rewrite(lambda b: b[: len(b) // 2])),
    Fault("zero-byte file", "file_readable", file=rewrite(lambda _: b"")),
    Fault("footer cut off", "file_readable", file=rewrite(lambda b: b[:-8])),
    Fault("first bytes lost", "file_row_groups", file=rewrite(lambda b: b"PAR1" + b[200:])),
    Fault("missing file", "file_readable", file=lambda path: path.unlink()),
    Fault("CSV instead of Parquet", "file_readable", file=rewrite(lambda _: b"user_id,embedding\n1,0.5\n")),
    Fault("whole file gzipped", "file_readable", file=rewrite(lambda b: gzip.compress(b, 1))),
    Fault("pages in another compression", "file_row_groups", file=rewrite(lambda b: b.replace(_ZSTD, _GZIP))),
    Fault("pages overwritten by zeros", "file_row_groups", file=rewrite(zeroed_pages)),
    # Schema and types
    Fault("no rows", "file_not_empty", lambda m: m.good.slice(0, 0)),
    Fault("no vectors", "file_columns", lambda m: m.good.drop_columns(["embedding"])),
    Fault("no ids", "file_columns", lambda m: m.good.drop_columns([m.id_name])),
    Fault("no clock", "file_columns", lambda m: m.good.drop_columns(["created"])),
    Fault("extra column", "file_columns", lambda m: m.good.append_column("note", m.good.column("norm"))),
    Fault("id column of the other entity", "file_columns", lambda m: m.good.rename_columns(
        ["item_id" if m.id_name == "user_id" else "user_id", *m.good.column_names[1:]])),
    Fault("ids of another type", "file_types", lambda m: put(m.good, m.id_name, m.good.column(m.id_name).cast(
        pa.string() if m.good.schema.field(m.id_name).type == pa.int64() else pa.large_string()))),
    Fault("vectors of float64", "file_types", typed("embedding", pa.list_(pa.float64()))),
    Fault("vectors of float16", "file_types", typed("embedding", pa.list_(pa.float16()))),
    Fault("vectors as text", "file_types", lambda m: put(m.good, "embedding", m.good.column("norm").cast(pa.string()))),
    Fault("norms of float64", "file_types", typed("norm", pa.float64())),
    Fault("clock in nanoseconds", "file_types", typed("event_timestamp", pa.timestamp("ns", "UTC"))),
    Fault("clock as a number", "file_types", typed("created", pa.int64())),
    Fault("naive event_timestamp", "file_time_zone", typed("event_timestamp", pa.timestamp("us"))),
    Fault("naive created", "file_time_zone", typed("created", pa.timestamp("us"))),
    Fault("local time zone", "file_time_zone", typed("created", pa.timestamp("us", "Europe/Berlin"))),
    # Ids
    Fault("null id", "id_not_null", values_of("id", lambda ids: [None, *ids[1:]])),
    Fault("duplicate id", "id_unique", values_of("id", lambda ids: [ids[1], *ids[1:]])),
    Fault("all rows twice", "id_unique", lambda m: pa.concat_tables([m.good, m.good])),
    Fault("one alien id", "id_known", values_of("id", lambda ids: [*ids[:-1], alien(ids[-1])])),
    Fault("all ids alien", "id_known", values_of("id", lambda ids: [alien(i) for i in ids])),
    Fault("5% of entities missing", "active_coverage", lambda m: without(m.good, part_of(len(m.good), 0.05))),
    Fault("half of the entities missing", "active_coverage", lambda m: m.good.slice(0, len(m.good) // 2)),
    Fault("a cohort missing", "active_coverage", lambda m: without(m.good, np.flatnonzero(m.cohort))),
    # Single vectors
    Fault("null vector", "vector_not_null", lists_of(lambda v: v.__setitem__(3, None))),
    Fault("null inside a vector", "vector_finite", lists_of(lambda v: v[5].__setitem__(2, None))),
    Fault("empty vector", "vector_length", lists_of(lambda v: v.__setitem__(3, []))),
    Fault("one short vector", "vector_length", lists_of(lambda v: v[7].pop())),
    Fault("one long vector", "vector_length", lists_of(lambda v: v[9].append(0.0))),
    Fault("all vectors cut by one", "vector_length", lists_of(lambda v: [values.pop() for values in v])),
    Fault("one NaN", "vector_finite", cell(5, np.nan)),
    Fault("one infinity in the last row", "vector_finite", cell(-1, -np.inf)),
    Fault("all NaN", "vector_finite", matrix(lambda v, _: np.full_like(v, np.nan), unit=False)),
    Fault("one zero vector", "vector_not_zero", lists_of(lambda v: v.__setitem__(4, [0.0] * len(v[4])))),
    Fault("all zero", "vector_not_zero", matrix(lambda v, _: np.zeros_like(v), unit=False)),
    Fault("one huge value", "vector_norm", cell(0, 1e30)),
    Fault("1% scaled by 5%", "vector_norm", scaled(0.01, 1.05)),
    Fault("all scaled by half", "vector_norm", scaled(1, 0.5)),
    Fault("norm missing", "raw_norm", values_of("norm", lambda norms: [None, *norms[1:]])),
    Fault("norm zero", "raw_norm", values_of("norm", lambda norms: [0.0, *norms[1:]])),
    Fault("norms of another scale", "raw_norm_ratio", values_of("norm", lambda norms: [100 * x for x in norms])),
    # Clocks
    Fault("stale event_timestamp", "event_timestamp", values_of("event_timestamp", shift(-WEEK))),
    Fault("future event_timestamp", "event_timestamp", values_of("event_timestamp", shift(52 * WEEK))),
    Fault("one stale row", "event_timestamp", values_of(
        "event_timestamp", lambda t: [t[0] - timedelta(microseconds=1), *t[1:]])),
    Fault("missing event_timestamp", "clocks_present", values_of("event_timestamp", lambda t: [None, *t[1:]])),
    Fault("copied clock differs", "available_us", values_of("available_us", lambda t: [t[0] + 1, *t[1:]])),
    Fault("created before as_of", "created_after_as_of", lambda m: put(
        m.good, "created", pa.array([t - 60 * WEEK for t in m.good.column("event_timestamp").to_pylist()],
                                    m.good.schema.field("created").type))),
    Fault("created in the future", "created_not_future", values_of("created", shift(520 * WEEK))),
    # Collapse
    Fault("constant vectors", "effective_rank", matrix(lambda v, _: np.repeat(v[:1], len(v), axis=0))),
    Fault("all on one line", "effective_rank", matrix(
        lambda v, _: np.where(np.arange(len(v)) % 2 == 0, 1, -1)[:, None] * v[:1])),
    Fault("narrow cone", "mean_vector", matrix(lambda v, _: 0.02 * v + v[:1])),
    Fault("one dead dimension", "dead_dimensions", zero_dimensions(1)),
    Fault("a quarter of the dimensions dead", "dead_dimensions", matrix(
        lambda v, _: v * (np.arange(v.shape[1]) >= v.shape[1] // 4))),
    Fault("popularity collapse", "mean_vector", matrix(lambda v, m: 0.05 * v + 0.95 * v[m.popular])),
    # Wrong entities
    Fault("shuffled ids", "identity", values_of("id", lambda ids: [ids[i] for i in rng().permutation(len(ids))])),
    Fault("rows shifted by one", "identity", values_of("id", lambda ids: [*ids[1:], ids[0]])),
    Fault("vectors of the other entity", "identity", matrix(
        lambda v, m: m.other_entity[np.arange(len(v)) % len(m.other_entity)])),
    Fault("1% of rows exchanged", "smoothing", exchanged(0.01)),
    Fault("5% of rows exchanged", "smoothing", exchanged(0.05)),
    Fault("20% of rows exchanged", "turned_share", exchanged(0.2)),
    Fault("1% exchanged before smoothing", "turned_share or agreement", before_smoothing(shuffled_fresh(0.01))),
    Fault("5% exchanged before smoothing", "turned_share or agreement", before_smoothing(shuffled_fresh(0.05))),
    Fault("all shuffled before smoothing", "identity", before_smoothing(shuffled_fresh(1.0))),
    # Wrong space
    Fault("rotated space", "space", matrix(lambda v, _: v @ rotation(v.shape[1]))),
    Fault("mirrored space", "space", matrix(lambda v, _: -v)),
    Fault("permuted dimensions", "space or dimension_order", matrix(lambda v, _: v[:, rng().permutation(v.shape[1])])),
    Fault("two dimensions swapped", "space or anchor_space or dimension_order", matrix(swap)),
    Fault("one sign flipped", "dimension_order", flip([2])),
    Fault("all from another model", "cosine_mean or smoothing", matrix(lambda _, m: m.other_model)),
    Fault("half from another model", "turned_share or smoothing", half_from(lambda m: m.other_model)),
    Fault("another model before smoothing", "agreement or cosine_p01", before_smoothing(lambda m: m.other_model)),
    # Wrong time
    Fault("vectors of the previous snapshot", "agreement", matrix(lambda _, m: m.previous)),
    Fault("half from last month", "smoothing or agreement", half_from(lambda m: m.month_ago)),
    Fault("not smoothed", "smoothing or agreement", matrix(lambda _, m: m.fresh)),
    Fault("sudden drift", "cosine_mean", matrix(
        lambda v, _: 0.1 * v + rng().normal(size=v.shape) / np.sqrt(v.shape[1]))),
    Fault("a little noise everywhere", "agreement", matrix(
        lambda v, _: v + 0.08 * rng().normal(size=v.shape) / np.sqrt(v.shape[1]))),
    # Rounding harms nobody
    Fault("rounded to float16", "", matrix(lambda v, _: v.astype(np.float16).astype(np.float32), unit=False),
          expected="accepted"),
    Fault("rounded to int8", "", matrix(int8, unit=False), expected="accepted"),
    Fault("rows in another order", "", lambda m: m.good.take(pa.array(rng().permutation(len(m.good)))),
          expected="accepted"),
)  # fmt: skip
