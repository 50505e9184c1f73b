"""One shard's columns: where every part of every sample lies, and what can be known without it.

The index of a shard is a safetensors file of arrays, one row a sample in the order of the tar:

    key.data, key.ends      the keys, UTF-8, end to end, and where each ends
    PART.offset             where the data of this part begins in the tar
    PART.size               its bytes; -1 where the sample has no such part
    PART.crc32              uint32: zlib.crc32 of the data
    PART=                   the value itself, for parts that are one integer (`cls`)
    PART:FACT               what the part's codec tells of it (`jpg:width`, `graph:nodes`)

Numbers are int32 where all of a column fit, and int64 where not; the facts of a part are of one
dtype together.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DamagedError
from streamshard.shard import columns, tar

Numbers = NDArray[np.signedinteger[Any]]  # int32 or int64

MISSING = -1
VALUE = ""  # the name of the fact that is the part's value itself


class Extent(NamedTuple):
    """Where one part lies in the tar, for every row of a shard: three arrays of one length.

    Attributes:
        offset: int32 or int64, of the data.
        size: int32 or int64, bytes; -1 where the sample has no such part.
        crc32: uint32.
    """

    offset: Numbers
    size: Numbers
    crc32: NDArray[np.uint32]


class Index:
    """The columns of one shard, read."""

    def __init__(self, arrays: columns.Columns, where: str) -> None:
        self._arrays = arrays
        self._where = where
        self._extents: dict[str, Extent] = {}
        self._matrices: dict[str, tuple[dict[str, int], Numbers]] = {}
        self.keys = columns.Strings(
            cast("NDArray[np.uint8]", self._array("key.data")),
            cast("NDArray[np.int64]", self._array("key.ends")),
        )
        lengths = {len(array) for name, array in arrays.items() if name != "key.data"}
        if lengths != {len(self.keys)}:
            raise DamagedError(f"{where}: columns of different lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.keys)

    def extent(self, part: str, *, optional: bool = False) -> Extent:
        """Where `part` lies, for every row; an optional part may be nowhere in the shard."""
        if optional and f"{part}.size" not in self._arrays:
            nowhere = np.full(len(self), MISSING, np.int64)
            return Extent(nowhere, nowhere, np.zeros(len(self), np.uint32))
        if part not in self._extents:
            arrays = (self._array(f"{part}.{name}") for name in Extent._fields)
            self._extents[part] = Extent(*arrays)  # type: ignore[arg-type]
        return self._extents[part]

    def fact(self, part: str, name: str = VALUE) -> Numbers:
        """What the codec told of `part` at pack, (rows,); by default the value itself."""
        return cast("Numbers", self._array(_fact_name(part, name)))

    def facts(self) -> dict[str, NDArray[np.int64]]:
        """All columns of values and facts: `cls`, `jpg:width`, `graph:nodes`, …."""
        return {
            name.removesuffix("="): array.astype(np.int64)
            for name, array in self._arrays.items()
            if "=" in name or ":" in name
        }

    def matrix(self, part: str) -> tuple[Mapping[str, int], Numbers]:
        """All facts of a part at once.

        Returns:
            The row of each fact by name, and a (facts, rows) matrix of int32 or int64: a view of
            the file where the columns lie one behind another there, as ours do, and a copy where
            they don't.
        """
        if part not in self._matrices:
            prefix = f"{part}:"
            named = {name: array for name, array in self._arrays.items() if name.startswith(prefix)}
            names = sorted(named, key=lambda name: named[name].ctypes.data)
            matrix = _side_by_side([cast("Numbers", named[name]) for name in names])
            rows = {name.removeprefix(prefix): row for row, name in enumerate(names)}
            self._matrices[part] = rows, matrix
        return self._matrices[part]

    def has_fact(self, part: str, name: str = VALUE) -> bool:
        """Whether that column is there."""
        return _fact_name(part, name) in self._arrays

    def _array(self, name: str) -> NDArray[np.generic]:
        try:
            return self._arrays[name]
        except KeyError:
            raise DamagedError(f"{self._where}: column {name!r} is missing") from None


def _side_by_side(
    arrays: Sequence[Numbers],
) -> Numbers:
    """The arrays as the rows of one matrix, without a copy where they lie one behind another."""
    if not arrays or not len(arrays[0]):
        return np.zeros((len(arrays), 0), np.int64)
    first, nbytes = arrays[0].ctypes.data, arrays[0].nbytes
    are_alike = len({array.dtype for array in arrays}) == 1
    if are_alike and all(
        array.ctypes.data == first + row * nbytes for row, array in enumerate(arrays)
    ):
        shape, strides = (len(arrays), len(arrays[0])), (nbytes, arrays[0].itemsize)
        return np.lib.stride_tricks.as_strided(arrays[0], shape, strides, writeable=False)
    return np.stack(arrays)


def _fact_name(part: str, name: str) -> str:
    return f"{part}:{name}" if name else f"{part}="


class Cell(NamedTuple):
    """One part of one sample, as the index keeps it."""

    member: tar.Member
    crc32: int
    facts: Mapping[str, int]


class IndexBuilder:
    """Collects the rows of one shard and turns them into the bytes of its index.

    What it holds are numbers, not objects: a shard of small samples has many.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._keys: list[str] = []
        self._parts = {part: _PartRows() for part in parts}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, cells: Mapping[str, Cell]) -> None:
        """Append one sample; a part that it lacks becomes a missing value."""
        self._keys.append(key)
        for part, rows in self._parts.items():
            rows.add(cells.get(part))

    def to_bytes(self) -> bytes:
        """The index file."""
        keys = columns.Strings.of(self._keys)
        arrays: columns.Columns = {"key.data": keys.data, "key.ends": keys.ends}
        for part, rows in self._parts.items():
            arrays |= rows.named(part)
        return columns.to_bytes(arrays)


class _PartRows:
    """The rows of one part, column by column."""

    def __init__(self) -> None:
        self._offsets, self._sizes, self._crcs = array("q"), array("q"), array("q")
        self._facts: dict[str, array[int]] = {}

    def add(self, cell: Cell | None) -> None:
        count = len(self._offsets)
        self._offsets.append(cell.member.offset if cell else MISSING)
        self._sizes.append(cell.member.size if cell else MISSING)
        self._crcs.append(cell.crc32 if cell else 0)
        facts = cell.facts if cell else {}
        for name, value in facts.items():
            if name not in self._facts:
                self._facts[name] = array("q", [MISSING]) * count
            self._facts[name].append(value)
        if len(facts) < len(self._facts):
            for column in self._facts.values():
                if len(column) == count:
                    column.append(MISSING)

    def named(self, part: str) -> columns.Columns:
        names = sorted(self._facts)
        # All of one dtype, so that they can be seen as one matrix.
        facts = _narrowed(np.array([_numbers(self._facts[name]) for name in names]))
        return {
            f"{part}.offset": _narrowed(_numbers(self._offsets)),
            f"{part}.size": _narrowed(_numbers(self._sizes)),
            f"{part}.crc32": _numbers(self._crcs).astype(np.uint32),
            **{_fact_name(part, name): row for name, row in zip(names, facts, strict=True)},
        }


def _numbers(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, np.int64)


def _narrowed(values: NDArray[np.int64]) -> Numbers:
    """The numbers in 32 bits, where they fit."""
    limits = np.iinfo(np.int32)
    fits = not values.size or (values.min() >= limits.min and values.max() <= limits.max)
    return values.astype(np.int32) if fits else values
