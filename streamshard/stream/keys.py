"""Where a key is, by the indexes alone: one shard's keys at a time, and never as Python strings."""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DatasetError
from streamshard.shard import tar
from streamshard.shard.columns import Strings
from streamshard.stream.reader import Shards

_NEAR_IN_SHARD = 8  # keys of a shard that are looked at more closely
_NEAR = 64  # of the dataset
_TOLD = 3
_COMPARED = 200  # bytes of a key


def find(shards: Shards, key: str) -> tuple[int, int] | None:
    """Shard and row of a key; None where no sample has it."""
    for shard in range(len(shards.manifest.table)):
        row = row_of(shards.read_index(shard).keys, key)
        if row is not None:
            return shard, row
    return None


def find_part(shards: Shards, name: str) -> tuple[int, int, str | None]:
    """Shard, row and part of a key, or of a key and a part with a dot between them.

    Args:
        shards: The dataset.
        name: `KEY` or `KEY.PART`; a part by its name or its suffix in the tar.

    Returns:
        The part is None where none was named.

    Raises:
        DatasetError: There is no such key, or its sample has no such part.
    """
    key, part = tar.split_name(name) or (name, None)
    at = find(shards, key)
    if at is None:
        raise DatasetError(f"{shards.where}: no key {key!r}{_near_text(shards, key)}")
    if part is None:
        return *at, None
    there = sizes_of(shards, *at)
    for known in there:
        if part in (known, shards.manifest.parts[known].suffix):
            return *at, known
    raise DatasetError(f"{shards.where}: key {key} has no part {part!r}, only {', '.join(there)}")


def row_of(keys: Strings, key: str) -> int | None:
    """The row of a key among those of a shard.

    >>> row_of(Strings.of(["a", "bcd", "bce"]), "bce")
    2
    """
    wanted = np.frombuffer(key.encode("utf-8", "surrogateescape"), np.uint8)
    begins, lengths = _spans(keys)
    rows = np.flatnonzero(lengths == len(wanted))
    # From the end: that is where keys differ.
    for at in reversed(range(len(wanted))):
        rows = rows[keys.data[begins[rows] + at] == wanted[at]]
    return int(rows[0]) if len(rows) else None


def near(shards: Shards, key: str) -> list[str]:
    """Keys that look like `key`, the most alike first."""
    found: list[tuple[int, str]] = []
    for shard in range(len(shards.manifest.table)):
        keys = shards.read_index(shard).keys
        alike = _alike(keys, key)
        rows = np.argsort(-alike, kind="stable")[:_NEAR_IN_SHARD].tolist()
        found += [(int(alike[row]), keys[row]) for row in rows]
        found = sorted(found, key=lambda pair: -pair[0])[:_NEAR]
    return difflib.get_close_matches(key, [name for _, name in found], _TOLD)


def _near_text(shards: Shards, key: str) -> str:
    names = near(shards, key)
    return f"; near it: {', '.join(names)}" if names else "; `streamshard ls` lists them"


def _alike(keys: Strings, key: str) -> NDArray[np.int64]:
    """How many bytes each key has in common with `key` at its beginning and at its end."""
    wanted = np.frombuffer(key.encode("utf-8", "surrogateescape"), np.uint8)[:_COMPARED]
    begins, lengths = _spans(keys)
    head = _run(keys.data, begins, 1, lengths, wanted)
    return head + _run(keys.data, begins + lengths - 1, -1, lengths, wanted[::-1])


def _run(
    data: NDArray[np.uint8],
    firsts: NDArray[np.int64],
    step: int,
    lengths: NDArray[np.int64],
    letters: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """How many letters each key has in common, counted from `firsts` on until one differs."""
    alike = np.zeros(len(firsts), np.int64)
    rows: NDArray[np.int64] = np.arange(len(firsts))
    for at, letter in enumerate(letters.tolist()):
        rows = rows[lengths[rows] > at]
        rows = rows[data[firsts[rows] + step * at] == letter]
        alike[rows] += 1
    return alike


def _spans(keys: Strings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each key begins, and its bytes."""
    ends = np.asarray(keys.ends, np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return begins, ends - begins


def sizes_of(shards: Shards, shard: int, row: int) -> dict[str, int]:
    """The parts that a sample has, and their bytes."""
    sizes = {part: int(shards.extent(shard, part).size[row]) for part in shards.manifest.parts}
    return {part: size for part, size in sizes.items() if size >= 0}
