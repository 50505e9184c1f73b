"""Sidecars for other readers, beside the shards of a dataset."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DamagedError, UsageError
from streamshard.shard import interop
from streamshard.shard.interop import Members
from streamshard.shard.manifest import Manifest, Shard
from streamshard.store.base import Store
from streamshard.stream.reader import Shards

Progress = Callable[[int, int | None, int], None]

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        formats: For which readers.
        files: Their files, those that were there already too.
        bytes: Of these files.
        fingerprint: Of the dataset.
    """

    formats: Sequence[str]
    files: int
    bytes: int
    fingerprint: str


def parse_formats(text: str) -> list[str]:
    """The readers that a list names, each once, in the order of `interop.FORMATS`.

    >>> parse_formats("energon,wids")
    ['wids', 'energon']

    Raises:
        UsageError: One is not known.
    """
    wanted = {name.strip() for name in text.split(",")}
    if unknown := sorted(wanted - {*interop.FORMATS}):
        raise UsageError(f"export to {unknown[0]!r}; known are {', '.join(interop.FORMATS)}")
    return [name for name in interop.FORMATS if name in wanted]


def export(
    url: str | os.PathLike[str],
    to: str,
    *,
    index: str | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write what other readers want beside the shards; the shards are not touched.

    From the indexes alone, but that wids wants the MD5 of every tar, and that the headers of tars
    that others wrote are read for Energon.

    Args:
        url: Folder or URL of the dataset.
        to: Readers, separated by commas: wids, dali, energon.
        index: Where `.streamshard/` lies when it is not beside the tars.
        overwrite: Replace files of these names that hold something else.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes of the tars done.

    Returns:
        What was written.

    Raises:
        UsageError: A reader is not known, or a file of that name holds something else.
        DamagedError: A tar is not the one that its index was made for.
        DatasetError: A key can't be kept in a format.
    """
    formats = parse_formats(to)
    shards = Shards(url, index=index, storage_options=storage_options)
    out = _Out(shards.store, overwrite=overwrite)
    writers = [_WRITERS[name](shards.manifest, out) for name in formats]
    samples = bytes_done = 0
    try:
        for layout in _layouts(shards):
            for writer in writers:
                writer.add(layout)
            samples += layout.shard.samples
            bytes_done += layout.shard.nbytes
            if progress:
                progress(samples, len(shards), bytes_done)
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.close()
    return Exported(formats, out.files, out.bytes, shards.manifest.fingerprint)


class _Layout(NamedTuple):
    """One shard, and where everything lies in it."""

    store: Store
    shard: Shard
    keys: Sequence[str]
    members: Members
    suffixes: Sequence[str]

    @property
    def where(self) -> str:
        return f"{self.store.where}/{self.shard.name}"

    def begins(self) -> NDArray[np.int64]:
        """See `Members.begins`."""
        found = self.members.begins(self.shard.nbytes)
        if found is None:
            with self.store.stream(self.shard.name) as file:
                found = interop.scan_begins(file, self.shard.nbytes, self.where)
        if len(found) != len(self.keys) + 1:
            raise DamagedError(
                f"{self.where}: {len(found) - 1} samples in the tar, {len(self.keys)} in its index"
            )
        return found


def _layouts(shards: Shards) -> Iterator[_Layout]:
    parts = shards.manifest.parts
    suffixes = [part.suffix for part in parts.values()]
    for number, shard in enumerate(shards.manifest.table):
        index = shards.read_index(number)
        file = shards.store.open(shard.name)
        file.close()
        if file.size != shard.nbytes:
            raise DamagedError(
                f"{shards.where}/{shard.name}: {file.size} bytes, the manifest says {shard.nbytes}"
            )
        yield _Layout(shards.store, shard, index.keys, Members.of(index, parts), suffixes)


class _Out:
    """Writes files, but none over something else."""

    def __init__(self, store: Store, *, overwrite: bool) -> None:
        self._store, self._overwrite = store, overwrite
        self.files = self.bytes = 0

    def put(self, name: str, data: bytes | NDArray[np.uint8]) -> None:
        self.files, self.bytes = self.files + 1, self.bytes + len(data)
        if self._store.exists(name):
            found = self._store.map(name)
            if len(found) == len(data) and _digest(found) == _digest(data):
                return
            if not self._overwrite:
                raise UsageError(
                    f"{self._store.where}/{name} is there already and holds something else; "
                    "--overwrite (overwrite=True) replaces it"
                )
        with self._store.create(name) as file:
            file.write(memoryview(data))


def _digest(data: bytes | NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(data).digest()


class _Writer(Protocol):
    """Writes one format."""

    def __init__(self, manifest: Manifest, out: _Out) -> None: ...

    def add(self, layout: _Layout) -> None:
        """Take the next shard."""

    def finish(self) -> None:
        """Write what is of the whole dataset."""

    def close(self) -> None:
        """Leave nothing temporary behind."""


class _Wids:
    def __init__(self, manifest: Manifest, out: _Out) -> None:
        self._manifest, self._out = manifest, out
        self._md5s: list[str] = []

    def add(self, layout: _Layout) -> None:
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        with layout.store.stream(layout.shard.name) as file:
            while chunk := file.read(_CHUNK):
                md5.update(chunk)
                sha256.update(chunk)
        if sha256.digest() != layout.shard.sha256:
            raise DamagedError(
                f"{layout.where}: sha256 differs from the manifest's; "
                "`streamshard verify` tells what is damaged"
            )
        self._md5s.append(md5.hexdigest())

    def finish(self) -> None:
        self._out.put(interop.WIDS, interop.wids_bytes(self._manifest, self._md5s))

    def close(self) -> None:
        pass


class _Dali:
    def __init__(self, manifest: Manifest, out: _Out) -> None:
        self._out = out

    def add(self, layout: _Layout) -> None:
        data = interop.dali_bytes(layout.members, layout.keys, layout.suffixes, layout.where)
        self._out.put(interop.dali_name(layout.shard.name), data)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Energon:
    def __init__(self, manifest: Manifest, out: _Out) -> None:
        self._manifest, self._out = manifest, out
        self._folder = tempfile.TemporaryDirectory(prefix="streamshard-")
        self._path = Path(self._folder.name) / "index.sqlite"
        self._tables = interop.EnergonTables(str(self._path))

    def add(self, layout: _Layout) -> None:
        begins = layout.begins()
        self._tables.add(layout.members, begins, layout.keys, layout.suffixes, layout.where)
        self._out.put(interop.energon_name(layout.shard.name), interop.energon_bytes(begins))

    def finish(self) -> None:
        self._tables.finish()
        self._out.put(interop.ENERGON_SQLITE, np.memmap(self._path, np.uint8, "r"))
        for name, data in interop.energon_files(self._manifest).items():
            self._out.put(name, data)

    def close(self) -> None:
        self._tables.close()
        self._folder.cleanup()


_WRITERS: Mapping[str, type[_Writer]] = {"wids": _Wids, "dali": _Dali, "energon": _Energon}
