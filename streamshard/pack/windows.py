"""Units of a source (tars, shards, row groups), a few open at a time, and their samples mixed.

Units are taken in random order, `WINDOW` at a time, and the samples of these in random order. So no
more than a few units are open, and what mixes on disk is as much as a stream mixes by default.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from streamshard.pack.sources import pack_order

WINDOW = 4  # units whose samples are mixed, as many shards as a stream mixes by default

Input = TypeVar("Input")


def windows(units: int, seed: int | None) -> Iterator[tuple[Sequence[int], int | None]]:
    """The units that are open at the same time, and the seed of the order of their samples.

    Args:
        units: How many there are.
        seed: None keeps the order of units and samples.
    """
    order = pack_order(units, seed)
    for begin in range(0, units, WINDOW):
        yield order[begin : begin + WINDOW], None if seed is None else seed + begin


def mixed(units: Sequence[Sequence[Input]], seed: int | None) -> Iterator[Input]:
    """All that several units hold, in an order of the seed."""
    ends = list(itertools.accumulate(len(unit) for unit in units))
    for place in pack_order(ends[-1], seed) if ends[-1] else ():
        unit = units[number := bisect_right(ends, place)]
        yield unit[place - ends[number] + len(unit)]


class Windows(Generic[Input]):
    """The inputs of a source that knows how many each of its units has, before it opens any."""

    def __init__(
        self,
        lengths: Sequence[int],
        seed: int | None,
        open_unit: Callable[[int], Sequence[Input]],
    ) -> None:
        """Take note of them.

        Args:
            lengths: How many inputs each unit has.
            seed: Of the order in which they are packed; None keeps that of the units.
            open_unit: Gives the inputs of a unit.
        """
        self._lengths, self._seed, self._open = lengths, seed, open_unit

    def __len__(self) -> int:
        return sum(self._lengths)

    def __iter__(self) -> Iterator[Input]:
        return self.after(0)

    def after(self, place: int) -> Iterator[Input]:
        """Those from one on; units that are over by then are not opened."""
        for units, seed in windows(len(self._lengths), self._seed):
            length = sum(self._lengths[unit] for unit in units)
            if place < length:
                yield from itertools.islice(
                    mixed([self._open(unit) for unit in units], seed), place, None
                )
            place = max(0, place - length)


class Numbered(Windows[Input]):
    """Such inputs, where the key is the number of the sample, unit after unit."""

    def key(self, number: int) -> str:
        """The key of a sample: its number, padded to the width of the last one."""
        return f"{number:0{max(6, len(str(len(self) - 1)))}d}"

    def keys(self) -> Iterator[str]:
        """The keys in the order of the inputs; no unit is opened for them."""
        width = len(self.key(0))
        ends = list(itertools.accumulate(self._lengths))
        for units, seed in windows(len(self._lengths), self._seed):
            spans = [range(ends[unit] - self._lengths[unit], ends[unit]) for unit in units]
            for number in mixed(spans, seed):
                yield f"{number:0{width}d}"
