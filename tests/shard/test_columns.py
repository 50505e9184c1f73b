from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load

from streamshard.errors import DamagedError
from streamshard.shard import columns
from streamshard.shard.columns import Strings

ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.int32, np.uint32, np.int64, np.uint64]),
    hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=6),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
TEXTS = st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))


def buffer(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def headed(header: Any, data: bytes = b"") -> NDArray[np.uint8]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return buffer(len(text).to_bytes(8, "little") + text + data)


def assert_same(found: columns.Columns, expected: columns.Columns) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


class TestColumns:
    """What is written is read, by us and by the library that gave the format its name."""

    @given(st.dictionaries(NAMES, ARRAYS, max_size=5))
    def test_the_round_trip_keeps_names_types_and_values(self, arrays: columns.Columns) -> None:
        data = columns.to_bytes(arrays)
        assert_same(columns.from_buffer(buffer(data), "x"), arrays)
        assert_same(load(data), arrays)

    @given(st.dictionaries(NAMES, ARRAYS, min_size=2, max_size=5))
    def test_the_same_arrays_give_the_same_bytes(self, arrays: columns.Columns) -> None:
        other_order = dict(reversed(arrays.items()))
        assert columns.to_bytes(arrays) == columns.to_bytes(other_order)

    def test_arrays_are_views_of_the_buffer(self) -> None:
        whole = buffer(columns.to_bytes({"a": np.arange(9), "b": np.arange(4, dtype=np.uint8)}))
        for array in columns.from_buffer(whole, "x").values():
            assert np.shares_memory(array, whole)
            assert not array.flags.writeable

    def test_arrays_of_a_memory_map_stay_in_the_map(self, tmp_path: Any) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(columns.to_bytes({"a": np.arange(9)}))
        mapped = np.memmap(path, np.uint8, "r")
        assert np.shares_memory(columns.from_buffer(mapped, "x")["a"], mapped)

    def test_an_array_that_is_not_contiguous_is_written_in_order(self) -> None:
        array = np.arange(12).reshape(3, 4).T[::2]
        found = columns.from_buffer(buffer(columns.to_bytes({"a": array})), "x")["a"]
        np.testing.assert_array_equal(found, array, strict=True)


class TestDamage:
    """What is not a whole file is refused, whatever it is."""

    WHOLE = columns.to_bytes({"a": np.arange(5), "b": np.arange(7, dtype=np.uint8)})

    def test_every_cut_is_refused(self) -> None:
        for cut in range(len(self.WHOLE)):
            with pytest.raises(DamagedError, match=r"^x: not a whole safetensors file"):
                columns.from_buffer(buffer(self.WHOLE[:cut]), "x")

    @given(st.binary(max_size=200))
    def test_garbage_is_refused(self, data: bytes) -> None:
        with pytest.raises(DamagedError):
            columns.from_buffer(buffer(data), "x")

    @pytest.mark.parametrize(
        "header",
        [
            b"12",
            b"null",
            b"[]",
            b"[" * 100_000,
            b"\xff\xff",
            b"1" * 5000,
            {"a": None},
            {"a": []},
            {"a": {"dtype": "U8", "shape": [1]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "more": 1}},
            {"a": {"dtype": "F128", "shape": [1], "data_offsets": [0, 1]}},
            {"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}},
            {"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": None, "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": [2**70], "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": "1", "data_offsets": [0, 1]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}},
            {"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0.0, 1.0]}},
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": "01"}},
        ],
        ids=lambda header: str(header)[:60],
    )
    def test_a_header_that_does_not_describe_the_bytes_is_refused(self, header: Any) -> None:
        with pytest.raises(DamagedError, match=r"^x: not a whole safetensors file"):
            columns.from_buffer(headed(header, b"12345678"), "x")

    @settings(max_examples=500)
    @given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
    def test_a_changed_byte_is_refused_or_lies_where_only_a_hash_can_tell(
        self, at: int, change: int
    ) -> None:
        changed = bytearray(self.WHOLE)
        changed[at] ^= change
        try:
            found = columns.from_buffer(buffer(bytes(changed)), "x")
        except DamagedError:
            return
        for array in found.values():
            assert array.dtype in (np.uint8, np.int32, np.uint32, np.int64, np.uint64)
            assert array.nbytes <= len(self.WHOLE)


class TestStrings:
    """A sequence of str, kept as two arrays."""

    @given(st.lists(TEXTS, max_size=8))
    def test_the_round_trip_keeps_every_string(self, texts: list[str]) -> None:
        strings = Strings.of(texts)
        assert len(strings) == len(texts)
        assert list(strings) == texts
        assert [strings[number] for number in range(len(texts))] == texts
        assert list(reversed(strings)) == texts[::-1]

    @given(st.lists(TEXTS, min_size=1, max_size=5))
    def test_numbers_from_the_end_are_those_of_a_list(self, texts: list[str]) -> None:
        strings = Strings.of(texts)
        assert [strings[-number] for number in range(1, len(texts) + 1)] == texts[::-1]

    @pytest.mark.parametrize("number", [2, 100, -3, -100])
    def test_a_number_outside_is_an_index_error(self, number: int) -> None:
        with pytest.raises(IndexError):
            Strings.of(["a", "b"])[number]

    @given(st.lists(TEXTS, max_size=5))
    def test_two_columns_of_a_file_hold_them(self, texts: list[str]) -> None:
        strings = Strings.of(texts)
        data = columns.to_bytes({"data": strings.data, "ends": strings.ends})
        found: Any = columns.from_buffer(buffer(data), "x")
        assert list(Strings(found["data"], found["ends"])) == texts
