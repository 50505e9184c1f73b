"""A survey against a walk over every position in plain Python, whichever way the survey took."""

from __future__ import annotations

from typing import Any, NamedTuple, cast
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from streamshard.errors import UsageError
from streamshard.plan import intervals, survey
from streamshard.plan.deal import Deal
from streamshard.plan.load import Load, rank_load, worker_load
from streamshard.plan.order import Order, OrderRule
from streamshard.plan.share import Share, Tail, World
from streamshard.plan.survey import Reads, reads
from tests.oracle import deal as deal_out
from tests.plan.draw import any_rules, array, samples_of, shard_counts, tails


class Case(NamedTuple):
    """One epoch and who reads it."""

    counts: list[int]
    rule: OrderRule
    deal: Deal

    @property
    def order(self) -> Order:
        return Order(array(self.counts), self.rule, epoch=1)

    def surveyed(self, walked: int) -> Reads:
        """The survey, where so many samples are few."""
        with patch.object(survey, "WALKED", walked):
            return reads(self.order, self.rule, self.deal, array(self.counts))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any plan that delivers something."""
    counts = draw(shard_counts.filter(lambda counts: sum(counts) > 0))
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12)))
    deal = Deal(sum(counts), *size, cast("Tail", draw(tails)))
    assume(deal.steps)
    return Case(counts, draw(any_rules), deal)


@st.composite
def owned_cases(draw: st.DrawFn) -> Case:
    """Lanes of one worker each: grain is the batch size, lanes a multiple of all workers."""
    case = draw(cases())
    rule = OrderRule(
        seed=draw(st.integers(0, 2**63 - 1)),
        shuffle=True,
        lanes=case.deal.all_workers * draw(st.integers(1, 4)),
        grain=case.deal.batch_size,
        window=draw(st.integers(1, 200)),
    )
    case = case._replace(rule=rule)
    assume(case.order.turns)
    return case


def read_by(case: Case) -> dict[tuple[int, int], set[int]]:
    """The shards that each (rank, worker) reads, found by taking every step of every rank."""
    samples, deal = samples_of(case.order), case.deal
    found: dict[tuple[int, int], set[int]] = {
        (rank, worker): set() for rank in range(deal.world_size) for worker in range(deal.workers)
    }
    for rank in range(deal.world_size):
        share = Share(deal.total, 0, World(rank, deal.world_size), deal.batch_size, deal.tail)
        for step in range(share.steps):
            positions = share.step(step).positions.tolist()
            found[rank, step % deal.workers] |= {samples[position][0] for position in positions}
    return found


def pairs_of(found: Reads, deal: Deal) -> list[tuple[tuple[int, int], int]]:
    pairs = zip(found.workers.tolist(), found.shards.tolist(), strict=True)
    return [(divmod(worker, deal.workers), shard) for worker, shard in pairs]


def pairs_by(case: Case) -> list[tuple[tuple[int, int], int]]:
    return sorted((who, shard) for who, shards in read_by(case).items() for shard in shards)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_a_small_epoch_is_surveyed_exactly(case: Case) -> None:
    found = case.surveyed(walked=10**6)
    assert sorted(pairs_of(found, case.deal)) == pairs_by(case)
    assert len(found.looked_at) == found.of == sum(count > 0 for count in case.counts)


@settings(max_examples=150, deadline=None)
@given(case=owned_cases())
def test_lanes_with_owners_are_surveyed_exactly_by_intervals(case: Case) -> None:
    with patch.object(survey, "_of_shards", side_effect=AssertionError("nothing is estimated")):
        found = case.surveyed(walked=0)
    assert sorted(pairs_of(found, case.deal)) == pairs_by(case)
    assert len(found.looked_at) == found.of


@settings(max_examples=60, deadline=None)
@given(case=owned_cases(), look=st.integers(1, 3))
def test_intervals_are_exact_however_little_is_looked_at_first(case: Case, look: int) -> None:
    with patch.object(intervals, "_FIRST_LOOK", look), patch.object(intervals, "_CHUNK", 7):
        found = case.surveyed(walked=0)
    assert sorted(pairs_of(found, case.deal)) == pairs_by(case)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_of_the_shards_that_are_drawn_all_readers_are_found(case: Case) -> None:
    total = max(case.deal.total, case.deal.dealt)
    assume(not intervals.lanes_have_owners(case.order, case.rule, case.deal))
    found = case.surveyed(walked=total - 1)
    drawn = set(found.looked_at.tolist())
    assume(sum(case.counts[shard] for shard in drawn) * -(-total // case.deal.total) < total)
    assert drawn
    expected = [pair for pair in pairs_by(case) if pair[1] in drawn]
    assert sorted(pairs_of(found, case.deal)) == expected
    assert found.of == sum(count > 0 for count in case.counts)


def loads_by(case: Case, nbytes: list[int]) -> dict[str, list[tuple[int, int]]]:
    """Shards and bytes of every worker and every rank."""
    by_worker = read_by(case)
    by_rank: dict[int, set[int]] = {rank: set() for rank in range(case.deal.world_size)}
    for (rank, _), shards in by_worker.items():
        by_rank[rank] |= shards
    return {
        who: [(len(shards), sum(nbytes[shard] for shard in shards)) for shards in readers]
        for who, readers in (("workers", by_worker.values()), ("ranks", by_rank.values()))
    }


def check_load(load: Load, expected: list[tuple[int, int]], shared: int) -> None:
    assert load.readers == len(expected)
    assert load.each == (tuple(expected) if len(expected) <= 16 else None)
    assert load.fetches == sum(shards for shards, _ in expected)
    assert load.shared == shared
    for spread, figures in zip((load.shards, load.bytes), zip(*expected, strict=True), strict=True):
        assert (spread.least, spread.most) == (min(figures), max(figures))
        assert spread.mean == pytest.approx(sum(figures) / len(figures))


def sharing(readers: list[set[int]]) -> int:
    return len({shard for at, one in enumerate(readers) for shard in one.intersection(
        *[set().union(*readers[:at], *readers[at + 1 :])])})  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(case=cases(), data=st.data())
def test_loads_are_those_of_the_walk(case: Case, data: st.DataObject) -> None:
    sizes = st.integers(0, 2**50)
    nbytes = [data.draw(sizes) for _ in case.counts]
    found, expected = case.surveyed(walked=10**6), loads_by(case, nbytes)
    by_worker = read_by(case)
    ranks = [
        set().union(*(shards for (rank, _), shards in by_worker.items() if rank == number))
        for number in range(case.deal.world_size)
    ]
    workers = case.deal.all_workers
    check_load(
        worker_load(found, array(nbytes), workers),
        expected["workers"],
        sharing(list(by_worker.values())),
    )
    check_load(
        rank_load(found, array(nbytes), workers, case.deal.workers),
        expected["ranks"],
        sharing(ranks),
    )


@settings(max_examples=100, deadline=None)
@example(case=Case([1], OrderRule(0, False, 1, 1, 1), Deal(1, 4, 2, 3, "exact")))
@given(case=cases())
def test_the_deal_gives_each_place_to_the_worker_whose_step_it_is(case: Case) -> None:
    deal = case.deal
    steps = deal_out(
        deal.total,
        cursor=0,
        world_size=deal.world_size,
        batch_size=deal.batch_size,
        tail=deal.tail,
    )
    flat = [
        (rank * deal.workers + number % deal.workers, *sample)
        for number, step in enumerate(steps)
        for rank, batch in enumerate(step)
        for sample in batch
    ]
    assert deal.steps == len(steps)
    assert deal.dealt == len(flat)
    assert deal.workers_of(np.arange(len(flat))).tolist() == [worker for worker, _, _ in flat]
    assert deal.padded == sum(not is_real for _, _, is_real in flat)
    assert deal.dropped == deal.total - sum(is_real for _, _, is_real in flat)
    sizes = [len(batch) for step in steps for batch in step if batch]
    begins = np.cumsum([0, *sizes])[:-1].tolist()
    assert deal.batches_from(0).tolist() == begins
    assert deal.batches[1] == max(
        sum(is_real for _, is_real in batch) for step in steps for batch in step
    )
    assert deal.full_steps[1] == max(
        sum(is_real for batch in step for _, is_real in batch) for step in steps
    )


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, -1), (2**22, 2)])
def test_workers_that_cannot_be_told_apart_are_refused(world_size: int, workers: int) -> None:
    with pytest.raises(UsageError, match=f"{world_size} ranks of {workers} workers"):
        Deal(10, world_size, workers, 1, "pad")


LARGE: dict[str, Any] = {"world_size": 4, "batch_size": 32, "seed": 0}


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize("tail", ["drop", "pad"])
def test_an_estimate_is_near_what_a_walk_finds(shuffle: Any, tail: Any) -> None:
    counts = [1500 + 7 * number for number in range(200)]  # more than are walked
    rule = OrderRule.settle(array(counts), **LARGE, shuffle=shuffle)
    # Five workers, which share 24 lanes a rank, and most shards.
    case = Case(counts, rule, Deal(sum(counts), 4, 5, 32, tail))
    nbytes = array([1000 * count for count in counts])
    walked, estimated = case.surveyed(walked=10**6), case.surveyed(walked=10**5)
    assert len(walked.looked_at) == 200
    assert 20 < len(estimated.looked_at) < 100
    for one, other in (
        (worker_load(walked, nbytes, 20), worker_load(estimated, nbytes, 20)),
        (rank_load(walked, nbytes, 20, 5), rank_load(estimated, nbytes, 20, 5)),
    ):
        assert other.fetches == pytest.approx(one.fetches, rel=0.1)
        assert other.shared == pytest.approx(one.shared, rel=0.15, abs=5)
        assert other.shards.mean == pytest.approx(one.shards.mean, rel=0.1)
        assert other.bytes.mean == pytest.approx(one.bytes.mean, rel=0.1)
        assert (other.shards.least, other.bytes.most, other.each) == (None, None, None)


def test_a_shard_larger_than_what_is_looked_at_shows_its_readers_all_the_same() -> None:
    rule = OrderRule(0, "full", 1, 1, 10**8)
    case = Case([10**8], rule, Deal(10**8, 3, 2, 10, "drop"))
    assert len(case.surveyed(walked=10_000).workers) == 6
