"""A folder on this machine: pread, mmap, and files that appear whole."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import StoreError
from streamshard.store.base import Writable, check_range, full_disk_named, scatter, translated

_STRIDE = 8 << 20  # bytes of a file whose write to the disk begins together


def _sync_folder(path: Path) -> None:
    """Make a rename durable: it is only once its folder is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _EarlyWriter(io.BufferedWriter):
    """Has the kernel begin early with what fsync waits for at the end, beside what is going on."""

    _begun = _written = 0  # bytes

    def write(self, data: Any, /) -> int:
        """See `io.BufferedWriter`."""
        count = super().write(data)
        self._written += count
        if self._written - self._begun >= _STRIDE:
            # Of dirty pages that starts the write; only clean ones would leave the cache.
            stride = (self._begun, self._written - self._begun)
            os.posix_fadvise(self.fileno(), *stride, os.POSIX_FADV_DONTNEED)
            self._begun = self._written
        return count


class LocalStore:
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self._root = Path(path).expanduser()
        self.where = path.rstrip("/") or path

    def path(self, name: str) -> Path:
        """Where a file lies on this machine."""
        return self._root / name

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
        with translated(f"{self.where}/{name}"):
            return (self._root / name).open("rb")

    def exists(self, name: str) -> bool:
        """See `Store`."""
        with translated(f"{self.where}/{name}"):
            return (self._root / name).is_file()

    def list(self, folder: str = "") -> list[str]:
        """See `Store`."""
        path = self._root / folder
        with translated(str(path)):
            if not path.exists():
                return []
            return sorted(os.listdir(path))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`: a temporary file beside it, fsync, rename, fsync of the folder."""
        path, where = self._root / name, f"{self.where}/{name}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with translated(where):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _EarlyWriter(temporary.open("wb", buffering=0))
        try:
            with full_disk_named(where), file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with translated(where):
                temporary.replace(path)
                _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with translated(f"{self.where}/{name}"):
            (self._root / name).unlink()


class LocalFile:
    """A local file, read by pread: an I/O error has an errno, where a map would be a SIGBUS."""

    local = True

    def __init__(self, path: Path, where: str) -> None:
        self._where, self._fd = where, -1
        with translated(where):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self._fd)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError
            self.size = found.st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `File`."""
        check_range(offset, length, self._where)
        with translated(self._where):
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

    def read_into(self, offset: int, buffers: Sequence[Writable]) -> None:
        """See `File`."""
        length = sum(map(len, buffers))
        check_range(offset, length, self._where)
        with translated(self._where):
            if os.preadv(self._fd, buffers, offset) == length:
                return
        scatter(self.read(offset, length), buffers)  # the rest, or an error

    def map(self) -> NDArray[np.uint8]:
        """See `File`."""
        if self.size == 0:  # mmap refuses an empty file
            return np.zeros(0, np.uint8)
        with translated(self._where):
            return np.frombuffer(mmap.mmap(self._fd, 0, prot=mmap.PROT_READ), np.uint8)

    def close(self) -> None:
        """See `File`."""
        self.__del__()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound, since at the interpreter's end modules may be gone before this is.
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
