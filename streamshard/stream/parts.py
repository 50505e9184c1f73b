"""How each part gets from a row into a batch: by the index, a codec, a decoder, or as a graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.registry import codec_of
from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.shard.manifest import Part
from streamshard.stream.block import BlockBuilder
from streamshard.stream.collate import Inferred, add_formed, add_listed
from streamshard.stream.graphs import GraphRows, add_graphs
from streamshard.stream.reader import Shards

Decoder = Callable[..., Any]


class Place:
    """One sample that is being read: where it lies, and its randomness."""

    def __init__(self, shard: int, row: int, seed: int, generator: torch.Generator) -> None:
        self.shard, self.row = shard, row
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


def part_reader(shards: Shards, part: str, decode: Mapping[str, Decoder]) -> PartReader:
    """How a part is read, given what the user says of it.

    Raises:
        UsageError: A decoder is given for one of several choices only.
    """
    decoder = decode.get(part)
    if decoder is None and ";" in part and set(part.split(";")) & set(decode):
        raise UsageError(f"a decoder for {part!r} is given under that name: decode={{{part!r}: …}}")
    choices = [(name, shards.manifest.parts[name]) for name in part.split(";")]
    codecs = {codec_of(spec.suffix).name for _, spec in choices}
    if decoder is None and codecs == {"graph"}:
        return _Graphs(shards, *choices[0])
    if decoder is None and codecs == {"int"} and len(choices) == 1 and not choices[0][1].optional:
        return _Ints(shards, part)
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
        fields = part.schema["fields"]
        self._facts = ["nodes", "base"]
        self._facts += [f"rows:{field}" for field in fields if fields[field]["cat_dim"] is not None]
        self._facts += [f"inc:{field}" for field in fields if fields[field]["inc"]]

    def read(self, place: Place) -> tuple[memoryview, int, int]:
        """The graph's bytes, and where they lie."""
        data = self._shards.view(place.shard, place.row, self._name)
        if data is None:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data, place.shard, place.row

    def value(self, place: Place) -> Any:
        """A `Data` of its own."""
        data = bytes(self.read(place)[0])
        return self._shards.decode(place.shard, place.row, self._name, self._part, data)

    def add(
        self, builder: BlockBuilder, name: str, values: Sequence[tuple[memoryview, int, int]]
    ) -> None:
        shards = np.array([shard for _, shard, _ in values], np.int64)
        rows = np.array([row for _, _, row in values], np.int64)
        # An increment that is zero in a whole shard has no column there.
        facts = {fact: np.zeros(len(values), np.int64) for fact in self._facts}
        for shard in np.unique(shards).tolist():
            index, chosen = self._shards.index(shard), shards == shard
            for fact, column in facts.items():
                if index.has_fact(self._name, fact):
                    column[chosen] = index.fact(self._name, fact)[rows[chosen]]
        graphs = GraphRows([data for data, _, _ in values], facts)
        add_graphs(builder, name, self._part.schema, graphs)


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
