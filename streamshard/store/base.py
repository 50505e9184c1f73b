"""What every store and file is, and foreign errors turned into ours.

Nothing that may be a secret (user, password, query of a URL, storage options) gets into a message.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import NotFoundError, StoreError

Writable = bytearray | memoryview

HAS_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def redact(url: str) -> str:
    """The URL without user, password, query and fragment.

    >>> redact("https://me:secret@host/data?token=abc")
    'https://host/data'
    """
    return "::".join(_redact_one(link) for link in url.split("::"))


def _redact_one(url: str) -> str:
    if not HAS_SCHEME.match(url):
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


class File(Protocol):
    """One open file, read at any offset.

    Attributes:
        size: Bytes.
        local: Whether it lies on this machine, and not behind a network.
    """

    size: int
    local: bool

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, or an error."""

    def read_into(self, offset: int, buffers: Sequence[Writable]) -> None:
        """Fill buffers, one after another, with the bytes from there on; or an error."""

    def map(self) -> NDArray[np.uint8] | None:
        """The whole file as a memory map, (bytes,) uint8, or None where there is no such thing."""

    def close(self) -> None:
        """Give the file back. Maps stay valid."""


class Store(Protocol):
    """A folder of files by name; names are relative, with forward slashes."""

    where: str

    def open(self, name: str) -> File:
        """Open for reading at any offset."""

    def map(self, name: str) -> NDArray[np.uint8]:
        """A whole file, (bytes,) uint8: memory-mapped where it is local, fetched elsewhere."""

    def stream(self, name: str) -> BufferedIOBase:
        """Open for reading from front to back, seekable."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def list(self, folder: str = "") -> list[str]:
        """The names of the files and folders in a folder, sorted; empty where there is none."""

    def create(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Write a file that appears whole, when the context is left without an error, or not."""

    def remove(self, name: str) -> None:
        """Remove a file; an object store may be silent where there is none."""


class translated:
    """Turn foreign errors into ours, the most specific first: `with translated(where): …`.

    Every part that is read goes through it, and `contextmanager` would cost more.
    """

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _translation(error, self._where) from None


def _translation(error: OSError, where: str) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: not found")
    if isinstance(error, PermissionError):
        return StoreError(f"{where}: permission denied (user {os.getuid()})")
    if isinstance(error, NotADirectoryError):
        return StoreError(f"{where}: a part of the path is a file, not a folder")
    if isinstance(error, IsADirectoryError):
        return StoreError(f"{where}: is a folder, not a file")
    return StoreError(f"{where}: {error.strerror or type(error).__name__}")


def check_range(offset: int, length: int, where: str) -> None:
    """Refuse a range that no file has.

    Raises:
        StoreError: A number is negative.
    """
    if offset < 0 or length < 0:
        raise StoreError(f"{where}: {length} bytes wanted at offset {offset}")


def scatter(data: bytes, buffers: Sequence[Writable]) -> None:
    """Fill buffers, one after another."""
    begin = 0
    for buffer in buffers:
        buffer[:] = data[begin : begin + len(buffer)]
        begin += len(buffer)


@contextlib.contextmanager
def full_disk_named(where: str) -> Iterator[None]:
    """Translate errors of writing, which carry no file name, and let the caller's own pass."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise StoreError(f"{where}: {os.strerror(error.errno)}") from None
