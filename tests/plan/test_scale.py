"""Ten billion samples in a million shards, for 8,192 workers, planned while one waits."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from streamshard.errors import UsageError
from streamshard.plan.deal import Deal
from streamshard.plan.load import Load, rank_load, worker_load
from streamshard.plan.mixing import Mixing, mixing
from streamshard.plan.order import Ints, Order, OrderRule, Shuffle
from streamshard.plan.picture import picture
from streamshard.plan.share import Share, World
from streamshard.plan.survey import reads

SHARDS, SAMPLES = 1_000_000, 10_000
RANKS, WORKERS_PER_RANK, BATCH_SIZE = 1024, 8, 256
# Processor time, and several times what is measured, so that a busy machine does not fail.
SECONDS, MEGABYTES = 5.0, 200


def counts() -> Ints:
    """Shards of 9,000 to 11,000 samples, 10 billion in all."""
    return SAMPLES + np.arange(SHARDS, dtype=np.int64) % 2001 - 1000


def plan_from(percent: int, each: Ints) -> tuple[Order, Share]:
    """Epoch 1, and what of it is a rank's in the middle from that part of the epoch on."""
    rule = OrderRule.settle(each, world_size=RANKS, batch_size=BATCH_SIZE, seed=0, shuffle=True)
    order = Order(each, rule, epoch=1)
    begin = len(order) * percent // 100
    return order, Share(len(order), begin, World(RANKS // 2, RANKS), BATCH_SIZE, "drop")


def planned(each: Ints) -> list[Ints]:
    """The rows of the first and of the last step of every worker of a rank in the middle."""
    order, share = plan_from(0, each)
    steps = [*range(WORKERS_PER_RANK), *range(share.steps - WORKERS_PER_RANK, share.steps)]
    return [np.stack(order.rows(share.step(number).positions)) for number in steps]


def test_ten_billion_samples_are_planned_at_once() -> None:
    each = counts()
    begin = time.process_time()
    steps = planned(each)
    assert time.process_time() - begin < SECONDS
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


def test_a_resume_at_90_percent_is_planned_as_fast_as_a_fresh_start() -> None:
    each = counts()
    seconds: dict[int, list[float]] = {0: [], 90: []}
    for _ in range(3):
        for percent, taken in seconds.items():
            begin = time.process_time()
            order, share = plan_from(percent, each)
            order.rows(share.step(0).positions)
            taken.append(time.process_time() - begin)
    # They are the same but for the positions asked for; a plan that runs through what comes before
    # would take hours.
    assert min(seconds[90]) < 3 * min(seconds[0])


def test_memory_does_not_grow_during_an_epoch() -> None:
    order, share = plan_from(0, counts())
    order.rows(share.step(0).positions)
    tracemalloc.start()
    try:
        for number in range(0, share.steps, 200):
            order.rows(share.step(number).positions)
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert peak < 1_000_000


def test_ten_billion_samples_are_planned_right() -> None:
    each = counts()
    samples = np.concatenate(planned(each), axis=1)
    assert samples.shape == (2, 2 * WORKERS_PER_RANK * BATCH_SIZE)
    assert len(np.unique(samples, axis=1).T) == 2 * WORKERS_PER_RANK * BATCH_SIZE
    shards, rows = samples
    assert ((shards >= 0) & (shards < SHARDS) & (rows >= 0) & (rows < each[shards])).all()


def surveyed(each: Ints, workers: int, shuffle: Shuffle) -> tuple[Load, Load, Mixing]:
    """All that is told of a plan, and its picture."""
    rule = OrderRule.settle(each, world_size=RANKS, batch_size=BATCH_SIZE, seed=0, shuffle=shuffle)
    order = Order(each, rule, epoch=0)
    deal = Deal(len(order), RANKS, workers, BATCH_SIZE, "drop")
    found = reads(order, rule, deal, each)
    picture(order, deal, rule.grain)
    return (
        worker_load(found, each, deal.all_workers),
        rank_load(found, each, deal.all_workers, workers),
        mixing(order, deal, each),
    )


# Lanes with owners; lanes that five workers share; no lanes.
@pytest.mark.parametrize(("workers", "shuffle"), [(8, True), (5, True), (8, "full"), (8, False)])
def test_ten_billion_samples_are_surveyed_at_once(workers: int, shuffle: Shuffle) -> None:
    each = counts()
    begin = time.process_time()
    by_worker, by_rank, measures = surveyed(each, workers, shuffle)
    assert time.process_time() - begin < SECONDS
    assert by_worker.readers == RANKS * workers
    assert by_rank.fetches <= by_worker.fetches
    assert measures.distance
    assert measures.distance.here == pytest.approx(1 / 3 if shuffle else 0, abs=0.01)


def test_ten_billion_samples_are_surveyed_in_little_memory() -> None:
    each = counts()
    tracemalloc.start()
    try:
        surveyed(each, WORKERS_PER_RANK, shuffle=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 10**6


def test_every_shard_of_ten_billion_samples_is_read_by_one_worker_or_few() -> None:
    by_worker, by_rank, _ = surveyed(counts(), WORKERS_PER_RANK, shuffle=True)
    assert by_worker.shards.least is not None, "lanes with owners are not estimated"
    assert SHARDS <= by_rank.fetches <= by_worker.fetches < 1.3 * SHARDS


@pytest.mark.parametrize(("total", "window"), [(2**31 - 1, 1), (10**12, 1000), (2**61, 2**31)])
def test_numbers_stay_inside_64_bits(total: int, window: int) -> None:
    # One lane, and nearly as many windows as there may be: the largest products there are.
    rule = OrderRule(seed=0, shuffle=True, lanes=1, grain=1, window=window)
    order = Order(np.array([total]), rule, epoch=0)
    for begin in (0, total // 2 // window * window, total - 1000):
        places = np.arange(begin, begin + 1000)
        rows = order.rows(places)[1]
        assert len(set(rows.tolist())) == 1000
        assert (abs(rows - places) < 2 * window).all()
        if window == 1:
            assert rows.tolist() == places.tolist()


def test_more_windows_than_can_be_counted_are_refused() -> None:
    rule = OrderRule(seed=0, shuffle=True, lanes=1, grain=1, window=1)
    with pytest.raises(UsageError, match="a larger window or more lanes"):
        Order(np.array([10**10]), rule, epoch=0)
