from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import DamagedError
from streamshard.shard import columns, tar
from streamshard.shard.index import MISSING, Cell, Index, IndexBuilder

PARTS = ("jpg", "cls", "graph.safetensors")
CELLS = st.builds(
    Cell,
    st.builds(
        tar.Member,
        st.just("x"),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
    ),
    st.integers(0, 2**32 - 1),
    st.dictionaries(
        st.sampled_from(["", "width", "rows:x"]), st.integers(-(2**63), 2**63 - 1), max_size=3
    ),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
ROWS = st.lists(
    st.tuples(KEYS, st.dictionaries(st.sampled_from(PARTS), CELLS, max_size=3)), max_size=6
)


def built(rows: list[tuple[str, dict[str, Cell]]]) -> bytes:
    builder = IndexBuilder(PARTS)
    for key, cells in rows:
        builder.add(key, cells)
    assert len(builder) == len(rows)
    return builder.to_bytes()


def opened(data: bytes) -> Index:
    return Index(columns.from_buffer(np.frombuffer(data, np.uint8), "x"), "x")


def one_row() -> columns.Columns:
    cell = Cell(tar.Member("a.jpg", 0, 512, 3), 7, {"width": 5})
    builder = IndexBuilder(["jpg"])
    builder.add("a", {"jpg": cell})
    return columns.from_buffer(np.frombuffer(builder.to_bytes(), np.uint8), "x")


@settings(deadline=None)
@given(ROWS)
def test_the_round_trip_keeps_every_cell_and_every_gap(
    rows: list[tuple[str, dict[str, Cell]]],
) -> None:
    index = opened(built(rows))
    assert len(index) == len(rows)
    assert list(index.keys) == [key for key, _ in rows]
    for part in PARTS:
        extent = index.extent(part)
        assert extent.crc32.dtype == np.uint32
        assert {str(column.dtype) for column in extent[:2]} <= {"int32", "int64"}
        for row, (_, cells) in enumerate(rows):
            cell = cells.get(part)
            found = tuple(int(array[row]) for array in extent)
            if cell is None:
                assert found == (MISSING, MISSING, 0)
            else:
                assert found == (cell.member.offset, cell.member.size, cell.crc32)


@settings(deadline=None)
@given(ROWS)
def test_the_round_trip_keeps_every_fact(rows: list[tuple[str, dict[str, Cell]]]) -> None:
    index = opened(built(rows))
    for part in PARTS:
        told = {name for _, cells in rows if part in cells for name in cells[part].facts}
        for name in ("", "width", "rows:x"):
            assert index.has_fact(part, name) is (name in told)
            if name not in told:
                continue
            expected = [
                cells[part].facts.get(name, MISSING) if part in cells else MISSING
                for _, cells in rows
            ]
            assert index.fact(part, name).tolist() == expected
            assert index.fact(part, name).dtype in (np.int32, np.int64)


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1])
def test_numbers_take_32_bits_where_they_all_fit(value: int) -> None:
    member = tar.Member("a.jpg", 0, 512, 3)
    facts = {"": 1, "low": 2, "width": value}
    index = opened(built([("a", {"jpg": Cell(member, 0, facts)})]))
    kind = np.int32 if -(2**31) <= value < 2**31 else np.int64
    assert {index.fact("jpg", name).dtype for name in facts} == {np.dtype(kind)}
    rows, matrix = index.matrix("jpg")
    assert {name: int(matrix[row, 0]) for name, row in rows.items()} == {"low": 2, "width": value}
    assert index.facts()["jpg:width"].dtype == np.int64


def test_the_same_rows_give_the_same_bytes() -> None:
    facts = {"width": 5, "height": 6, "depth": 7}
    member = tar.Member("a.jpg", 0, 512, 3)
    one = built([("a", {"jpg": Cell(member, 7, facts)})])
    assert one == built([("a", {"jpg": Cell(member, 7, dict(reversed(facts.items())))})])


def test_the_value_of_an_integer_part_is_a_column_of_its_own() -> None:
    rows = [
        (str(value), {"cls": Cell(tar.Member("x", 0, 512, 1), 0, {"": value})}) for value in (3, -9)
    ]
    index = opened(built(rows))
    assert index.fact("cls").tolist() == [3, -9]


@pytest.mark.parametrize("name", ["key.data", "key.ends", "jpg.offset", "jpg.size", "jpg.crc32"])
def test_a_missing_column_is_refused_by_name(name: str) -> None:
    arrays = one_row()
    del arrays[name]
    with pytest.raises(DamagedError, match=rf"^x: column '{name}' is missing"):
        Index(arrays, "x").extent("jpg")


def test_a_part_or_fact_that_is_not_there_is_refused_by_name() -> None:
    index = Index(one_row(), "x")
    with pytest.raises(DamagedError, match=r"'png\.offset' is missing"):
        index.extent("png")
    with pytest.raises(DamagedError, match="'jpg:height' is missing"):
        index.fact("jpg", "height")
    with pytest.raises(DamagedError, match="'jpg=' is missing"):
        index.fact("jpg")


@pytest.mark.parametrize("name", ["key.ends", "jpg.offset", "jpg.size", "jpg.crc32", "jpg:width"])
@pytest.mark.parametrize("length", [0, 2])
def test_columns_of_different_lengths_are_refused(name: str, length: int) -> None:
    arrays: Any = one_row()
    arrays[name] = np.resize(arrays[name], length)
    with pytest.raises(DamagedError, match=r"^x: columns of different lengths"):
        Index(arrays, "x")
