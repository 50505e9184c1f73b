"""Every byte of a dataset against what its sidecars say."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from typing import Protocol

from streamshard.errors import DamagedError, StoreError
from streamshard.shard import tar
from streamshard.shard.index import MISSING, Index
from streamshard.shard.manifest import Manifest, Part, Shard, Source, read_index
from streamshard.shard.sizes import read_sizes, size_damage

Progress = Callable[[int, int | None, int], None]


class Files(Source, Protocol):
    """What this room asks of a store."""

    where: str

    def stream(self, name: str) -> BufferedIOBase:
        """Open for reading, seekable."""


def find_damage(
    tars: Files,
    sidecars: Files,
    manifest: Manifest,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Read every shard and say what is wrong, one line a finding; nothing where all is whole.

    Args:
        tars: Where the shards lie.
        sidecars: Where `.streamshard/` lies.
        manifest: Of the dataset.
        progress: Called with samples done, samples in all, and bytes done.
    """
    samples = bytes_done = 0
    sizes = None
    try:
        sizes = read_sizes(sidecars, manifest, sidecars.where)
    except (DamagedError, StoreError) as error:
        yield str(error)
    for shard in manifest.table:
        try:
            index = Index(read_index(sidecars, shard, sidecars.where), shard.name)
            yield from _shard_damage(tars, shard, index, manifest)
            if sizes and len(index) == shard.samples:
                yield from size_damage(sizes, samples, index, sidecars.where)
        except (DamagedError, StoreError) as error:
            yield str(error)
        samples, bytes_done = samples + shard.samples, bytes_done + shard.nbytes
        if progress:
            progress(samples, len(manifest), bytes_done)


def _shard_damage(tars: Files, shard: Shard, index: Index, manifest: Manifest) -> Iterator[str]:
    where = f"{tars.where}/{shard.name}"
    with tars.stream(shard.name) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        size = file.seek(0, os.SEEK_END)
        if size != shard.nbytes:
            yield f"{where}: {size} bytes, the manifest says {shard.nbytes}"
        if len(index) != shard.samples:
            yield f"{where}: {len(index)} samples in the index, the manifest says {shard.samples}"
        found = []
        for name, part in manifest.parts.items():
            found += list(part_damage(file, size, index, name, part, where))
        yield from found
        if digest != shard.sha256 and not found:
            # The parts are whole, so it is a header, the padding or what lies between.
            yield f"{where}: sha256 differs from the manifest's, outside the parts' data"
        yield from _structure_damage(file, size, where)


def part_damage(
    file: BufferedIOBase, size: int, index: Index, name: str, part: Part, where: str
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
        elif zlib.crc32(data) != crc:
            yield f"{place}: crc32 differs; the data were changed after packing"


def _structure_damage(file: BufferedIOBase, size: int, where: str) -> Iterator[str]:
    try:
        for _ in tar.scan(file, size, where):
            pass
    except DamagedError as error:
        yield str(error)
