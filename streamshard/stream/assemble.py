"""Rows to a block: read, decode, transform, lay out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.plan.order import Ints, sample_seeds
from streamshard.stream.block import Allocate, Block, BlockBuilder
from streamshard.stream.collate import Inferred
from streamshard.stream.parts import (
    Called,
    Decoder,
    PartReader,
    Place,
    generators_kept,
    named,
    part_reader,
)
from streamshard.stream.reader import Shards

KEY, MASK = "__key__", "__mask__"

Parts = str | tuple[str, ...] | None
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
        plain = [part for part in asked if part not in (KEY, MASK)]
        choices = {choice for part in plain for choice in part.split(";")}
        unknown = (choices - set(there)) | (set(decode) - {*there, *plain})
        if unknown:
            name = min(unknown)
            raise UsageError(f"{shards.where} has no part {name!r}; it has {', '.join(there)}")
        self._wants_key = parts is None or KEY in asked
        self._readers = {part: part_reader(shards, part, decode) for part in plain}
        self._outputs: dict[str, Inferred] = {}  # of the transform
        # Code of others draws from global generators: seeded per sample, and put back after.
        self._is_foreign = transform is not None or any(
            isinstance(reader, Called) for reader in self._readers.values()
        )

    def make(
        self, rows: Rows, allocate: Allocate, *, with_mask: bool, probes: Iterable[Rows]
    ) -> Block:
        """The block of one step.

        Args:
            rows: What it is made of; nothing, for a rank without a share.
            allocate: Gives the memory.
            with_mask: Add `"__mask__"`, (samples,) bool, true for what is not a repeat.
            probes: Other rows of the dataset, to learn from them what a batch without samples
                looks like where only a sample can tell.

        Raises:
            SampleError: A sample can't be decoded, and `on_error` is "raise".
            DamagedError: Bytes are not those that were packed, likewise.
        """
        samples, kept, skipped = self._read(rows)
        if not samples and self._is_foreign:
            any(self._read(probe)[0] for probe in probes)  # up to the first that can be read
        return self._lay_out(rows, samples, kept, skipped, allocate, with_mask)

    def _read(self, rows: Rows) -> tuple[list[dict[str, Any]], list[int], list[str]]:
        """What is to be collected of each sample, which rows that is, and what was skipped."""
        samples, kept, skipped = [], [], []
        seeds = sample_seeds(self._seed, rows.epoch, rows.positions).tolist()
        places = zip(rows.shards.tolist(), rows.rows.tolist(), seeds, strict=True)
        # Not kept in self: pickled for a spawned worker, its state would be a tensor that is gone
        # before the worker opens it.
        generator = torch.Generator()
        with generators_kept(self._is_foreign):
            for number, (shard, row, seed) in enumerate(places):
                try:
                    samples.append(self._sample(Place(shard, row, seed, generator)))
                    kept.append(number)
                except (SampleError, DamagedError) as error:
                    if self._on_error == "raise":
                        raise
                    skipped.append(str(error))
        return samples, kept, skipped

    def _sample(self, place: Place) -> dict[str, Any]:
        if self._transform is None:
            return {part: reader.read(place) for part, reader in self._readers.items()}
        sample: dict[str, Any] = {KEY: self._key(place.shard, place.row)}
        sample |= {part: reader.value(place) for part, reader in self._readers.items()}
        where = f"{self._shards.where}: key {sample[KEY]}"
        place.seed_globally()
        with named(where):
            result = dict(self._transform(sample))
            result.pop(KEY, None)
            wanted = set(self._outputs) or (set(self._readers) if self._parts else set(result))
            if not wanted <= set(result) or (self._outputs and wanted != set(result)):
                raise ValueError(f"the transform gave {sorted(result)}, not {sorted(wanted)}")
            outputs = self._outputs or {name: Inferred() for name in result}
            learned = {name: outputs[name].learn(value) for name, value in result.items()}
        self._outputs = outputs
        return learned

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
        columns: Mapping[str, PartReader | Inferred] = self._readers
        if self._transform is not None:
            columns = self._outputs or {name: Inferred() for name in self._readers}
        for name, column in columns.items():
            column.add(builder, name, [sample[name] for sample in samples])
        if self._wants_key:
            keys = [
                self._key(int(rows.shards[k]), int(rows.rows[k])).encode("utf-8", "surrogateescape")
                for k in kept
            ]
            builder.strings(KEY, "text", keys)
        if with_mask or (self._parts is not None and MASK in self._parts):
            builder.tensor(MASK, np.array(kept, np.int64) < rows.real)
        return builder.finish(allocate, self._parts, tuple(skipped))

    def _key(self, shard: int, row: int) -> str:
        return self._shards.index(shard).keys[row]
