"""One worker's steps of a pass, for a DataLoader: an iterator that can be checkpointed.

torchdata's `StatefulDataLoader` asks each worker's iterator for its state and gives it back to the
worker of the same number, so this state is the worker's own: its next step and its stride. The
cursor of a whole rank is `StreamLoader`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from streamshard.errors import CursorError, UsageError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.batch import batch_of
from streamshard.stream.block import Block
from streamshard.stream.builder import Allocate
from streamshard.stream.course import Course


class Steps(Iterator[Any]):
    """Batches of the steps worker, worker + workers, worker + 2 * workers, … of a pass."""

    def __init__(
        self,
        course: Course,
        world: World,
        allocate: Allocate,
        report: Callable[[Block, int], int],
        epoch: int,
        worker: int,
        workers: int,
    ) -> None:
        """Begin an epoch.

        Args:
            course: What is streamed.
            world: This rank and the number of ranks.
            allocate: Gives the memory of each block.
            report: Takes note of what was left out of a block, given the number before it.
            epoch: The epoch.
            worker: This worker's number.
            workers: How many there are on this rank.
        """
        self._course, self._world = course, world
        self._allocate, self._report = allocate, report
        self._worker, self._workers = worker, workers
        self._skipped = 0
        self._begin(course.first_cursor(world, epoch), worker)

    def _begin(self, cursor: Cursor, step: int) -> None:
        self._cursor, self._next = cursor, step
        numbers = range(step, self._course.share(cursor, self._world).steps, self._workers)
        self._blocks = self._course.make(cursor, self._world, numbers, self._allocate)

    def start_at(self, cursor: Cursor) -> None:
        """Begin this worker's part of the pass from a cursor."""
        self._begin(cursor, self._worker)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        block = next(self._blocks)
        self._next += self._workers
        self._skipped = self._report(block, self._skipped)
        return batch_of(block)

    def state_dict(self) -> dict[str, Any]:
        """Where this worker stands in its pass."""
        return {"cursor": self._cursor.to_dict(), "next": self._next, **self._division()}

    def _division(self) -> dict[str, Any]:
        """What a number of steps means something for, and nothing else."""
        return {
            "worker": self._worker,
            "workers": self._workers,
            "ranks": self._world.size,
            "batch_size": self._course.batch_size,
            "tail": self._course.tail,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a worker of the same number stood.

        Raises:
            CursorError: Workers, ranks, batch size or tail are not those of the state, or it is of
                another dataset, seed or order.
        """
        division = self._division()
        theirs = {name: state.get(name) for name in division}
        if theirs != division or not {"cursor", "next"} <= set(state):
            raise CursorError(
                f"the state is one worker's, made with {theirs}; this one has {division}: "
                "StatefulDataLoader goes on as it was; StreamLoader's state fits any division"
            )
        self._begin(self._course.resumed(state["cursor"], self._world), state["next"])


def refuse_collation() -> None:
    """Refuse to be iterated by a DataLoader that would batch these batches again.

    A dataset is not told how its DataLoader is set up; the fetcher that iterates it knows.

    Raises:
        UsageError: The DataLoader has a batch size.
    """
    frame = sys._getframe(2)
    if frame.f_code.co_qualname.startswith("_IterableDatasetFetcher") and frame.f_locals.get(
        "auto_collation"
    ):
        raise UsageError(
            "ShardDataset makes whole batches: DataLoader(dataset, batch_size=None, …), "
            "and batch_size= in ShardDataset"
        )
