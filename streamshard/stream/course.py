"""The course of a stream: from a cursor to the steps of its pass and the blocks of those steps.

Everything that a stream is but for where it runs: the world is a value here, and so is the memory
that blocks are written to.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamshard.errors import UsageError
from streamshard.plan.budget import Budget
from streamshard.plan.cursor import Cursor
from streamshard.plan.order import OrderRule, Shuffle
from streamshard.plan.share import Share, Tail, World
from streamshard.stream.assemble import Assembler, Begun
from streamshard.stream.block import Block
from streamshard.stream.builder import Allocate
from streamshard.stream.schedule import AnyOrder, AnyShare, Schedule
from streamshard.stream.source import Source
from streamshard.stream.threads import Each, alone


class Plan(Protocol):
    """How the samples of an epoch are ordered, of one dataset or of a mixture."""

    @property
    def keeps_rule(self) -> bool:
        """Whether an epoch keeps the lanes and the grain of the one before."""

    def settle(
        self,
        *,
        world_size: int,
        batch_size: int,
        seed: int,
        shuffle: Shuffle,
        lanes: int | None = None,
        grain: int | None = None,
        window: int | None = None,
    ) -> OrderRule:
        """The rule, with what was left out derived from the world."""

    def samples(self, grain: int) -> int:
        """Samples of an epoch."""

    def order(self, rule: OrderRule, epoch: int) -> AnyOrder:
        """The order of an epoch."""


@dataclass(frozen=True)
class Course:
    """What a stream delivers, step by step, on any rank of any world.

    Attributes:
        sources: The datasets, one unless it is a mixture.
        plan: Their order.
        fingerprint: Of data and choice.
        batch_size: Samples per rank and step; 1 with a budget, whose batches have no one size.
        tail: What becomes of an incomplete last global batch.
        seed: Of order and augmentations.
        shuffle: False, True or "full".
        given: `lanes`, `grain` and `window`, None where the plan is to derive them.
        assembler: Makes the blocks.
    """

    sources: Sequence[Source]
    plan: Plan
    fingerprint: str
    batch_size: int
    tail: Tail
    seed: int
    shuffle: Shuffle
    given: Mapping[str, int | None]
    assembler: Assembler

    def __post_init__(self) -> None:
        self.share(self.first_cursor(World(), 0), World(), may_be_empty=True)  # checks everything

    @property
    def budget(self) -> Budget | None:
        """What the batches are cut by; None where each has as many samples."""
        return None

    @property
    def where(self) -> str:
        """The URLs, without secrets."""
        return " + ".join(source.where for source in self.sources)

    def first_cursor(self, world: World, epoch: int) -> Cursor:
        """The beginning of an epoch."""
        rule = self.plan.settle(
            world_size=world.size,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            **self.given,
        )
        return Cursor(epoch, 0, rule, self.fingerprint, self.budget)

    def next_epoch(self, cursor: Cursor, world: World) -> Cursor:
        """The beginning of the epoch after a cursor's."""
        if self.plan.keeps_rule:
            return dataclasses.replace(cursor, epoch=cursor.epoch + 1, position=0)
        return self.first_cursor(world, cursor.epoch + 1)

    def resumed(self, state: Mapping[str, Any], world: World) -> Cursor:
        """The cursor of a state, at the next epoch where nothing of its own is left.

        Raises:
            CursorError: The state is no cursor, or of another dataset, seed, shuffle or order.
        """
        cursor = Cursor.from_dict(state)
        given = {name: value for name, value in self.given.items() if value is not None}
        cursor.check(
            fingerprint=self.fingerprint,
            budget=self.budget,
            seed=self.seed,
            shuffle=self.shuffle,
            **given,
        )
        if cursor.position and self.share(cursor, world).steps == 0:
            return self.next_epoch(cursor, world)
        return cursor

    def share(self, cursor: Cursor, world: World, *, may_be_empty: bool = False) -> AnyShare:
        """How the rest of a cursor's epoch is divided.

        Raises:
            UsageError: `drop` leaves nothing of a whole epoch, unless it may be empty.
        """
        total = self.plan.samples(cursor.rule.grain)
        share = Share(total, cursor.position, world, self.batch_size, self.tail)
        if cursor.position == 0 and share.steps == 0 and not may_be_empty:
            raise UsageError(
                f"{self.where} has {total} samples, fewer than one global batch of "
                f'{world.size} x {self.batch_size}, so tail="drop" drops all of them; use '
                '"pad", "exact", or a smaller batch_size'
            )
        return share

    def after(self, cursor: Cursor, world: World, steps: int) -> Cursor:
        """Where the stream stands so many steps after a cursor, within its epoch or at the next."""
        position = self.share(cursor, world).after(steps)
        if position is None:
            return self.next_epoch(cursor, world)
        return dataclasses.replace(cursor, position=position)

    def schedule(self, cursor: Cursor, world: World) -> Schedule:
        """Where the samples of the steps of a pass lie."""
        order = self.plan.order(cursor.rule, cursor.epoch)
        return Schedule(order, self.share(cursor, world), self.sources, cursor.epoch)

    def make(
        self,
        cursor: Cursor,
        world: World,
        numbers: Iterable[int],
        allocate: Allocate,
        each: Each = map,
        ahead: int = 0,
    ) -> Generator[Block, None, None]:
        """The blocks of some steps of the pass that begins at a cursor.

        Args:
            cursor: Where the pass begins.
            world: This rank and the number of ranks.
            numbers: Steps of the pass, in the order in which they are wanted.
            allocate: Gives the memory of each block.
            each: Reads and decodes samples, here or in other threads.
            ahead: Steps whose samples are asked for before the step that is due is put together.
        """
        schedule = self.schedule(cursor, world)
        rows = schedule.rows(numbers)
        begun: deque[Begun] = deque()
        while True:
            with alone():
                for one in itertools.islice(rows, ahead + 1 - len(begun)):
                    begun.append(self.assembler.begin(one, each))
                if not begun:
                    return
                block = self.assembler.finish(
                    begun.popleft(),
                    allocate,
                    with_mask=self.tail == "pad",
                    probes=schedule.one_by_one(),
                )
            yield block
