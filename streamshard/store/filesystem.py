"""A folder of files anywhere fsspec reaches; the local file system by a fast path of its own.

Foreign errors are translated here, and nothing that may be a secret (user, password, query of a
URL, storage options) gets into a message.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import NotFoundError, StoreError, UsageError

_HAS_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def redact(url: str) -> str:
    """The URL without user, password, query and fragment.

    >>> redact("https://me:secret@host/data?token=abc")
    'https://host/data'
    """
    if not _HAS_SCHEME.match(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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
        """Remove a file."""


def open_store(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Store:
    """The store of a local folder or a URL.

    Args:
        url: A path, or `protocol://…` as fsspec knows it.
        options: For the fsspec file system: credentials, endpoints.

    Raises:
        UsageError: The protocol is unknown, or the URL chains several.
        StoreError: A package for the protocol is missing.
    """
    url = os.fspath(url)
    if "::" in url:
        raise UsageError(f"{redact(url)}: chained URLs are not read; give the place itself")
    if not _HAS_SCHEME.match(url) or url.startswith("file://"):
        return LocalStore(url.removeprefix("file://"))
    return RemoteStore(url, options or {})


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn foreign errors into ours, the most specific first."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{where}: not found") from None
    except PermissionError:
        raise StoreError(f"{where}: permission denied (user {os.getuid()})") from None
    except NotADirectoryError:
        raise StoreError(f"{where}: a part of the path is a file, not a folder") from None
    except IsADirectoryError:
        raise StoreError(f"{where}: is a folder, not a file") from None
    except OSError as error:
        raise StoreError(f"{where}: {error.strerror or type(error).__name__}") from None


@contextlib.contextmanager
def _full_disk_named(where: str) -> Iterator[None]:
    """Translate errors of writing, which carry no file name, and let the caller's own pass."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise StoreError(f"{where}: {os.strerror(error.errno)}") from None


def _sync_folder(path: Path) -> None:
    """Make a rename durable: it is only once its folder is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class LocalStore:
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self._root = Path(path).expanduser()
        self.where = path.rstrip("/") or path

    def open(self, name: str) -> LocalFile:
        """See `Store`."""
        return LocalFile(self._root / name, f"{self.where}/{name}")

    def map(self, name: str) -> NDArray[np.uint8]:
        """See `Store`."""
        file = self.open(name)
        try:
            return file.map()
        finally:
            file.close()

    def stream(self, name: str) -> BufferedIOBase:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            return (self._root / name).open("rb")

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return (self._root / name).is_file()

    def list(self, folder: str = "") -> list[str]:
        """See `Store`."""
        path = self._root / folder
        if not path.exists():
            return []
        with _translated(str(path)):
            return sorted(os.listdir(path))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`: a temporary file beside it, fsync, rename, fsync of the folder."""
        path, where = self._root / name, f"{self.where}/{name}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with _translated(where):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        try:
            with _full_disk_named(where), file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with _translated(where):
                temporary.replace(path)
                _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            (self._root / name).unlink()


class LocalFile:
    """A local file, read by pread: an I/O error has an errno, where a map would be a SIGBUS."""

    local = True

    def __init__(self, path: Path, where: str) -> None:
        self._where = where
        with _translated(where):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `File`."""
        with _translated(self._where):
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    raise StoreError(
                        f"{self._where}: truncated: {length} bytes wanted at offset {offset}, "
                        f"{len(data)} there"
                    )
                data += more
        return data

    def map(self) -> NDArray[np.uint8]:
        """See `File`."""
        if self.size == 0:  # mmap refuses an empty file
            return np.zeros(0, np.uint8)
        with _translated(self._where):
            return np.frombuffer(mmap.mmap(self._fd, 0, prot=mmap.PROT_READ), np.uint8)

    def close(self) -> None:
        """See `File`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RemoteStore:
    """A folder behind any fsspec file system, read by byte ranges.

    The file system object is made in the process that uses it: asynchronous clients do not survive
    a fork.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url, self._options = url.rstrip("/"), dict(options)
        self.where = redact(self._url)
        self._made_in: int | None = None
        self._connect()

    def __repr__(self) -> str:
        return f"RemoteStore({self.where!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_options": self._options, "where": self.where, "_made_in": None}

    def _connect(self) -> Any:
        """The fsspec file system of this process."""
        if self._made_in != os.getpid():
            import fsspec  # takes 0.1 s, and local data does without

            try:
                # A cached instance would be the one that the parent process connected.
                self._fs, self._root = fsspec.url_to_fs(
                    self._url,
                    skip_instance_cache=not self._url.startswith("memory:"),
                    **self._options,
                )
            except ImportError as error:
                raise StoreError(f"{self.where}: {error}") from None
            except ValueError as error:
                raise UsageError(f"{self.where}: {error}") from None
            self._made_in = os.getpid()
        return self._fs

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def open(self, name: str) -> RemoteFile:
        """See `Store`."""
        where = f"{self.where}/{name}"
        with _translated(where):
            fs = self._connect()
            return RemoteFile(fs, self._path(name), int(fs.size(self._path(name))), where)

    def map(self, name: str) -> NDArray[np.uint8]:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            return np.frombuffer(self._connect().cat_file(self._path(name)), np.uint8)

    def stream(self, name: str) -> BufferedIOBase:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            file: BufferedIOBase = self._connect().open(self._path(name), "rb")
            return file

    def exists(self, name: str) -> bool:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            return bool(self._connect().isfile(self._path(name)))

    def list(self, folder: str = "") -> list[str]:
        """See `Store`."""
        with _translated(f"{self.where}/{folder}"), contextlib.suppress(FileNotFoundError):
            found = self._connect().ls(self._path(folder), detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)
        return []

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`: written to a temporary local file, then put at once.

        Not every file system can take back what it was given before a failure; object stores
        publish a put only when it is complete.
        """
        where = f"{self.where}/{name}"
        with tempfile.NamedTemporaryFile(prefix="streamshard-") as file:
            with _full_disk_named(where):
                yield cast("BinaryIO", file)
                file.flush()
            with _translated(where):
                self._connect().put_file(file.name, self._path(name))

    def remove(self, name: str) -> None:
        """See `Store`."""
        with _translated(f"{self.where}/{name}"):
            self._connect().rm_file(self._path(name))


class RemoteFile:
    """A remote file, read by one range request each time."""

    local = False

    def __init__(self, fs: Any, path: str, size: int, where: str) -> None:
        self._fs, self._path, self._where = fs, path, where
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """See `File`."""
        with _translated(self._where):
            data = bytes(self._fs.cat_file(self._path, start=offset, end=offset + length))
        if len(data) != length:
            raise StoreError(
                f"{self._where}: {length} bytes wanted at offset {offset}, {len(data)} came"
            )
        return data

    def map(self) -> None:
        """See `File`: there is no such thing."""
        return

    def close(self) -> None:
        """See `File`."""
