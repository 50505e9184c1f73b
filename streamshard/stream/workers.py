"""Processes that make steps by themselves and hand over blocks.

A worker is told where a pass begins and which step is its first; it makes every n-th step, goes on
into the next epoch when the pass is done, and stops when as many blocks as it may have in flight
wait to be taken. Messages stay under 4,096 bytes (PIPE_BUF), so that a worker that is killed never
leaves half of one in the pipe; everything else travels in the block. Blocks are memfds: nameless
memory that the kernel frees with its last user, so a kill leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple, cast

import numpy as np
import torch

from streamshard import errors
from streamshard.errors import StreamshardError, WorkerError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.block import Block, tensor_on
from streamshard.stream.dataset import ShardDataset

_MESSAGE_BYTES = 3500  # of an error's text: with its frame still under PIPE_BUF
_JOIN_SECONDS = 5.0

logger = logging.getLogger("streamshard")


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


class Taken(NamedTuple):
    """The note that a block was taken: its descriptor can be closed, another may be made.

    Attributes:
        descriptor: The worker's number for the memfd.
    """

    descriptor: int


class Made(NamedTuple):
    """A block that waits to be taken.

    Attributes:
        generation: Of the order that it belongs to.
        epoch: Of the step.
        step: Of the pass.
        descriptor: The worker's number for the memfd: the block, then its pickled layout.
        nbytes: Of the block.
        layout_bytes: Of the layout.
    """

    generation: int
    epoch: int
    step: int
    descriptor: int
    nbytes: int
    layout_bytes: int


class Failed(NamedTuple):
    """A step that could not be made.

    Attributes:
        generation: Of the order that it belongs to.
        epoch: Of the step.
        step: Of the pass.
        kind: The exception's class, by its name in `streamshard.errors`.
        message: What it says, cut to fit.
    """

    generation: int
    epoch: int
    step: int
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
        in_flight: Blocks that may wait to be taken.
        parent: Process id of the trainer.
    """

    number: int
    workers: int
    dataset: ShardDataset
    world: World
    in_flight: int
    parent: int


def _work(job: Job, connection: Connection) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; it ends its workers
    _exit_with(job.parent)
    torch.set_num_threads(1)
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
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="streamshard-watchdog").start()


