"""What the sidecars of a damaged dataset still tell, and can be trusted in."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

from streamshard.codec.meaning import Meaning
from streamshard.errors import DamagedError, NotFoundError, StreamshardError
from streamshard.shard import columns
from streamshard.shard.index import MISSING, Index
from streamshard.shard.manifest import (
    FOLDER,
    TABLE,
    Part,
    Shard,
    ShardTable,
    index_name,
    read_head,
)
from streamshard.shard.verify import part_damage
from streamshard.store.base import Store

_OURS = re.compile(r"shard-\d{6,}\.tar")
_INDEX = ".index.safetensors"


@dataclass(frozen=True)
class Known:
    """Manifest and shard table, each as far as it is whole.

    Attributes:
        head: None where it is lost.
        table: None where it is lost, or not the one that the head was written with.
    """

    head: Mapping[str, Any] | None
    table: ShardTable | None

    @property
    def parts(self) -> dict[str, Part] | None:
        """What the head says of the samples."""
        if self.head is None:
            return None
        return {name: Part(**part) for name, part in self.head["parts"].items()}

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset that was packed."""
        if self.head is not None:
            return str(self.head["fingerprint"])
        return self.table.fingerprint() if self.table is not None else None


def read_known(sidecars: Store) -> Known:
    """Read manifest and shard table, without asking whether there is anything else.

    Raises:
        DatasetError: The format version is not this one.
    """
    try:
        head = read_head(sidecars, sidecars.where)
    except (DamagedError, NotFoundError):
        head = None
    return Known(head, _read_table(sidecars, head))


def _read_table(sidecars: Store, head: Mapping[str, Any] | None) -> ShardTable | None:
    try:
        data = sidecars.map(TABLE)
        if head and hashlib.sha256(data).hexdigest() != head["table_sha256"]:
            return None
        table = ShardTable(columns.from_buffer(data, TABLE))
        _ = list(table)  # which checks the names
    except (DamagedError, NotFoundError, ValueError, KeyError):
        return None
    return table


def shard_names(known: Known, tars: Store, sidecars: Store) -> list[str]:
    """The names of a dataset's shards in order, known or found.

    Raises:
        DamagedError: The shard table is lost, and it can't be told which tars were in it.
    """
    if known.table is not None:
        return [*known.table.names]
    assert known.head is not None
    wanted = int(known.head["shards"])
    there = [name for name in tars.list() if name.endswith(".tar")]
    indexed = [
        f"{name.removesuffix(_INDEX)}.tar"
        for name in sidecars.list(FOLDER)
        if name.endswith(_INDEX) and not name.startswith(".")
    ]
    ours = [name for name in there if _OURS.fullmatch(name)]
    for names in (indexed, ours, there):
        if len(names) == wanted:
            return _sorted(names)
    raise DamagedError(
        f"{sidecars.where}/{TABLE}: lost, and of the {wanted} shards that it told of "
        f"{len(there)} tars are in {tars.where}; bring back the others, or move away strangers"
    )


def _sorted(names: Sequence[str]) -> list[str]:
    """In pack order: by number where pack named them, else by name."""
    are_ours = all(_OURS.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (len(name) if are_ours else 0, name))


def read_old_index(sidecars: Store, name: str, recorded: Shard | None) -> bytes | None:
    """A shard's index where it is there, and where its hash is known, the one that was written."""
    try:
        data = sidecars.map(index_name(name)).tobytes()
        if recorded and hashlib.sha256(data).digest() != recorded.index_sha256:
            return None
        as_index(data, name)
    except (StreamshardError, ValueError):
        return None
    return data


def as_index(data: bytes, where: str) -> Index:
    """The index in some bytes."""
    return Index(columns.from_buffer(np.frombuffer(data, np.uint8), where), where)


def agrees(
    file: BufferedIOBase, size: int, keys: Sequence[str], data: bytes, parts: Mapping[str, Part]
) -> bool:
    """Whether an index is that of a tar: keys, headers, the crc32 of every part, and its facts."""
    judge = Meaning(decode=False)
    try:
        index = as_index(data, "index")
        return [*index.keys] == [*keys] and not any(
            True
            for name, part in parts.items()
            for _ in itertools.chain(
                judge.rows(name, part, index),
                part_damage(file, size, index, name, part, "", judge),
            )
        )
    except (StreamshardError, ValueError, IndexError):
        return False


def same_facts(old: Index, new: Index, part: Part, name: str) -> bool:
    """Whether two indexes tell the same of all samples whose bytes are the same in both."""
    rows = _common_rows(old, new, part, name)
    if not len(rows):
        return True
    (mine, before), (theirs, after) = old.matrix(name), new.matrix(name)
    nothing = np.full(len(rows), MISSING)
    return all(
        np.array_equal(
            before[mine[fact]][rows[:, 0]] if fact in mine else nothing,
            after[theirs[fact]][rows[:, 1]] if fact in theirs else nothing,
        )
        for fact in {*mine, *theirs}
    )


def _common_rows(old: Index, new: Index, part: Part, name: str) -> Any:
    """(samples, 2): the rows in both indexes of what has the same key and bytes."""
    before = old.extent(name, optional=part.optional).crc32.tolist()
    after = new.extent(name, optional=part.optional).crc32.tolist()
    at = {pair: row for row, pair in enumerate(zip(new.keys, after, strict=True))}
    pairs = enumerate(zip(old.keys, before, strict=True))
    return np.array([(row, at[pair]) for row, pair in pairs if pair in at], np.int64)


def changes(old: Index | None, new: Index, parts: Mapping[str, Part]) -> str:
    """What differs between what was packed and what is there, for people."""
    if old is None:
        return "its index is lost too, so it can't be told which samples"
    before, after = (_contents(index, parts) for index in (old, new))
    kinds = {
        "changed": [k for k, crcs in before.items() if k in after and after[k] != crcs],
        "lost": [key for key in before if key not in after],
        "new": [key for key in after if key not in before],
    }
    told = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return f"samples {', '.join(told)}" if told else "headers or padding, not the samples"


def _contents(index: Index, parts: Mapping[str, Part]) -> dict[str, tuple[int, ...]]:
    crcs = [index.extent(name, optional=True).crc32.tolist() for name in parts]
    return dict(zip(index.keys, zip(*crcs, strict=True), strict=True))
