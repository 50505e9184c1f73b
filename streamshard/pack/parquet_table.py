"""Parquet tables, as JSONL: a row then lies at one place that any process can read alone."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from streamshard.errors import PackError, UsageError
from streamshard.pack.lines import check_columns
from streamshard.pack.parquet_files import as_json, pyarrow_parquet
from streamshard.pack.rows import LocalFile, local_file, temporary_file
from streamshard.store.base import translated

_BATCH = 4096  # rows that are in memory at once


def as_jsonl(url: str) -> LocalFile:
    """A temporary copy of a Parquet file with one JSON object a row.

    What JSON has no word for is text: dates as ISO 8601 has them, decimals as they are written.

    Raises:
        PackError: It is no Parquet file, a column holds bytes, or pyarrow is not installed.
        UsageError: A column is there twice.
        StoreError: It can't be read.
    """
    parquet = pyarrow_parquet()
    file = local_file(url)

    def write(target: BinaryIO) -> None:
        try:
            table = parquet.ParquetFile(source)
            check_columns(file.name, table.schema_arrow.names, ())
            _write(table, target)
        except UsageError:
            raise
        except (ValueError, TypeError) as error:  # pyarrow's own are among them
            raise PackError(f"{file.name}: {error}") from None

    with translated(file.name), open(file.path, "rb") as source:
        return temporary_file(file.name, write)


def _write(table: Any, target: BinaryIO) -> None:
    for batch in table.iter_batches(_BATCH):
        target.writelines(
            json.dumps(row, ensure_ascii=False, default=_as_text).encode() + b"\n"
            for row in batch.to_pylist()
        )


def _as_text(value: object) -> Any:
    if isinstance(value, bytes):
        raise TypeError(
            "a column holds bytes, and a table has the paths of files; streamshard pack parquet "
            "takes images that lie in the table"
        )
    return as_json(value)
