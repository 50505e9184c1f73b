"""A text file of rows, read from any of them: where each begins is kept, never what it says."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple, cast

from streamshard.errors import PackError
from streamshard.pack.files import Files, Stamp, check_unchanged, stamp_of, stamp_of_bytes
from streamshard.store.base import HAS_SCHEME, Store, full_disk_named, redact, translated
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


class LocalFile:
    """A file on this machine, which goes with this object where it is a temporary copy.

    Attributes:
        name: What it is called in errors.
        path: Where it lies.
        temporary: Whether it is such a copy.
    """

    def __init__(self, name: str, path: str, *, temporary: bool) -> None:
        self.name, self.path, self.temporary = name, path, temporary
        if temporary:  # unpickling, in another process, does not come here
            weakref.finalize(self, _unlink, path, os.getpid())


def temporary_file(name: str, write: Callable[[BinaryIO], None]) -> LocalFile:
    """A temporary local file; an error while it is written leaves none.

    Args:
        name: What it is called in errors.
        write: Gives it its bytes.

    Raises:
        StoreError: It can't be written.
    """
    with contextlib.ExitStack() as undo:
        handle, path = tempfile.mkstemp(prefix="streamshard-")
        undo.callback(os.unlink, path)
        with full_disk_named(path), open(handle, "wb") as file:
            write(file)
        undo.pop_all()
        return LocalFile(name, path, temporary=True)


def _unlink(path: str, made_in: int) -> None:
    """Remove a temporary file, but not from a fork of the process that made it."""
    if os.getpid() == made_in:
        os.unlink(path)


def local_file(url: str, connect: Callable[[str], Store] = open_store) -> LocalFile:
    """A file, or where it is remote or compressed, a temporary local copy, unpacked.

    Args:
        url: A path or URL.
        connect: Gives the store of a folder; to connect anew for each of many files takes long.

    Raises:
        StoreError: It can't be read.
        PackError: Its compression is unknown, or it ends too early.
    """
    name = redact(url)
    if is_compressed(name) or (HAS_SCHEME.match(url) and not url.startswith("file://")):
        return temporary_file(name, lambda file: _copy(url, name, connect, file))
    path = str(Path(url.removeprefix("file://")).expanduser())
    return LocalFile(name, path, temporary=False)


class RowFile:
    """A text file and where its rows lie, 24 bytes of memory a row.

    A file that is remote or compressed is copied to a temporary local one first, since rows are
    read in any order; the copy goes when this object does.

    Attributes:
        name: What the file is called in errors: its path, or its URL without secrets.
    """

    def __init__(self, file: str | LocalFile) -> None:
        """Find the file.

        Args:
            file: Its path or URL, or the file itself.

        Raises:
            StoreError: It can't be read.
            PackError: Its compression is unknown, or it ends too early.
        """
        self._local = local_file(file) if isinstance(file, str) else file
        self.name, self._path = self._local.name, self._local.path
        self._stamp = stamp_of(self._path)
        # The time of a temporary copy is our own.
        self._listed = stamp_of_bytes(self._path) if self._local.temporary else self._stamp
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


def folder_of(url: str) -> tuple[str, str]:
    """The folder of a path or URL, and the name there.

    >>> folder_of("s3://bucket/a.csv"), folder_of("a.csv"), folder_of("/a.csv")
    (('s3://bucket', 'a.csv'), ('.', 'a.csv'), ('/', 'a.csv'))
    """
    folder, slash, name = url.rpartition("/")
    return folder or slash or ".", name


def is_compressed(name: str) -> bool:
    """Whether fsspec takes the last suffix of a name for a compression."""
    return _compression(name) is not None


def kind_of(url: str) -> str:
    """The last suffix of a file but for that of a compression, in lower case.

    >>> kind_of("s3://bucket/table.CSV.gz?version=2")
    '.csv'
    """
    path = PurePosixPath(redact(url).lower())
    return path.with_suffix("").suffix if is_compressed(path.name) else path.suffix


def _compression(name: str) -> str | None:
    from fsspec.utils import infer_compression  # takes 0.1 s, which other sources do without

    if name.lower().endswith(".tgz"):
        return "gzip"
    return cast("str | None", infer_compression(name))


def _copy(url: str, name: str, connect: Callable[[str], Store], target: BinaryIO) -> None:
    """Write what a file holds, unpacked, to another."""
    folder, last = folder_of(url)
    with connect(folder).stream(last) as source, _whole(name):
        shutil.copyfileobj(_unpacked(source, name), target)


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
