"""The shards of a MosaicML dataset: compared with its index, unpacked, and cut into samples.

A shard is the number of samples, their offsets and the end, all of four bytes, what the index says
too, and the samples: the sizes of the columns that vary, then the values.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import NotFoundError, PackError
from streamshard.pack.files import Stamp, check_unchanged, stamp_of
from streamshard.pack.mds_index import INDEX, DataFile, MdsShard
from streamshard.pack.rows import LocalFile, temporary_file
from streamshard.store.base import Store, translated
from streamshard.store.local import LocalStore

_CHUNK = 1 << 20
_STREAMED = {"zstd": "zstd", "br": "brotli"}  # as Arrow calls them


class SampleInput(NamedTuple):
    """One sample of a shard. While it lives, a temporary copy of the shard does.

    Attributes:
        number: Among all samples.
        row: In its shard.
        label: As a number, where labels are text.
        file: The shard.
        stamp: Of the file, when it was looked through.
        begin: The sample's first byte.
        end: The byte behind its last.
        problem: Why it can't be read, if so.
    """

    number: int
    row: int
    label: int | None
    file: LocalFile
    stamp: Stamp | None
    begin: int
    end: int
    problem: str | None

    def __str__(self) -> str:
        return f"{self.file.name}, sample {self.row}"

    def read(self) -> bytes:
        """The sample's bytes.

        Raises:
            ValueError: It is damaged, or the file has changed.
            OSError: The file is gone.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        with open(self.file.path, "rb") as file:
            file.seek(self.begin)
            data = file.read(self.end - self.begin)
            check_unchanged(file.fileno(), self.stamp)
        return data


class Samples(Sequence[SampleInput]):
    """The samples of one shard, four bytes of memory each."""

    def __init__(
        self, store: Store, shard: MdsShard, first: int, labels: Sequence[int] | None
    ) -> None:
        """Open a shard; one that is damaged has samples that tell so.

        Args:
            store: Where it lies.
            shard: What the index says of it.
            first: The number of its first sample among all.
            labels: Of all samples, as numbers, where they are text.

        Raises:
            StoreError: It is there, but can't be read.
            PackError: pyarrow is wanted, and not installed.
        """
        self._file = LocalFile(f"{store.where}/{shard.lying.name}", "", temporary=False)
        self._first, self._length, self._labels = first, shard.samples, labels
        self._problem: str | None = None
        self._stamp: Stamp | None = None
        try:
            self._file = _local(store, shard, self._file.name)
            self._stamp = stamp_of(self._file.path)
            self._offsets = _offsets(self._file.path, shard.samples)
        except (ValueError, NotFoundError) as error:
            self._problem = str(error).removeprefix(f"{self._file.name}: ")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: Any) -> Any:
        if row >= self._length:
            raise IndexError(row)  # where an iteration ends
        problem, begin, end = self._problem, 0, 0
        if problem is None:
            begin, end = self._offsets[row : row + 2].tolist()
            least, most = int(self._offsets[0]), int(self._offsets[-1])
            if not least <= begin <= end <= most:
                problem = f"it lies at {begin} to {end}, the shard's samples at {least} to {most}"
        number = self._first + row
        label = None if self._labels is None else self._labels[number]
        return SampleInput(number, row, label, self._file, self._stamp, begin, end, problem)


