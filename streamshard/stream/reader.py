"""Rows of shards to bytes: opened lazily, checked, a bounded number at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from streamshard.codec.meaning import Meaning
from streamshard.codec.registry import decoded
from streamshard.errors import DamagedError, DatasetError, NoIndexError, NotFoundError, SampleError
from streamshard.shard import tar
from streamshard.shard.index import MISSING, Extent, Index
from streamshard.shard.manifest import (
    FOLDER,
    HEAD,
    TABLE,
    Manifest,
    Part,
    read_index,
    read_manifest,
)
from streamshard.shard.sizes import Sizes, read_sizes
from streamshard.shard.verify import Inspector, Progress
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store
from streamshard.stream.crew import Died, in_order
from streamshard.stream.opened import AT_MOST, OpenShard, OpenShards

_COPIED = 4096  # bytes of a part: more are read by themselves, which is cheaper than a copy
# So many are verified, or decoded too, before other processes have started.
_FEW_BYTES, _FEW_DECODED = 1_000_000_000, 64_000_000


class Shards:
    """The samples of a dataset by number, in pack order; what `streamshard.open` gives.

    Attributes:
        manifest: Of the dataset, or of those of its shards that the URL names.
        where: The URL, without secrets.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        index: str | None = None,
        verify: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a dataset.

        Args:
            url: Folder or URL of a dataset, or a brace pattern of tars in one folder.
            index: Where `.streamshard/` lies when it is not beside the tars.
            verify: Check the crc32 of every part that is read. What comes over a network is
                checked in any case.
            storage_options: For fsspec.

        Raises:
            DatasetError: There is no dataset, or one of another format version.
            NoIndexError: There are tars, but no `.streamshard/`.
            DamagedError: The sidecars don't fit together.
        """
        url = os.fspath(url)
        folder, _, names = url.rpartition("/") if url.endswith(".tar") else (url, "", "")
        self._store = open_store(folder or ".", storage_options)
        self._sidecars = open_store(index, storage_options) if index else self._store
        self.where = self._store.where
        self._verify = verify
        self._open = OpenShards()
        self._whole: dict[int, bool] = {}  # shards whose hash this process has checked
        self.manifest = _find(self._store, self._sidecars)
        if names:
            self.manifest = self.manifest.select(list(braceexpand(names)), self.where)
        self._starts = np.concatenate([[0], np.cumsum(self.manifest.table.samples)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": {}}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample: `__key__` and the decoded value of each part.

        Raises:
            IndexError: There is no such number.
            DamagedError: The bytes are not those that were packed.
            SampleError: A part can't be decoded.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard, row = self.locate(number % len(self))
        sample: dict[str, Any] = {"__key__": self.index(shard).keys[row]}
        for name, part in self.manifest.parts.items():
            data = self.read(shard, row, name)
            sample[name] = None if data is None else self.decode(shard, row, name, part, data)
        return sample

    @property
    def store(self) -> Store:
        """Where the shards lie."""
        return self._store

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names by `cls`, or None."""
        return self.manifest.classes

    def keys(self) -> Iterator[str]:
        """The keys in pack order; reads every index."""
        for number in range(len(self.manifest.table)):
            yield from self.index(number).keys

    def sizes(self) -> Sizes:
        """Nodes and edges of every graph, in pack order.

        From one file of the dataset; where it was packed without, or only some of its shards are
        read, from the index of each shard.

        Raises:
            DamagedError: The sidecars don't fit together.
        """
        found = read_sizes(self._sidecars, self.manifest, self._sidecars.where)
        if found is not None:
            return found
        where = self._sidecars.where
        indexes = (
            Index(read_index(self._sidecars, shard, where), shard.name)
            for shard in self.manifest.table
        )
        return Sizes.joined([Sizes.of(index) for index in indexes])

    def find_damage(
        self, progress: Progress | None = None, *, decode: bool = False, workers: int | None = 0
    ) -> Iterator[str]:
        """Read every shard and say what is wrong, one line a finding, in pack order.

        Args:
            progress: Called with samples done, samples in all, and bytes done.
            decode: Decode every part too.
            workers: Processes that each read one shard at a time; by default this one alone, and
                as many as there are cores where it is None and there is enough to read. A worker
                that dies is a finding.
        """
        table = self.manifest.table
        inspector = Inspector(self._store, self._sidecars, self.manifest, Meaning(decode=decode))
        yield from inspector.dataset()
        if workers is None:
            few = _FEW_DECODED if decode else _FEW_BYTES
            workers = 0 if int(table.nbytes.sum()) < few else len(os.sched_getaffinity(0))
        if self.where.startswith("memory:"):
            workers = 0  # it is in this process
        samples = nbytes = 0
        for number, found in enumerate(in_order(inspector.shard, len(table), workers)):
            where = f"{self.where}/{table.names[number]}"
            yield from [f"{where}: not verified: {found}"] if isinstance(found, Died) else found
            samples, nbytes = samples + table.samples[number], nbytes + table.nbytes[number]
            if progress:
                progress(int(samples), len(self), int(nbytes))

    def locate(self, number: int) -> tuple[int, int]:
        """Shard and row of a sample."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def index(self, shard: int) -> Index:
        """The columns of a shard."""
        return self._shard(shard).index

    def read_index(self, shard: int) -> Index:
        """The columns of a shard, read anew and without opening its tar."""
        row = self.manifest.table[shard]
        return Index(read_index(self._sidecars, row, self._sidecars.where), row.name)

    def chosen(
        self, shard: int, name: str, choose: Callable[[], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Rows of a shard that something chose, kept as long as the shard is open.

        Args:
            shard: The shard.
            name: What to keep them under.
            choose: Finds them.
        """
        opened = self._shard(shard)
        if name not in opened.chosen:
            opened.chosen[name] = choose()
        return opened.chosen[name]

    def extent(self, shard: int, part: str) -> Extent:
        """Where a part lies in the tar, for all rows of a shard."""
        return self._extent(self._shard(shard), part)

    def read(self, shard: int, row: int, part: str) -> bytes | None:
        """The bytes of one part, checked; None where the sample has no such part.

        Raises:
            DamagedError: Header, size or crc32 are not what the index says.
            StoreError: The bytes can't be read.
        """
        opened = self._shard(shard)
        extent = self._extent(opened, part)
        offset, size, crc = (column.item(row) for column in extent)
        if size == MISSING:
            return None
        begin = offset - tar.BLOCK
        if opened.file.local and size > _COPIED:
            header, data = opened.file.read(begin, tar.BLOCK), opened.file.read(offset, size)
        else:
            block = opened.file.read(begin, tar.BLOCK + size)
            header, data = block[: tar.BLOCK], block[tar.BLOCK :]
        self._check(opened, (shard, row, part), header, data, crc)
        return data

    def read_into(self, shard: int, row: int, part: str, out: memoryview) -> None:
        """Like `read`, into memory of the part's size; the shard is local and has the part."""
        opened = self._shard(shard)
        extent = self._extent(opened, part)
        header = bytearray(tar.BLOCK)
        opened.file.read_into(extent.offset.item(row) - tar.BLOCK, [header, out])
        self._check(opened, (shard, row, part), header, out, extent.crc32.item(row))

    def is_local(self, shard: int) -> bool:
        """Whether a shard lies on this machine."""
        return self._shard(shard).file.local

    def _check(
        self,
        opened: OpenShard,
        place: tuple[int, int, str],
        header: bytes | bytearray,
        data: bytes | memoryview,
        crc: int,
    ) -> None:
        """Whether a part of a sample is what the index says.

        The header in front of the data is read with it: that costs next to nothing, and tells an
        index that is out of step with its tar from damaged data.
        """
        _, row, part = place
        member = f"{opened.index.keys[row]}.{self.manifest.parts[part].suffix}"
        if difference := tar.check_header(header, member, len(data)):
            raise DamagedError(f"{self.at(*place)}: index out of step with its tar: {difference}")
        if (self._verify or not opened.file.local) and crc32(data) != crc:
            raise DamagedError(f"{self.at(*place)}: crc32 differs; the data are damaged")

    def view(self, shard: int, row: int, part: str) -> memoryview | None:
        """Like `read`, without a copy where the shard is local.

        The shard's hash is checked, whole, when this process first uses it; of a damaged shard
        each part is then read and checked by itself.
        """
        whole = self.whole(shard)
        if whole is None:
            data = self.read(shard, row, part)
            return None if data is None else memoryview(data)
        extent = self.extent(shard, part)
        offset, size = extent.offset.item(row), extent.size.item(row)
        return None if size == MISSING else whole[offset : offset + size]

    def whole(self, shard: int) -> memoryview | None:
        """A local shard whose hash is right, memory-mapped; None where it must be read by part."""
        opened = self._shard(shard)
        if not opened.file.local or not self._is_whole(shard, opened):
            return None
        if opened.map is None:
            mapped = opened.file.map()
            assert mapped is not None
            opened.map = memoryview(mapped)
        return opened.map

    def decode(self, shard: int, row: int, name: str, part: Part, data: bytes) -> Any:
        """The value of a part's bytes by its own codec."""
        try:
            return decoded(part.suffix, data, part.schema)
        except ValueError as error:
            raise SampleError(f"{self.at(shard, row, name)}: {error}") from error

    def at(self, shard: int, row: int, part: str) -> str:
        """Where a part lies, for messages: shard, key and offset."""
        opened = self._shard(shard)
        offset = int(self._extent(opened, part).offset[row])
        key = opened.index.keys[row]
        return f"{self.where}/{opened.shard.name}: key {key}, part {part} at offset {offset}"

    def share_descriptors(self, datasets: int) -> None:
        """Keep only so many shards open that several datasets together keep as many as one."""
        self._open.keep_at_most(AT_MOST // datasets)

    def shard_url(self, shard: int) -> str:
        """Where a shard lies, for messages."""
        return f"{self.where}/{self.manifest.table[shard].name}"

    def _extent(self, opened: OpenShard, part: str) -> Extent:
        return opened.index.extent(part, optional=self.manifest.parts[part].optional)

    def _shard(self, number: int) -> OpenShard:
        return self._open.find(number, self._opened)

    def _opened(self, number: int) -> OpenShard:
        shard = self.manifest.table[number]
        index = self.read_index(number)
        file = self._store.open(shard.name)
        if file.size != shard.nbytes:
            what = "truncated" if file.size < shard.nbytes else "longer than it was"
            raise DamagedError(
                f"{self.where}/{shard.name}: {what}: {file.size} bytes, "
                f"the manifest says {shard.nbytes}"
            )
        return OpenShard(shard, index, file)

    def _is_whole(self, number: int, opened: OpenShard) -> bool:
        """Whether a local shard's hash is right: headers, data and what lies between."""
        if not self._verify:
            return True
        if number not in self._whole:
            with self._open.turn(number):
                if number not in self._whole:
                    with self._store.stream(opened.shard.name) as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                    self._whole[number] = digest == opened.shard.sha256
        return self._whole[number]


def _find(store: Store, sidecars: Store) -> Manifest:
    """The manifest, or an error that says what is there instead."""
    try:
        return read_manifest(sidecars, sidecars.where)
    except NotFoundError:
        if sidecars.exists(HEAD):
            raise
    names = sidecars.list(FOLDER)
    is_begun = any(name.startswith(("journal.", "pack.lock")) for name in names)
    if sidecars.exists(TABLE) and not is_begun:  # written after everything else
        raise DatasetError(
            f"{sidecars.where}: {HEAD} is lost; `streamshard verify --repair` rebuilds it"
        )
    if is_begun or any(name.endswith(".safetensors") for name in names):
        raise DatasetError(
            f"{sidecars.where}: a pack that was not finished ({HEAD} is missing); pack again with "
            "--resume or --overwrite"
        )
    names = store.list()
    if any(name.endswith(".tar") for name in names):
        raise NoIndexError(
            f"{store.where}: tars without an index; `streamshard index {store.where}` makes one"
        )
    what = "no dataset there" if names else "no such folder, or an empty one"
    raise DatasetError(f"{store.where}: {what} ({HEAD} is missing)")
