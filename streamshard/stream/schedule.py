"""Steps to rows: the plan's positions, as shards and rows in them, several steps at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from streamshard.plan.order import Ints, Places
from streamshard.plan.share import Step
from streamshard.stream.assemble import Rows
from streamshard.stream.source import Source

_LOOK_AHEAD = 4096  # positions resolved at once, so that numpy's price per call is shared


class AnyOrder(Protocol):
    """The order of an epoch, of one dataset or of a mixture."""

    def __len__(self) -> int: ...

    def places(self, positions: Ints) -> Places:
        """Where the samples of some positions lie."""


class AnyShare(Protocol):
    """One rank's part of a pass, in batches of one size or within a budget."""

    @property
    def steps(self) -> int:
        """Steps of the pass, the same on every rank."""

    def step(self, number: int) -> Step:
        """The positions of step `number`, 0 <= number < steps."""

    def after(self, steps: int) -> int | None:
        """The position after so many steps; None where no step is left."""


class Schedule:
    """Where the samples of each step of a pass lie."""

    def __init__(
        self, order: AnyOrder, share: AnyShare, sources: Sequence[Source], epoch: int
    ) -> None:
        self._order, self._share = order, share
        self._sources, self._epoch = sources, epoch

    def rows(self, numbers: Iterable[int]) -> Iterator[Rows]:
        """The rows of these steps, in their order."""
        steps: list[Step] = []
        count = 0
        for number in numbers:
            steps.append(self._share.step(number))
            count += len(steps[-1].positions)
            if count >= _LOOK_AHEAD:
                yield from self._resolved(steps)
                steps, count = [], 0
        if steps:
            yield from self._resolved(steps)

    def one_by_one(self) -> Iterator[Rows]:
        """Every row of the epoch alone, whichever step it belongs to."""
        for position in range(len(self._order)):
            yield from self._resolved([Step(np.array([position], np.int64), 0)])

    def shards(self, number: int) -> list[str]:
        """The shards that a step reads from, by URL."""
        places = self._order.places(self._share.step(number).positions)
        pairs = sorted(set(zip(places.sources.tolist(), places.shards.tolist(), strict=True)))
        return [self._sources[source].shards.shard_url(shard) for source, shard in pairs]

    def _resolved(self, steps: Sequence[Step]) -> Iterator[Rows]:
        positions: Ints = np.concatenate([step.positions for step in steps])
        places = self._order.places(positions)
        rows = self._located(places)
        begin = 0
        for step in steps:
            end = begin + len(step.positions)
            now = slice(begin, end)
            where = Places(places.sources[now], places.shards[now], rows[now])
            yield Rows(where, step.positions, step.real, self._epoch)
            begin = end

    def _located(self, places: Places) -> Ints:
        """Rows in the tars, from rows among those that the views chose."""
        if len(self._sources) == 1:
            source = self._sources[0]
            return source.view.locate(source.shards, places.shards, places.rows)
        rows = np.empty_like(places.rows)
        for number in np.unique(places.sources).tolist():
            source, here = self._sources[number], places.sources == number
            rows[here] = source.view.locate(source.shards, places.shards[here], places.rows[here])
        return rows
