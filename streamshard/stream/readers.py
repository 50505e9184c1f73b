"""How a part is read: from the index, by a codec or a decoder, or as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.registry import codec_of
from streamshard.errors import SampleError, UsageError
from streamshard.plan.order import Ints, Places
from streamshard.shard.manifest import Part
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.called import Function
from streamshard.stream.choice import Graphs
from streamshard.stream.collate import Inferred, add_formed, add_listed
from streamshard.stream.encoded import Encoded, add_encoded
from streamshard.stream.gpu_decode import GpuDecode
from streamshard.stream.graph_reader import GraphReader
from streamshard.stream.parts import AllPlaces, PartReader, Place, by_shard, named
from streamshard.stream.raw import RawReader
from streamshard.stream.reader import Shards
from streamshard.stream.source import Decoder
from streamshard.stream.undecoded import WORTH_A_ROW, Undecoded


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
    _check_codec(decoder, part, codecs)
    if isinstance(decoder, Graphs) or (decoder is None and codecs == {"graph"}):
        return GraphReader(shards, *choices[0], decoder or Graphs())
    if decoder is None and codecs == {"int"} and len(choices) == 1 and not choices[0][1].optional:
        return _Ints(shards, choices[0][0])
    may_lack = len(choices) == 1 and choices[0][1].optional
    if decoder is bytes:
        return _undecoded(shards, choices, may_lack)
    if isinstance(decoder, GpuDecode):
        return _Encoded(shards, choices, decoder, None)
    if decoder is not None and not getattr(decoder, "takes_bytes", False):
        return Called(shards, choices, decoder)
    # A missing value has no place in a stack.
    return _Decoded(shards, choices, decoder, None if may_lack else _form(choices, decoder))


def _form(choices: Sequence[tuple[str, Part]], decoder: Any) -> Form | None:
    """What the part looks like in every sample, whichever of the choices a sample has."""
    forms = set()
    for _, spec in choices:
        form = codec_of(spec.suffix).form if decoder is None else decoder.form
        forms.add(form(spec.schema) if callable(form) else form)
    return forms.pop() if len(forms) == 1 else None


def _check_codec(decoder: object, part: str, codecs: set[str]) -> None:
    """Refuse a decoder for parts of another codec."""
    for kind, codec in ((Graphs, "graph"), (GpuDecode, "image")):
        if isinstance(decoder, kind) and codecs != {codec}:
            other = min(codecs - {codec})
            raise UsageError(
                f"ss.{kind.__name__} is for {codec}s; part {part!r} is of codec {other}"
            )


def _undecoded(
    shards: Shards, choices: Sequence[tuple[str, Part]], may_lack: bool
) -> RawReader | _Decoded:
    """A part's bytes as they are; of several choices, each sample tells which it has."""
    if len(choices) == 1:
        return RawReader(shards, choices[0][0], optional=may_lack)
    return _Decoded(shards, choices, lambda data, _: data, None)


