"""Parts whose bytes are wanted as they are: read straight into their place in the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import SampleError
from streamshard.plan.order import Ints, Places
from streamshard.shard.index import MISSING
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.collate import add_listed
from streamshard.stream.parts import AllPlaces, PartReader, Place, by_shard
from streamshard.stream.reader import Shards


class RawRows(NamedTuple):
    """The bytes of all samples of a batch, to be read when there is memory for them.

    Attributes:
        shards: By source.
        parts: Of each source.
        where: The samples.
        sizes: (samples,) int64, bytes of each.
    """

    shards: Sequence[Shards]
    parts: Sequence[str]
    where: Places
    sizes: Ints

    def read_into(self, out: NDArray[np.uint8]) -> None:
        """Fill (sum of sizes,) bytes.

        Raises:
            DamagedError: They are not what was packed.
            StoreError: They can't be read.
        """
        memory, begin = memoryview(out), 0
        columns = (column.tolist() for column in (*self.where, self.sizes))
        for source, shard, row, size in zip(*columns, strict=True):
            end = begin + size
            self.shards[source].read_into(shard, row, self.parts[source], memory[begin:end])
            begin = end


class RawReader:
    """A part's bytes as they are."""

    def __init__(self, shards: Shards, name: str, *, optional: bool) -> None:
        self._shards, self._name, self._optional = shards, name, optional
        self._sources: Sequence[RawReader] = [self]

    def fetch(self, place: Place) -> bytes | None:
        """See `PartReader`."""
        data = self._shards.read(place.shard, place.row, self._name)
        if data is None and not self._optional:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data

    def collect(self, place: Place, fetched: bytes | None) -> bytes | None:
        """See `PartReader`."""
        return fetched

    value = collect

    def gather(self, where: Places, places: AllPlaces | None) -> RawRows | None:
        """All samples at once, where they are local and none lacks the part, else None.

        What is remote is better read by many threads than at once.
        """
        sizes = np.empty(len(where.rows), np.int64)
        for source, shard, chosen in by_shard(where):
            reader = self._sources[source]
            if not reader._shards.is_local(shard):
                return None
            sizes[chosen] = reader._shards.extent(shard, reader._name).size[where.rows[chosen]]
        if (sizes == MISSING).any():
            return None
        shards = [reader._shards for reader in self._sources]
        return RawRows(shards, [reader._name for reader in self._sources], where, sizes)

    def add(
        self, builder: BlockBuilder, name: str, values: Sequence[bytes | None] | RawRows
    ) -> None:
        """See `PartReader`."""
        if isinstance(values, RawRows):
            builder.filled_strings(name, values.sizes, values.read_into)
        else:
            add_listed(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> RawReader | None:
        """See `PartReader`."""
        together = RawReader(self._shards, self._name, optional=self._optional)
        together._sources = [self, *(other for other in others if isinstance(other, RawReader))]
        return together if len(together._sources) > len(others) else None
