"""A folder of files anywhere fsspec reaches, and the choice between that and the local one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedIOBase
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import StoreError, StreamshardError, UsageError
from streamshard.store.base import (
    HAS_SCHEME,
    Store,
    Writable,
    check_range,
    full_disk_named,
    redact,
    scatter,
    translated,
)
from streamshard.store.local import LocalStore

# Places. What else fsspec knows are views of other URLs or archives, which may lead anywhere.
_SCHEMES = (
    *("file", "local", "memory", "http", "https", "ftp", "sftp", "ssh", "smb"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "hdfs", "webhdfs", "hf"),
)

# Stores that publish what is put when all of it has come, and have no quick way to rename it.
_PUT_WHOLE = ("memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hf")


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
    scheme = url.partition("://")[0].lower() if HAS_SCHEME.match(url) else "file"
    if scheme not in _SCHEMES:
        raise UsageError(f"{redact(url)}: Protocol not known: {scheme}; {', '.join(_SCHEMES)} are")
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{redact(url)}: {error}") from None
    if not HAS_SCHEME.match(url) or url.startswith("file://"):
        return LocalStore(url.removeprefix("file://"))
    return RemoteStore(url, options or {})


@contextlib.contextmanager
def _remote(where: str) -> Iterator[None]:
    """Turn the errors of any client into ours; their texts may hold secrets, so few are kept."""
    try:
        with translated(where):
            yield
    except StreamshardError:
        raise
    except ImportError as error:
        raise StoreError(f"{where}: {error}{_remedy(where)}") from None
    except ValueError:
        raise StoreError(f"{where}: not understood by its file system (ValueError)") from None
    except Exception as error:
        status = getattr(error, "status", "")
        raise StoreError(f"{where}: {type(error).__name__} {status}".rstrip()) from None


def _remedy(where: str) -> str:
    is_s3 = where.partition("://")[0] in ("s3", "s3a")
    return ": pip install 'streamshard[s3]'" if is_s3 else ""


class RemoteStore:
    """A folder behind any fsspec file system, read by byte ranges.

    The file system object is made in the process that uses it: asynchronous clients do not survive
    a fork.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url, self._options = url.rstrip("/"), dict(options)
        self.where = redact(self._url)
        self._made_in: int | None = None
        self.connect()

    def __repr__(self) -> str:
        return f"RemoteStore({self.where!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_options": self._options, "where": self.where, "_made_in": None}

    def connect(self) -> Any:
        """The fsspec file system of this process."""
        if self._made_in != os.getpid():
            import fsspec  # takes 0.1 s, and local data does without

            with _remote(self.where):
                # A cached instance would be the one that the parent process connected.
                self._fs, self._root = fsspec.url_to_fs(
                    self._url,
                    skip_instance_cache=not self._url.startswith("memory:"),
                    **self._options,
                )
            self._made_in = os.getpid()
        return self._fs

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def open(self, name: str) -> RemoteFile:
        """See `Store`."""
        where = f"{self.where}/{name}"
        with _remote(where):
            found = self.connect().info(self._path(name))
            if found["type"] == "directory":
                raise IsADirectoryError
            return RemoteFile(self, self._path(name), int(found["size"]), where)

    def map(self, name: str) -> NDArray[np.uint8]:
        """See `Store`."""
        with _remote(f"{self.where}/{name}"):
            return np.frombuffer(self.connect().cat_file(self._path(name)), np.uint8)

    def stream(self, name: str) -> BufferedIOBase:
        """See `Store`."""
        with _remote(redact(f"{self._url}/{name}")):
            file: BufferedIOBase = self.connect().open(self._path(name), "rb")
            return file

    def exists(self, name: str) -> bool:
        """See `Store`."""
        with _remote(f"{self.where}/{name}"):
            return bool(self.connect().isfile(self._path(name)))

    def list(self, folder: str = "") -> list[str]:
        """See `Store`."""
        with _remote(f"{self.where}/{folder}"), contextlib.suppress(FileNotFoundError):
            found = self.connect().ls(self._path(folder), detail=False)
            names = [path.rstrip("/").rpartition("/")[2] for path in found]
            is_file = len(found) == 1 and found[0].strip("/") == self._path(folder).strip("/")
            return [] if is_file else sorted(names)
        return []

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`: written to a temporary local file, then put at once.

        Object stores publish a put only when it is complete; elsewhere the file is put under
        another name and renamed. The local file has no name, so that a killed process leaves none.
        """
        where = f"{self.where}/{name}"
        with _temporary() as (file, local):
            with full_disk_named(where):
                yield file
                file.flush()
            with _remote(where):
                self._publish(local, name)

    def _publish(self, local: str, name: str) -> None:
        path = self._path(name)
        if self._url.partition("://")[0].lower() in _PUT_WHOLE:
            self._put(local, path)
            return
        if self.connect().isdir(path):  # into which some would move the file
            raise IsADirectoryError
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.{last}.{os.getpid()}.tmp"
        try:
            self._put(local, temporary)
            self.connect().mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self.connect().rm_file(temporary)
            raise

    def _put(self, local: str, path: str) -> None:
        """Put a file; a folder is made only where one is missed, since object stores have none."""
        fs = self.connect()
        try:
            fs.put_file(local, path)
        except FileNotFoundError:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.put_file(local, path)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with _remote(f"{self.where}/{name}"):
            self.connect().rm_file(self._path(name))


@contextlib.contextmanager
def _temporary() -> Iterator[tuple[BinaryIO, str]]:
    """A temporary local file, and a path that leads to it."""
    if os.path.isdir("/proc/self/fd"):
        with tempfile.TemporaryFile(prefix="streamshard-") as file:
            yield cast("BinaryIO", file), f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(prefix="streamshard-") as file:
            yield cast("BinaryIO", file), file.name


class RemoteFile:
    """A remote file, read by one range request each time."""

    local = False

    def __init__(self, store: RemoteStore, path: str, size: int, where: str) -> None:
        self._store, self._path, self._where = store, path, where
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """See `File`."""
        check_range(offset, length, self._where)
        if offset + length > self.size:
            raise StoreError(
                f"{self._where}: {length} bytes wanted at offset {offset}, "
                f"{max(0, self.size - offset)} there"
            )
        if not length:  # no range of HTTP is empty
            return b""
        with _remote(self._where):
            # Asked of the store each time: after a fork, this process has a connection of its own.
            fs = self._store.connect()
            data = bytes(fs.cat_file(self._path, start=offset, end=offset + length))
        if len(data) != length:
            raise StoreError(
                f"{self._where}: {length} bytes wanted at offset {offset}, {len(data)} came"
            )
        return data

    def read_into(self, offset: int, buffers: Sequence[Writable]) -> None:
        """See `File`."""
        scatter(self.read(offset, sum(map(len, buffers))), buffers)

    def map(self) -> None:
        """See `File`: there is no such thing."""
        return

    def close(self) -> None:
        """See `File`."""
