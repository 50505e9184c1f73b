"""Every byte of a dataset against what its sidecars say."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from typing import Any, Protocol

import numpy as np
from zlib_ng.zlib_ng import crc32

from streamshard.errors import DamagedError, StoreError
from streamshard.shard import tar
from streamshard.shard.index import MISSING, Index
from streamshard.shard.manifest import Manifest, Part, Shard, Source, read_index
from streamshard.shard.sizes import Sizes, read_sizes, size_damage

Progress = Callable[[int, int | None, int], None]


class Files(Source, Protocol):
    """What this room asks of a store."""

    where: str

    def stream(self, name: str) -> BufferedIOBase:
        """Open for reading, seekable."""


class Judge(Protocol):
    """Who knows what parts mean, which this room does not."""

    def rows(self, name: str, part: Part, index: Index) -> Iterator[tuple[int, str]]:
        """Rows of an index that can't be true of a part, and why."""

    def data(self, name: str, part: Part, index: Index, row: int, data: bytes) -> Iterator[str]:
        """What is wrong with the bytes of a part, though they are those that were packed."""


class Inspector:
    """Says of the shards of a dataset, each by itself, what is wrong: one line a finding."""

    def __init__(
        self, tars: Files, sidecars: Files, manifest: Manifest, judge: Judge | None = None
    ) -> None:
        """Look at nothing yet.

        Args:
            tars: Where the shards lie.
            sidecars: Where `.streamshard/` lies.
            manifest: Of the dataset.
            judge: Asked whether parts are what the manifest says they are.
        """
        self._tars, self._sidecars, self._manifest = tars, sidecars, manifest
        self._judge = judge
        self._begins = np.cumsum(manifest.table.samples) - manifest.table.samples

    def __getstate__(self) -> dict[str, Any]:
        # The sizes are mapped anew in another process.
        return {name: value for name, value in self.__dict__.items() if name != "_sizes"}

    def dataset(self) -> list[str]:
        """What is wrong with the sidecars of all shards together."""
        try:
            read_sizes(self._sidecars, self._manifest, self._sidecars.where)
        except (DamagedError, StoreError) as error:
            return [str(error)]
        return []

    def shard(self, number: int) -> list[str]:
        """What is wrong with one shard; reads all of it."""
        shard = self._manifest.table[number]
        findings: list[str] = []
        try:
            # One by one, so that those before an error are kept.
            findings.extend(self._damage(shard, int(self._begins[number])))
        except (DamagedError, StoreError) as error:
            findings.append(str(error))
        except Exception as error:  # an index that was written wrong breaks anything
            where = f"{self._tars.where}/{shard.name}"
            findings.append(f"{where}: can't be verified: {type(error).__name__}: {error}")
        return findings

    @functools.cached_property
    def _sizes(self) -> Sizes | None:
        try:
            return read_sizes(self._sidecars, self._manifest, self._sidecars.where)
        except (DamagedError, StoreError):
            return None  # `dataset` tells it

    def _damage(self, shard: Shard, begin: int) -> Iterator[str]:
        index = Index(read_index(self._sidecars, shard, self._sidecars.where), shard.name)
        yield from self._shard_damage(shard, index)
        if self._sizes and len(index) == shard.samples:
            yield from size_damage(self._sizes, begin, index, self._sidecars.where)

    def _shard_damage(self, shard: Shard, index: Index) -> Iterator[str]:
        where = f"{self._tars.where}/{shard.name}"
        with self._tars.stream(shard.name) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            size = file.seek(0, os.SEEK_END)
            if size != shard.nbytes:
                yield f"{where}: {size} bytes, the manifest says {shard.nbytes}"
            if len(index) != shard.samples:
                yield (
                    f"{where}: {len(index)} samples in the index, the manifest says {shard.samples}"
                )
            found: list[str] = []
            for name, part in self._manifest.parts.items():
                found += list(part_damage(file, size, index, name, part, where, self._judge))
                found += list(self._contradictions(index, name, part, where))
            yield from found
            if digest != shard.sha256 and not found:
                # The parts are whole, so it is a header, the padding or what lies between.
                yield f"{where}: sha256 differs from the manifest's, outside the parts' data"
            yield from _structure_damage(file, size, where)

    def _contradictions(self, index: Index, name: str, part: Part, where: str) -> Iterator[str]:
        offsets = index.extent(name, optional=part.optional).offset
        for row, reason in self._judge.rows(name, part, index) if self._judge else ():
            yield f"{where}: key {index.keys[row]}, part {name} at offset {offsets[row]}: {reason}"


def find_damage(
    tars: Files,
    sidecars: Files,
    manifest: Manifest,
    progress: Progress | None = None,
    judge: Judge | None = None,
) -> Iterator[str]:
    """Read every shard and say what is wrong, one line a finding; nothing where all is whole.

    Args:
        tars: Where the shards lie.
        sidecars: Where `.streamshard/` lies.
        manifest: Of the dataset.
        progress: Called with samples done, samples in all, and bytes done.
        judge: Asked whether parts are what the manifest says they are.
    """
    inspector = Inspector(tars, sidecars, manifest, judge)
    yield from inspector.dataset()
    samples = bytes_done = 0
    for number, shard in enumerate(manifest.table):
        yield from inspector.shard(number)
        samples, bytes_done = samples + shard.samples, bytes_done + shard.nbytes
        if progress:
            progress(samples, len(manifest), bytes_done)


def part_damage(
    file: BufferedIOBase,
    size: int,
    index: Index,
    name: str,
    part: Part,
    where: str,
    judge: Judge | None = None,
) -> Iterator[str]:
    """What is wrong with one part of the samples of a shard, one line a finding."""
    offsets, sizes, crcs = (
        column.tolist() for column in index.extent(name, optional=part.optional)
    )
    for row, (offset, length, crc) in enumerate(zip(offsets, sizes, crcs, strict=True)):
        if length == MISSING:
            continue
        place = f"{where}: key {index.keys[row]}, part {name} at offset {offset}"
        if offset < tar.BLOCK:
            yield f"{place}: index out of step with its tar: no header fits in front of it"
            continue
        if offset + length > size:
            yield f"{place}: truncated: {length} bytes wanted, the tar ends at {size}"
            continue
        file.seek(offset - tar.BLOCK)
        block, data = file.read(tar.BLOCK), file.read(length)
        member = f"{index.keys[row]}.{part.suffix}"
        if difference := tar.check_header(block, member, length):
            yield f"{place}: index out of step with its tar: {difference}"
        elif crc32(data) != crc:
            yield f"{place}: crc32 differs; the data were changed after packing"
        elif judge:
            yield from (f"{place}: {reason}" for reason in judge.data(name, part, index, row, data))


def _structure_damage(file: BufferedIOBase, size: int, where: str) -> Iterator[str]:
    try:
        for _ in tar.scan(file, size, where):
            pass
    except DamagedError as error:
        yield str(error)
