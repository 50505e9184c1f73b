"""Sidecars for tars that others wrote: the tars are read once and not touched."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from io import BufferedIOBase
from typing import Any

from zlib_ng.zlib_ng import crc32

from streamshard.codec.base import Codec, Packed, Schema
from streamshard.codec.registry import codec_of, part_of
from streamshard.errors import DamagedError, PackError, SampleError
from streamshard.pack.job import Summary
from streamshard.pack.patterns import expand_names, samples_of, split_pattern
from streamshard.pack.publish import write_manifest
from streamshard.shard import tar
from streamshard.shard.index import Cell, IndexBuilder
from streamshard.shard.manifest import HEAD, Manifest, Part, Shard, ShardTable, index_name
from streamshard.shard.sizes import SizesBuilder
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store

# What the index keeps of these is needed to read them; of the others it is good to know.
_NEEDED_FACTS = ("int", "graph")


def index_tars(
    pattern: str | os.PathLike[str],
    *,
    out: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int | None, int], None] | None = None,
) -> Summary:
    """Make `.streamshard/` for existing tars in the WebDataset convention.

    Args:
        pattern: A folder, one tar, or several of one folder by braces or wildcards
            (`train-{000..099}.tar`, `train-*.tar`).
        out: Folder or URL for `.streamshard/`; by default beside the tars.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all (not known), and bytes done.

    Returns:
        What was found. `fingerprint` is the dataset's.

    Raises:
        PackError: There is no such tar.
        DamagedError: A tar is damaged, or a key comes back later in a tar.
        SampleError: A part that is to be one integer is not.
    """
    begin = time.monotonic()
    folder, names = split_pattern(os.fspath(pattern))
    store = open_store(folder, storage_options)
    target = open_store(out, storage_options) if out else store
    tars = expand_names(store, names)
    if target.exists(HEAD):
        raise PackError(f"{target.where} has an index already; remove {target.where}/{HEAD} first")
    indexer, sizes = Indexer(store), SizesBuilder()
    shards: list[Shard] = []
    samples = nbytes = 0
    for name in tars:
        shard, index = indexer.read(name)
        shards.append(shard)
        sizes.add(index)
        with target.create(index_name(name)) as file:
            file.write(index)
        samples, nbytes = samples + shard.samples, nbytes + shard.nbytes
        if progress:
            progress(samples, None, nbytes)
    manifest = Manifest(indexer.parts(), ShardTable.of(shards))
    write_manifest(target, manifest, sizes)
    table = manifest.table
    notes = [f"{indexer.unread} parts could not be decoded"] if indexer.unread else []
    return Summary(
        len(manifest),
        len(table),
        int(table.nbytes.sum()),
        time.monotonic() - begin,
        [],
        notes,
        manifest.fingerprint,
    )


class Indexer:
    """Reads tars one after another and remembers what holds for all their samples.

    Attributes:
        unread: Parts that could not be decoded, and stayed bytes.
    """

    def __init__(
        self,
        store: Store,
        known: Mapping[str, Part] | None = None,
        codec: Callable[[str], Codec] = codec_of,
    ) -> None:
        """Begin with the first tar.

        Args:
            store: Where the tars lie.
            known: Parts whose schema is known already.
            codec: The codec of a suffix.
        """
        known = known or {}
        self._store, self._codec = store, codec
        self._schemas: dict[str, Schema] = {
            part.suffix: dict(part.schema) for part in known.values()
        }
        self._codecs = {part.suffix: part.codec for part in known.values()}
        self._optional = {part.suffix for part in known.values() if part.optional}
        self._seen: dict[str, None] = {}
        self._samples = 0
        self.unread = 0

    def parts(self) -> dict[str, Part]:
        """What the samples are made of."""
        return {
            part_of(suffix): Part(
                suffix,
                self._codecs.get(suffix, codec_of(suffix).name),
                schema,
                suffix in self._optional,
            )
            for suffix, schema in self._schemas.items()
        }

    def note(self, suffixes: Iterable[str]) -> None:
        """Take note of parts of a tar that need not be read: indexes have columns for them."""
        self._seen |= dict.fromkeys(suffixes)

    def read(self, name: str) -> tuple[Shard, bytes]:
        """The next tar's row of the shard table, and its index.

        Raises:
            DamagedError: It is not whole, or no part of a dataset.
            SampleError: A part is not what it must be.
        """
        where = f"{self._store.where}/{name}"
        rows: dict[str, dict[str, Cell]] = {}
        with self._store.stream(name) as file:
            size = file.seek(0, os.SEEK_END)
            for key, suffix, member in samples_of(file, size, where):
                cells = rows.setdefault(key, {})
                if part_of(suffix) in cells:
                    raise DamagedError(f"{where}: key {key} has two parts {part_of(suffix)}")
                cells[part_of(suffix)] = self._cell(file, member, key, suffix, where)
            digest = sha256_of(file)
        if not rows:
            raise DamagedError(f"{where}: no sample in it (files named key.part)")
        builder = IndexBuilder([part_of(suffix) for suffix in self._seen])
        for key, cells in rows.items():
            self._optional |= {suffix for suffix in self._schemas if part_of(suffix) not in cells}
            builder.add(key, cells)
        self._samples += len(rows)
        index = builder.to_bytes()
        return Shard(name, len(rows), size, digest, hashlib.sha256(index).digest()), index

    def _cell(
        self, file: BufferedIOBase, member: tar.Member, key: str, suffix: str, where: str
    ) -> Cell:
        file.seek(member.offset)
        data = file.read(member.size)
        codec = self._codec(suffix)
        self._seen[suffix] = None
        try:
            packed = codec.pack(data)
        except (ValueError, TypeError) as error:
            if codec.name in _NEEDED_FACTS:
                raise SampleError(
                    f"{where}: key {key}, part {suffix} at offset {member.offset}: {error}"
                ) from None
            self.unread += 1
            packed = Packed(data, {}, {})
        if suffix in self._schemas:
            try:
                self._schemas[suffix] = codec.merge(self._schemas[suffix], packed.schema)
            except ValueError as error:
                raise SampleError(f"{where}: key {key}, part {suffix}: {error}") from None
        else:
            self._schemas[suffix] = packed.schema
            if self._samples:  # the shards before have none of it
                self._optional.add(suffix)
        return Cell(member, crc32(data), packed.facts)


def sha256_of(file: BufferedIOBase) -> bytes:
    """The hash of a whole tar."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()
