"""Parquet files: what columns they have, and their row groups as places where any row can be read.

A row group is compressed as a whole, and may be of any size. So it is decoded once, a few rows at a
time, into a temporary file in Arrow's IPC format, which every process maps and takes rows from: no
row group is ever in memory as a whole, and none is decoded by several workers.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from streamshard.errors import PackError
from streamshard.pack.lines import check_columns
from streamshard.pack.parquet_rows import RowGroup, Rows
from streamshard.pack.rows import folder_of, temporary_file
from streamshard.store.base import redact, translated
from streamshard.store.filesystem import open_store

_AT_ONCE = 8 << 20  # bytes of decoded rows that are in memory at once, where a row has fewer


def pyarrow_parquet() -> Any:
    """The one reader of Parquet.

    Raises:
        PackError: It is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise PackError(
            "reading Parquet takes pyarrow, which is not installed: "
            "pip install 'streamshard[parquet]'"
        ) from None
    return parquet


def as_json(value: Any) -> Any:
    """A value as JSON has it: dates as ISO 8601 has them, decimals and the rest as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.item() if hasattr(value, "item") else str(value)


class ParquetFiles:
    """Several files with the same columns.

    Attributes:
        groups: The row groups, file after file.
        schema: Arrow's, of the first file.
        features: What Hugging Face's `datasets` notes of the columns, by name.
    """

    def __init__(self, urls: Sequence[str], options: Mapping[str, Any] | None) -> None:
        """Read the ends of the files, which tell what is in them.

        Args:
            urls: Paths or URLs.
            options: For fsspec.

        Raises:
            PackError: One is no Parquet file, or has other columns than the first; or pyarrow is
                not installed.
            UsageError: A column is there twice.
            StoreError: One can't be read.
        """
        self._parquet, self._options = pyarrow_parquet(), options
        self.groups: list[RowGroup] = []
        schemas = [self._add(url) for url in urls]
        self.schema = schemas[0]
        check_columns(redact(urls[0]), self.schema.names, ())
        for url, schema in zip(urls, schemas, strict=True):
            if schema.names != self.schema.names:
                raise PackError(
                    f"{redact(url)}: columns {', '.join(schema.names)}; "
                    f"{redact(urls[0])} has {', '.join(self.schema.names)}"
                )
        self.features = _features(self.schema.metadata or {})

    def _add(self, url: str) -> Any:
        with self._open(url) as file:
            first = 0
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                place = (number, first, group.num_rows, group.total_byte_size)
                self.groups.append(RowGroup(url, redact(url), *place))
                first += group.num_rows
            return file.schema_arrow

    @contextlib.contextmanager
    def _open(self, url: str) -> Iterator[Any]:
        folder, name = folder_of(url)
        with translated(redact(url)), open_store(folder, self._options).stream(name) as stream:
            try:
                # Pages are read as they are wanted, and by this thread: a process that has others
                # can't be forked safely.
                file = self._parquet.ParquetFile(
                    stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
                )
            except ValueError as error:
                raise PackError(f"{redact(url)}: {error}") from None
            yield file

    def batches(self, group: RowGroup, columns: Sequence[str] | None) -> Iterator[Any]:
        """The rows of a group, some at a time, as Arrow's record batches of plain columns.

        Args:
            group: One of `groups`.
            columns: Those wanted; None for all.

        Raises:
            ValueError: It is damaged.
        """
        rows = max(1, min(4096, _AT_ONCE * group.rows // max(1, group.nbytes)))
        with self._open(group.url) as file:
            found = file.iter_batches(
                rows, row_groups=[group.number], columns=columns, use_threads=False
            )
            while batch := self._next(found):
                yield _plain(batch)

    @staticmethod
    def _next(batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except OSError as error:  # pyarrow says so of damaged pages too, but without a number
            if error.errno is not None:
                raise
            raise ValueError(str(error)) from None

    def copied(self, number: int, columns: Sequence[str]) -> Rows:
        """A row group as a temporary file; where it is damaged, the rows in front of that.

        Raises:
            StoreError: It can't be read, or the copy not be written.
        """
        import pyarrow as pa

        group, ends, problems = self.groups[number], list[int](), list[str]()

        def write(target: BinaryIO) -> None:
            writer = None
            try:
                for batch in self.batches(group, columns):
                    writer = writer or pa.ipc.new_file(target, batch.schema)
                    writer.write_batch(batch)
                    ends.append((ends or [0])[-1] + len(batch))
            except (ValueError, NotImplementedError) as error:  # pyarrow's own are among them
                problems.append(str(error))
            if writer:
                writer.close()

        file = temporary_file(group.name, write)
        missing = f"{group.rows} rows should be in row group {group.number}"
        return Rows(group, file, ends, (problems or [missing])[0])


def _plain(batch: Any) -> Any:
    """A batch without extension types and dictionaries, of which a file may have one only."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        stored = column.storage if isinstance(column, pa.ExtensionArray) else column
        is_coded = pa.types.is_dictionary(stored.type)
        columns.append(stored.dictionary_decode() if is_coded else stored)
    return pa.record_batch(columns, names=batch.schema.names)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The features of Hugging Face's `datasets`, as its Parquet files have them.

    Format: https://huggingface.co/docs/datasets/about_dataset_features
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    named = features.items() if isinstance(features, dict) else ()
    return {name: one for name, one in named if isinstance(one, dict)}