class _Worker:
    """One worker: takes orders, makes steps, remembers which blocks are not yet taken."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self._job, self._connection = job, connection
        self._waiting: set[int] = set()  # descriptors
        self._start: Start | None = None
        self._descriptor = -1

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
        if isinstance(message, Taken):
            self._waiting.discard(message.descriptor)
            os.close(message.descriptor)
        else:
            self._start = message

    def _serve(self, start: Start) -> None:
        """Make steps, epoch after epoch, until there is another order or a step fails."""
        job, cursor, first = self._job, start.cursor, start.step
        while True:
            steps = job.dataset.share(cursor.position, job.world).steps
            numbers = range(first, steps, job.workers)
            blocks = job.dataset.make(cursor, job.world, numbers, self._allocate)
            for number in numbers:
                while len(self._waiting) >= job.in_flight or self._connection.poll():
                    self._listen()
                    if self._start:
                        return
                if not self._hand_over(blocks, start.generation, cursor.epoch, number):
                    return
            cursor = job.dataset.first_cursor(job.world, cursor.epoch + 1)
            first = job.number

    def _hand_over(self, blocks: Iterator[Block], generation: int, epoch: int, number: int) -> bool:
        """Make the next step; whether it could be made."""
        try:
            block = next(blocks)
        except Exception as error:
            kind, message = _described(error)
            self._connection.send(Failed(generation, epoch, number, kind, message))
            return False
        layout = pickle.dumps(block.layout, pickle.HIGHEST_PROTOCOL)
        os.pwrite(self._descriptor, layout, block.layout.nbytes)
        self._waiting.add(self._descriptor)
        self._connection.send(
            Made(generation, epoch, number, self._descriptor, block.layout.nbytes, len(layout))
        )
        return True

    def _allocate(self, nbytes: int) -> torch.Tensor:
        """Fresh shared memory for one block; the layout will be written behind it."""
        self._descriptor = os.memfd_create("streamshard-block")
        os.ftruncate(self._descriptor, nbytes)
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        shared = mmap.mmap(self._descriptor, nbytes)
        return torch.from_numpy(np.frombuffer(shared, np.uint8))


def _described(error: Exception) -> tuple[str, str]:
    """An exception as it crosses the pipe; one that is not ours brings its traceback."""
    if isinstance(error, StreamshardError):
        text = str(error)
        if error.__cause__ is not None:
            text += "\n" + "".join(traceback.format_exception(error.__cause__))
        return type(error).__name__, text.strip()[:_MESSAGE_BYTES]
    text = "".join(traceback.format_exception(error)).strip()
    return WorkerError.__name__, text[-_MESSAGE_BYTES:]


class _Handle:
    """The trainer's side of one worker."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process, self.connection = process, connection

    def send(self, message: Start | Taken) -> None:
        """Tell the worker, unless it is gone; that shows when something is expected of it."""
        try:
            self.connection.send(message)
        except OSError:
            logger.debug("worker %s is gone", self.process.pid)

    def receive(self) -> Made | Failed | None:
        """The next message, or None if the worker ended without sending one."""
        ready = wait([self.connection, self.process.sentinel])
        if self.connection not in ready and not self.connection.poll():
            return None
        try:
            message: Made | Failed = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def end(self) -> None:
        """Make sure that the process is gone."""
        self.connection.close()
        self.process.terminate()
        self.process.join(_JOIN_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class WorkerPool:
    """The workers of one rank: blocks come out in the order of the steps."""

    def __init__(
        self,
        dataset: ShardDataset,
        world: World,
        *,
        workers: int,
        in_flight: int,
        restarts: int,
        start_method: str | None,
    ) -> None:
        """Start the processes.

        Args:
            dataset: What to make batches of.
            world: This rank and the number of ranks.
            workers: Processes, at least 1.
            in_flight: Blocks that each may have waiting.
            restarts: How many times in all a worker that ended is replaced.
            start_method: fork, spawn or forkserver; the platform's default where None.
        """
        self._context: BaseContext = multiprocessing.get_context(start_method)
        self._jobs = [
            Job(number, workers, dataset, world, in_flight, os.getpid())
            for number in range(workers)
        ]
        self._restarts = restarts
        self._generation = 0
        self._cursor: Cursor | None = None
        self._handles: list[_Handle] = []
        for job in self._jobs:
            self._handles.append(self._launch(job))

    def start(self, cursor: Cursor) -> None:
        """Begin a pass; what was made for another is thrown away."""
        self._generation += 1
        self._cursor = cursor
        for number, handle in enumerate(self._handles):
            handle.send(Start(self._generation, cursor, number))

    def follow(self, cursor: Cursor) -> None:
        """Take note that the workers went on into this epoch by themselves."""
        self._cursor = cursor

    def receive(self, step: int) -> Block:
        """The block of a step of the pass; steps are asked for one after another.

        Raises:
            WorkerError: A worker ended, and was replaced as often as it may be.
            StreamshardError: The step could not be made.
        """
        worker = step % len(self._handles)
        while True:
            message = self._handles[worker].receive()
            if message is None:
                self._replace(worker, step)
            elif message.generation != self._generation:
                if isinstance(message, Made):
                    self._handles[worker].send(Taken(message.descriptor))
            elif isinstance(message, Failed):
                raise getattr(errors, message.kind)(message.message)
            else:
                return self._take(worker, message)

    def _take(self, worker: int, message: Made) -> Block:
        """Map a block into this process and give the worker its credit back."""
        handle = self._handles[worker]
        path = f"/proc/{handle.process.pid}/fd/{message.descriptor}"
        total = message.nbytes + message.layout_bytes
        storage = cast(
            "torch.UntypedStorage",
            torch.UntypedStorage.from_file(path, shared=True, nbytes=total),
        )
        handle.send(Taken(message.descriptor))
        whole = tensor_on(storage, torch.uint8, 0, (total,))
        layout = pickle.loads(whole[message.nbytes :].numpy().tobytes())  # our own worker's
        return Block(whole[: message.nbytes], layout)

    def _replace(self, worker: int, step: int) -> None:
        """Start a worker anew, from the step that is due."""
        process = self._handles[worker].process
        process.join(_JOIN_SECONDS)
        how = _ending(process.exitcode)
        if self._restarts == 0:
            raise WorkerError(
                f"worker {worker} (process {process.pid}) {how} before step {step} of epoch "
                f"{self._cursor.epoch if self._cursor else 0}, and no restart is left"
            )
        self._restarts -= 1
        logger.warning(
            "worker %d (process %s) %s before step %d; restarted, %d restarts left",
            worker, process.pid, how, step, self._restarts,
        )  # fmt: skip
        self._handles[worker].end()
        self._handles[worker] = self._launch(self._jobs[worker])
        assert self._cursor is not None
        self._handles[worker].send(Start(self._generation, self._cursor, step))

    def _launch(self, job: Job) -> _Handle:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(job, theirs), daemon=True, name=f"streamshard-{job.number}"
        )
        process.start()
        # Ours to close: while anybody else holds it, a dead worker never reads as end of file.
        theirs.close()
        return _Handle(process, ours)

    def close(self) -> None:
        """End all workers."""
        for handle in self._handles:
            handle.end()
        self._handles = []


def _ending(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "closed its pipe"
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with exit status {exitcode}"
