"""Ten billion samples in a million shards, for 8,192 workers, planned while one waits."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from streamshard.plan.order import Ints, Order, OrderRule
from streamshard.plan.share import Share, World

SHARDS, SAMPLES = 1_000_000, 10_000
RANKS, WORKERS_PER_RANK, BATCH_SIZE = 1024, 8, 256
# Several times what is measured on one slow core, so that a busy machine does not fail.
SECONDS, MEGABYTES = 5.0, 200


def counts() -> Ints:
    """Shards of 9,000 to 11,000 samples, 10 billion in all."""
    return SAMPLES + np.arange(SHARDS, dtype=np.int64) % 2001 - 1000


def planned(each: Ints) -> list[Ints]:
    """The rows of the first and of the last step of every worker of a rank in the middle."""
    rule = OrderRule.settle(each, world_size=RANKS, batch_size=BATCH_SIZE, seed=0, shuffle=True)
    order = Order(each, rule, epoch=1)
    share = Share(len(order), 0, World(RANKS // 2, RANKS), BATCH_SIZE, "drop")
    steps = [*range(WORKERS_PER_RANK), *range(share.steps - WORKERS_PER_RANK, share.steps)]
    return [np.stack(order.rows(share.step(number).positions)) for number in steps]


def test_ten_billion_samples_are_planned_at_once() -> None:
    each = counts()
    begin = time.perf_counter()
    steps = planned(each)
    assert time.perf_counter() - begin < SECONDS
    assert len(steps) == 2 * WORKERS_PER_RANK


def test_ten_billion_samples_are_planned_in_little_memory() -> None:
    each = counts()
    tracemalloc.start()
    try:
        planned(each)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 10**6


def test_ten_billion_samples_are_planned_right() -> None:
    each = counts()
    samples = np.concatenate(planned(each), axis=1)
    assert samples.shape == (2, 2 * WORKERS_PER_RANK * BATCH_SIZE)
    assert len(np.unique(samples, axis=1).T) == 2 * WORKERS_PER_RANK * BATCH_SIZE
    shards, rows = samples
    assert ((shards >= 0) & (shards < SHARDS) & (rows >= 0) & (rows < each[shards])).all()


def test_numbers_stay_inside_64_bits() -> None:
    # One lane and windows of one sample: the largest products that the arithmetic can meet.
    rule = OrderRule(seed=0, shuffle=True, lanes=1, grain=1, window=1)
    total = 10**10
    last = np.arange(total - 1000, total)
    assert Order(np.array([total]), rule, epoch=0).rows(last)[1].tolist() == last.tolist()
