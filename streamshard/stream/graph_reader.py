"""Graphs of a batch: where their bytes lie in the shards, by the index alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamshard.codec.graph import GraphCodec
from streamshard.codec.pyg import with_fields
from streamshard.errors import SampleError
from streamshard.plan.order import Ints, Places
from streamshard.shard.index import MISSING
from streamshard.shard.manifest import Part
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.choice import Graphs
from streamshard.stream.graphs import GraphRows, Layouter
from streamshard.stream.parts import AllPlaces, PartReader, Place, by_shard
from streamshard.stream.reader import Shards


class GraphReader:
    """Graphs: where their bytes lie is collected, and all are put together at once."""

    def __init__(self, shards: Shards, name: str, part: Part, choice: Graphs) -> None:
        self._shards, self._name, self._part, self._choice = shards, name, part, choice
        self._sources: Sequence[GraphReader] = [self]
        self._layouter = Layouter(part.schema, choice)

    def fetch(self, place: Place) -> memoryview:
        """The graph's bytes, checked."""
        data = self._shards.view(place.shard, place.row, self._name)
        if data is None:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data

    def collect(self, place: Place, fetched: memoryview) -> tuple[memoryview, int, int, int]:
        """The graph's bytes, and where they lie."""
        return fetched, place.source, place.shard, place.row

    def value(self, place: Place, fetched: memoryview) -> Any:
        """A `Data` of its own, with the chosen fields."""
        data = bytes(fetched)
        graph = self._shards.decode(place.shard, place.row, self._name, self._part, data)
        return with_fields(graph, self._choice.chosen(self._part.schema))

    def gather(self, where: Places, places: AllPlaces | None) -> GraphRows | None:
        """All graphs of a batch at once, where their shards are local and whole, else None."""
        facts = np.empty((len(self._layouter.facts), len(where.rows)), np.int64)
        begins = np.empty(len(where.rows), np.int64)
        data: list[memoryview] = [memoryview(b"")] * len(where.rows)
        for source, shard, chosen in by_shard(where):
            reader = self._sources[source]
            memory = reader._shards.whole(shard)
            if memory is None:
                return None
            rows = where.rows[chosen]
            extent = reader._shards.extent(shard, reader._name)
            if reader._part.optional and (extent.size[rows] == MISSING).any():
                return None
            begins[chosen] = extent.offset[rows]
            facts[:, chosen] = self._facts(source, shard, rows)
            for number in chosen.tolist():
                data[number] = memory
        return GraphRows(data, begins, facts)

    def _facts(self, source: int, shard: int, rows: Ints) -> Ints:
        """(facts, rows) int64: what the index keeps of some graphs."""
        reader = self._sources[source]
        names, matrix = reader._shards.index(shard).matrix(reader._name)
        wanted = np.array([names.get(fact, -1) for fact in self._layouter.facts])
        found: Ints = matrix[wanted[:, None], rows]
        found[wanted < 0] = 0  # an increment that is zero in a whole shard has no column there
        return found

    def add(self, builder: BlockBuilder, name: str, values: Any) -> None:
        """See `PartReader`; takes what `gather` gave, too."""
        if not isinstance(values, GraphRows):
            values = self._collected(values)
        self._layouter.add(builder, name, values)

    def _collected(self, values: Sequence[tuple[memoryview, int, int, int]]) -> GraphRows:
        """What was read one by one, as `gather` gives it."""
        places = np.array([place for _, *place in values], np.int64).reshape(-1, 3).T
        facts = np.empty((len(self._layouter.facts), len(values)), np.int64)
        for source, shard, chosen in by_shard(Places(*places)):
            facts[:, chosen] = self._facts(source, shard, places[2][chosen])
        begins = np.zeros(len(values), np.int64)
        return GraphRows([data for data, *_ in values], begins, facts)

    def joined(self, others: Sequence[PartReader]) -> GraphReader | None:
        """See `PartReader`; graphs of several sources must have the same fields."""
        graphs = [other for other in others if isinstance(other, GraphReader)]
        if len(graphs) < len(others):
            return None
        if any(other._choice != self._choice for other in graphs):
            raise ValueError("the sources choose other fields (ss.Graphs)")
        schema = self._part.schema
        for other in graphs:
            schema = GraphCodec().merge(schema, other._part.schema)
        together = GraphReader(self._shards, self._name, self._part, self._choice)
        together._sources = [self, *graphs]
        together._layouter = Layouter(schema, self._choice)
        return together
