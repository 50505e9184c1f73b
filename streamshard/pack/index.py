"""Sidecars for tars that others wrote: the tars are read once and not touched."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BufferedIOBase
from typing import Any

from braceexpand import braceexpand

from streamshard.codec.base import Packed, Schema
from streamshard.codec.registry import codec_of, part_of
from streamshard.errors import DamagedError, PackError, SampleError, UsageError
from streamshard.pack.job import Summary
from streamshard.pack.publish import write_manifest
from streamshard.shard import tar
from streamshard.shard.index import Cell, IndexBuilder
from streamshard.shard.manifest import HEAD, Manifest, Part, Shard, ShardTable, index_name
from streamshard.shard.sizes import SizesBuilder
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store

# What the index keeps of these is needed to read them; of the others it is good to know.
_NEEDED_FACTS = ("int", "graph")


def split_pattern(pattern: str) -> tuple[str, str]:
    """The folder of a pattern of tars, and what is left for its files.

    >>> split_pattern("data/train-{000..009}.tar"), split_pattern("data/")
    (('data', 'train-{000..009}.tar'), ('data', '*.tar'))
    """
    if not pattern.endswith(".tar"):
        return pattern.rstrip("/") or pattern, "*.tar"
    folder, _, names = pattern.rpartition("/")
    return folder or ".", names


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
    tars = _expand(store, names)
    if target.exists(HEAD):
        raise PackError(f"{target.where} has an index already; remove {target.where}/{HEAD} first")
    indexer = _Indexer(store, target, progress)
    shards = [indexer.index(name) for name in tars]
    parts = {
        part_of(suffix): Part(suffix, codec_of(suffix).name, schema, suffix in indexer.optional)
        for suffix, schema in indexer.schemas.items()
    }
    manifest = Manifest(parts, ShardTable.of(shards))
    write_manifest(target, manifest, indexer.sizes)
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


def _expand(store: Store, names: str) -> list[str]:
    """The tars that a pattern stands for: all of a brace pattern, what is there of a wildcard."""
    try:
        wanted = list(braceexpand(names))
    except ValueError:
        raise UsageError(f"{store.where}/{names}: unbalanced braces") from None
    there = set(store.list())
    found: list[str] = []
    for name in wanted:
        hits = sorted(fnmatch.filter(there, name)) if any(c in name for c in "*?[") else [name]
        found += [hit for hit in hits if hit in there]
        if not any(hit in there for hit in hits):
            raise PackError(f"{store.where}/{name}: no such tar")
    return found


class _Indexer:
    """Reads tars one after another and remembers what holds for all their samples."""

    def __init__(
        self,
        store: Store,
        target: Store,
        progress: Callable[[int, int | None, int], None] | None,
    ) -> None:
        self._store, self._target, self._progress = store, target, progress
        self.schemas: dict[str, Schema] = {}
        self.optional: set[str] = set()
        self.sizes = SizesBuilder()
        self.unread = self._samples = self._bytes = 0

    def index(self, name: str) -> Shard:
        """Write the index of one tar."""
        where = f"{self._store.where}/{name}"
        rows: dict[str, dict[str, Cell]] = {}
        with self._store.stream(name) as file:
            size = file.seek(0, os.SEEK_END)
            for key, suffix, member in samples_of(file, size, where):
                cells = rows.setdefault(key, {})
                if part_of(suffix) in cells:
                    raise DamagedError(f"{where}: key {key} has two parts {part_of(suffix)}")
                cells[part_of(suffix)] = self._cell(file, member, key, suffix, where)
            digest = _sha256(file)
        if not rows:
            raise DamagedError(f"{where}: no sample in it (files named key.part)")
        parts = [part_of(suffix) for suffix in self.schemas]
        builder = IndexBuilder(parts)
        for key, cells in rows.items():
            self.optional |= {suffix for suffix in self.schemas if part_of(suffix) not in cells}
            builder.add(key, cells)
        index = builder.to_bytes()
        self.sizes.add(index)
        with self._target.create(index_name(name)) as out:
            out.write(index)
        self._samples, self._bytes = self._samples + len(rows), self._bytes + size
        if self._progress:
            self._progress(self._samples, None, self._bytes)
        return Shard(name, len(rows), size, digest, hashlib.sha256(index).digest())

    def _cell(
        self, file: BufferedIOBase, member: tar.Member, key: str, suffix: str, where: str
    ) -> Cell:
        file.seek(member.offset)
        data = file.read(member.size)
        codec = codec_of(suffix)
        try:
            packed = codec.pack(data)
        except (ValueError, TypeError) as error:
            if codec.name in _NEEDED_FACTS:
                raise SampleError(
                    f"{where}: key {key}, part {suffix} at offset {member.offset}: {error}"
                ) from None
            self.unread += 1
            packed = Packed(data, {}, {})
        if suffix in self.schemas:
            try:
                self.schemas[suffix] = codec.merge(self.schemas[suffix], packed.schema)
            except ValueError as error:
                raise SampleError(f"{where}: key {key}, part {suffix}: {error}") from None
        else:
            self.schemas[suffix] = packed.schema
            if self._samples:  # the shards before have none of it
                self.optional.add(suffix)
        return Cell(member, zlib.crc32(data), packed.facts)


def samples_of(
    file: BufferedIOBase, size: int, where: str
) -> Iterator[tuple[str, str, tar.Member]]:
    """Key, part and member of everything in a tar that belongs to a sample.

    Raises:
        DamagedError: A key comes back after another one, or a sample has a part twice.
    """
    seen: set[str] = set()
    current, suffixes = "", set[str]()
    for member in tar.scan(file, size, where):
        split = tar.split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if key != current:
            if key in seen:
                raise DamagedError(
                    f"{where}: key {key} comes back at offset {member.header}; the parts of a "
                    "sample lie side by side"
                )
            seen.add(key)
            current, suffixes = key, set()
        if suffix in suffixes:
            raise DamagedError(f"{where}: key {key} has the part {suffix} twice")
        suffixes.add(suffix)
        yield key, suffix, member


def _sha256(file: BufferedIOBase) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()
