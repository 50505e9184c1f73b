"""How long a batch takes from a worker to the trainer: kept there, let go, and in the ring."""

import itertools
import statistics
import sys
import time
from collections import deque

import numpy as np
import torch

import streamshard as ss

SIZES = {"80 KB": (80_000, 1000), "9.6 MB": (9_600_000, 100)}  # bytes, batches a turn
TENSORS = 7
WAYS = ("kept", "let go", "ring")
HELD = 30  # batches that are kept at a time, more than workers remember


class Endless:
    """In place of a dataset: a worker that has nothing to do but to write blocks of a size."""

    def __init__(self, nbytes: int) -> None:
        self.course, self.steps = self, sys.maxsize
        chunk = np.ones(min(nbytes // TENSORS, 64_000), np.uint8)  # what a core's cache holds
        self.buffers = [chunk] * (nbytes // TENSORS // len(chunk))

    def next_epoch(self, *_):
        return None

    def share(self, *_):
        return self

    def make(self, cursor, world, numbers, allocate, each, ahead):
        from streamshard.stream.builder import BlockBuilder

        nbytes = len(self.buffers) * len(self.buffers[0])
        for _ in numbers:
            builder = BlockBuilder()
            for number in range(TENSORS):
                piece = builder.piece(str(number), torch.uint8, (nbytes,), self.buffers)
                builder.column(str(number), "tensor", [piece])
            yield builder.finish(allocate, None)


class Contestant:
    """Workers that hand over blocks of one size, one way."""

    def __init__(self, nbytes: int, how: str) -> None:
        from streamshard.stream.workers import WorkerPool

        reuse = how == "ring"
        self.held = deque(maxlen=HELD if how == "kept" else 1)
        self.steps = itertools.count()
        self.pool = WorkerPool(
            Endless(nbytes), ss.World(), workers=2, slots=4 + reuse, reuse=reuse, threads=0,
            restarts=0, start_method="fork", device=None,
        )  # fmt: skip
        self.pool.start(None)

    def take(self, batches: int) -> None:
        """Take so many of them."""
        from streamshard.stream.batch import batch_of

        for _ in range(batches):
            self.pool.give_back()
            self.held.append(batch_of(self.pool.receive(next(self.steps))))

    def seconds(self, batches: int) -> float:
        """For one batch, in the mean of so many."""
        time.sleep(0.2)  # the other's workers fill what they have been given back
        self.take(20)  # what was made ahead meanwhile
        begin = time.perf_counter()
        self.take(batches)
        return (time.perf_counter() - begin) / batches


def transport(turns: int = 9) -> dict[str, float]:
    """Milliseconds for a batch of seven tensors, medians of turns, and the ratio."""
    figures = {}
    for size, (nbytes, batches) in SIZES.items():
        all_ways = {how: Contestant(nbytes, how) for how in WAYS}
        taken = {how: [] for how in WAYS}
        for turn in range(turns + 1):
            for how, contestant in all_ways.items():
                seconds = contestant.seconds(batches)
                if turn:  # the first warms up
                    taken[how].append(seconds * 1e3)
        for contestant in all_ways.values():
            contestant.pool.close()
        medians = {how: statistics.median(each) for how, each in taken.items()}
        figures |= {f"ms for a batch of {size}, {how}": value for how, value in medians.items()}
        for how in ("kept", "let go"):
            figures[f"{how} / ring, {size}"] = medians[how] / medians["ring"]
    return figures
