"""Rows to a block: read, decode, transform, lay out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np

from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.plan.order import Ints, Places, sample_seeds
from streamshard.stream.block import Block
from streamshard.stream.builder import Allocate, BlockBuilder
from streamshard.stream.called import Function
from streamshard.stream.collate import Inferred
from streamshard.stream.mixed import Mixed
from streamshard.stream.on_device import encoded_parts
from streamshard.stream.parts import AllPlaces, PartReader, Place, generators_kept, named
from streamshard.stream.readers import Called, part_reader
from streamshard.stream.source import Source, refuse_other_classes
from streamshard.stream.threads import Each

KEY, MASK, SOURCE = "__key__", "__mask__", "__source__"

Parts = str | tuple[str, ...] | None
OnError = Literal["raise", "skip"]
Fetched = dict[str, Any] | SampleError | DamagedError  # of a sample, by part, or what is wrong


@dataclass(frozen=True)
class Rows:
    """What one step is to be made of.

    Attributes:
        where: Sources, shards, and rows of the shards' tars.
        positions: (samples,) int64, in the epoch's order.
        real: How many of them, from the front, are not `pad`'s repeats.
        epoch: The epoch.
    """

    where: Places
    positions: Ints
    real: int
    epoch: int


class Begun(NamedTuple):
    """A batch whose samples are being fetched.

    Attributes:
        rows: What it is made of.
        at_once: By part, what was collected of all samples at once.
        readers: Of the parts that are read sample by sample.
        places: Where the samples lie, for these parts.
        fetched: The samples, in their order.
    """

    rows: Rows
    at_once: dict[str, Any]
    readers: Mapping[str, PartReader]
    places: Sequence[Place]
    fetched: Iterator[Fetched]


class _Read(NamedTuple):
    """A batch before it is laid out.

    Attributes:
        columns: By part, what its reader collected.
        kept: Which of the rows that is.
        skipped: What was left out, and why.
    """

    columns: Mapping[str, Any]
    kept: Sequence[int]
    skipped: Sequence[str]


class Assembler:
    """Makes blocks for one choice of parts, decoders and transform.

    Attributes:
        encoded: By part, what decodes those that only the receiver of a block decodes.
        is_foreign: Whether code of others runs, which may draw from the global generators: they are
            seeded for each sample, and put back after a batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        parts: Parts,
        on_error: OnError,
        seed: int,
        with_source: bool,
    ) -> None:
        """Resolve the parts.

        Args:
            sources: The datasets, one unless it is a mixture.
            parts: None for all, a name, or names.
            on_error: "raise" or "skip".
            seed: Of the augmentations.
            with_source: Whether `"__source__"` is a part.

        Raises:
            UsageError: A part is asked for that there is not, or sources don't go together.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
        self._sources, self._parts, self._seed = sources, parts, seed
        self._on_error = on_error
        special = {KEY, MASK, SOURCE} if with_source else {KEY, MASK}
        asked = _asked(sources, parts, special)
        self._plain = [part for part in asked if part not in special]
        self.encoded = encoded_parts(sources, self._plain)
        if "cls" in self._plain:
            refuse_other_classes(sources)
        self._wants_key = parts is None or KEY in asked
        self._wants_source = with_source and (parts is None or SOURCE in asked)
        readers = [_readers(source, self._plain) for source in sources]
        self._readers = _joined(sources, readers, self._plain)
        self._transforms = [Function(source.transform or dict) for source in sources]
        self._is_transformed = any(source.transform is not None for source in sources)
        self._outputs: dict[str, Inferred] = {}  # of the transform
        self.is_foreign = self._is_transformed or any(
            isinstance(reader, Called) for each in readers for reader in each.values()
        )

    def begin(self, rows: Rows, each: Each) -> Begun:
        """Fetch the samples of one step: at once where a part can be had so, else one by one.

        Args:
            rows: What it is made of; nothing, for a rank without a share.
            each: Does it, here or in other threads.
        """
        places = cache(partial(self._places, rows))
        at_once = self._gathered(rows.where, places if each is map else None)
        return self._begun(rows, each, at_once, places)

    def _begun(
        self, rows: Rows, each: Each, at_once: dict[str, Any], all_places: AllPlaces
    ) -> Begun:
        readers = {name: part for name, part in self._readers.items() if name not in at_once}
        places = all_places() if readers else []
        return Begun(rows, at_once, readers, places, each(partial(_fetched, readers), places))

    def finish(
        self, begun: Begun, allocate: Allocate, *, with_mask: bool, probes: Iterable[Rows]
    ) -> Block:
        """The block of one step.

        Args:
            begun: Its samples.
            allocate: Gives the memory.
            with_mask: Add `"__mask__"`, (samples,) bool, true for what is not a repeat.
            probes: Other rows of the dataset, to learn from them what a batch without samples
                looks like where only a sample can tell.

        Raises:
            SampleError: A sample can't be decoded, and `on_error` is "raise".
            DamagedError: Bytes are not those that were packed, likewise.
        """
        read = self._read(begun)
        if not read.kept and self.is_foreign:
            probed = (self._read(self.begin(probe, map)) for probe in probes)
            any(probe.kept for probe in probed)  # up to the first that can be read
        try:
            return self._lay_out(begun.rows, read, allocate, with_mask)
        except (DamagedError, SampleError):
            if not begun.at_once:
                raise
        # Of what was to go straight into the block: read one by one, each sample is found damaged,
        # or not, by itself.
        read = self._read(self._begun(begun.rows, map, {}, partial(self._places, begun.rows)))
        return self._lay_out(begun.rows, read, allocate, with_mask)

    def _read(self, begun: Begun) -> _Read:
        """What the columns of a batch are made of."""
        rows, at_once = begun.rows, begun.at_once
        if not begun.readers:
            return _Read(at_once, range(len(rows.positions)), [])
        samples, kept, skipped = self._one_by_one(begun)
        if skipped and at_once:
            where = Places(*(column[kept] for column in rows.where))
            places = [begun.places[number] for number in kept]
            at_once = self._gathered(where, lambda: places)
        names = self._outputs if self._is_transformed else begun.readers
        columns = {name: [sample[name] for sample in samples] for name in names}
        return _Read(at_once | columns, kept, skipped)

    def _gathered(self, where: Places, places: AllPlaces | None) -> dict[str, Any]:
        """Parts of all samples, those that can be had at once."""
        if self._is_transformed:
            return {}
        try:
            found = {name: part.gather(where, places) for name, part in self._readers.items()}
        except DamagedError:
            return {}  # read one by one, each is found damaged, or not, by itself
        return {name: values for name, values in found.items() if values is not None}

    def _places(self, rows: Rows) -> list[Place]:
        """Where the samples lie, each with the seed of its augmentations."""
        seeds = sample_seeds(self._seed, rows.epoch, rows.positions)
        columns = (column.tolist() for column in (*rows.where, seeds))
        return list(map(Place._make, zip(*columns, strict=True)))

    def _one_by_one(self, begun: Begun) -> tuple[list[dict[str, Any]], list[int], list[str]]:
        """What is to be collected of each sample, which rows that is, and what was skipped."""
        samples, kept, skipped = [], [], []
        with generators_kept(self.is_foreign):
            for number, fetched in enumerate(begun.fetched):
                try:
                    if isinstance(fetched, Exception):
                        raise fetched
                    samples.append(self._sample(begun.places[number], fetched, begun.readers))
                    kept.append(number)
                except (SampleError, DamagedError) as error:
                    if self._on_error == "raise":
                        raise
                    skipped.append(str(error))
        return samples, kept, skipped

    def _sample(
        self, place: Place, fetched: Mapping[str, Any], readers: Mapping[str, PartReader]
    ) -> dict[str, Any]:
        if not self._is_transformed:
            return {part: readers[part].collect(place, value) for part, value in fetched.items()}
        sample: dict[str, Any] = {KEY: self._key(place.source, place.shard, place.row)}
        sample |= {part: readers[part].value(place, value) for part, value in fetched.items()}
        where = f"{self._sources[place.source].where}: key {sample[KEY]}"
        with named(where):
            result = dict(self._transforms[place.source](sample, place.transformed()))
            result.pop(KEY, None)
            wanted = set(self._outputs) or (set(self._readers) if self._parts else set(result))
            if not wanted <= set(result) or (self._outputs and wanted != set(result)):
                raise ValueError(f"the transform gave {sorted(result)}, not {sorted(wanted)}")
            outputs = self._outputs or {name: Inferred() for name in result}
            learned = {name: outputs[name].learn(value) for name, value in result.items()}
        self._outputs = outputs
        return learned

    def _lay_out(self, rows: Rows, read: _Read, allocate: Allocate, with_mask: bool) -> Block:
        builder, kept = BlockBuilder(), read.kept
        columns: Mapping[str, PartReader | Inferred] = self._readers
        if self._is_transformed:
            columns = self._outputs or {name: Inferred() for name in self._readers}
        for name, column in columns.items():
            column.add(builder, name, read.columns.get(name, []))
        if self._wants_key:
            places = zip(*(column[kept].tolist() for column in rows.where), strict=True)
            keys = [self._key(*place).encode("utf-8", "surrogateescape") for place in places]
            builder.strings(KEY, "text", keys)
        if self._wants_source:
            builder.tensor(SOURCE, rows.where.sources[kept])
        if with_mask or (self._parts is not None and MASK in self._parts):
            builder.tensor(MASK, np.array(kept, np.int64) < rows.real)
        return builder.finish(allocate, self._parts, tuple(read.skipped))

    def _key(self, source: int, shard: int, row: int) -> str:
        return self._sources[source].shards.index(shard).keys[row]


def _fetched(readers: Mapping[str, PartReader], place: Place) -> Fetched:
    """One sample, in any thread."""
    try:
        return {part: reader.fetch(place) for part, reader in readers.items()}
    except (SampleError, DamagedError) as error:
        return error


def _asked(sources: Sequence[Source], parts: Parts, special: set[str]) -> tuple[str, ...]:
    """The parts that a batch is to have, with those that are of no dataset.

    Raises:
        UsageError: A source does not have what is asked for.
    """
    there = [source.shards.manifest.parts for source in sources]
    if parts is None:
        for source, names in zip(sources, there, strict=True):
            if odd := sorted(set(names) ^ set(there[0])):
                raise UsageError(
                    f"part {odd[0]!r} is in only one of {sources[0].where} and {source.where}; "
                    "parts= names those that a batch is to have"
                )
        return tuple(there[0])
    asked = (parts,) if isinstance(parts, str) else parts
    choices = [set(part.split(";")) for part in asked if part not in special]
    unknown = set[str]().union(*choices) - set[str]().union(*there)
    for source, names in zip(sources, there, strict=True):
        lacking = [min(some) for some in choices if not some & set(names)]
        if unknown or lacking:
            name = min(unknown or lacking)
            raise UsageError(f"{source.where} has no part {name!r}; it has {', '.join(names)}")
    return asked


def _readers(source: Source, plain: Sequence[str]) -> dict[str, PartReader]:
    """How each part is read from one source.

    Raises:
        UsageError: A decoder is given for what is no part.
    """
    there = source.shards.manifest.parts
    if unknown := set(source.decode) - {*there, *plain}:
        name = min(unknown)
        raise UsageError(f"{source.where} has no part {name!r}; it has {', '.join(there)}")
    return {part: part_reader(source.shards, part, source.decode) for part in plain}


def _joined(
    sources: Sequence[Source], readers: Sequence[dict[str, PartReader]], plain: Sequence[str]
) -> dict[str, PartReader]:
    """How each part is read and laid out, whichever source a sample is from.

    Raises:
        UsageError: What the sources have by one name can't be in one batch.
    """
    if len(sources) == 1:
        return readers[0]
    joined: dict[str, PartReader] = {}
    for part in plain:
        try:
            joined[part] = Mixed([each[part] for each in readers])
        except ValueError as error:
            where = " and ".join(source.where for source in sources)
            raise UsageError(f"part {part!r} of {where} can't be mixed: {error}") from None
    return joined
