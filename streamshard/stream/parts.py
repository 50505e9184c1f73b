"""How each part gets from a row into a batch: by the index, a codec, a decoder, or as a graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.graph import GraphCodec
from streamshard.codec.pyg import with_fields
from streamshard.codec.registry import codec_of
from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.plan.order import Ints, Places
from streamshard.shard.index import MISSING
from streamshard.shard.manifest import Part
from streamshard.stream.block import BlockBuilder
from streamshard.stream.collate import Inferred, add_formed, add_listed
from streamshard.stream.graphs import GraphRows, Graphs, Layouter
from streamshard.stream.reader import Shards
from streamshard.stream.source import Decoder


class Place:
    """One sample that is being read: where it lies, and its randomness."""

    def __init__(
        self, source: int, shard: int, row: int, seed: int, generator: torch.Generator
    ) -> None:
        self.source, self.shard, self.row = source, shard, row
        self._seed, self._generator = seed, generator

    def generator(self) -> torch.Generator:
        """Seeded for this sample; the same for each of its parts, so image and mask agree."""
        return self._generator.manual_seed(self._seed)

    def seed_globally(self) -> None:
        """Seed the generators that code of others draws from."""
        torch.default_generator.manual_seed(self._seed)
        np.random.seed(self._seed % 2**32)
        random.seed(self._seed)


class PartReader(Protocol):
    """How one part gets from a row into a batch."""

    def read(self, place: Place) -> Any:
        """What the batch collects of one sample."""

    def value(self, place: Place) -> Any:
        """The decoded value, for a transform."""

    def gather(self, where: Places) -> Any | None:
        """What the batch collects of all samples at once; None where that can't be had so."""

    def add(self, builder: BlockBuilder, name: str, values: Any) -> None:
        """One column of what was collected, one by one or at once."""

    def joined(self, others: Sequence[PartReader]) -> PartReader | None:
        """What lays out values of this reader and of other sources' together.

        None where only the values can tell whether they have one form.

        Raises:
            ValueError: They can't be in one batch.
        """


def part_reader(shards: Shards, part: str, decode: Mapping[str, Decoder]) -> PartReader:
    """How a part is read, given what the user says of it.

    Args:
        shards: The dataset.
        part: Its name, or several choices with `;` between, of which it has some.
        decode: By part, what becomes of it.

    Raises:
        UsageError: A decoder is given for one of several choices only, or for another codec.
    """
    decoder = decode.get(part)
    if decoder is None and ";" in part and set(part.split(";")) & set(decode):
        raise UsageError(f"a decoder for {part!r} is given under that name: decode={{{part!r}: …}}")
    there = shards.manifest.parts
    choices = [(name, there[name]) for name in part.split(";") if name in there]
    codecs = {codec_of(spec.suffix).name for _, spec in choices}
    if isinstance(decoder, Graphs) and codecs != {"graph"}:
        raise UsageError(f"ss.Graphs is for graphs; part {part!r} is of codec {min(codecs)}")
    if isinstance(decoder, Graphs) or (decoder is None and codecs == {"graph"}):
        return GraphReader(shards, *choices[0], decoder or Graphs())
    if decoder is None and codecs == {"int"} and len(choices) == 1 and not choices[0][1].optional:
        return _Ints(shards, choices[0][0])
    may_lack = len(choices) == 1 and choices[0][1].optional
    if decoder is bytes:
        return _Decoded(shards, choices, lambda data, _: data, None)
    if decoder is not None and hasattr(decoder, "form"):
        # A missing value has no place in a stack.
        return _Decoded(shards, choices, decoder, None if may_lack else decoder.form)
    if decoder is not None:
        return Called(shards, choices, decoder)
    forms = {codec_of(spec.suffix).form(spec.schema) for _, spec in choices}
    form = forms.pop() if len(forms) == 1 else None
    return _Decoded(shards, choices, None, None if may_lack else form)


class _Ints:
    """A part that is one integer: the index has it, so it costs no read."""

    def __init__(self, shards: Shards, part: str) -> None:
        self._shards, self._part = shards, part
        self._sources: Sequence[_Ints] = [self]

    def read(self, place: Place) -> int:
        return int(self._shards.index(place.shard).fact(self._part)[place.row])

    value = read

    def gather(self, where: Places) -> Ints:
        values = np.empty(len(where.rows), np.int64)
        for source, shard, chosen in _by_shard(where):
            reader = self._sources[source]
            values[chosen] = reader._shards.index(shard).fact(reader._part)[where.rows[chosen]]
        return values

    def add(self, builder: BlockBuilder, name: str, values: Sequence[int] | Ints) -> None:
        builder.tensor(name, np.asarray(values, np.int64))

    def joined(self, others: Sequence[PartReader]) -> _Ints | None:
        together = _Ints(self._shards, self._part)
        together._sources = [self, *(other for other in others if isinstance(other, _Ints))]
        return together if len(together._sources) > len(others) else None


