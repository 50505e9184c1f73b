"""The one-process mode: threads make the blocks of a pass ahead of the training loop."""

from __future__ import annotations

import os
from collections.abc import Generator
from queue import SimpleQueue

from streamshard.errors import UsageError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.block import Block, plain_memory
from streamshard.stream.course import Course
from streamshard.stream.threads import OwnThread, Threads

Blocks = Generator[Block, None, None]


class ThreadPool:
    """Threads of this process in place of workers: the same doors as `WorkerPool`.

    Samples are read and decoded by some threads, and one more puts batches together. But where
    code of others draws from the global generators, which are also the training loop's, batches
    are put together, and that code called, in the training loop's thread when they are asked for.
    """

    def __init__(self, course: Course, world: World, *, threads: int, prefetch: int) -> None:
        """Start nothing yet.

        Args:
            course: What to make batches of.
            world: This rank and the number of ranks.
            threads: How many decode, at least 1.
            prefetch: Batches that may be ready; of those whose making takes the training loop's
                thread, the samples.
        """
        self._course, self._world = course, world
        self._count, self._prefetch = threads, prefetch
        self._pid = os.getpid()
        self._threads: Threads | None = None
        self._blocks: Blocks | _Ahead | None = None

    def start(self, cursor: Cursor) -> None:
        """Begin a pass; what was made for another is thrown away."""
        self.close()
        self._pid, self._threads = os.getpid(), Threads(self._count)
        if self._course.assembler.is_foreign:
            self._blocks = self._passes(cursor, self._threads, self._prefetch)
        else:
            self._blocks = _Ahead(self._passes(cursor, self._threads, 1), self._prefetch)

    def _passes(self, cursor: Cursor, threads: Threads, ahead: int) -> Blocks:
        """The blocks of one pass after another, until one has none."""
        course, world = self._course, self._world
        while steps := course.share(cursor, world, may_be_empty=True).steps:
            yield from course.make(cursor, world, range(steps), plain_memory, threads.each, ahead)
            cursor = course.next_epoch(cursor, world)

    def follow(self, cursor: Cursor, steps: int) -> None:
        """Take note that the threads went on into this epoch by themselves, if they are here."""
        if self._pid != os.getpid():
            self.start(cursor)

    def receive(self, step: int) -> Block:
        """The block of a step of the pass; steps are asked for one after another.

        Raises:
            UsageError: The threads were ended, or those of another process were to make it.
            StreamshardError: The step could not be made.
        """
        if self._blocks is None or self._pid != os.getpid():
            what = "forked" if self._blocks else "closed"
            raise UsageError(f"the loader was {what} in the middle of a pass; iterate it again")
        return next(self._blocks)

    def give_back(self) -> None:
        """See `WorkerPool`: every block is for keeps."""

    def close(self) -> None:
        """End the threads, if they are this process's: a fork of it has none."""
        blocks, threads, self._blocks, self._threads = self._blocks, self._threads, None, None
        if self._pid != os.getpid():
            return
        if isinstance(blocks, _Ahead):
            blocks.stop()
        if threads is not None:
            threads.close()
        if blocks is not None:
            blocks.close()


class _Ahead:
    """A thread that makes blocks, as long as fewer than it may have are waiting."""

    def __init__(self, blocks: Blocks, room: int) -> None:
        # Queues, since they alone may be used where a garbage collection interrupts their use.
        self._made: SimpleQueue[Block | BaseException] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(room):
            self._room.put(None)
        self._is_stopped = False
        self._blocks = blocks
        self._thread = OwnThread(self._run, "ahead")

    def _run(self) -> None:
        try:
            while True:
                self._room.get()
                if self._is_stopped:
                    return
                self._made.put(next(self._blocks))
        except BaseException as error:
            self._made.put(error)
        finally:
            self._blocks.close()

    def __next__(self) -> Block:
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        self._room.put(None)
        return made

    def stop(self) -> None:
        """Make no other block."""
        self._is_stopped = True
        self._room.put(None)

    def close(self) -> None:
        """Wait until the thread has ended."""
        self._thread.end()
