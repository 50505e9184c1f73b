"""The rows of a row group of a Parquet file, decoded into a temporary file, and one of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from streamshard.pack.rows import LocalFile


class RowGroup(NamedTuple):
    """One row group of one file.

    Attributes:
        url: Of the file.
        name: Of the file, without secrets.
        number: Of the group in the file.
        first: The number of its first row in the file.
        rows: How many there are.
        nbytes: Decoded.
    """

    url: str
    name: str
    number: int
    first: int
    rows: int
    nbytes: int


class Rows:
    """The rows of a group in a temporary file; while this lives in the process that packs, it does.

    Attributes:
        group: The row group.
    """

    def __init__(self, group: RowGroup, file: LocalFile, ends: Sequence[int], problem: str) -> None:
        """Take them.

        Args:
            group: The row group.
            file: The file, record batches in Arrow's IPC format.
            ends: How many rows there are up to the end of each record batch.
            problem: What is wrong with the rows behind these, if there are any.
        """
        self.group = group
        self._file, self._ends, self._problem = file, ends, problem
        self._batches: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_batches": None}

    def __len__(self) -> int:
        return self.group.rows

    def read(self, row: int) -> dict[str, Any]:
        """The scalars of a row of the group, by column.

        Raises:
            ValueError: It is lost.
        """
        number = bisect_right(self._ends, row)
        if number == len(self._ends):
            raise ValueError(self._problem)
        batch = self._batch(number)
        place = row - (self._ends[number - 1] if number else 0)
        return {
            name: column[place]
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }

    def _batch(self, number: int) -> Any:
        """A record batch, whose values lie in the mapped file."""
        if self._batches is None:
            import pyarrow as pa

            options = pa.ipc.IpcReadOptions(use_threads=False)
            file = pa.ipc.open_file(pa.memory_map(self._file.path), options=options)
            self._batches = [file.get_batch(one) for one in range(file.num_record_batches)]
        return self._batches[number]


class RowInput(NamedTuple):
    """One row. While it lives, the temporary copy of its row group does.

    Attributes:
        number: Among all rows.
        row: In its row group.
        label: As a number, where labels are text.
        rows: The row group.
    """

    number: int
    row: int
    label: int | None
    rows: Rows

    def __str__(self) -> str:
        return f"{self.rows.group.name}, row {self.rows.group.first + self.row}"


class Group(Sequence[RowInput]):
    """The rows of a row group."""

    def __init__(self, rows: Rows, first: int, labels: Sequence[int] | None) -> None:
        self._rows, self._first, self._labels = rows, first, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        if row >= len(self):
            raise IndexError(row)  # where an iteration ends
        number = self._first + row
        label = None if self._labels is None else self._labels[number]
        return RowInput(number, row, label, self._rows)
