"""`.streamshard/` put right from tars that are whole.

A tar is known by its hash to be as it was packed, so what is rebuilt from it is what was lost.
Where the hash differs, or nothing tells it any more, the tar may be damaged, and is taken as it is
only when asked to. The tars themselves are never touched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamshard.codec.base import Codec
from streamshard.codec.registry import codec_of, codec_of_packed
from streamshard.errors import (
    DamagedError,
    NotFoundError,
    PackError,
    SampleError,
    StoreError,
    UsageError,
)
from streamshard.pack.index import Indexer, index_tars, sha256_of
from streamshard.pack.known import (
    Known,
    agrees,
    as_index,
    changes,
    read_known,
    read_old_index,
    same_facts,
    shard_names,
)
from streamshard.pack.patterns import samples_of, split_pattern
from streamshard.pack.publish import manifest_files
from streamshard.shard.manifest import (
    FOLDER,
    HEAD,
    Manifest,
    Part,
    Shard,
    ShardTable,
    index_name,
)
from streamshard.shard.sizes import SizesBuilder
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store

Progress = Callable[[int, int | None, int], None]

DAMAGED_HEAD = f"{FOLDER}/manifest.damaged.json"
_ACCEPT = "--accept-changes (accept_changes=True) takes them as they are, with a new fingerprint"
_FAILURES = (DamagedError, SampleError, StoreError, PackError)


@dataclass
class Repair:
    """What a repair did.

    Attributes:
        done: Files that were written, and why.
        left: What could not be put right, and why; nothing but files that came out as they were
            has been written then.
        notes: What else is worth knowing.
        fingerprint: Of the dataset, where it is whole now.
        was: The fingerprint before, where it is known.
    """

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str | None = None
    was: str | None = None


def repair(
    url: str | os.PathLike[str],
    *,
    index: str | None = None,
    accept_changes: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Rebuild what of a dataset's `.streamshard/` is missing, damaged or out of step with its tars.

    Indexes are written first, the manifest last, each at once; a repair that is killed leaves
    what reads right or is refused, and can be done again.

    Args:
        url: Folder or URL of the dataset; a pattern of tars where all sidecars are lost.
        index: Where `.streamshard/` lies when it is not beside the tars.
        accept_changes: Take tars as they are, also where their contents are not what was packed.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all (not known), and bytes done.

    Raises:
        UsageError: `url` names some of the tars of a dataset.
        DatasetError: The dataset is of another format version.
    """
    folder, names = split_pattern(os.fspath(url))
    tars = open_store(folder, storage_options)
    sidecars = open_store(index, storage_options) if index else tars
    known = read_known(sidecars)
    if known.head is None and known.table is None:
        begun = any(not name.startswith(".") for name in sidecars.list(FOLDER))
        if begun and not accept_changes:
            return Repair(left=[_nothing_tells(sidecars)])
        options = {"out": index, "storage_options": storage_options, "progress": progress}
        return _indexed_anew(url, tars, sidecars, options)
    if names != "*.tar":
        raise UsageError(f"{tars.where}/{names}: a dataset is repaired whole; name its folder")
    return _Repairer(tars, sidecars, known, accept_changes, progress).run()


def _nothing_tells(sidecars: Store) -> str:
    return (
        f"{sidecars.where}/{FOLDER}: neither manifest nor shard table is whole, so nothing tells "
        "whether the tars are all there and as they were packed (a pack that was not finished?); "
        "--accept-changes (accept_changes=True) indexes them anew"
    )


def _indexed_anew(url: Any, tars: Store, sidecars: Store, options: Mapping[str, Any]) -> Repair:
    """What `streamshard index` makes of tars without sidecars."""
    done = Repair()
    _keep_damaged(sidecars, done)
    if sidecars.exists(HEAD):
        sidecars.remove(HEAD)
    before = sidecars.list(FOLDER)
    try:
        done.fingerprint = index_tars(url, **options).fingerprint
    except _FAILURES as error:
        done.left.append(str(error))
        for name in set(sidecars.list(FOLDER)) - set(before):
            sidecars.remove(f"{FOLDER}/{name}")
        return done
    done.done.append(f"{sidecars.where}/{FOLDER}: made from the tars, as `streamshard index` would")
    done.notes += _lost_with_the_head(read_known(sidecars).parts or {})
    return done


