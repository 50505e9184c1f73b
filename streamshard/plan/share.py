"""The division of an order among ranks, workers and steps.

With batch size B on each of W ranks, step t of rank r takes the positions
c + [(t*W + r)*B, (t*W + r + 1)*B), where c is the position at which the pass begins. What does not
fill a last global batch of W*B samples is the tail's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.order import Ints

Tail = Literal["drop", "pad", "exact"]


@dataclass(frozen=True)
class World:
    """Who takes part: the data-parallel rank and how many of them there are.

    >>> World(rank=1, size=4)
    World(rank=1, size=4)
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise UsageError(f"rank {self.rank} of a world of {self.size}; ranks begin at 0")


class Step(NamedTuple):
    """What one rank takes in one step.

    Attributes:
        positions: (samples,) int64, in the epoch's order.
        real: How many of them, from the front, are not `pad`'s repeats.
    """

    positions: Ints
    real: int


@dataclass(frozen=True)
class Share:
    """One rank's part of one pass over an epoch.

    Attributes:
        total: Samples in the epoch.
        start: Position at which the pass begins; 0 but for a resumed epoch.
        world: This rank and the number of ranks.
        batch_size: Samples per rank and step.
        tail: What becomes of an incomplete last global batch: "drop" leaves it out, "pad" fills it
            from the start of the sequence, "exact" splits it evenly, so that some ranks may get
            one sample less than others, or none.
    """

    total: int
    start: int
    world: World
    batch_size: int
    tail: Tail

    def __post_init__(self) -> None:
        if self.tail not in ("drop", "pad", "exact"):
            raise UsageError(f'tail is {self.tail!r}; it must be "drop", "pad" or "exact"')
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.start <= self.total:
            raise UsageError(f"position {self.start} of an epoch of {self.total} samples")

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take in a full step."""
        return self.world.size * self.batch_size

    @property
    def steps(self) -> int:
        """Steps of this pass, the same on every rank."""
        whole, rest = divmod(self.total - self.start, self.global_batch)
        return whole + (rest > 0 and self.tail != "drop")

    def step(self, number: int) -> Step:
        """The positions of step `number`, 0 <= number < steps."""
        begin = self.start + number * self.global_batch
        left = self.total - begin
        if self.tail == "exact" and left < self.global_batch:
            each, more = divmod(left, self.world.size)
            first = begin + self.world.rank * each + min(self.world.rank, more)
            count = each + (self.world.rank < more)
            return Step(np.arange(first, first + count, dtype=np.int64), count)
        first = begin + self.world.rank * self.batch_size
        positions = np.arange(first, first + self.batch_size, dtype=np.int64)
        real = min(max(self.total - first, 0), self.batch_size)
        return Step(positions % self.total, real)

    def after(self, steps: int) -> int | None:
        """The position after so many steps of this pass; None where no step is left."""
        return self.start + steps * self.global_batch if steps < self.steps else None
