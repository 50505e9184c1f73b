"""The files of a source as they were when they were listed, to tell when one changes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from streamshard.shard import columns
from streamshard.store.base import HAS_SCHEME, redact

GONE = -1
_READ = 1 << 16  # bytes at a time of what a file has beyond its size


class Stamp(NamedTuple):
    """What tells that a file was written to.

    Attributes:
        size: Bytes; -1 where there is no such file.
        mark: When it was last written to, in nanoseconds, or a checksum.
    """

    size: int
    mark: int


def stamp_of(path: str) -> Stamp:
    """The stamp of a local file; one that is not there has one too."""
    try:
        found = os.stat(path)
    except OSError:
        return Stamp(GONE, GONE)
    return Stamp(found.st_size, found.st_mtime_ns)


def absolute(path: str) -> str:
    """A path or URL by a name that does not depend on the folder we are in, without secrets."""
    return redact(path) if HAS_SCHEME.match(path) else os.path.abspath(path)


def stamp_of_bytes(path: str) -> Stamp:
    """A stamp that only the bytes of a local file decide."""
    crc = size = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            crc, size = crc32(data, crc), size + len(data)
    return Stamp(size, crc)


def check_unchanged(fd: int, stamp: Stamp | None) -> None:
    """Compare an open file with its stamp, after it was read.

    Raises:
        ValueError: It was written to since.
    """
    if stamp is None:
        return
    found = os.fstat(fd)
    if (found.st_size, found.st_mtime_ns) != stamp:
        raise ValueError(
            f"changed while it was packed: {stamp.size} bytes when it was listed, "
            f"{found.st_size} now"
        )


def read_unchanged(path: str, stamp: Stamp | None) -> bytes:
    """A local file, compared with its stamp after it was read.

    Raises:
        OSError: It can't be read.
        ValueError: It was written to since.
    """
    # Not by Python's file object, which takes as long to make as 100 KB to read.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size if stamp is None else stamp.size
        data = os.read(fd, size + 1)
        if len(data) != size or not size:  # written to since, or a file that tells no size
            while more := os.read(fd, _READ):
                data += more
        check_unchanged(fd, stamp)
    finally:
        os.close(fd)
    return data


class Files(NamedTuple):
    """The files of a source, with their stamps.

    Attributes:
        names: In the order in which they are packed, where each is one input; sorted otherwise.
        sizes: (files,) int64.
        marks: (files,) int64.
        one_each: Whether the first of them are one input each, in order, as many as are inputs.
    """

    names: Sequence[str]
    sizes: NDArray[np.int64]
    marks: NDArray[np.int64]
    one_each: bool = False

    @classmethod
    def of(cls, names: Sequence[str], stamps: Iterable[Stamp], *, one_each: bool = False) -> Files:
        """Turn rows into columns."""
        sizes, marks = array("q"), array("q")
        for size, mark in stamps:
            sizes.append(size)
            marks.append(mark)
        return cls(names, np.frombuffer(sizes, np.int64), np.frombuffer(marks, np.int64), one_each)

    def reordered(self, order: Sequence[int]) -> Files:
        """The same files, that of the first number first."""
        numbers = np.array(order, np.int64)
        names = _compact(self.names).take(numbers)
        return Files(names, self.sizes[numbers], self.marks[numbers], self.one_each)

    def to_bytes(self) -> bytes:
        """A safetensors file of them."""
        names = _compact(self.names)
        arrays: columns.Columns = {
            "name.data": names.data,
            "name.ends": names.ends,
            "size": self.sizes,
            "mark": self.marks,
        }
        return columns.to_bytes(arrays)

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.uint8], where: str) -> Files:
        """Read such a file.

        Raises:
            DamagedError: It is not one.
            KeyError: A column is missing.
        """
        arrays = columns.from_buffer(buffer, where)
        names = columns.Strings(
            cast("NDArray[np.uint8]", arrays["name.data"]),
            cast("NDArray[np.int64]", arrays["name.ends"]),
        )
        sizes, marks = (cast("NDArray[np.int64]", arrays[name]) for name in ("size", "mark"))
        return cls(names, sizes, marks)


def _compact(names: Sequence[str]) -> columns.Strings:
    return names if isinstance(names, columns.Strings) else columns.Strings.of(names)


@runtime_checkable
class Listed(Protocol):
    """A source that lies in files."""

    def files(self) -> Files | None:
        """The files as they were when the source was listed."""


def difference(then: Files, now: Files, inputs: int | None) -> str | None:
    """What became of the files of a source, naming one of each; None where nothing did.

    Args:
        then: When a pack began.
        now: What they are.
        inputs: How many of the first files matter, if each is one input; None for all of them.
    """
    if not _are_equal(then.names, now.names):
        return _of_names(then.names, now.names)
    differ = (then.sizes[:inputs] != now.sizes[:inputs]) | (
        then.marks[:inputs] != now.marks[:inputs]
    )
    changed = np.flatnonzero(differ)
    if not len(changed):
        return None
    first = int(changed[0])
    sizes = f"{then.sizes[first]} bytes then, {now.sizes[first]} now"
    names = [now.names[number] for number in changed.tolist()]
    return f"{names[0]} has changed ({sizes}){_and_more(names)}"


def _are_equal(then: Sequence[str], now: Sequence[str]) -> bool:
    """Compared without a string of each."""
    one, other = _compact(then), _compact(now)
    return np.array_equal(one.ends, other.ends) and np.array_equal(one.data, other.data)


def _of_names(then: Sequence[str], now: Sequence[str]) -> str:
    gone, new = sorted({*then} - {*now}), sorted({*now} - {*then})
    said = [
        f"{names[0]} {what}{_and_more(names)}"
        for names, what in ((gone, "has vanished"), (new, "is new"))
        if names
    ]
    return ", ".join(said) or "its files come in another order"


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