def split_sample(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The bytes of each column of a sample.

    Args:
        data: Of the sample.
        sizes: Of the columns; 0 where a sample says it itself.

    Raises:
        ValueError: They are more or fewer bytes than the sample has.
    """
    begin = 4 * sizes.count(0)
    if len(data) < begin:
        raise ValueError(f"{len(data)} bytes, too few for the sizes of its columns")
    told = iter(np.frombuffer(data[:begin], "<u4").tolist())
    values = []
    for size in sizes:
        end = begin + (size or next(told))
        values.append(data[begin:end])
        begin = end
    if begin != len(data):
        raise ValueError(f"{len(data)} bytes, and its columns have {begin}")
    return values


def unchecked(shards: Sequence[MdsShard]) -> set[str]:
    """The hashes that shards have where they have none that is compared."""
    return {kind for shard in shards if not _comparable(shard.lying) for kind in shard.lying.hashes}


def _comparable(file: DataFile) -> list[str]:
    known = {kind for kind in hashlib.algorithms_available if not kind.startswith("shake_")}
    return [kind for kind in file.hashes if kind in known]


def _local(store: Store, shard: MdsShard, name: str) -> LocalFile:
    """A shard on this machine, as it was before it was compressed; as the index says it is.

    Raises:
        ValueError: It is not.
        StoreError: It can't be read.
    """
    file = shard.lying
    if shard.packed is None and isinstance(store, LocalStore):
        with store.stream(file.name) as stream, translated(name):
            _check_size(os.fstat(stream.fileno()).st_size, file)
            if _comparable(file):
                _Checked(stream, file).finish()
        return LocalFile(name, str(store.path(file.name)), temporary=False)

    def write(target: BinaryIO) -> None:
        with store.stream(file.name) as stream:
            checked = _Checked(stream, file)
            try:
                _copy(_unpacked(checked, shard), target, shard.raw.nbytes)
            except (EOFError, zlib.error) as error:
                raise ValueError(str(error)) from None
            except OSError as error:
                if error.errno is not None:
                    raise
                raise ValueError(str(error)) from None  # what decompression has against the bytes
            checked.finish()

    return temporary_file(name, write)


class _Checked(io.RawIOBase):
    """A file that is read from front to back, and compared with what the index says of it."""

    def __init__(self, stream: BufferedIOBase, file: DataFile) -> None:
        self._stream, self._file, self._nbytes = stream, file, 0
        self._digests = {
            kind: hashlib.new(kind, usedforsecurity=False) for kind in _comparable(file)
        }

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._nbytes += len(data)
        for digest in self._digests.values():
            digest.update(data)
        return len(data)

    def finish(self) -> None:
        """Read what is left, and compare.

        Raises:
            ValueError: The size is another, or a hash.
        """
        while self.read(_CHUNK):
            pass
        _check_size(self._nbytes, self._file)
        for kind, digest in self._digests.items():
            if digest.hexdigest() != self._file.hashes[kind]:
                raise ValueError(f"damaged: its {kind} is not the one in {INDEX}")


def _check_size(found: int, file: DataFile) -> None:
    if found != file.nbytes:
        raise ValueError(f"damaged: {found} bytes; {INDEX} says {file.nbytes}")


def _copy(source: IO[bytes], target: BinaryIO, nbytes: int) -> None:
    """Copy so many bytes, which are all that there are."""
    copied = 0
    while data := source.read(_CHUNK):
        copied += len(data)
        if copied > nbytes:
            break
        target.write(data)
    if copied != nbytes:
        how = "more than" if copied > nbytes else f"{copied} bytes, not"
        raise ValueError(f"damaged: unpacked it is {how} the {nbytes} that {INDEX} says")


def _unpacked(file: _Checked, shard: MdsShard) -> IO[bytes]:
    """What a file holds."""
    source = io.BufferedReader(file, _CHUNK)
    if shard.packed is None:
        return source
    if shard.compression == "gz":
        return gzip.GzipFile(fileobj=source)  # type: ignore[return-value]
    if shard.compression == "bz2":
        return bz2.BZ2File(source)
    pyarrow = _pyarrow(shard)
    if shard.compression == "snappy":
        return io.BytesIO(_snappy(pyarrow, source.read(), shard.raw.nbytes))
    return pyarrow.CompressedInputStream(  # type: ignore[no-any-return]
        pyarrow.PythonFile(source, "r"), _STREAMED[shard.compression]
    )


def _pyarrow(shard: MdsShard) -> Any:
    if shard.compression not in (*_STREAMED, "snappy"):
        raise PackError(f"{shard.lying.name}: compression {shard.compression!r} is not known here")
    try:
        import pyarrow
    except ImportError:
        raise PackError(
            f"{shard.lying.name}: to unpack {shard.compression} takes pyarrow, which is not "
            "installed: pip install 'streamshard[mds]'"
        ) from None
    return pyarrow


def _snappy(pyarrow: Any, data: bytes, nbytes: int) -> bytes:
    """Unpack a block of snappy, which begins with its size, seven bits a byte.

    Format: https://github.com/google/snappy/blob/main/format_description.txt
    """
    told = 0
    for place, byte in enumerate(data[:5]):
        told |= (byte & 127) << (7 * place)
        if byte < 128:
            break
    if told != nbytes:  # pyarrow would give what memory holds for the rest
        raise ValueError(f"damaged: unpacked it is {told} bytes; {INDEX} says {nbytes}")
    return pyarrow.decompress(  # type: ignore[no-any-return]
        data, decompressed_size=nbytes, codec="snappy", asbytes=True
    )


def _offsets(path: str, samples: int) -> NDArray[np.uint32]:
    """Where the samples of a shard begin, and where the last one ends.

    Raises:
        ValueError: It has another number of samples, or ends elsewhere.
    """
    with open(path, "rb") as file:
        table = np.frombuffer(file.read(4 * (samples + 2)), "<u4")
        size = file.seek(0, os.SEEK_END)
    if len(table) < samples + 2 or table[0] != samples:
        raise ValueError(f"damaged: {table[:1].tolist()} samples; {INDEX} says {samples}")
    if table[1] < 4 * len(table) or table[-1] != size:
        raise ValueError(f"damaged: its samples lie at {table[1]} to {table[-1]}, of {size} bytes")
    return table[1:]
