"""Steps to rows: the plan's positions, as shards and rows in them, several steps at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from streamshard.plan.order import Ints, Order
from streamshard.plan.share import Share, Step
from streamshard.stream.assemble import Rows
from streamshard.stream.reader import Shards
from streamshard.stream.view import View

_LOOK_AHEAD = 4096  # positions resolved at once, so that numpy's price per call is shared


class Schedule:
    """Where the samples of each step of a pass lie."""

    def __init__(self, order: Order, share: Share, view: View, shards: Shards, epoch: int) -> None:
        self._order, self._share = order, share
        self._view, self._shards, self._epoch = view, shards, epoch

    def rows(self, numbers: Iterable[int]) -> Iterator[Rows]:
        """The rows of these steps, in their order."""
        at_once = max(1, _LOOK_AHEAD // self._share.batch_size)
        steps: list[Step] = []
        for number in numbers:
            steps.append(self._share.step(number))
            if len(steps) == at_once:
                yield from self._resolved(steps)
                steps = []
        if steps:
            yield from self._resolved(steps)

    def one_by_one(self) -> Iterator[Rows]:
        """Every row of the epoch alone, whichever step it belongs to."""
        for position in range(len(self._order)):
            yield from self._resolved([Step(np.array([position], np.int64), 0)])

    def _resolved(self, steps: Sequence[Step]) -> Iterator[Rows]:
        positions: Ints = np.concatenate([step.positions for step in steps])
        shards, places = self._order.rows(positions)
        rows = self._view.locate(self._shards, shards, places)
        begin = 0
        for step in steps:
            end = begin + len(step.positions)
            yield Rows(shards[begin:end], rows[begin:end], step.positions, step.real, self._epoch)
            begin = end
