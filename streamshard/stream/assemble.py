"""Rows to a block: read, decode, transform, lay out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.registry import codec_of
from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.plan.order import Ints, sample_seeds
from streamshard.shard.manifest import Part
from streamshard.stream.block import Allocate, Block, BlockBuilder
from streamshard.stream.collate import Inferred, add_formed, add_listed
from streamshard.stream.graphs import GraphRows, add_graphs
from streamshard.stream.reader import Shards

KEY, MASK = "__key__", "__mask__"

Parts = str | tuple[str, ...] | None
Decoder = Callable[..., Any]
Transform = Callable[[dict[str, Any]], Mapping[str, Any]]
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Rows:
    """What one step is to be made of.

    Attributes:
        shards: (samples,) int64, shard numbers.
        rows: (samples,) int64, rows in them.
        positions: (samples,) int64, in the epoch's order.
        real: How many of them, from the front, are not `pad`'s repeats.
        epoch: The epoch.
    """

    shards: Ints
    rows: Ints
    positions: Ints
    real: int
    epoch: int


class _Place:
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


class _Reader(Protocol):
    """How one part gets from a row into a batch."""

    def read(self, place: _Place) -> Any:
        """What the batch collects of one sample."""

    def value(self, place: _Place) -> Any:
        """The decoded value, for a transform."""

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """One column of what was collected."""


class Assembler:
    """Makes blocks for one choice of parts, decoders and transform."""

    def __init__(
        self,
        shards: Shards,
        *,
        parts: Parts,
        decode: Mapping[str, Decoder],
        transform: Transform | None,
        on_error: OnError,
        seed: int,
    ) -> None:
        """Resolve the parts.

        Raises:
            UsageError: A part is asked for that the dataset does not have.
        """
        self._shards, self._parts, self._seed = shards, parts, seed
        self._transform, self._on_error = transform, on_error
        there = shards.manifest.parts
        asked = tuple(there) if parts is None else (parts,) if isinstance(parts, str) else parts
        choices = {choice for part in asked for choice in part.split(";")}
        for name in sorted((choices | set(decode)) - {*there, KEY, MASK}):
            raise UsageError(f"{shards.where} has no part {name!r}; it has {', '.join(there)}")
        self._wants_key = parts is None or KEY in asked
        self._readers = {
            part: _reader(shards, part, decode.get(part))
            for part in asked
            if part not in (KEY, MASK)
        }
        self._outputs: dict[str, Inferred] = {}  # of the transform
        # Code of others draws from global generators: seeded per sample, and put back after.
        self._is_foreign = transform is not None or any(
            isinstance(reader, _Called) for reader in self._readers.values()
        )
        self._generator = torch.Generator()

    def make(self, rows: Rows, allocate: Allocate, *, with_mask: bool) -> Block:
        """The block of one step.

        Args:
            rows: What it is made of.
            allocate: Gives the memory.
            with_mask: Add `"__mask__"`, (samples,) bool, true for what is not a repeat.

        Raises:
            SampleError: A sample can't be decoded, and `on_error` is "raise".
            DamagedError: Bytes are not those that were packed, likewise.
        """
        samples, kept, skipped = self._read(rows)
        return self._lay_out(rows, samples, kept, skipped, allocate, with_mask)

    def make_empty(self, probe: Rows, allocate: Allocate, *, with_mask: bool) -> Block:
        """The block of a step without samples, of the form that any sample, the probe, gives."""
        self._read(probe)
        return self._lay_out(probe, [], [], [], allocate, with_mask)

    def _read(self, rows: Rows) -> tuple[list[dict[str, Any]], list[int], list[str]]:
        """What is to be collected of each sample, which rows that is, and what was skipped."""
        samples, kept, skipped = [], [], []
        seeds = sample_seeds(self._seed, rows.epoch, rows.positions).tolist()
        places = zip(rows.shards.tolist(), rows.rows.tolist(), seeds, strict=True)
        with _generators_kept(self._is_foreign):
            for number, (shard, row, seed) in enumerate(places):
                try:
                    samples.append(self._sample(_Place(shard, row, seed, self._generator)))
                    kept.append(number)
                except (SampleError, DamagedError) as error:
                    if self._on_error == "raise":
                        raise
                    skipped.append(str(error))
        return samples, kept, skipped

    def _sample(self, place: _Place) -> dict[str, Any]:
        if self._transform is None:
            return {part: reader.read(place) for part, reader in self._readers.items()}
        sample: dict[str, Any] = {KEY: self._key(place.shard, place.row)}
        sample |= {part: reader.value(place) for part, reader in self._readers.items()}
        where = f"{self._shards.where}: key {sample[KEY]}"
        place.seed_globally()
        with _named(where):
            result = dict(self._transform(sample))
        result.pop(KEY, None)
        if self._parts is not None and (lacking := sorted(set(self._readers) - set(result))):
            raise UsageError(f"{where}: the transform's result lacks {lacking[0]!r}")
        for name in result:
            self._outputs.setdefault(name, Inferred())
        return {name: self._outputs[name].learn(value) for name, value in result.items()}

    def _lay_out(
        self,
        rows: Rows,
        samples: Sequence[Mapping[str, Any]],
        kept: Sequence[int],
        skipped: Sequence[str],
        allocate: Allocate,
        with_mask: bool,
    ) -> Block:
        builder = BlockBuilder()
        columns: Mapping[str, _Reader | Inferred] = self._readers
        if self._transform is not None:
            columns = self._outputs or dict.fromkeys(self._readers, Inferred())
        for name, column in columns.items():
            column.add(builder, name, [sample[name] for sample in samples])
        if self._wants_key:
            keys = [self._key(int(rows.shards[k]), int(rows.rows[k])).encode() for k in kept]
            builder.strings(KEY, "text", keys)
        if with_mask or (self._parts is not None and MASK in self._parts):
            builder.tensor(MASK, np.array(kept, np.int64) < rows.real)
        return builder.finish(allocate, self._parts, tuple(skipped))

    def _key(self, shard: int, row: int) -> str:
        return self._shards.index(shard).keys[row]


def _reader(shards: Shards, part: str, decoder: Decoder | None) -> _Reader:
    """How a part is read, given what the user says of it."""
    choices = [(name, shards.manifest.parts[name]) for name in part.split(";")]
    codecs = {codec_of(spec.suffix).name for _, spec in choices}
    if decoder is None and codecs == {"graph"}:
        return _Graphs(shards, *choices[0])
    if decoder is None and codecs == {"int"} and len(choices) == 1 and not choices[0][1].optional:
        return _Ints(shards, part)
    if decoder is bytes:
        return _Decoded(shards, choices, lambda data, _: data, None)
    if decoder is not None and hasattr(decoder, "form"):
        return _Decoded(shards, choices, decoder, decoder.form)
    if decoder is not None:
        return _Called(shards, choices, decoder)
    forms = {codec_of(spec.suffix).form(spec.schema) for _, spec in choices}
    form = forms.pop() if len(forms) == 1 else None
    if any(spec.optional for _, spec in choices) and len(choices) == 1:
        form = None  # a missing value has no place in a stack
    return _Decoded(shards, choices, None, form)


class _Ints:
    """A part that is one integer: the index has it, so it costs no read."""

    def __init__(self, shards: Shards, part: str) -> None:
        self._shards, self._part = shards, part

    def read(self, place: _Place) -> int:
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

    def read(self, place: _Place) -> Any:
        """The value of the first of the choices that the sample has."""
        for name, part in self._choices:
            data = self._shards.read(place.shard, place.row, name)
            if data is None:
                continue
            if self._decoder is None:
                return self._shards.decode(place.shard, place.row, name, part, data)
            with _named(lambda name=name: self._shards.at(place.shard, place.row, name)):  # type: ignore[misc]
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


class _Called(_Decoded):
    """A part whose decoded value goes through the user's own callable."""

    def __init__(
        self, shards: Shards, choices: Sequence[tuple[str, Part]], function: Decoder
    ) -> None:
        super().__init__(shards, choices, None, None)
        self._function, self._inferred = function, Inferred()

    def read(self, place: _Place) -> Any:
        return self._inferred.learn(self.value(place))

    def value(self, place: _Place) -> Any:
        value = super().read(place)
        name = self._choices[0][0]
        place.seed_globally()
        with _named(lambda: self._shards.at(place.shard, place.row, name)):
            return self._function(value)

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        self._inferred.add(builder, name, values)


class _Graphs:
    """Graphs: their bytes are collected as they lie, and put together all at once."""

    def __init__(self, shards: Shards, name: str, part: Part) -> None:
        self._shards, self._name, self._part = shards, name, part
        fields = part.schema["fields"]
        self._facts = ["nodes", "base"]
        self._facts += [f"rows:{field}" for field in fields if fields[field]["cat_dim"] is not None]
        self._facts += [f"inc:{field}" for field in fields if fields[field]["inc"]]

    def read(self, place: _Place) -> tuple[memoryview, int, int]:
        """The graph's bytes, and where they lie."""
        data = self._shards.view(place.shard, place.row, self._name)
        if data is None:
            where = self._shards.at(place.shard, place.row, self._name)
            raise SampleError(f"{where}: the sample lacks it")
        return data, place.shard, place.row

    def value(self, place: _Place) -> Any:
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
def _named(where: str | Callable[[], str]) -> Iterator[None]:
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
def _generators_kept(needed: bool) -> Iterator[None]:
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
