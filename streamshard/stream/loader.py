"""The loader: batches of one rank, epoch after epoch, with a checkpoint that is a cursor."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Self

import torch

from streamshard.errors import UsageError
from streamshard.plan.cursor import Cursor
from streamshard.plan.share import World
from streamshard.stream.ahead import ThreadPool
from streamshard.stream.block import Block, plain_memory
from streamshard.stream.dataset import ShardDataset
from streamshard.stream.device import LENT, copies, to_device
from streamshard.stream.on_device import Arrival, OnDevice
from streamshard.stream.workers import WorkerPool


class StreamLoader:
    """Batches of a `ShardDataset`, made by workers and handed over on the device.

    `iter(loader)` gives the rest of the current epoch; after a full pass or a `break`, the next
    `iter` begins the next epoch. Only the newest iterator of a loader goes on.

    >>> import tempfile, streamshard as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ss.ShardWriter(folder + "/data") as writer:
    ...         for number in range(10):
    ...             writer.write({"__key__": f"{number:03d}", "cls": number})
    ...     dataset = ss.ShardDataset(folder + "/data", batch_size=4, parts="cls", tail="exact")
    ...     [batch.tolist() for batch in ss.StreamLoader(dataset)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        num_workers: int = 0,
        threads: int = 0,
        device: torch.device | str | None = None,
        on_device: OnDevice | None = None,
        prefetch: int = 4,
        reuse: bool = False,
        restarts: int = 3,
        start_method: str | None = None,
    ) -> None:
        """Make a loader; processes start with the first iteration.

        Args:
            dataset: What to load.
            num_workers: Processes that make batches; 0 makes them in this one. The batches do not
                depend on it.
            threads: Threads that read and decode samples in each worker, or without workers in this
                process, which then makes batches ahead of the loop as workers do; 0 for none. What
                takes bytes runs in them: streamshard's decoders, and codecs. Functions of yours
                and `transform` never do. The batches do not depend on it.
            device: Where tensors are to be; to CUDA they are copied ahead on a stream of their own.
            on_device: What is done to every batch where it has arrived, on that stream too, so
                while the batch before it is used: a function of the batch, or by part of that
                part's value (`{"jpg": ss.Normalize.imagenet()}`). What it makes is kept from being
                used again too early where it finds it: tensors in dicts, lists, tuples, dataclasses
                and graphs.
            prefetch: Batches that each worker, or this process's threads, may have ready.
            reuse: A batch is valid until the next one is asked for: its memory is written again.
                Faster; what is kept must be cloned. Without it batches may be kept for ever, and
                so may those that are on another device than the CPU in any case. It changes
                nothing where there are no workers.
            restarts: How many workers that ended unasked are replaced before it is an error.
            start_method: fork, spawn or forkserver; by default the platform's.

        Raises:
            UsageError: A number is negative, `prefetch` is 0, `on_device` is no function, or a
                part is to be decoded on a GPU and can't be.
        """
        if min(num_workers, threads, restarts) < 0 or prefetch < 1:
            raise UsageError(
                f"num_workers={num_workers}, threads={threads}, restarts={restarts} must be at "
                f"least 0, prefetch={prefetch} at least 1"
            )
        self.dataset = dataset
        self._num_workers, self._threads, self._prefetch = num_workers, threads, prefetch
        self._restarts, self._start_method = restarts, start_method
        self._device = None if device is None else torch.device(device)
        self._is_copied, self._reuse = copies(self._device), reuse
        self._arrival = Arrival(dataset.course.assembler.encoded, on_device, self._device)
        self._current: Cursor | None = None
        self._pool: WorkerPool | ThreadPool | None = None
        self._close_pool: weakref.finalize[[], StreamLoader] | None = None
        self._workers_are_at: Cursor | None = None  # the pass that they begin by themselves
        self._is_broken_off = False  # inside a pass, which another iter() would leave
        self._pass = 0
        self._delivering: weakref.ref[Generator[Any, None, None]] | None = None  # of the last pass
        self._skipped = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._cursor.epoch

    @property
    def steps_left(self) -> int:
        """Steps that remain of the current epoch."""
        return self.dataset.course.share(self._cursor, self.dataset.world).steps

    @property
    def skipped(self) -> int:
        """Samples of the current pass that were left out because of an error (`on_error`)."""
        return self._skipped

    @property
    def fallbacks(self) -> int:
        """Images of the current pass that `GpuDecode` left to a CPU."""
        return self._arrival.by_cpu

    def __len__(self) -> int:
        """Steps of the whole of the current epoch, the same on every rank.

        With a budget it may differ from epoch to epoch.
        """
        whole = dataclasses.replace(self._cursor, position=0)
        return self.dataset.course.share(whole, self.dataset.world).steps

    def state_dict(self) -> dict[str, Any]:
        """The cursor: a few integers, the same on all ranks; counts what the loop received."""
        return self._cursor.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor, whatever number of ranks, workers or batch size it was saved under.

        Raises:
            CursorError: It belongs to another dataset, seed, shuffle, or order.
        """
        self._current = self.dataset.course.resumed(state, self.dataset.world)
        self._is_broken_off = False
        self._pass += 1  # an iterator that is still out there ends

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current epoch, or the next one after a break."""
        world = self.dataset.world
        if self._is_broken_off:
            self._current = self.dataset.course.next_epoch(self._cursor, world)
            self._is_broken_off = False
        self._pass += 1
        self._skipped = self._arrival.by_cpu = 0
        return self._batches(self._cursor, world, self._pass)

    @property
    def _cursor(self) -> Cursor:
        if self._current is None:
            self._current = self.dataset.course.first_cursor(self.dataset.world, 0)
        return self._current

    def _batches(self, start: Cursor, world: World, number: int) -> Iterator[Any]:
        self._check_newest(number)
        if self._delivering is not None and (left := self._delivering()):
            left.close()  # it may have copies under way, and gives back what they read
        blocks = self._blocks(start, world)
        delivering = to_device(blocks, self._device, self._give_back, self._arrival)
        if self._is_copied:
            self._delivering = weakref.ref(delivering)  # weak, or a dropped loader would live on
        for batch, done in delivering:
            self._current = self.dataset.course.after(start, world, done)
            self._is_broken_off = self._current.epoch == start.epoch
            yield batch
            self._check_newest(number)

    def _check_newest(self, number: int) -> None:
        if number != self._pass:
            raise UsageError("this iterator was left behind: the loader was iterated again")

    def _blocks(self, start: Cursor, world: World) -> Iterator[tuple[Block, int]]:
        """The blocks of a pass, each with the number of steps done when it is delivered."""
        steps = self.dataset.course.share(start, world).steps
        if self._num_workers == self._threads == 0:
            course = self.dataset.course
            source: Iterator[Block] = course.make(start, world, range(steps), plain_memory)
        else:
            source = self._from_pool(start, world, steps)
        for number, block in enumerate(source):
            self._skipped = self.dataset.report(block, self._skipped)
            yield block, number + 1

    def _from_pool(self, start: Cursor, world: World, steps: int) -> Iterator[Block]:
        try:
            pool = self._running_pool(world)
            is_there, self._workers_are_at = self._workers_are_at == start, None
            if is_there:
                pool.follow(start, steps)
            else:
                pool.start(start)
            for step in range(steps):
                if not self._is_copied:
                    pool.give_back()  # the next one is asked for
                block = pool.receive(step)
                if step == steps - 1:
                    self._workers_are_at = self.dataset.course.next_epoch(start, world)
                yield block
        except GeneratorExit:
            raise
        except BaseException:  # also an interrupt, which may leave half a message in a pipe
            self.close()
            raise

    def _give_back(self) -> None:
        if self._pool is not None:
            self._pool.give_back()

    def _running_pool(self, world: World) -> WorkerPool | ThreadPool:
        if self._pool is None and self._num_workers == 0:
            self._pool = ThreadPool(
                self.dataset.course, world, threads=self._threads, prefetch=self._prefetch
            )
        elif self._pool is None:
            self._pool = WorkerPool(
                self.dataset,
                world,
                workers=self._num_workers,
                slots=self._prefetch + (LENT if self._is_copied else self._reuse),
                reuse=self._is_copied or self._reuse,
                threads=self._threads,
                restarts=self._restarts,
                start_method=self._start_method,
                device=self._device,
            )
        if self._close_pool is None:
            self._close_pool = weakref.finalize(self, self._pool.close)
        return self._pool

    def close(self) -> None:
        """End the workers and threads; the next iteration starts others."""
        if self._close_pool is not None:
            self._close_pool()
        self._pool = self._close_pool = self._workers_are_at = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