def _keep_damaged(sidecars: Store, done: Repair) -> None:
    """Put a damaged manifest aside: class names are nowhere else."""
    if sidecars.exists(HEAD):
        with sidecars.create(DAMAGED_HEAD) as file:
            file.write(sidecars.map(HEAD).tobytes())
        done.notes.append(f"the damaged manifest is kept as {sidecars.where}/{DAMAGED_HEAD}")


def _lost_with_the_head(parts: Mapping[str, Part]) -> list[str]:
    notes = []
    if any(part.codec == "int" for part in parts.values()):
        notes.append("class names, if there were any, stood in the manifest only: they are lost")
    if any(part.codec == "graph" for part in parts.values()):
        notes.append(
            "whether graphs had num_nodes set beside x, or edges in int32, "
            "stood in the manifest only"
        )
    return notes


class _Repairer:
    """Goes over the shards and gathers what is to be written."""

    def __init__(
        self,
        tars: Store,
        sidecars: Store,
        known: Known,
        accept: bool,
        progress: Progress | None,
    ) -> None:
        self._tars, self._sidecars, self._known = tars, sidecars, known
        self._accept, self._progress = accept, progress
        self._result = Repair(was=known.fingerprint)
        self._begin()

    def _begin(self) -> None:
        self._indexer = Indexer(self._tars, self._known.parts, self._codec)
        self._sizes = SizesBuilder()
        self._rows: list[Shard] = []
        self._held: dict[str, bytes] = {}  # indexes that differ from what the table says
        self._changed: list[str] = []
        self._odd: list[str] = []  # tars that their indexes are out of step with
        self._unproven: list[str] = []  # of graphs, with nothing to compare them to

    def _codec(self, suffix: str) -> Codec:
        parts = (self._known.parts or {}).values()
        schema = next((part.schema for part in parts if part.suffix == suffix), {})
        return codec_of_packed(suffix, schema)

    def run(self) -> Repair:
        result = self._result
        try:
            names = shard_names(self._known, self._tars, self._sidecars)
        except DamagedError as error:
            result.left.append(str(error))
            return result
        self._survey(names, trust=True)
        if self._known.table is None and not self._is_as_written() and self._is_as_packed():
            self._begin()
            self._survey(names, trust=False)
        self._conclude()
        if not result.left:
            self._write()
            self._note_others(names)
        return result

    def _survey(self, names: list[str], *, trust: bool) -> None:
        """Look at every shard.

        Args:
            names: Of the shards.
            trust: Keep indexes that agree with their tars, though their hashes are lost.
        """
        table = self._known.table
        samples = nbytes = 0
        for number, name in enumerate(names):
            recorded = None if table is None else table[number]
            try:
                row = self._look(name, recorded, trust=trust or recorded is not None)
            except NotFoundError as error:
                self._result.left.append(f"{error}; bring it back")
                continue
            except _FAILURES as error:
                self._result.left.append(f"{error}; nothing is rebuilt from this tar")
                continue
            self._rows.append(row)
            samples, nbytes = samples + row.samples, nbytes + row.nbytes
            if self._progress:
                self._progress(samples, None, nbytes)

    def _look(self, name: str, recorded: Shard | None, *, trust: bool) -> Shard:
        """The row of a shard, whose index is kept or rebuilt."""
        where = f"{self._tars.where}/{name}"
        old = read_old_index(self._sidecars, name, recorded)
        parts = self._known.parts
        with self._tars.stream(name) as file:
            size = file.seek(0, os.SEEK_END)
            keys: dict[str, None] = {}
            suffixes: dict[str, None] = {}
            for key, suffix, _ in samples_of(file, size, where):
                keys[key] = suffixes[suffix] = None
            digest = sha256_of(file)
            is_changed = recorded is not None and digest != recorded.sha256
            if (
                old
                and trust
                and parts
                and not is_changed
                and agrees(file, size, [*keys], old, parts)
            ):
                self._indexer.note(suffixes)
                self._sizes.add(old)
                return Shard(name, len(keys), size, digest, hashlib.sha256(old).digest())
        return self._rebuild(name, recorded, old if trust else None, is_changed)

    def _rebuild(
        self, name: str, recorded: Shard | None, old: bytes | None, is_changed: bool
    ) -> Shard:
        where = f"{self._tars.where}/{name}"
        self._check_codecs(where)
        row, index = self._indexer.read(name)
        as_was = recorded is not None and recorded.index_sha256 == row.index_sha256
        if not as_was:
            self._check_graphs(where, recorded, old, index)
        if is_changed:
            told = changes(
                as_index(old, name) if old else None, as_index(index, name), self._indexer.parts()
            )
            self._changed.append(f"{where}: not what was packed: {told}{self._origin(name, row)}")
        elif recorded is None and old:
            self._odd.append(name)
        elif as_was and old is None:
            self._put(index_name(name), index)
        elif old and not as_was and self._known.head is None:
            with self._tars.stream(name) as file:
                keys = [*as_index(index, name).keys]
                if agrees(file, row.nbytes, keys, old, self._indexer.parts()):
                    row, index = row._replace(index_sha256=hashlib.sha256(old).digest()), old
        self._sizes.add(index)
        if index != old:
            self._held[index_name(name)] = index
        return row

    def _check_codecs(self, where: str) -> None:
        for name, part in (self._known.parts or {}).items():
            if part.codec != codec_of(part.suffix).name:
                raise SampleError(
                    f"{where}: part {name} was packed by a codec {part.codec!r} of its own, "
                    "which this command does not have"
                )

    def _check_graphs(
        self, where: str, recorded: Shard | None, old: bytes | None, index: bytes
    ) -> None:
        """Refuse graphs whose facts come out otherwise than pack wrote them.

        A class of its own may have had other rules of batching, and integers that were narrowed
        another dtype: bytes don't tell.
        """
        for name, part in self._indexer.parts().items():
            if part.codec != "graph":
                continue
            if old is None and recorded is None:
                self._unproven.append(where)
            elif old is None or not same_facts(
                as_index(old, where), as_index(index, where), part, name
            ):
                raise SampleError(
                    f"{where}: what the index told of its graphs can't be told by their bytes "
                    "(a class with rules of its own, narrowed integers, or another version); "
                    "pack them again"
                )

    def _origin(self, name: str, row: Shard) -> str:
        """Where those bytes were when they were packed."""
        table = self._known.table
        assert table is not None
        others = [shard.name for shard in table if shard.sha256 == row.sha256]
        return f"; it holds what {others[0]} was packed with" if others else ""

    def _is_as_written(self) -> bool:
        head = self._known.head
        table = ShardTable.of(self._rows).to_bytes() if self._rows else b""
        return head is not None and hashlib.sha256(table).hexdigest() == head["table_sha256"]

    def _is_as_packed(self) -> bool:
        return bool(self._rows) and ShardTable.of(self._rows).fingerprint() == self._result.was

    def _conclude(self) -> None:
        """Say what stands against writing."""
        result = self._result
        if result.left:
            result.left += self._changed
            return
        if not self._changed and not self._is_as_packed():
            told = f"out of step with their indexes: {', '.join(self._odd)}" if self._odd else ""
            self._changed.append(
                f"{self._tars.where}: the tars together are not what was packed, and with the "
                f"shard table lost {told or 'nothing tells which of them differ'}"
            )
        if self._changed and not self._accept:
            result.left += [*self._changed, f"contents differ from what was packed: {_ACCEPT}"]
        if self._unproven and not self._is_as_written():
            result.left.append(
                f"{self._unproven[0]}: what the index told of its graphs can't be proven to follow "
                "from their bytes; pack them again"
            )

    def _write(self) -> None:
        result, head = self._result, self._known.head
        parts = self._indexer.parts()
        with_sizes = head is None or "sizes_sha256" in head
        manifest = Manifest(parts, ShardTable.of(self._rows), head["classes"] if head else None)
        manifest, files = manifest_files(manifest, self._sizes if with_sizes else None)
        if head is None:
            _keep_damaged(self._sidecars, result)
            result.notes += _lost_with_the_head(parts)
        for name, data in {**self._held, **files}.items():
            self._put(name, data)
        result.fingerprint = manifest.fingerprint
        if self._changed:
            result.notes += [f"accepted: {line}" for line in self._changed]
        if self._indexer.unread:
            result.notes.append(f"{self._indexer.unread} parts could not be decoded")

    def _put(self, name: str, data: bytes) -> None:
        """Write a file, if another one is there or none."""
        why = "missing"
        try:
            if self._sidecars.map(name).tobytes() == data:
                return
            why = "damaged or out of step"
        except NotFoundError:
            pass
        with self._sidecars.create(name) as file:
            file.write(data)
        self._result.done.append(f"{self._sidecars.where}/{name}: rebuilt; it was {why}")

    def _note_others(self, names: list[str]) -> None:
        for name in sorted(set(self._tars.list()) - set(names)):
            if name.endswith(".tar"):
                self._result.notes.append(
                    f"{self._tars.where}/{name}: not of this dataset; left alone"
                )
