"""How each part gets from a row into a batch: by the index, a codec, a decoder, or as a graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.graph import GraphCodec
from streamshard.codec.registry import codec_of
from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.shard.manifest import Part
from streamshard.stream.block import BlockBuilder
from streamshard.stream.collate import Inferred, add_formed, add_listed
from streamshard.stream.graphs import GraphRows, add_graphs
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

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """One column of what was collected."""

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
        UsageError: A decoder is given for one of several choices only.
    """
    decoder = decode.get(part)
    if decoder is None and ";" in part and set(part.split(";")) & set(decode):
        raise UsageError(f"a decoder for {part!r} is given under that name: decode={{{part!r}: …}}")
    there = shards.manifest.parts
    choices = [(name, there[name]) for name in part.split(";") if name in there]
    codecs = {codec_of(spec.suffix).name for _, spec in choices}
    if decoder is None and codecs == {"graph"}:
        return _Graphs(shards, *choices[0])
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

    def read(self, place: Place) -> int:
        return int(self._shards.index(place.shard).fact(self._part)[place.row])

    value = read

    def add(self, builder: BlockBuilder, name: str, values: Sequence[int]) -> None:
        builder.tensor(name, np.array(values, np.int64))

    def joined(self, others: Sequence[PartReader]) -> Self | None:
        return self if all(isinstance(other, _Ints) for other in others) else None


class _Decoded:
    """A part whose bytes go through its codec, or through a decoder of bytes and a generator."""

    def __init__(
        self,
        shards: Shards,
        choices: Sequence[tuple[str, Part]],
        decoder: Decoder | None,
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
        self, shards: Shards, choices: Sequence[tuple[str, Part]], function: Decoder
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


class _Graphs:
    """Graphs: their bytes are collected as they lie, and put together all at once."""

    def __init__(self, shards: Shards, name: str, part: Part) -> None:
        self._shards, self._name, self._part = shards, name, part
        self._sources: Sequence[_Graphs] = [self]
        self._schema = part.schema

    def read(self, place: Place) -> tuple[memoryview, int, int, int]:
        """The graph's bytes, and where they lie."""
        data = self._shards.view(place.shard, place.row, self._name)
        if data is None:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data, place.source, place.shard, place.row

    def value(self, place: Place) -> Any:
        """A `Data` of its own."""
        data = bytes(self.read(place)[0])
        return self._shards.decode(place.shard, place.row, self._name, self._part, data)

    def add(
        self, builder: BlockBuilder, name: str, values: Sequence[tuple[memoryview, int, int, int]]
    ) -> None:
        places = np.array([place for _, *place in values], np.int64).reshape(-1, 3)
        fields = self._schema["fields"]
        names = ["nodes", "base"]
        names += [f"rows:{field}" for field in fields if fields[field]["cat_dim"] is not None]
        names += [f"inc:{field}" for field in fields if fields[field]["inc"]]
        # An increment that is zero in a whole shard has no column there.
        facts = {fact: np.zeros(len(values), np.int64) for fact in names}
        for number, shard in np.unique(places[:, :2], axis=0).tolist():
            source = self._sources[number if len(self._sources) > 1 else 0]
            index = source._shards.index(shard)
            chosen = (places[:, 0] == number) & (places[:, 1] == shard)
            for fact, column in facts.items():
                if index.has_fact(source._name, fact):
                    column[chosen] = index.fact(source._name, fact)[places[chosen, 2]]
        graphs = GraphRows([data for data, *_ in values], facts)
        add_graphs(builder, name, self._schema, graphs)

    def joined(self, others: Sequence[PartReader]) -> _Graphs | None:
        """See `PartReader`; graphs of several sources must have the same fields."""
        graphs = [other for other in others if isinstance(other, _Graphs)]
        if len(graphs) < len(others):
            return None
        together = _Graphs(self._shards, self._name, self._part)
        together._sources = [self, *graphs]
        for other in graphs:
            together._schema = GraphCodec().merge(together._schema, other._schema)
        return together


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