class _Decoded:
    """A part whose bytes go through its codec, or through a decoder of bytes and a generator."""

    def __init__(
        self,
        shards: Shards,
        choices: Sequence[tuple[str, Part]],
        decoder: Callable[..., Any] | None,
        form: Form | None,
    ) -> None:
        self._shards, self._choices = shards, choices
        self._decoder, self._form = decoder, form

    def read(self, place: Place) -> Any:
        """The value of the first of the choices that the sample has."""
        for name, part in self._choices:
            data = self._shards.read(place.shard, place.row, name)
            if data is None:
                continue
            if self._decoder is None:
                return self._shards.decode(place.shard, place.row, name, part, data)
            with named(lambda name=name: self._shards.at(place.shard, place.row, name)):  # type: ignore[misc]
                return self._decoder(data, place.generator())
        if all(part.optional for _, part in self._choices) and len(self._choices) == 1:
            return None
        name = self._choices[0][0]
        raise SampleError(f"{self._shards.at(place.shard, place.row, name)}: the sample lacks it")

    value = read

    def gather(self, where: Places) -> None:
        """See `PartReader`: every sample is decoded by itself."""

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        if self._form is not None:
            add_formed(builder, name, self._form, values)
        else:
            add_listed(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> PartReader | None:
        alike = [other for other in others if type(other) is _Decoded]
        if type(self) is not _Decoded or len(alike) < len(others):
            return None
        if all(other._form == self._form for other in alike):
            return self
        return _Decoded(self._shards, self._choices, self._decoder, None)


class Called(_Decoded):
    """A part whose decoded value goes through the user's own callable."""

    def __init__(
        self, shards: Shards, choices: Sequence[tuple[str, Part]], function: Callable[..., Any]
    ) -> None:
        super().__init__(shards, choices, None, None)
        self._function, self._inferred = function, Inferred()

    def read(self, place: Place) -> Any:
        """See `PartReader`."""
        with named(lambda: self._shards.at(place.shard, place.row, self._choices[0][0])):
            return self._inferred.learn(self.value(place))

    def value(self, place: Place) -> Any:
        """See `PartReader`."""
        value = super().read(place)
        if value is None:
            return None  # the sample lacks the part
        name = self._choices[0][0]
        place.seed_globally()
        with named(lambda: self._shards.at(place.shard, place.row, name)):
            return self._function(value)

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """See `PartReader`."""
        self._inferred.add(builder, name, values)


class GraphReader:
    """Graphs: where their bytes lie is collected, and all are put together at once."""

    def __init__(self, shards: Shards, name: str, part: Part, choice: Graphs) -> None:
        self._shards, self._name, self._part, self._choice = shards, name, part, choice
        self._sources: Sequence[GraphReader] = [self]
        self._layouter = Layouter(part.schema, choice)

    def read(self, place: Place) -> tuple[memoryview, int, int, int]:
        """The graph's bytes, checked, and where they lie."""
        data = self._shards.view(place.shard, place.row, self._name)
        if data is None:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data, place.source, place.shard, place.row

    def value(self, place: Place) -> Any:
        """A `Data` of its own, with the chosen fields."""
        data = bytes(self.read(place)[0])
        graph = self._shards.decode(place.shard, place.row, self._name, self._part, data)
        return with_fields(graph, self._choice.chosen(self._part.schema))

    def gather(self, where: Places) -> GraphRows | None:
        """All graphs of a batch at once, where their shards are local and whole, else None."""
        facts = np.empty((len(self._layouter.facts), len(where.rows)), np.int64)
        begins = np.empty(len(where.rows), np.int64)
        data: list[memoryview] = [memoryview(b"")] * len(where.rows)
        for source, shard, chosen in _by_shard(where):
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
        for source, shard, chosen in _by_shard(Places(*places)):
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


def _by_shard(where: Places) -> Iterator[tuple[int, int, Ints]]:
    """Each shard of each source, and which of the places lie in it."""
    sources, shards, _ = where
    if len(shards) and (shards == shards[0]).all() and (sources == sources[0]).all():
        yield int(sources[0]), int(shards[0]), np.arange(len(shards))
        return
    order = np.lexsort((shards, sources))
    steps = np.flatnonzero((np.diff(shards[order]) != 0) | (np.diff(sources[order]) != 0)) + 1
    for chosen in np.split(order, steps):
        if len(chosen):
            yield int(sources[chosen[0]]), int(shards[chosen[0]]), chosen


class Mixed:
    """One part of several sources: each sample is read by its own, all are laid out together."""

    def __init__(self, readers: Sequence[PartReader]) -> None:
        self._readers = readers
        self._joined = readers[0].joined(readers[1:])
        self._inferred = Inferred()

    def read(self, place: Place) -> Any:
        """See `PartReader`."""
        if self._joined is not None:
            return self._readers[place.source].read(place)
        return self._inferred.learn(self.value(place))

    def value(self, place: Place) -> Any:
        """See `PartReader`."""
        return self._readers[place.source].value(place)

    def gather(self, where: Places) -> Any | None:
        """See `PartReader`."""
        return None if self._joined is None else self._joined.gather(where)

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """See `PartReader`."""
        (self._joined or self._inferred).add(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> None:
        """See `PartReader`; a mixture is no source of another."""


@contextmanager
def named(where: str | Callable[[], str]) -> Iterator[None]:
    """Say in which sample the code of a decoder or the user failed."""
    try:
        yield
    except (SampleError, DamagedError, UsageError):
        raise
    except Exception as error:
        place = where if isinstance(where, str) else where()
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise SampleError(f"{place}: {what}") from error


@contextmanager
def generators_kept(needed: bool) -> Iterator[None]:
    """Leave the global random generators as they were."""
    if not needed:
        yield
        return
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
