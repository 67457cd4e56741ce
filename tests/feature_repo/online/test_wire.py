"""Every packed byte is what Feast's own serialization makes of the same value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.stores import wire

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(max_size=40)
FLOAT32 = st.floats(width=32)
COLUMNS = {
    ValueType.INT64: (INT64, pa.int64()),
    ValueType.INT32: (INT32, pa.int32()),
    ValueType.FLOAT: (FLOAT32, pa.float32()),
    ValueType.DOUBLE: (st.floats(), pa.float64()),
    ValueType.BOOL: (st.booleans(), pa.bool_()),
    ValueType.STRING: (TEXT, pa.string()),
}
LISTS = {
    ValueType.FLOAT_LIST: (FLOAT32, np.float32, pa.float32()),
    ValueType.DOUBLE_LIST: (st.floats(), np.float64, pa.float64()),
    ValueType.INT64_LIST: (INT64 | st.integers(-200, 200), np.int64, pa.int64()),
    ValueType.STRING_LIST: (TEXT, object, pa.string()),
}


def by_feast(kind: ValueType, values: list[Any]) -> list[bytes]:
    return [value.SerializeToString() for value in python_values_to_proto_values(values, kind)]


@pytest.mark.parametrize("kind", COLUMNS, ids=lambda kind: kind.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_scalars(kind: ValueType, data: st.DataObject) -> None:
    strategy, arrow = COLUMNS[kind]
    values = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=20))
    assert wire.as_list(wire.values(pa.array(values, arrow), kind)) == by_feast(kind, values)


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lists_of_any_length(kind: ValueType, data: st.DataObject) -> None:
    element, dtype, arrow = LISTS[kind]
    lengths = data.draw(st.lists(st.none() | st.integers(0, 512), min_size=1, max_size=6))
    pool = np.array(data.draw(st.lists(element, min_size=1, max_size=16)), dtype)
    vectors = [None if length is None else np.resize(pool, length) for length in lengths]
    column = pa.array(vectors, pa.list_(arrow))
    wanted = by_feast(kind, vectors)
    assert wire.as_list(wire.values(column, kind)) == wanted
    sliced = pa.concat_arrays([pa.array([pool[:1], None], column.type), column, column])[2 : 2 + len(column)]
    assert wire.as_list(wire.values(sliced, kind)) == wanted
    large = pa.array(vectors, pa.large_list(arrow))
    assert wire.as_list(wire.values(pa.chunked_array([large[:1], large[1:]]), kind)) == wanted


@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize("kind", [ValueType.INT64_LIST, ValueType.STRING_LIST], ids=lambda kind: kind.name)
def test_lists_of_one_length(kind: ValueType, width: int) -> None:
    elements = [-(2**63), 127, 128, 2**63 - 1] if kind == ValueType.INT64_LIST else ["", "żółć 🦊", "a" * 200, "\x00"]
    lists: list[Any] = [None, *([element] * width for element in elements), None, elements[:1] * width]
    column = pa.array(lists, pa.list_(LISTS[kind][2], width))
    assert wire.as_list(wire.values(column, kind)) == by_feast(kind, lists)
    assert wire.as_list(wire.values(column[3:], kind)) == by_feast(kind, lists[3:])


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.name)
def test_what_a_null_list_covers_is_not_packed(kind: ValueType) -> None:
    dtype, arrow = LISTS[kind][1:]
    flat = pa.array(np.array([1, 22, 333, 4444]).astype(str).astype(dtype).tolist(), arrow)
    column = pa.ListArray.from_arrays([0, 1, 3, 4], flat, mask=pa.array([False, True, False]))
    wanted = by_feast(kind, [flat[:1].to_pylist(), None, flat[3:].to_pylist()])
    assert wire.as_list(wire.values(column, kind)) == wanted
    assert wire.as_list(wire.values(column[1:2], kind)) == [b""]
    assert wire.as_list(wire.values(column[:0], kind)) == []


def test_large_strings_in_lists() -> None:
    lists = [["ä", ""], None, []]
    column = pa.array(lists, pa.list_(pa.large_string()))
    assert wire.as_list(wire.values(column, ValueType.STRING_LIST)) == by_feast(ValueType.STRING_LIST, lists)


def test_every_bit_pattern_of_special_floats() -> None:
    bits = np.array([0x7FA00000, 0xFFA00001, 0x7FC00000, 0xFFC12345, 0x80000000, 1, 0x7F800000], np.uint32)
    vector = bits.view(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector), len(vector))
    assert wire.as_list(wire.values(column, ValueType.FLOAT_LIST)) == by_feast(ValueType.FLOAT_LIST, [vector])


@settings(max_examples=100, deadline=None)
@given(numbers=st.lists(INT64, min_size=1, max_size=10), texts=st.data())
def test_entity_keys(numbers: list[int], texts: st.DataObject) -> None:
    names = texts.draw(st.lists(TEXT, min_size=len(numbers), max_size=len(numbers)))
    columns = {
        "user_id": (pa.array(numbers, pa.int64()), ValueType.INT64),
        "ä_key": (pa.array(names, pa.string()), ValueType.STRING),
        "a": (pa.array([number % 2**31 for number in numbers], pa.int32()), ValueType.INT32),
    }
    for chosen in (["user_id"], ["ä_key"], ["user_id", "ä_key", "a"]):
        protos = {
            name: python_values_to_proto_values(columns[name][0].to_pylist(), columns[name][1]) for name in chosen
        }
        wanted = [
            serialize_entity_key(EntityKey(join_keys=chosen, entity_values=[protos[name][row] for name in chosen]), 3)
            for row in range(len(numbers))
        ]
        assert wire.as_list(wire.entity_keys([(name, *columns[name]) for name in chosen])) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(10**16), 10**17), min_size=1, max_size=20))
def test_clocks(moments: list[int]) -> None:
    wanted = [Timestamp(seconds=moment // 10**6, nanos=moment % 10**6 * 1000).SerializeToString() for moment in moments]
    assert wire.as_list(wire.timestamps(np.array(moments, np.int64))) == wanted


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([[1.0, None]], pa.list_(pa.float32())), ValueType.FLOAT_LIST),
        (pa.array([[1, 2]], pa.list_(pa.int64())), ValueType.FLOAT_LIST),
        (pa.array([[1, None]], pa.list_(pa.int64())), ValueType.INT64_LIST),
        (pa.array([["a", None]], pa.list_(pa.string())), ValueType.STRING_LIST),
        (pa.array([[1, 2]], pa.list_(pa.int32())), ValueType.INT64_LIST),
        (pa.array([[1, 2]], pa.list_(pa.int32())), ValueType.INT32_LIST),
        (pa.array([[1, 2]], pa.list_(pa.int64())), ValueType.STRING_LIST),
        (pa.array([1, 2], pa.int64()), ValueType.INT64_LIST),
        (pa.array([2**63], pa.uint64()), ValueType.INT64),
        (pa.array([1.5]), ValueType.INT64),
        (pa.array([1]), ValueType.STRING),
        (pa.array([b"x"]), ValueType.BYTES),
        (pa.array([1.5], pa.float32()), ValueType.DOUBLE),
    ],
    ids=str,
)
def test_what_is_not_packed_is_left_to_feast(column: pa.Array, kind: ValueType) -> None:
    with pytest.raises(wire.CannotPackError):
        wire.values(column, kind)


def test_null_keys_are_never_packed() -> None:
    with pytest.raises(wire.CannotPackError, match="item_id"):
        wire.entity_keys([("item_id", pa.array([1, None]), ValueType.INT64)])


def test_nan_scalars_are_null_as_in_feast() -> None:
    assert wire.as_list(wire.values(pa.array([math.nan, 1.0]), ValueType.DOUBLE))[0] == b""
