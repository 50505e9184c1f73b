"""Nodes and edges of every graph of a dataset, in one file.

`.streamshard/sizes.safetensors` repeats the columns `graph:nodes` and `graph:edges` of all indexes,
end to end in pack order: batches limited by them are planned from the sizes of all graphs, which
are then one file to map, not one for each shard. A sample without a graph has the size 0.

    nodes, edges            int32 where all values fit, else int64
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DamagedError, NotFoundError
from streamshard.shard import columns
from streamshard.shard.index import Index
from streamshard.shard.manifest import FOLDER, Manifest, Source

SIZES = f"{FOLDER}/sizes.safetensors"
GRAPH = "graph"  # the part

AnyInts = NDArray[np.int32] | NDArray[np.int64]


class Sizes(NamedTuple):
    """The sizes of some graphs: two arrays of one length, int32 or int64.

    Attributes:
        nodes: Of each graph.
        edges: Of each graph.
    """

    nodes: AnyInts
    edges: AnyInts

    @classmethod
    def of(cls, index: Index) -> Sizes:
        """The sizes of the graphs of one shard."""
        if not index.has_fact(GRAPH, "nodes"):
            nothing = np.zeros(len(index), np.int64)
            return cls(nothing, nothing)
        return cls(*(np.maximum(index.fact(GRAPH, name), 0) for name in cls._fields))

    @classmethod
    def joined(cls, sizes: list[Sizes]) -> Sizes:
        """Several of them end to end, as int32 where they fit."""
        return cls(*(_compact(np.concatenate(column)) for column in zip(*sizes, strict=True)))


def _compact(column: NDArray[np.int64]) -> AnyInts:
    return column.astype(np.int32) if column.max(initial=0) <= np.iinfo(np.int32).max else column


class SizesBuilder:
    """Collects the sizes of a dataset's graphs, shard by shard."""

    def __init__(self) -> None:
        self._sizes: list[Sizes] = []
        self.has_graphs = False

    def add(self, index: bytes) -> None:
        """Append what the index file of the next shard says."""
        read = Index(columns.from_buffer(np.frombuffer(index, np.uint8), "index"), "index")
        self.has_graphs |= read.has_fact(GRAPH, "nodes")
        self._sizes.append(Sizes.of(read))

    def to_bytes(self) -> bytes:
        """The file."""
        return columns.to_bytes(Sizes.joined(self._sizes)._asdict())


def read_sizes(source: Source, manifest: Manifest, where: str) -> Sizes | None:
    """The sizes of all graphs, memory-mapped where possible; None where they have no file.

    Args:
        source: Where `.streamshard/` lies.
        manifest: Of the dataset.
        where: What to call the dataset in errors.

    Raises:
        DamagedError: The file is missing, or not the one that the manifest was written with.
    """
    if manifest.sizes_sha256 is None:
        return None
    try:
        data = source.map(SIZES)
    except NotFoundError:
        raise DamagedError(f"{where}/{SIZES}: missing; the manifest was written with it") from None
    if hashlib.sha256(data).hexdigest() != manifest.sizes_sha256:
        raise DamagedError(f"{where}/{SIZES}: not the sizes that the manifest was written with")
    arrays = columns.from_buffer(data, f"{where}/{SIZES}")
    found = {name: array.shape for name, array in arrays.items()}
    if found != dict.fromkeys(Sizes._fields, (len(manifest),)):
        raise DamagedError(f"{where}/{SIZES}: columns {found} of {len(manifest)} samples")
    return Sizes(*(cast("AnyInts", arrays[name]) for name in Sizes._fields))


def size_damage(sizes: Sizes, begin: int, index: Index, where: str) -> Iterator[str]:
    """Where the sizes of a shard's graphs are not those of its index: the first of each column.

    Args:
        sizes: Of the dataset.
        begin: Number of the shard's first sample.
        index: Of the shard.
        where: What to call the dataset.
    """
    here = slice(begin, begin + len(index))
    for name, ours, theirs in zip(Sizes._fields, sizes, Sizes.of(index), strict=True):
        for row in np.flatnonzero(ours[here] != theirs)[:1].tolist():
            yield (
                f"{where}/{SIZES}: key {index.keys[row]} has {name}={ours[begin + row]}, "
                f"its index says {theirs[row]}"
            )
