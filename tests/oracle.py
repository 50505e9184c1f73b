"""What the plan must do, said a second time in slow plain Python.

Everything is dealt out literally: samples are lists, lanes and windows are slices, turns are taken
from queues. Nothing here is imported from the package, so that an error in its arithmetic cannot
hide in a copy of the same arithmetic.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

Sample = tuple[int, int]  # shard, row
Window = frozenset[Sample]
Batch = list[tuple[int, bool]]  # (position, is it real?) of each sample
Thing = TypeVar("Thing")


class Place(NamedTuple):
    """Where the sample of one position comes from."""

    lane: int
    window: Window


def laid_out(counts: Sequence[int], shards: Sequence[int]) -> list[Sample]:
    """All samples of an epoch, its shards end to end in the order given."""
    return [(shard, row) for shard in shards for row in range(counts[shard])]


def lanes(samples: Sequence[Thing], count: int) -> list[list[Thing]]:
    """The samples cut into lanes; lane i begins at floor(i * N / L)."""
    begins = [math.floor(Fraction(lane * len(samples), count)) for lane in range(count)]
    ends = [*begins[1:], len(samples)]
    return [list(samples[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def windows(lane: Sequence[Thing], window: int) -> list[list[Thing]]:
    """A lane cut into max(1, round(n / window)) equal windows; a half is rounded up."""
    count = max(1, math.floor(Fraction(len(lane), window) + Fraction(1, 2)))
    return lanes(lane, count)


def take_turns(queues: Sequence[Sequence[Thing]], grain: int) -> list[Thing]:
    """What comes of the lanes' giving `grain` each in turn, then what each has left over."""
    waiting = [deque(queue) for queue in queues]
    given = []
    while all(len(queue) >= grain for queue in waiting):
        for queue in waiting:
            given += [queue.popleft() for _ in range(grain)]
    for queue in waiting:
        given += queue
    return given


def places(samples: Sequence[Sample], *, lane_count: int, grain: int, window: int) -> list[Place]:
    """For each position, the lane that gives its sample and the window that it is drawn from."""
    queues = []
    for number, lane in enumerate(lanes(samples, lane_count)):
        cut = windows(lane, window)
        queues.append([Place(number, frozenset(part)) for part in cut for _ in part])
    return take_turns(queues, grain)


def deal(
    total: int, *, cursor: int, world_size: int, batch_size: int, tail: str
) -> list[list[Batch]]:
    """What each rank is given in each step: a list over steps of lists over ranks of batches."""
    waiting = deque((position, True) for position in range(cursor, total))
    steps = []
    while len(waiting) >= world_size * batch_size:
        sizes = [batch_size] * world_size
        steps.append([[waiting.popleft() for _ in range(size)] for size in sizes])
    if not waiting or tail == "drop":
        return steps
    sizes = [batch_size] * world_size
    if tail == "pad":
        again = 0
        while len(waiting) < world_size * batch_size:
            waiting.append((again, False))
            again = again + 1 if again + 1 < total else 0
    else:
        # One seat after another, rank by rank; then each rank takes its neighbours in the sequence.
        sizes = [0] * world_size
        for seat in range(len(waiting)):
            sizes[seat % world_size] += 1
    steps.append([[waiting.popleft() for _ in range(size)] for size in sizes])
    return steps


def check_tail(
    steps: Sequence[Sequence[Batch]],
    total: int,
    *,
    cursor: int,
    world_size: int,
    batch_size: int,
    tail: str,
) -> None:
    """The promises about what was delivered from the cursor on, whoever dealt it.

    Raises:
        AssertionError: A sample is missing, comes twice, or is not flagged as the tail says.
    """
    flat = [sample for step in steps for batch in step for sample in batch]
    real = [position for position, is_real in flat if is_real]
    again = [position for position, is_real in flat if not is_real]
    remaining = total - cursor
    assert all(len(step) == world_size for step in steps), "a rank was left out of a step"
    assert real == list(range(cursor, cursor + len(real))), "a sample is twice, or out of turn"
    assert all(len(batch) == batch_size for step in steps[:-1] for batch in step), "a short batch"
    if tail == "drop":
        assert not again, "drop repeats nothing"
        assert remaining - len(real) == remaining % (world_size * batch_size), "dropped too many"
        assert all(len(batch) == batch_size for step in steps for batch in step), "a short batch"
        return
    assert len(real) == remaining, "a sample is missing"
    last = [len(batch) for batch in steps[-1]] if steps else []
    if tail == "exact":
        assert not again, "exact repeats nothing"
        assert max(last, default=0) - min(last, default=0) <= 1, "the last step is uneven"
        assert not steps or any(last), "a step without a sample"
    else:
        assert all(size == batch_size for size in last), "a short batch"
        assert flat == [(position, True) for position in real] + [
            (position, False) for position in again
        ], "a repeat stands before a real sample"
        assert again == [number % total for number in range(len(again))], "repeats of the wrong"
        assert len(again) < world_size * batch_size, "a step of nothing but repeats"
