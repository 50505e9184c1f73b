"""CSV and JSONL: where each row of a file begins, and what one row alone says."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamshard.errors import PackError, UsageError
from streamshard.pack.rows import RowFile


class Extent(NamedTuple):
    """Where a row lies: its line, from 1, its offset, and its bytes with the line end."""

    line: int
    offset: int
    nbytes: int


def csv_rows(file: RowFile) -> Iterator[tuple[Extent, list[str]]]:
    """The rows of a CSV file and their cells, the one that names the columns first.

    Cells may hold line ends inside quotes. What is no UTF-8 comes with surrogates.

    Raises:
        PackError: The quotes are broken, so that nothing tells where the next row begins.
        StoreError: The file can't be read.
    """
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    line, offset = 0, 0
    try:
        for cells in reader:
            if cells:
                yield Extent(line + 1, offset, lines.offset - offset), cells
            line, offset = reader.line_num, lines.offset
    except csv.Error as error:
        raise PackError(f"{file.name}:{line + 1}: {error}") from None


class _Lines:
    """The lines of a file as text, and how many bytes of it were given so far."""

    def __init__(self, file: RowFile) -> None:
        self._file, self.offset = file, 0

    def __iter__(self) -> Iterator[str]:
        for data in self._file.lines():
            begins = self.offset == 0
            self.offset += len(data)
            # What is no UTF-8 fails when its row is due.
            text = data.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if begins else text


@dataclass(frozen=True)
class ParseCells:
    """Parses one row of a CSV file.

    Attributes:
        names: Of the columns.
    """

    names: tuple[str, ...]

    def __call__(self, data: bytes) -> dict[str, str]:
        """The cells by column.

        Raises:
            ValueError: There are more or fewer cells than columns, or it is not UTF-8.
        """
        return self.named(next(csv.reader([data.decode()], strict=True)))

    def named(self, cells: list[str]) -> dict[str, str]:
        """Cells by column.

        Raises:
            ValueError: There are more or fewer of them.
        """
        if len(cells) != len(self.names):
            raise ValueError(f"{len(cells)} columns; the first row names {len(self.names)}")
        return dict(zip(self.names, cells, strict=True))


def jsonl_rows(file: RowFile) -> Iterator[tuple[Extent, bytes]]:
    """The lines of a JSONL file that are not blank.

    Raises:
        StoreError: The file can't be read.
    """
    offset = 0
    for number, line in enumerate(file.lines(), 1):
        if line.strip():
            yield Extent(number, offset, len(line)), line
        offset += len(line)


def parse_object(line: bytes) -> dict[str, Any]:
    """The object of one line of JSONL.

    Raises:
        ValueError: It is not one.
    """
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}; one JSON object a line is wanted")
    return value


def check_columns(file: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse columns that are not there or not one.

    Raises:
        UsageError: See above.
    """
    for name in wanted:
        if name not in names:
            raise UsageError(f"{file}: no column {name!r}; it has {', '.join(names)}")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{file}: the column {name!r} is there twice; rename one")
