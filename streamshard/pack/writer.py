"""Writes samples into shards: a tar and its index each, the manifest last."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from streamshard.codec.base import Codec, Packed, Schema
from streamshard.codec.registry import suffix_of
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.encode import Encoder
from streamshard.shard import tar
from streamshard.shard.index import Cell, IndexBuilder
from streamshard.shard.interop import ENERGON, ENERGON_FILES
from streamshard.shard.manifest import FOLDER, HEAD, Manifest, Part, Shard, ShardTable, index_name
from streamshard.shard.sizes import SIZES, SizesBuilder
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store

_SHARD_RULE = re.compile(
    r"^shard-\d{6,}(\.tar|\.idx|\.tar\.idx)$|^\.shard-\d{6,}\.(tar|idx|tar\.idx)\.\d+\.tmp$"
)
_SIDECAR_RULE = re.compile(
    r"(manifest(\.damaged)?\.json|wids\.json|(shards|sizes)\.safetensors"
    r"|shard-\d{6,}\.index\.safetensors)"
    r"|\.(manifest|wids|shard|sizes).*\.\d+\.tmp"
)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 64MB; units are decimal.

    >>> parse_size("2MB"), parse_size(512)
    (2000000, 512)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(size).upper())
    unit = match[2] if match else ""
    unit += "B" if unit and not unit.endswith("B") else ""
    unit = "" if unit == "B" else unit
    if not match or float(match[1]) * _UNITS[unit] < 1:
        raise UsageError(f"size {size!r}; a number of bytes or something like 64MB is wanted")
    return int(float(match[1]) * _UNITS[unit])


class ShardWriter:
    """Writes a dataset sample by sample.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ShardWriter(folder + "/own", shard_size="1MB") as writer:
    ...         writer.write({"__key__": "000001", "txt": "hello", "cls": 3})
    ...     writer.manifest.fingerprint
    '0b38b423381c794716e3bf94e64a91f6'
    """

    def __init__(
        self,
        destination: str | os.PathLike[str],
        *,
        shard_size: int | str = "256MB",
        classes: Sequence[str] | None = None,
        codecs: Mapping[str, Codec] | None = None,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a dataset.

        Args:
            destination: Folder or URL; it must hold nothing yet.
            shard_size: Bytes after which the next shard begins; a shard holds whole samples, so it
                may be smaller by up to one sample, and a larger sample has a shard of its own.
            classes: Class names by `cls`.
            codecs: Codecs by part where the suffix's own is not wanted.
            overwrite: Remove the dataset that lies there.
            storage_options: For fsspec.

        Raises:
            UsageError: There is something at the destination already, or the size is not one.
        """
        self._shard_size = parse_size(shard_size)
        self._store = open_store(destination, storage_options)
        self._classes, self._encode = classes, Encoder(codecs)
        self._schemas: dict[str, Schema] = {}
        self._shards: list[Shard] = []
        self._finished_bytes = 0
        self._open: _OpenShard | None = None
        self._hashes = np.zeros(0, np.uint64)  # of the keys of all finished shards, sorted
        self._sizes = SizesBuilder()
        self._manifest: Manifest | None = None
        make_room(self._store, overwrite=overwrite)

    def write(self, sample: Mapping[str, Any]) -> None:
        """Append a sample.

        Args:
            sample: `__key__` and a value for each part; bytes are written as they are, other
                values as the part's codec encodes them.

        Raises:
            SampleError: A key or value can't be kept; the writer is as it was before.
        """
        self.append(*self._encode(sample))

    def append(self, key: str, packed: Mapping[str, Packed]) -> None:
        """Append what an `Encoder` made of a sample, in this process or another."""
        key_hash = _key_hash(key)
        if (self._open and key in self._open.keys) or self._is_finished(key_hash):
            raise SampleError(f"key {key!r} is there twice; keys are unique over a dataset")
        schemas = self._merge(key, packed)
        size = sum(
            tar.BLOCK + len(part.data) + tar.padding(len(part.data)) for part in packed.values()
        )
        if self._open and self._open.size + size + len(tar.END) > self._shard_size:
            self._finish_shard()
        if self._open is None:
            name = f"shard-{len(self._shards):06d}.tar"
            self._open = _OpenShard(self._store, name, list(packed))
        self._open.append(key, key_hash, packed)
        self._schemas = schemas

    def close(self) -> None:
        """Write what is left, then the manifest: from here on the dataset exists.

        Raises:
            PackError: There was no sample.
        """
        if self._open:
            self._finish_shard()
        if not self._shards:
            raise PackError(
                f"{self._store.where}: no sample was written; a dataset has at least one"
            )
        parts = {
            part: Part(suffix_of(part), self._encode.codec(part).name, schema)
            for part, schema in self._schemas.items()
        }
        manifest = Manifest(parts, ShardTable.of(self._shards), self._classes)
        self._manifest = write_manifest(self._store, manifest, self._sizes)

    @property
    def bytes_written(self) -> int:
        """Bytes of the tars so far."""
        return self._finished_bytes + (self._open.size if self._open else 0)

    @property
    def manifest(self) -> Manifest:
        """What was written; there is none before `close`."""
        if self._manifest is None:
            raise UsageError("the dataset is not closed yet, so it has no manifest")
        return self._manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._open:
            self._open.abandon()

    def _merge(self, key: str, packed: Mapping[str, Packed]) -> dict[str, Schema]:
        """The schemas that hold with this sample too."""
        if not self._schemas:
            if not packed:
                raise SampleError(f"key {key}: a sample without parts")
            return {part: value.schema for part, value in packed.items()}
        if set(packed) != set(self._schemas):
            raise SampleError(
                f"key {key} has the parts {sorted(packed)}, the samples before "
                f"{sorted(self._schemas)}; every sample has the same"
            )
        merged = {}
        for part, schema in self._schemas.items():
            try:
                merged[part] = self._encode.codec(part).merge(schema, packed[part].schema)
            except ValueError as error:
                raise SampleError(f"key {key}, part {part}: {error}") from None
        return merged

    def _is_finished(self, key_hash: int) -> bool:
        """Whether a shard before the open one has the key with this hash."""
        value = np.uint64(key_hash)
        at = int(np.searchsorted(self._hashes, value))
        return at < len(self._hashes) and bool(self._hashes[at] == value)

    def _finish_shard(self) -> None:
        assert self._open is not None
        hashes = np.array(list(self._open.keys.values()), np.uint64)
        self._hashes = np.sort(np.concatenate([self._hashes, hashes]))
        self._shards.append(self._open.finish(self._sizes))
        self._finished_bytes += self._shards[-1].nbytes
        self._open = None


