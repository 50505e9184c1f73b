"""Parquet tables, as JSONL: a row then lies at one place that any process can read alone."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import IO, Any

from streamshard.errors import PackError, UsageError
from streamshard.pack.lines import check_columns
from streamshard.pack.rows import LocalFile, local_file
from streamshard.store.base import full_disk_named, translated

_BATCH = 4096  # rows that are in memory at once


def as_jsonl(url: str) -> LocalFile:
    """A temporary copy of a Parquet file with one JSON object a row.

    What JSON has no word for (dates, decimals) is text, as Python writes it.

    Raises:
        PackError: It is no Parquet file, a column holds bytes, or pyarrow is not installed.
        UsageError: A column is there twice.
        StoreError: It can't be read.
    """
    parquet = _pyarrow_parquet()
    file = local_file(url)
    with translated(file.name), open(file.path, "rb") as source, contextlib.ExitStack() as undo:
        handle, path = tempfile.mkstemp(prefix="streamshard-")
        undo.callback(os.unlink, path)
        with full_disk_named(path), open(handle, "w", encoding="utf-8") as target:
            try:
                table = parquet.ParquetFile(source)
                check_columns(file.name, table.schema_arrow.names, ())
                _write(table, target)
            except UsageError:
                raise
            except (ValueError, TypeError) as error:  # pyarrow's own are among them
                raise PackError(f"{file.name}: {error}") from None
        undo.pop_all()
        return LocalFile(file.name, path, temporary=True)


def _write(table: Any, target: IO[str]) -> None:
    for batch in table.iter_batches(_BATCH):
        target.writelines(
            json.dumps(row, ensure_ascii=False, default=_as_text) + "\n"
            for row in batch.to_pylist()
        )


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        raise TypeError("a column holds bytes; a table has the paths of files")
    return str(value)


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise PackError(
            "reading Parquet takes pyarrow, which is not installed: "
            "pip install 'streamshard[parquet]'"
        ) from None
    return parquet
