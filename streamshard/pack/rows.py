"""A text file of rows, read from any of them: where each begins is kept, never what it says."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from streamshard.errors import PackError
from streamshard.pack.files import Files, Stamp, check_unchanged, stamp_of, stamp_of_bytes
from streamshard.store.base import HAS_SCHEME, full_disk_named, redact, translated
from streamshard.store.filesystem import open_store


class Row(NamedTuple):
    """One row of a text file, as it travels to the process that reads it.

    Attributes:
        name: Of the file, for errors.
        path: Of the file or its local copy.
        line: On which the row begins, from 1.
        offset: Of its first byte.
        nbytes: Of the row with its line end.
    """

    name: str
    path: str
    line: int
    offset: int
    nbytes: int
    stamp: Stamp | None = None  # of the file, when it was looked through

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"

    def read(self) -> bytes:
        """The row's bytes.

        Raises:
            ValueError: The file has changed.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.nbytes)
            check_unchanged(file.fileno(), self.stamp)
        if len(data) != self.nbytes:
            raise ValueError(
                f"{self.nbytes} bytes wanted at offset {self.offset}, {len(data)} there"
            )
        return data


class RowFile:
    """A text file and where its rows lie, 24 bytes of memory a row.

    A file that is remote or compressed is copied to a temporary local one first, since rows are
    read in any order; the copy goes when this object does.

    Attributes:
        name: What the file is called in errors: its path, or its URL without secrets.
    """

    def __init__(self, url: str) -> None:
        """Find the file.

        Raises:
            StoreError: It can't be read.
            PackError: Its compression is unknown, or it ends too early.
        """
        self.name = redact(url)
        if is_compressed(self.name) or (HAS_SCHEME.match(url) and not url.startswith("file://")):
            self._path = _copy(url, self.name)
            weakref.finalize(self, os.unlink, self._path)
            self._listed = stamp_of_bytes(self._path)  # the copy's time is our own
        else:
            self._path = str(Path(url.removeprefix("file://")).expanduser())
            self._listed = stamp_of(self._path)
        self._stamp = stamp_of(self._path)
        self._lines, self._offsets, self._nbytes = array("q"), array("q"), array("q")

    def lines(self) -> Iterator[bytes]:
        """The lines of the file from front to back, with their ends."""
        with translated(self.name), open(self._path, "rb") as file:
            yield from file

    def add(self, line: int, offset: int, nbytes: int) -> None:
        """Note that a row begins on this line, from 1, and at this offset."""
        self._lines.append(line)
        self._offsets.append(offset)
        self._nbytes.append(nbytes)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, number: int) -> Row:
        at = self._lines[number], self._offsets[number], self._nbytes[number]
        return Row(self.name, self._path, *at, self._stamp)

    def files(self) -> Files:
        """The one file."""
        return Files.of([self.name], [self._listed])


def is_compressed(name: str) -> bool:
    """Whether fsspec takes the last suffix of a name for a compression."""
    return _compression(name) is not None


def _compression(name: str) -> str | None:
    from fsspec.utils import infer_compression  # takes 0.1 s, which other sources do without

    return cast("str | None", infer_compression(name))


def _copy(url: str, name: str) -> str:
    """The path of a local copy of a file, unpacked."""
    folder, _, last = url.rpartition("/")
    store = open_store(folder or ("/" if url.startswith("/") else "."))
    with store.stream(last) as source, contextlib.ExitStack() as undo:
        handle, path = tempfile.mkstemp(prefix="streamshard-")
        undo.callback(os.unlink, path)
        with full_disk_named(path), open(handle, "wb") as target, _whole(name):
            shutil.copyfileobj(_unpacked(source, name), target)
        undo.pop_all()
        return path


def _unpacked(file: BufferedIOBase, name: str) -> IO[Any]:
    from fsspec.compression import compr

    kind = _compression(name)
    if kind is not None and kind not in compr:
        raise PackError(f"{name}: {kind} needs a package that is not installed; unpack it first")
    return cast("IO[Any]", compr[kind](file, mode="rb") if kind else file)


@contextlib.contextmanager
def _whole(name: str) -> Iterator[None]:
    """Translate what decompression has against its bytes."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise PackError(f"{name}: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise PackError(f"{name}: {error}") from None