def _key_hash(key: str) -> int:
    """64 bits of a key, to find repeats over shards without keeping every key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def make_room(store: Store, *, overwrite: bool) -> None:
    """Refuse a destination that holds anything; with `overwrite`, remove the dataset there.

    Only a dataset's own files are removed, the manifest first, so that no half of it is ever read.

    Raises:
        UsageError: Something lies there.
    """
    found = store.list()
    if not found:
        return
    if not overwrite:
        raise UsageError(
            f"{store.where} holds {found[0]} already; "
            "--overwrite (overwrite=True) replaces a dataset"
        )
    ours = [name for name in found if _SHARD_RULE.fullmatch(name)]
    names = store.list(FOLDER)
    sidecars = [f"{FOLDER}/{name}" for name in names]
    others = [f"{FOLDER}/{name}" for name in names if not _SIDECAR_RULE.fullmatch(name)]
    exported = store.list(ENERGON)
    others += [f"{ENERGON}/{name}" for name in exported if not _is_energon(name)]
    ours += [f"{ENERGON}/{name}" for name in exported]
    if foreign := sorted({*found} - {*ours, FOLDER, ENERGON}) + others:
        raise UsageError(
            f"{store.where} holds {foreign[0]}, which no pack wrote; choose another place"
        )
    for name in sorted(sidecars, key=lambda name: name != HEAD) + ours:
        store.remove(name)


def _is_energon(name: str) -> bool:
    """Whether an export makes such a file in Energon's folder, or leaves it when killed."""
    return re.sub(r"^\.(.*)\.\d+\.tmp$", r"\1", name) in ENERGON_FILES


def write_manifest(store: Store, manifest: Manifest, sizes: SizesBuilder) -> Manifest:
    """Publish a dataset: the sizes of its graphs where it has any, the shard table, then the head.

    Returns:
        The manifest as it was written.
    """
    manifest, files = manifest_files(manifest, sizes)
    for name, data in files.items():
        with store.create(name) as file:
            file.write(data)
    return manifest


def manifest_files(
    manifest: Manifest, sizes: SizesBuilder | None
) -> tuple[Manifest, dict[str, bytes]]:
    """What `write_manifest` writes, by name and in order; without sizes of graphs where None."""
    files = {}
    if sizes and sizes.has_graphs:
        files[SIZES] = sizes.to_bytes()
        digest = hashlib.sha256(files[SIZES]).hexdigest()
        manifest = dataclasses.replace(manifest, sizes_sha256=digest)
    return manifest, {**files, **manifest.to_files()}


class _OpenShard:
    """The shard that is being written."""

    def __init__(self, store: Store, name: str, parts: Sequence[str]) -> None:
        self._store, self._name = store, name
        self._context = contextlib.ExitStack()
        self._file: BinaryIO = self._context.enter_context(store.create(name))
        self._digest = hashlib.sha256()
        self._index = IndexBuilder(parts)
        self._parts = parts
        self.keys: dict[str, int] = {}  # and their hashes
        self.size = 0

    def append(self, key: str, key_hash: int, packed: Mapping[str, Packed]) -> None:
        self.keys[key] = key_hash
        cells = {}
        for part in self._parts:
            data, facts, _ = packed[part]
            name = f"{key}.{suffix_of(part)}"
            member = tar.Member(name, self.size, self.size + tar.BLOCK, len(data))
            self._put(tar.header(name, len(data)))
            self._put(data)
            self._put(bytes(tar.padding(len(data))))
            cells[part] = Cell(member, zlib.crc32(data), facts)
        self._index.add(key, cells)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self, sizes: SizesBuilder) -> Shard:
        """Publish the tar, then its index; take note of the sizes of its graphs."""
        self._put(tar.END)
        self._context.close()
        index = self._index.to_bytes()
        sizes.add(index)
        with self._store.create(index_name(self._name)) as file:
            file.write(index)
        return Shard(
            self._name,
            len(self._index),
            self.size,
            self._digest.digest(),
            hashlib.sha256(index).digest(),
        )

    def abandon(self) -> None:
        """Leave nothing of this shard behind."""
        error = PackError("abandoned")
        self._context.__exit__(PackError, error, None)
