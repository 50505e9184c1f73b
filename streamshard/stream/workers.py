"""The workers of one rank: started, told where to begin, replaced when they die, ended."""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
from collections import deque
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import torch

from streamshard import errors
from streamshard.errors import UsageError, WorkerError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.block import Block
from streamshard.stream.dataset import ShardDataset
from streamshard.stream.mapped import MappedMemory
from streamshard.stream.memory import memory_left
from streamshard.stream.ring import DROPPED, FRESH, Place
from streamshard.stream.worker import Failed, Job, Made, Start, work

_JOIN_SECONDS = 5.0
_TOLD = 16  # blocks that were dropped, for each that is taken; so that they never pile up

logger = logging.getLogger("streamshard")


class _Handle:
    """The trainer's side of one worker."""

    def __init__(self, process: BaseProcess, connection: Connection, memory: MappedMemory) -> None:
        self.process, self.connection, self.memory = process, connection, memory
        # Made once: `multiprocessing.connection.wait` makes a selector at each call.
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(process.sentinel, select.POLLIN)

    def give_back(self, place: Place) -> None:
        """Tell the worker that a place is its own again, and that it may make another block.

        Of one that is for keeps: that it was taken, and which of those before it nobody holds.
        """
        for number in self.memory.dropped(_TOLD):
            self.send((DROPPED, number))
        self.send(place.own)

    def throw_away(self, place: Place) -> None:
        """Give back what nobody has seen."""
        self.send(place.own)
        if place.ring == FRESH:
            self.send((DROPPED, place.number))

    def send(self, message: Start | tuple[int, ...]) -> None:
        """Tell the worker, unless it is gone; that shows when something is expected of it."""
        try:
            self.connection.send(message)
        except OSError:
            logger.debug("worker %s is gone", self.process.name)

    def receive(self) -> Made | Failed | None:
        """The next message, or None if the worker ended without sending one."""
        ready = [descriptor for descriptor, _ in self._poll.poll()]
        if self.connection.fileno() not in ready and not self.connection.poll():
            return None
        try:
            message: Failed | tuple[int, ...] = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message if isinstance(message, Failed) else Made.of(message)

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
        slots: int,
        reuse: bool,
        threads: int,
        restarts: int,
        start_method: str | None,
        device: torch.device | None,
    ) -> None:
        """Start the processes.

        Args:
            dataset: What to make batches of.
            world: This rank and the number of ranks.
            workers: Processes, at least 1.
            slots: Blocks that each may have waiting and lent together.
            reuse: Whether blocks are lent: each stays as it is until `give_back`. Otherwise they
                are for keeps.
            threads: Threads that decode in each worker; 0 for none but its own.
            restarts: How many times in all a worker that ended is replaced.
            start_method: fork, spawn or forkserver; the platform's default where None.
            device: Where blocks will be copied to.
        """
        self._context: BaseContext = multiprocessing.get_context(start_method)
        self._jobs = [
            Job(number, workers, dataset, world, slots, reuse, threads, os.getpid())
            for number in range(workers)
        ]
        self._restarts, self._device = restarts, device
        self._memory_left = memory_left()
        self._lent: deque[tuple[_Handle, Place]] = deque()  # the oldest first
        self._generation = 0
        self._cursor: Cursor | None = None
        self._resting: set[int] = set()  # who did not go on: an epoch had no step for them
        self._handles: list[_Handle] = []
        for job in self._jobs:
            self._handles.append(self._launch(job))

    def start(self, cursor: Cursor) -> None:
        """Begin a pass; what was made for another is thrown away."""
        self._generation += 1
        self._cursor = cursor
        self._resting = set()
        for number, handle in enumerate(self._handles):
            handle.send(Start(self._generation, cursor, number))

    def follow(self, cursor: Cursor, steps: int) -> None:
        """Take note that the workers went on into this epoch, of so many steps, by themselves.

        All but those that rest: they are told, as soon as an epoch has a step for them again.
        """
        self._cursor = cursor
        for number in self._resting & set(range(steps)):
            self._handles[number].send(Start(self._generation, cursor, number))
        self._resting = set(range(steps, len(self._handles)))

    def receive(self, step: int) -> Block:
        """The block of a step of the pass; steps are asked for one after another.

        Raises:
            UsageError: The workers were ended.
            WorkerError: A worker ended, and was replaced as often as it may be.
            StreamshardError: The step could not be made.
        """
        if not self._handles:
            raise UsageError("the loader was closed in the middle of a pass; iterate it again")
        worker = step % len(self._handles)
        while True:
            message = self._handles[worker].receive()
            if message is None:
                self._replace(worker, step)
            elif message.generation != self._generation:
                if isinstance(message, Made):
                    self._handles[worker].throw_away(message.place)
            elif isinstance(message, Failed):
                raise getattr(errors, message.kind)(message.message)
            else:
                block = self._take(worker, message.place)
                if block is not None:
                    return block
                self._replace(worker, step)

    def give_back(self) -> None:
        """The oldest block that is still lent may be written again; nothing where none is."""
        if self._lent:
            handle, place = self._lent.popleft()
            handle.give_back(place)

    def _take(self, worker: int, place: Place) -> Block | None:
        """A block as this process sees it; on loan, or its worker may make another.

        Returns None where the worker ended with its message sent and the block not yet taken.
        """
        handle = self._handles[worker]
        if handle.memory.is_new(place):
            self._check_fits(place)
        try:
            block = handle.memory.block_at(place)
        except RuntimeError:
            if wait([handle.process.sentinel], _JOIN_SECONDS):
                return None
            raise
        if self._jobs[0].reuse:  # all in one row, also what had outgrown the ring's slots
            self._lent.append((handle, place))
        else:
            handle.give_back(place)
        return block

    def _check_fits(self, ring: Place) -> None:
        """Whether there is memory for such a ring in every worker, before all of it is used.

        Raises:
            UsageError: There is not.
        """
        job = self._jobs[0]
        needed = ring.size * job.workers
        if self._memory_left is not None and needed > self._memory_left:
            raise UsageError(
                f"{job.workers} workers with {job.slots} batches of {ring.size // job.slots:,} "
                f"bytes each need {needed:,} bytes of shared memory, and {self._memory_left:,} "
                "were left when they started; use fewer workers, or a smaller prefetch or "
                "batch_size"
            )

    def _replace(self, worker: int, step: int) -> None:
        """Start a worker anew, from the step that is due."""
        process = self._handles[worker].process
        process.join(_JOIN_SECONDS)
        how = _ending(process.exitcode)
        assert self._cursor is not None
        job = self._jobs[worker]
        shards = job.dataset.course.schedule(self._cursor, job.world).shards(step)
        what = (
            f"worker {worker} (process {process.pid}) {how} before step {step} of epoch "
            f"{self._cursor.epoch}, which reads {_some(shards)}"
        )
        if self._restarts == 0:
            raise WorkerError(f"{what}; no restart is left")
        self._restarts -= 1
        logger.warning("%s; restarted, %d restarts left", what, self._restarts)
        self._handles[worker].end()
        self._handles[worker] = self._launch(job)
        self._handles[worker].send(Start(self._generation, self._cursor, step))

    def _launch(self, job: Job) -> _Handle:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=work, args=(job, theirs), daemon=True, name=f"streamshard-{job.number}"
        )
        process.start()
        # Ours to close: while anybody else holds it, a dead worker never reads as end of file.
        theirs.close()
        assert process.pid is not None
        return _Handle(process, ours, MappedMemory(process.pid, self._device))

    def close(self) -> None:
        """End all workers, if they are this process's: a fork of the trainer has none."""
        if os.getpid() != self._jobs[0].parent:
            return
        for handle in self._handles:
            handle.end()
        self._handles = []
        self._lent.clear()


def _some(shards: list[str]) -> str:
    """A few of them, and how many more."""
    more = f" and {len(shards) - 3} more" if len(shards) > 3 else ""
    return (", ".join(shards[:3]) or "no shard") + more


def _ending(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "closed its pipe"
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with exit status {exitcode}"
