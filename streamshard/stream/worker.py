"""One worker process: makes steps by itself and hands over blocks.

A worker is told where a pass begins and which step is its first; it makes every n-th step, goes on
into the next epoch when the pass is done, and stops when as many blocks as it may have are out.
Messages stay under 4,096 bytes (PIPE_BUF), so that a worker that is killed never leaves half of one
in the pipe; everything else travels in the block.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Self

import torch

from streamshard import errors
from streamshard.errors import StreamshardError, WorkerError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.block import Block
from streamshard.stream.dataset import ShardDataset
from streamshard.stream.ring import BlockMemory, Place
from streamshard.stream.threads import Each, Threads

_KEPT = 31 * 1024 * 1024  # bytes; the most that makes glibc do so is 32 MiB
_MESSAGE_BYTES = 3500  # of an error's text: with its frame still under PIPE_BUF


class Start(NamedTuple):
    """The order to begin: `generation` tells what came before it from what comes after.

    Attributes:
        generation: Counts the orders of a pool.
        cursor: Where the pass begins.
        step: The worker's first step of the pass.
    """

    generation: int
    cursor: Cursor
    step: int


class Made(NamedTuple):
    """A block that waits to be taken.

    Attributes:
        generation: Of the order that it belongs to.
        place: Where it lies.
    """

    generation: int
    place: Place

    def message(self) -> tuple[int, ...]:
        """As it is sent: pickling integers takes a third of the time that pickling this takes."""
        return (self.generation, *self.place)

    @classmethod
    def of(cls, message: tuple[int, ...]) -> Self:
        """From what was sent."""
        return cls(message[0], Place(*message[1:]))


class Failed(NamedTuple):
    """A step that could not be made.

    Attributes:
        generation: Of the order that it belongs to.
        kind: The exception's class, by its name in `streamshard.errors`.
        message: What it says, cut to fit.
    """

    generation: int
    kind: str
    message: str


@dataclass(frozen=True)
class Job:
    """What a worker is.

    Attributes:
        number: 0 <= number < workers.
        workers: How many there are on this rank.
        dataset: What to make batches of.
        world: This rank and the number of ranks.
        slots: Blocks that may be out: waiting, or lent to the trainer.
        reuse: Whether blocks are lent, and given back.
        threads: How many read and decode; 0 for the worker alone.
        parent: Process id of the trainer.
    """

    number: int
    workers: int
    dataset: ShardDataset
    world: World
    slots: int
    reuse: bool
    threads: int
    parent: int


def work(job: Job, connection: Connection) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; it ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not a handler that the trainer has set
    _exit_with(job.parent)
    torch.set_num_threads(1)
    # Once so much was freed at once, glibc keeps what a batch frees for the next (mallopt(3), on
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD): else every batch gets its pages anew from the kernel.
    torch.empty(_KEPT, dtype=torch.uint8)
    # These mean that the trainer is done with us.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Worker(job, connection).run()


def _exit_with(parent: int) -> None:
    """End this process as soon as the trainer ends, even when it is stuck in a read."""
    try:
        descriptor = os.pidfd_open(parent)
    except OSError:
        os._exit(1)  # it ended before we could watch it

    def watch() -> None:
        wait([descriptor])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="streamshard-watchdog").start()


class _Worker:
    """One worker: takes orders, makes steps, hands over blocks as long as there is room."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self._job, self._connection = job, connection
        self._memory = BlockMemory(job.slots, reuse=job.reuse)
        self._each: Each = Threads(job.threads).each if job.threads else map
        self._start: Start | None = None
        self._poll = select.poll()  # a tenth of the time of `Connection.poll`
        self._poll.register(connection, select.POLLIN)

    def run(self) -> None:
        """Serve until the connection closes."""
        while True:
            while self._start is None:
                self._listen()
            start, self._start = self._start, None
            self._serve(start)

    def _listen(self) -> None:
        """Take one message; a new order stands until it is begun."""
        message = self._connection.recv()
        if isinstance(message, Start):
            self._start = message
        else:
            self._memory.take_back(*message)

    def _serve(self, start: Start) -> None:
        """Make steps, epoch after epoch, until there is another order or a step fails.

        Also until an epoch has no step for this worker; the trainer orders the one after it.
        """
        job, cursor, first = self._job, start.cursor, start.step
        course = job.dataset.course
        while True:
            numbers = range(first, course.share(cursor, job.world).steps, job.workers)
            memory, ahead = self._memory.allocate, min(job.threads, 1)
            blocks = course.make(cursor, job.world, numbers, memory, self._each, ahead)
            for _ in numbers:
                while not self._memory.has_room or self._poll.poll(0):
                    self._listen()
                    if self._start:
                        return
                if not self._hand_over(blocks, start.generation):
                    return
            cursor, first = course.next_epoch(cursor, job.world), job.number
            if first >= course.share(cursor, job.world, may_be_empty=True).steps:
                return

    def _hand_over(self, blocks: Iterator[Block], generation: int) -> bool:
        """Make the next step; whether it could be made."""
        try:
            block = next(blocks)
        except Exception as error:
            kind, message = _described(error)
            self._connection.send(Failed(generation, kind, message))
            return False
        layout = pickle.dumps(block.layout, pickle.HIGHEST_PROTOCOL)
        made = Made(generation, self._memory.hand_over(layout))
        self._connection.send(made.message())
        return True


def _described(error: Exception) -> tuple[str, str]:
    """An exception as it crosses the pipe; one that is not ours brings its traceback."""
    if isinstance(error, StreamshardError):
        text = str(error)
        if error.__cause__ is not None:
            text += "\n" + "".join(traceback.format_exception(error.__cause__))
        # The first class that the trainer knows by name; users may have classes of their own.
        kind = next(kind for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        return kind.__name__, _cut(text.strip(), slice(_MESSAGE_BYTES))
    text = "".join(traceback.format_exception(error)).strip()
    return WorkerError.__name__, _cut(text, slice(-_MESSAGE_BYTES, None))


def _cut(text: str, kept: slice) -> str:
    """Some bytes of a text."""
    return text.encode("utf-8", "replace")[kept].decode("utf-8", "ignore")
