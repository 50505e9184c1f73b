"""Writes samples into shards: a tar and its index each, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from streamshard import __version__
from streamshard.codec.base import Codec, Packed, Schema
from streamshard.codec.registry import suffix_of
from streamshard.errors import PackError, SampleError, StoreError, UsageError
from streamshard.pack.encode import Encoder
from streamshard.pack.files import Files
from streamshard.pack.journal import FILES, JOURNAL, Journal, Line, index_if_whole, line_name
from streamshard.pack.open_shard import OpenShard
from streamshard.pack.publish import write_manifest
from streamshard.pack.room import clear, take_room
from streamshard.pack.size import parse_size
from streamshard.shard import columns, tar
from streamshard.shard.index import Index
from streamshard.shard.manifest import Manifest, Part, Shard, ShardTable, index_name, read_manifest
from streamshard.shard.sizes import SizesBuilder
from streamshard.store.filesystem import open_store


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
        resume: bool = False,
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
            resume: Go on behind the shards that were finished there, if any were: `samples` says
                how many samples they have, which are not to be written again.
            storage_options: For fsspec.

        Raises:
            UsageError: There is something at the destination already, or the size is not one.
            PackError: Another pack writes there.
        """
        self._shard_size = parse_size(shard_size)
        self._store = open_store(destination, storage_options)
        self._classes, self._encode = classes, Encoder(codecs)
        self._schemas: dict[str, Schema] = {}
        self._told: dict[str, Schema] | None = None  # of the sample before
        self._shards: list[Shard] = []
        self._finished_bytes = self._finished_samples = 0
        self._open: OpenShard | None = None
        self._hashes = np.zeros(0, np.uint64)  # of the keys of all finished shards, sorted
        self._sizes = SizesBuilder()
        self._manifest: Manifest | None = None
        self._journal: Journal | None = None
        self._failed = False
        self._lock = take_room(self._store, overwrite=overwrite, resume=resume)
        if self._lock is None:
            self._manifest = read_manifest(self._store, self._store.where)

    def begin(self, about: Mapping[str, Any] | None = None, files: Files | None = None) -> Journal:
        """The journal; where a pack is gone on with, what is finished is taken up first.

        Args:
            about: What else decides the bytes: the source and its options, as JSON has them.
            files: The files of the source.

        Raises:
            PackError: The pack that was not finished is of another source, or other options.
        """
        if self._journal is None:
            self._refuse_if_over()
            assert self._lock
            journal = Journal(self._store)
            options = {
                "streamshard": __version__,
                "shard_size": self._shard_size,
                "classes": None if self._classes is None else list(self._classes),
                **(about or {}),
            }
            self._take_up(journal, journal.begin(options, files))
            self._journal = journal
        return self._journal

    def _take_up(self, journal: Journal, lines: Sequence[Line]) -> None:
        """Go on behind the shards that are whole, and remove what lies there of later ones."""
        finished, kept, hashes = list[Line](), {JOURNAL, FILES}, [self._hashes]
        for line in lines:
            data = index_if_whole(self._store, line.shard)
            if data is None:
                break
            index = Index(columns.from_buffer(np.frombuffer(data, np.uint8), "index"), "index")
            hashes.append(np.array([_key_hash(key) for key in index.keys], np.uint64))
            self._sizes.add(data)
            self._add(line.shard)
            self._schemas = line.schemas
            name = line.shard.name
            kept |= {name, index_name(name), line_name(name)}
            finished.append(line)
        self._hashes = np.sort(np.concatenate(hashes))
        journal.take_over(finished)
        clear(self._store, keep=kept if finished else ())

    def write(self, sample: Mapping[str, Any]) -> None:
        """Append a sample.

        Args:
            sample: `__key__` and a value for each part; bytes are written as they are, other
                values as the part's codec encodes them.

        Raises:
            SampleError: A key or value can't be kept; the writer is as it was before.
            StoreError: It can't be written; nothing more can, and what is finished can be resumed.
        """
        self.append(*self._encode(sample))
        journal = self.begin()
        journal.note()
        journal.end_input()

    def append(self, key: str, packed: Mapping[str, Packed]) -> None:
        """Append what an `Encoder` made of a sample, in this process or another."""
        self._refuse_if_over()
        journal = self.begin()
        key_hash = _key_hash(key)
        if (self._open and key in self._open.keys) or self._is_finished(key_hash):
            raise SampleError(f"key {key!r} is there twice; keys are unique over a dataset")
        told = {part: value.schema for part, value in packed.items()}
        # What was merged with the sample before makes no difference a second time.
        schemas = self._schemas if told == self._told else self._merge(key, told)
        size = sum([tar.member_size(len(value.data)) for value in packed.values()])
        try:  # not `_ended_by_errors`, which costs more than a small sample
            if self._open and self._open.size + size + len(tar.END) > self._shard_size:
                self._finish_shard()
            if self._open is None:
                journal.open()
                name = f"shard-{len(self._shards):06d}.tar"
                self._open = OpenShard(self._store, name, list(packed))
            self._open.append(key, key_hash, packed)
        except BaseException:
            self._give_up()
            raise
        self._schemas, self._told = schemas, told

    def close(self) -> None:
        """Write what is left, then the manifest: from here on the dataset exists.

        Raises:
            PackError: There was no sample.
        """
        if self._manifest:
            return
        self._refuse_if_over()
        with self._ended_by_errors():
            journal = self.begin()
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
            assert self._lock
            self._lock.check()
            self._manifest = write_manifest(self._store, manifest, self._sizes)
            journal.remove()
            self._lock.release()

    @property
    def bytes_written(self) -> int:
        """Bytes of the tars so far."""
        return self._finished_bytes + (self._open.size if self._open else 0)

    @property
    def samples(self) -> int:
        """Samples so far, with those that were there when a pack is gone on with."""
        if self._manifest:
            return len(self._manifest)
        self.begin()
        return self._finished_samples + (len(self._open.keys) if self._open else 0)

    @property
    def shards(self) -> int:
        """Finished shards."""
        return len(self._shards)

    @property
    def is_closed(self) -> bool:
        """Whether the dataset exists, which with `resume` it may from the beginning."""
        return self._manifest is not None

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
        elif not (self.is_closed or self._failed):
            self._give_up()

    def _refuse_if_over(self) -> None:
        if self._manifest or self._failed:
            what = "closed" if self._manifest else "ended by an error"
            raise UsageError(f"{self._store.where}: the writer is {what}; begin another one")

    @contextlib.contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """After an error in the middle of a shard there is nothing to go on with."""
        try:
            yield
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Leave finished shards and their journal, or nothing where there are none."""
        self._failed = True
        with contextlib.suppress(StoreError):
            if self._open:
                self._open.abandon()
        self._open = None
        with contextlib.suppress(StoreError):
            if self._journal is not None and not self._shards:
                clear(self._store, keep=())
        if self._lock:
            self._lock.release()

    def _merge(self, key: str, told: dict[str, Schema]) -> dict[str, Schema]:
        """The schemas that hold with a sample too that has these."""
        if not self._schemas:
            if not told:
                raise SampleError(f"key {key}: a sample without parts")
            return told
        if set(told) != set(self._schemas):
            raise SampleError(
                f"key {key} has the parts {sorted(told)}, the samples before "
                f"{sorted(self._schemas)}; every sample has the same"
            )
        merged = {}
        for part, schema in self._schemas.items():
            try:
                merged[part] = self._encode.codec(part).merge(schema, told[part])
            except ValueError as error:
                raise SampleError(f"key {key}, part {part}: {error}") from None
        return merged

    def _is_finished(self, key_hash: int) -> bool:
        """Whether a shard before the open one has the key with this hash."""
        value = np.uint64(key_hash)
        at = int(self._hashes.searchsorted(value))  # faster than numpy's function of that name
        return at < len(self._hashes) and bool(self._hashes[at] == value)

    def _add(self, shard: Shard) -> None:
        self._shards.append(shard)
        self._finished_bytes += shard.nbytes
        self._finished_samples += shard.samples

    def _finish_shard(self) -> None:
        """Publish the open shard: its tar, its index, then its line in the journal."""
        assert self._open
        assert self._lock
        self._lock.check()
        hashes = np.array(list(self._open.keys.values()), np.uint64)
        shard = self._open.finish(self._sizes)
        self.begin().add(shard, self._schemas)
        self._hashes = np.sort(np.concatenate([self._hashes, hashes]))
        self._add(shard)
        self._open = None


def _key_hash(key: str) -> int:
    """64 bits of a key, to find repeats over shards without keeping every key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