class _Ints:
    """A part that is one integer: the index has it, so it costs no read."""

    def __init__(self, shards: Shards, part: str) -> None:
        self._shards, self._part = shards, part
        self._sources: Sequence[_Ints] = [self]

    def fetch(self, place: Place) -> int:
        return int(self._shards.index(place.shard).fact(self._part)[place.row])

    def collect(self, place: Place, fetched: int) -> int:
        return fetched

    value = collect

    def gather(self, where: Places, places: AllPlaces | None) -> Ints:
        values = np.empty(len(where.rows), np.int64)
        for source, shard, chosen in by_shard(where):
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
        # A subclass may have a call of its own, without `out`.
        self._takes_out = (
            decoder is not None
            and getattr(decoder, "takes_bytes", False)
            and "out" in signature(decoder).parameters
        )
        # Of pixels that are there already a crop touches only its own, so they are not read first.
        self._viewed = {
            name
            for name, part in choices
            if codec_of(part.suffix).name == "npy" and getattr(decoder, "takes_bytes", False)
        }

    def fetch(self, place: Place) -> Any:
        """The value of the first of the choices that the sample has."""
        return self.decode_into(place, None)

    def decode_into(self, place: Place, row: torch.Tensor | None) -> Any:
        """See `RowReader`."""
        for name, part in self._choices:
            read = self._shards.view if name in self._viewed else self._shards.read
            data = read(place.shard, place.row, name)
            if data is None:
                continue
            if self._decoder is None:
                return self._shards.decode(place.shard, place.row, name, part, bytes(data))
            with named(lambda name=name: self._shards.at(place.shard, place.row, name)):  # type: ignore[misc]
                if row is None or not self._takes_out:
                    return self._decoder(data, place.generator())
                return self._decoder(data, place.generator(), out=row)
        if all(part.optional for _, part in self._choices) and len(self._choices) == 1:
            return None
        name = self._choices[0][0]
        raise SampleError(f"{self._shards.at(place.shard, place.row, name)}: the sample lacks it")

    def collect(self, place: Place, fetched: Any) -> Any:
        """See `PartReader`."""
        return fetched

    value = collect

    def gather(self, where: Places, places: AllPlaces | None) -> Undecoded | None:
        """See `PartReader`: every sample is decoded by itself, when its row is there."""
        if self._form is None or places is None or self._form.nbytes < WORTH_A_ROW:
            return None
        return Undecoded(self, places(), self._form)

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any] | Undecoded) -> None:
        if isinstance(values, Undecoded):
            form, count = values.form, len(values.places)
            builder.filled(name, form, count, partial(values.decode_into, name))
        elif self._form is not None:
            add_formed(builder, name, self._form, values)
        else:
            add_listed(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> PartReader | None:
        alike = [other for other in others if type(other) is _Decoded]
        if type(self) is not _Decoded or len(alike) < len(others):
            return None
        forms = [reader._form for reader in (self, *alike)]
        if len({form and (form.dtype, form.shape) for form in forms}) == 1:
            return self  # in the first one's memory format
        return _Decoded(self._shards, self._choices, self._decoder, None)


class _Encoded(_Decoded):
    """A part whose images are decoded where the batch arrives."""

    def fetch(self, place: Place) -> tuple[Encoded, str]:
        """The image on its way, and where it lies."""
        assert self._decoder is not None
        for name, _ in self._choices:
            data = self._shards.read(place.shard, place.row, name)
            if data is not None:
                at = self._shards.at(place.shard, place.row, name)
                with named(at):
                    return self._decoder(data, place.generator()), at
        at = self._shards.at(place.shard, place.row, self._choices[0][0])
        raise SampleError(f"{at}: the sample lacks it, and ss.GpuDecode wants an image in each")

    def add(self, builder: BlockBuilder, name: str, values: Any) -> None:
        """See `PartReader`."""
        add_encoded(builder, name, [image for image, _ in values], [at for _, at in values])

    def joined(self, others: Sequence[PartReader]) -> PartReader:
        """See `PartReader`; `encoded_parts` has seen that they are alike."""
        return self


class Called(_Decoded):
    """A part whose decoded value goes through the user's own callable."""

    def __init__(
        self, shards: Shards, choices: Sequence[tuple[str, Part]], function: Callable[..., Any]
    ) -> None:
        super().__init__(shards, choices, None, None)
        self._function = Function(function)
        # Of one that says `form = None` a batch is a list, whatever the first value.
        self._is_list = getattr(function, "form", ...) is None
        self._inferred = Inferred(is_list=self._is_list)

    def collect(self, place: Place, fetched: Any) -> Any:
        """See `PartReader`."""
        with named(lambda: self._shards.at(place.shard, place.row, self._choices[0][0])):
            return self._inferred.learn(self.value(place, fetched))

    def value(self, place: Place, fetched: Any) -> Any:
        """See `PartReader`."""
        if fetched is None:
            return None  # the sample lacks the part
        name = self._choices[0][0]
        with named(lambda: self._shards.at(place.shard, place.row, name)):
            return self._function(fetched, place)

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """See `PartReader`."""
        self._inferred.add(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> PartReader | None:
        """See `PartReader`."""
        called = [self, *(other for other in others if isinstance(other, Called))]
        are_lists = len(called) > len(others) and all(each._is_list for each in called)
        return self if are_lists else None
