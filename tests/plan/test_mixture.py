"""A mixture deals its sources as its oracle does, and keeps what a single dataset promises.

Its order is stored, too: a checkpoint means something only as long as it does not change. After a
change that is meant to break old checkpoints, write it anew:

    python -m tests.plan.test_mixture
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, cycle, islice
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import UsageError
from streamshard.plan.cursor import Cursor
from streamshard.plan.mixture import MixedOrder, MixturePlan, SourcePlan, Stop
from streamshard.plan.order import Ints, Order, OrderRule, Shuffle
from streamshard.plan.permute import key_of
from streamshard.plan.proportions import Proportions
from streamshard.plan.share import Share, World
from tests.mixture_oracle import Dealt, counts_before, far, mixture, pattern
from tests.oracle import Sample, laid_out, lanes
from tests.plan.draw import array, samples_of, shards_as_laid_out
from tests.plan.test_resume import Link, chains

FOLDER = Path(__file__).parent / "golden_mixtures"
MOST = 400  # samples of an epoch at random, so that several can be dealt in no time
PARTS = 20  # of a long form, each of which ends before a test is taken to hang

seeds = st.integers(0, 2**63 - 1)
shuffles: st.SearchStrategy[Shuffle] = st.sampled_from([True, True, True, False, "full"])
lane_numbers = st.integers(1, 30)
weights = st.one_of(
    st.integers(1, 9),
    st.integers(1, 100),
    st.integers(1, 300).map(lambda number: number / 100),
    st.sampled_from([0.001, 0.125, 2.5, 10.0]),
)


class Setting(NamedTuple):
    """A mixture, its rule, and its weights as they were said."""

    plan: MixturePlan
    rule: OrderRule
    weights: list[Fraction]

    def order(self, epoch: int) -> MixedOrder:
        return self.plan.order(self.rule, epoch)

    @property
    def turn(self) -> int:
        return self.rule.lanes * self.rule.grain


@st.composite
def source_plans(draw: st.DrawFn) -> SourcePlan:
    few, many = st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 12), min_size=4)
    counts = draw(st.one_of(few, many).filter(any))
    windows = st.one_of(st.none(), st.integers(1, 8), st.integers(1, 40))
    return SourcePlan(array(counts), draw(shuffles), draw(windows))


@st.composite
def mixtures(
    draw: st.DrawFn, fewest: int = 1, lane_counts: st.SearchStrategy[int] = lane_numbers
) -> Setting:
    number = draw(st.integers(fewest, 6))
    said = draw(st.lists(weights, min_size=number, max_size=number))
    sources = tuple(draw(source_plans()) for _ in said)
    grain = draw(st.integers(1, 20))
    rule = OrderRule(draw(seeds), True, draw(lane_counts), grain, window=1)
    numbers = st.integers(grain, MOST)
    stop: Stop = draw(st.one_of(st.just("first"), st.just("longest"), numbers))
    exact = [Fraction(str(weight)) for weight in said]
    asked = [
        len(source) * sum(exact) / weight for source, weight in zip(sources, exact, strict=True)
    ]
    if (stop == "first" and min(asked) < grain) or (stop != "first" and max(asked) > MOST):
        stop = draw(numbers)
    return Setting(MixturePlan(sources, Proportions.of(said), stop), rule, exact)


def own_rule(setting: Setting, number: int) -> OrderRule:
    """As of a dataset, but with the mixture's lanes where there are more than two windows."""
    source = setting.plan.sources[number]
    seed = int(key_of(5, setting.rule.seed, number)[0] >> np.uint64(1))
    window = source.window if source.shuffle is True else None
    rule = OrderRule.settle(
        source.counts,
        world_size=1,
        batch_size=1,
        seed=seed,
        shuffle=source.shuffle,
        window=window,
    )
    return replace(rule, lanes=setting.rule.lanes) if is_cut(source) else rule


def own_window(source: SourcePlan) -> int:
    usual = max(1024, 4 * int(source.counts.sum()) // len(source.counts))
    return usual if source.window is None else source.window


def is_cut(source: SourcePlan) -> bool:
    return source.shuffle is True and int(source.counts.sum()) > 2 * own_window(source)


def cuts(setting: Setting) -> list[bool]:
    return [is_cut(source) for source in setting.plan.sources]


def epochs_of(setting: Setting, number: int) -> Callable[[int], list[Sample]]:
    counts, rule = setting.plan.sources[number].counts, own_rule(setting, number)
    return lambda epoch: samples_of(Order(counts, rule, epoch))


def expected(setting: Setting) -> Iterator[Dealt]:
    """The endless sequence, as the oracle deals it."""
    epochs = [epochs_of(setting, number) for number in range(len(setting.weights))]
    return mixture(
        setting.weights,
        epochs,
        cut=cuts(setting),
        lanes=setting.rule.lanes,
        grain=setting.rule.grain,
    )


def dealt(order: MixedOrder, positions: Ints | None = None) -> list[Dealt]:
    """What the order has at these positions, or at all."""
    asked = np.arange(len(order)) if positions is None else positions
    sources, numbers = order.numbers(asked)
    places = order.places(asked)
    assert places.sources.tolist() == sources.tolist()
    assert {each.dtype for each in (numbers, *places)} <= {np.dtype(np.int64)}
    samples = zip(places.shards.tolist(), places.rows.tolist(), strict=True)
    return list(map(Dealt, sources.tolist(), numbers.tolist(), samples))


def sequence(setting: Setting, epochs: int, first: int = 0) -> list[Dealt]:
    """So many epochs, end to end."""
    return [each for epoch in range(epochs) for each in dealt(setting.order(first + epoch))]


def off(setting: Setting, sources: Sequence[int]) -> Ints:
    """How far each source is from its share before each position, (sources, positions + 1).

    In units of one part in the proportions' total, so that it is exact.
    """
    share = setting.plan.proportions
    is_from = np.array(sources) == np.arange(len(share.weights))[:, None]
    steps = is_from * share.total - np.array(share.weights)[:, None]
    return np.concatenate([np.zeros((len(share.weights), 1), np.int64), steps.cumsum(1)], 1)


# The sequence.


@settings(max_examples=40, deadline=None)
@given(said=st.lists(weights, min_size=1, max_size=6), places=st.integers(1, 300))
def test_the_pattern_is_the_oracles(said: list[float], places: int) -> None:
    exact = [Fraction(str(weight)) for weight in said]
    walked = list(islice(pattern(exact), places))
    sources, counts = Proportions.of(said).pick(np.arange(places))
    assert sources.tolist() == walked
    before: Counter[int] = Counter()
    for source, count in zip(walked, counts.tolist(), strict=True):
        assert count == before[source]
        before[source] += 1


@settings(max_examples=25, deadline=None)
@given(said=st.lists(weights, min_size=1, max_size=6), data=st.data())
def test_occurrences_are_counted_from_any_place(said: list[float], data: st.DataObject) -> None:
    share = Proportions.of(said)
    walked = share.pick(np.arange(200))[0].tolist()
    runs = data.draw(st.lists(st.lists(st.integers(0, 199), min_size=2, max_size=2).map(sorted)))
    begins, ends = array([begin for begin, _ in runs]), array([end for _, end in runs])
    sources, counts = share.pick(ends, begins)
    assert sources.tolist() == [walked[end] for _, end in runs]
    assert counts.tolist() == [walked[begin:end].count(walked[end]) for begin, end in runs]


@settings(max_examples=40, deadline=None)
@given(said=st.lists(weights, min_size=1, max_size=6), data=st.data())
def test_a_source_is_counted_before_any_place(said: list[float], data: st.DataObject) -> None:
    exact = [Fraction(str(weight)) for weight in said]
    share = Proportions.of(said)
    walked = list(islice(pattern(exact), 200))
    away = data.draw(st.lists(st.integers(0, 2**63 - 1), max_size=10))
    for source in range(len(said)):
        here = share.before(source, np.arange(201))
        assert here.dtype == np.int64
        assert here.tolist() == [*accumulate((each == source for each in walked), initial=0)]
        there = [counts_before(exact, place)[source] for place in away]
        assert share.before(source, array(away)).tolist() == there


def test_a_source_that_is_none_is_not_counted() -> None:
    for source in (-1, 2):
        with pytest.raises(IndexError, match=f"source {source} of 2"):
            Proportions((2, 1)).before(source, np.arange(3))


@settings(max_examples=60, deadline=None)
@given(setting=mixtures())
def test_every_position_holds_what_the_oracle_deals(setting: Setting) -> None:
    given = sequence(setting, epochs=3)
    assert given == list(islice(expected(setting), len(given)))


@settings(max_examples=40, deadline=None)
@given(setting=mixtures())
def test_an_epoch_of_a_source_with_lanes_has_each_sample_once(setting: Setting) -> None:
    given = sequence(setting, epochs=4)
    for number, source in enumerate(setting.plan.sources):
        if not is_cut(source):
            continue
        epochs = defaultdict(list)
        lasts = dict.fromkeys(range(setting.rule.lanes), -1)
        for each in given:
            if each.source == number:
                epochs[each.number // len(source)].append(each.sample)
                lasts[each.number % setting.rule.lanes] = each.number
        for epoch, samples in epochs.items():
            assert len(set(samples)) == len(samples)
            behind_all_lanes = (epoch + 1) * len(source) <= setting.rule.lanes + min(
                last if last >= 0 else lane - setting.rule.lanes for lane, last in lasts.items()
            )
            if behind_all_lanes:
                whole = laid_out(source.counts.tolist(), range(len(source.counts)))
                assert sorted(samples) == whole


@settings(max_examples=60, deadline=None)
@given(setting=mixtures(), first=st.sampled_from([0, 0, 1, 10**6]))
def test_of_a_source_without_lanes_none_comes_again_before_all_came(
    setting: Setting, first: int
) -> None:
    given = sequence(setting, epochs=4, first=first)
    for number, source in enumerate(setting.plan.sources):
        mine = [each for each in given if each.source == number]
        if is_cut(source) or not mine:
            continue
        begin, size = mine[0].number, len(source)
        assert begin == 0 or first > 0
        assert [each.number for each in mine] == [*range(begin, begin + len(mine))]
        whole = laid_out(source.counts.tolist(), range(len(source.counts)))
        samples = [each.sample for each in mine]
        lead = -begin % size  # of an epoch of its own that was begun before
        for at in range(lead - size, len(samples), size):
            epoch = samples[max(at, 0) : at + size]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(whole)
            assert at < 0 or at + size > len(samples) or sorted(epoch) == whole


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize(("lane_count", "grain"), [(1, 1), (4, 3), (24, 1), (7, 32), (300, 5)])
def test_epochs_of_sources_without_lanes_follow_one_another(
    shuffle: Any, lane_count: int, grain: int
) -> None:
    # Beside a source that is cut, and much rarer; a small one begins anew within one turn.
    sizes = ([40] * 30, [5, 0, 6], [50, 51], [1])
    sources = [SourcePlan(array(sizes[0]), True, 20)]
    sources += [SourcePlan(array(counts), shuffle, None) for counts in sizes[1:]]
    assert [source.is_windowed for source in sources] == [True, False, False, False]
    plan = MixturePlan(tuple(sources), Proportions((90, 10, 29, 1)), 1700)
    rule = OrderRule(1, True, lane_count, grain, 1)
    given = sequence(Setting(plan, rule, []), epochs=4)
    for number, counts in enumerate(sizes[1:], start=1):
        samples = [each.sample for each in given if each.source == number]
        size = sum(counts)
        epochs = [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]
        assert len(epochs) >= 10
        for epoch in epochs:
            assert sorted(epoch) == laid_out(counts, range(len(counts)))
        assert (len({*map(tuple, epochs)}) == 1) == (shuffle is False or size == 1)


@settings(max_examples=25, deadline=None)
@given(setting=mixtures())
def test_after_each_turn_every_lane_has_taken_a_sources_share(setting: Setting) -> None:
    given = sequence(setting, epochs=3)
    share, within = setting.plan.proportions, max(setting.plan.proportions.deviation, Fraction(1))
    taken: list[set[int]] = [set() for _ in share.weights]
    firsts_missing = [0] * len(share.weights)
    for turns in range(1, len(given) // setting.turn + 1):
        for each in given[(turns - 1) * setting.turn : turns * setting.turn]:
            taken[each.source].add(each.number)
        for source, weight in enumerate(share.weights):
            of_a_lane = Fraction(turns * setting.rule.grain * weight, share.total)
            while firsts_missing[source] in taken[source]:
                firsts_missing[source] += 1
            assert firsts_missing[source] > setting.rule.lanes * (of_a_lane - within)
            assert max(taken[source], default=-1) < setting.rule.lanes * (of_a_lane + within)


def test_sources_of_one_dataset_come_in_orders_of_their_own() -> None:
    source = SourcePlan(array([30, 40]), True, 10)
    plan = MixturePlan((source, source), Proportions((1, 1)), 1400)
    given = dealt(plan.order(OrderRule(1, True, 1, 1, 1), epoch=0))
    orders = []
    for number in range(2):
        samples = [each.sample for each in given if each.source == number]
        orders += [tuple(samples[at : at + 70]) for at in range(0, 700, 70)]
    assert len(set(orders)) == 20


def test_a_source_goes_on_from_epoch_to_epoch() -> None:
    # A tenth of the source an epoch: it is through after ten.
    sources = SourcePlan(array([50, 50]), True, 10), SourcePlan(array([90]), False, None)
    plan = MixturePlan(sources, Proportions((1, 9)), "first")
    setting = Setting(plan, OrderRule(3, True, 1, 10, 1), [Fraction(1), Fraction(9)])
    assert len(setting.order(0)) == 100
    given = [each.sample for each in sequence(setting, epochs=20) if each.source == 0]
    for epoch in (given[:100], given[100:]):
        assert sorted(epoch) == laid_out([50, 50], range(2))
    assert given[:100] != given[100:]


def test_many_epochs_of_a_small_source_are_laid_out_at_once() -> None:
    sources = SourcePlan(array([2, 0, 1]), True, None), SourcePlan(array([4000]), "full", None)
    plan = MixturePlan(sources, Proportions((1, 1)), "longest")
    setting = Setting(plan, OrderRule(3, True, 4, 8, 1), [Fraction(1), Fraction(1)])
    order = setting.order(0)
    wanted = np.random.default_rng(0).permutation(len(order))[:900]
    everything = list(islice(expected(setting), len(order)))
    for _ in range(2):  # and again, when other epochs have been laid out
        assert dealt(order, wanted) == [everything[position] for position in wanted.tolist()]


# The proportions.


@settings(max_examples=40, deadline=None)
@given(setting=mixtures(fewest=2))
def test_a_run_holds_each_sources_share(setting: Setting) -> None:
    share = setting.plan.proportions
    within = share.deviation * share.total
    drift = off(setting, [each.source for each in sequence(setting, epochs=3)])
    for begin in range(0, drift.shape[1], setting.turn):
        turn = drift[:, begin : begin + setting.turn + 1]
        assert np.ptp(turn, axis=1).max() < within, "a run within a turn"
    for length in range(1, min(setting.turn, drift.shape[1] - 1) + 1):
        assert abs(drift[:, length:] - drift[:, :-length]).max() < 2 * within, "a run of a turn"


@settings(max_examples=25, deadline=None)
@given(setting=mixtures(fewest=2, lane_counts=st.just(1)))
def test_any_run_of_one_lane_holds_each_sources_share(setting: Setting) -> None:
    share = setting.plan.proportions
    drift = off(setting, [each.source for each in sequence(setting, epochs=3)])
    assert np.ptp(drift, axis=1).max() < share.deviation * share.total


@settings(max_examples=50, deadline=None)
@given(whole=st.lists(st.integers(1, 10**6), min_size=2, max_size=6))
def test_a_run_deviates_by_at_most_what_its_number_of_sources_allows(whole: list[int]) -> None:
    # The last but one is the worst: all that is left may be its, and whatever those above are off.
    deviation = Proportions(tuple(whole)).deviation
    above = sum((Fraction(1, count) for count in range(1, len(whole) - 1)), Fraction(0))
    assert 1 <= deviation <= 1 + above
    assert 2 * deviation <= len(whole) + 1


@pytest.mark.parametrize(
    ("whole", "worst"),
    [
        ((101, 100), 0.99),
        ((100, 101), 0.99),
        ((1009, 1001, 999), 1.32),  # equal ones: 1 + 1/3 of what one is off
        ((7, 5, 1), 1.5),
        ((59, 57, 1), 1.9),  # the last leaves nearly all to the one before
        ((57, 1, 59), 1.9),
    ],
)
def test_runs_come_close_to_the_deviation(whole: tuple[int, ...], worst: float) -> None:
    share = Proportions(whole)
    setting = Setting(MixturePlan((), share, 1), OrderRule(0, True, 1, 1, 1), [])
    drift = off(setting, share.pick(np.arange(2 * share.total))[0].tolist())
    assert worst * share.total < np.ptp(drift, axis=1).max() < share.deviation * share.total


def test_one_source_never_deviates() -> None:
    share = Proportions((3,))
    assert share.deviation == 0
    assert [each.tolist() for each in share.pick(np.arange(5))] == [[0] * 5, [*range(5)]]


def test_a_batch_over_the_end_of_a_turn_may_deviate_twice() -> None:
    sources = tuple(SourcePlan(array([100]), False, None) for _ in range(3))
    plan = MixturePlan(sources, Proportions((27, 25, 1)), 53 * 8)
    setting = Setting(plan, OrderRule(0, True, lanes=2, grain=4, window=1), [])
    drift = off(setting, setting.order(0).places(np.arange(53 * 8)).sources.tolist())
    worst = abs(drift[:, 8:] - drift[:, :-8])[
        :, :: setting.rule.grain
    ].max()  # in batches of a turn
    assert 1.9 * plan.proportions.deviation < Fraction(int(worst), 53) < 4


# Random access.


@settings(max_examples=30, deadline=None)
@given(setting=mixtures(), epoch=st.integers(0, 3), data=st.data())
def test_any_positions_can_be_asked_for_alone(
    setting: Setting, epoch: int, data: st.DataObject
) -> None:
    everything = dealt(setting.order(epoch))
    last = len(everything) - 1
    wanted = [0, last, *data.draw(st.lists(st.integers(0, last), max_size=20))]
    assert dealt(setting.order(epoch), array(wanted)) == [everything[at] for at in wanted]
    alone = [dealt(setting.order(epoch), array([position]))[0] for position in wanted]
    assert alone == [everything[position] for position in wanted]
    assert dealt(setting.order(epoch), array([])) == []


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(weights, min_size=1, max_size=6),
    cut=st.lists(st.booleans(), min_size=6, max_size=6),
    lane_count=lane_numbers,
    grain=st.integers(1, 20),
)
def test_far_positions_are_reckoned_as_near_ones_are_dealt(
    said: list[float], cut: list[bool], lane_count: int, grain: int
) -> None:
    exact = [Fraction(str(weight)) for weight in said]
    sources = [lambda epoch: [(0, epoch)] for _ in said]  # of one sample each
    asked: dict[str, Any] = {"cut": cut, "lanes": lane_count, "grain": grain}
    near = islice(mixture(exact, sources, **asked), 0, 300, 7)
    for position, (source, number, (_, epoch)) in zip(range(0, 300, 7), near, strict=True):
        assert far(exact, position, **asked) == (source, number)
        assert epoch == number


BILLION = [
    SourcePlan(array([size] * (10**9 // size)), True, None) for size in (10**6, 10**5, 10**7)
]


@settings(max_examples=30, deadline=None)
@given(
    whole=st.sampled_from([(5, 3, 1), (2**30, 2**30 - 1, 1), (1, 2**31 - 2, 1), (10**9, 1, 1)]),
    lane_count=st.sampled_from([1, 24 * 8, 24 * 8192 + 1]),
    grain=st.sampled_from([1, 256]),
    epoch=st.sampled_from([10**6, 10**6 + 1, 2**32]),
    data=st.data(),
)
def test_numbers_stay_exact_however_far(
    whole: tuple[int, ...], lane_count: int, grain: int, epoch: int, data: st.DataObject
) -> None:
    total = 2 * 10**9 // grain * grain
    rule = OrderRule(7, True, lane_count, grain, 1)
    setting = Setting(
        MixturePlan(tuple(BILLION), Proportions(whole), total), rule, [*map(Fraction, whole)]
    )
    order = setting.order(epoch)
    positions = [0, total - 1, *data.draw(st.lists(st.integers(0, total - 1), max_size=5))]
    given = dealt(order, array(positions))
    for position, each in zip(positions, given, strict=True):
        place = epoch * total + position
        assert each[:2] == far(
            setting.weights, place, cut=cuts(setting), lanes=lane_count, grain=grain
        )
    for each in given[:2]:
        is_its_sources(setting, each)


def is_its_sources(setting: Setting, each: Dealt) -> None:
    counts = setting.plan.sources[each.source].counts
    own, at = divmod(each.number, int(counts.sum()))
    shards, rows = Order(counts, own_rule(setting, each.source), own).rows(array([at]))
    assert each.sample == (shards[0], rows[0])


WITHOUT_LANES = [
    replace(BILLION[0], shuffle="full"),
    SourcePlan(array([3, 0, 4]), True, None),
    BILLION[1],  # but this one
    SourcePlan(array([10**12]), False, None),
]


@settings(max_examples=30, deadline=None)
@given(
    whole=st.sampled_from([(5, 3, 7, 1), (2**30, 2**30 - 2, 1, 1), (1, 2**29, 3, 2**29)]),
    lane_count=st.sampled_from([1, 24 * 8, 24 * 64 + 1]),
    grain=st.sampled_from([1, 256]),
    epoch=st.sampled_from([10**6, 10**6 + 1, 2**32]),
    data=st.data(),
)
def test_numbers_of_sources_without_lanes_stay_exact_however_far(
    whole: tuple[int, ...], lane_count: int, grain: int, epoch: int, data: st.DataObject
) -> None:
    total = 2 * 10**9 // grain * grain
    rule = OrderRule(7, True, lane_count, grain, 1)
    plan = MixturePlan(tuple(WITHOUT_LANES), Proportions(whole), total)
    setting = Setting(plan, rule, [*map(Fraction, whole)])
    assert cuts(setting) == [False, False, True, False]
    positions = [0, total - 1, *data.draw(st.lists(st.integers(0, total - 1), max_size=2))]
    for position, each in zip(
        positions, dealt(setting.order(epoch), array(positions)), strict=True
    ):
        place = epoch * total + position
        assert each[:2] == far(
            setting.weights, place, cut=cuts(setting), lanes=lane_count, grain=grain
        )
        is_its_sources(setting, each)


def test_a_far_batch_of_sources_without_lanes_takes_no_longer_than_its_turns() -> None:
    # As many lanes as there are, once for each turn: not for each position, nor all turns before.
    total = 2 * 10**9 // 256 * 256
    plan = MixturePlan(tuple(WITHOUT_LANES), Proportions((2**30, 2**30 - 2, 1, 1)), total)
    order = plan.order(OrderRule(7, True, 24 * 8192, 256, 1), epoch=2**32)
    begun = process_time()
    sources, _ = order.numbers(np.arange(total - 4096, total))
    assert set(sources.tolist()) == {0, 1}
    assert process_time() - begun < 5  # it takes 0.02 s, and 20 s by positions


# Ranks, workers and resumes.


class Reader(NamedTuple):
    rank: int
    worker: int


@settings(max_examples=40, deadline=None)
@given(
    setting=mixtures(),
    world_size=st.integers(1, 4),
    workers=st.integers(1, 3),
    multiple=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_a_lane_of_a_source_belongs_to_one_worker_of_one_rank(
    setting: Setting, world_size: int, workers: int, multiple: int, epoch: int
) -> None:
    lane_count = multiple * world_size * workers
    setting = setting._replace(rule=replace(setting.rule, lanes=lane_count))
    order = setting.order(epoch)
    readers: dict[tuple[int, int], dict[Sample, Reader]] = defaultdict(dict)
    for rank in range(world_size):
        share = Share(len(order), 0, World(rank, world_size), setting.rule.grain, "drop")
        for number in range(share.steps):
            for each in dealt(order, share.step(number).positions):
                own = each.number // len(setting.plan.sources[each.source])
                readers[each.source, own][each.sample] = Reader(rank, number % workers)
    for (source, own), reader_of in readers.items():
        if not is_cut(setting.plan.sources[source]):
            continue
        counts = setting.plan.sources[source].counts.tolist()
        laid = laid_out(counts, shards_as_laid_out(counts, own_rule(setting, source), own))
        strays = 0
        for lane in lanes(laid, lane_count):
            read_by = Counter(reader_of[sample] for sample in lane if sample in reader_of)
            strays += read_by.total() - max(read_by.values(), default=0)
        assert strays < lane_count, "more than what a source's lanes have left over"


def test_the_worker_of_a_lane_keeps_it_over_many_windows() -> None:
    # Nothing is left over: in each epoch 12 lanes take 40 samples, two shards, of each source.
    source = SourcePlan(array([20] * 24), True, 8)
    plan = MixturePlan((source, source), Proportions((1, 1)), "longest")
    setting = Setting(plan, OrderRule(5, True, 12, 4, 1), [Fraction(1)] * 2)
    for epoch in range(3):
        shards: dict[int, set[Reader]] = defaultdict(set)
        order = setting.order(epoch)
        for rank in range(2):
            share = Share(len(order), 0, World(rank, 2), 4, "drop")
            for number in range(share.steps):
                for each in dealt(order, share.step(number).positions):
                    if each.source == 0 and each.number // 480 == epoch:
                        shards[each.sample[0]].add(Reader(rank, number % 6))
        assert len(shards) == 24
        assert all(len(readers) == 1 for readers in shards.values())


def divides_without_loss(setting: Setting, world_size: int, batch_size: int) -> None:
    for epoch in range(2):
        order = setting.order(epoch)
        shares = [
            Share(len(order), 0, World(rank, world_size), batch_size, "exact")
            for rank in range(world_size)
        ]
        assert len({share.steps for share in shares}) == 1, "ranks take unequal steps"
        given: list[Dealt] = []
        for share in shares:
            steps = [share.step(number).positions for number in range(share.steps)]
            given += dealt(order, np.concatenate(steps))
        assert len(given) == len(order) == setting.plan.samples(setting.rule.grain)
        assert len({each[:2] for each in given}) == len(given), "a sample is twice"
        assert sorted(given) == sorted(dealt(order)), "a sample is missing"


partitions = given(setting=mixtures(), world_size=st.integers(1, 16), batch_size=st.integers(1, 40))


@settings(max_examples=20, deadline=None)
@partitions
def test_nothing_is_delivered_twice_or_lost(
    setting: Setting, world_size: int, batch_size: int
) -> None:
    divides_without_loss(setting, world_size, batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=10_000 // PARTS, deadline=None)
@partitions
def test_nothing_is_delivered_twice_or_lost_ever(
    setting: Setting, world_size: int, batch_size: int, part: int
) -> None:
    divides_without_loss(setting, world_size, batch_size)


class Stand(NamedTuple):
    """What a run gave and what its tails dropped, by place in the endless sequence; its state."""

    given: list[tuple[int, Dealt]]
    dropped: list[int]
    state: str


def run(plan: MixturePlan, state: str, link: Link) -> Stand:
    """Resume from a state as JSON, take steps, maybe into the next epoch, and save it again."""
    cursor = Cursor.from_dict(json.loads(state))
    given: list[tuple[int, Dealt]] = []
    dropped: list[int] = []
    steps = None
    for _ in range(2):
        order, world_size = plan.order(cursor.rule, cursor.epoch), link.world_size
        shares = [
            Share(len(order), cursor.position, World(rank, world_size), link.batch_size, link.tail)
            for rank in range(world_size)
        ]
        steps = int(2 * link.stop * shares[0].steps) if steps is None else steps
        taken = [share.step(n) for n in range(min(steps, shares[0].steps)) for share in shares]
        steps -= len(taken) // world_size
        here = np.concatenate([array([]), *(step.positions[: step.real] for step in taken)])
        begin = cursor.epoch * len(order)
        given += zip((begin + here).tolist(), dealt(order, here), strict=True)
        after = {share.after(len(taken) // world_size) for share in shares}
        assert len(after) == 1, "ranks disagree about the cursor"
        position = after.pop()
        if position is not None:
            cursor = replace(cursor, position=position)
            break
        lost = (len(order) - cursor.position) % shares[0].global_batch * (link.tail == "drop")
        dropped += range(begin + len(order) - lost, begin + len(order))
        settled = plan.settle(
            world_size=world_size, batch_size=link.batch_size, seed=cursor.rule.seed, shuffle=True
        )
        rule = cursor.rule if plan.keeps_rule else settled
        cursor = Cursor(cursor.epoch + 1, 0, rule, cursor.fingerprint)
    return Stand(given, dropped, json.dumps(cursor.to_dict()))


def resumes_equal_one_run(setting: Setting, links: list[Link]) -> None:
    state = json.dumps(Cursor(0, 0, setting.rule, "f00d").to_dict())
    given: list[tuple[int, Dealt]] = []
    dropped: list[int] = []
    for link in links:
        more, lost, state = run(setting.plan, state, link)
        given += more
        dropped += lost
    cursor = Cursor.from_dict(json.loads(state))
    assert cursor.rule == setting.rule, "lanes or grain changed"
    uninterrupted = sequence(setting, cursor.epoch + 1)
    stand = cursor.epoch * len(setting.order(0)) + cursor.position
    without = set(dropped)
    assert given == [
        (place, uninterrupted[place]) for place in range(stand) if place not in without
    ]


def test_the_rule_of_the_first_epoch_is_kept() -> None:
    sources = SourcePlan(array([20] * 24), True, 8), SourcePlan(array([9, 8]), True, None)
    plan = MixturePlan(sources, Proportions((3, 1)), 200)
    rule = plan.settle(world_size=2, batch_size=4, seed=1, shuffle=True)
    assert (rule.lanes, rule.grain) == (48, 4)
    links = [Link(2, 4, "exact", 0.8), Link(3, 5, "drop", 0.9), Link(1, 7, "pad", 1.0)]
    resumes_equal_one_run(Setting(plan, rule, []), links)


@settings(max_examples=50, deadline=None)
@given(setting=mixtures(), links=chains)
def test_a_chain_of_resumes_equals_one_run(setting: Setting, links: list[Link]) -> None:
    resumes_equal_one_run(setting, links)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=10_000 // PARTS, deadline=None)
@given(setting=mixtures(), links=chains)
def test_a_chain_of_resumes_equals_one_run_ever(
    setting: Setting, links: list[Link], part: int
) -> None:
    resumes_equal_one_run(setting, links)


# What is said of a mixture.


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([1, 1, 1], (1, 1, 1)),
        ([4, 2], (2, 1)),
        ([0.1, 0.25], (2, 5)),
        ([5], (1,)),
        ([0.1, 0.2, 0.3], (1, 2, 3)),  # not what 0.1 + 0.2 is
        ([1e-3, 1], (1, 1000)),
        ([1e300, 2e300], (1, 2)),
        ([1e-9, 1], (1, 10**9)),
        ([np.float64(0.5), np.int64(2)], (1, 4)),
        (np.array([1.0, 2.0]), (1, 2)),
        (np.array([0.1, 0.7], np.float32), (1, 7)),
        (np.array([4, 6]), (2, 3)),
        ((Fraction(1, 3), Decimal("0.5")), (2, 3)),
        ([2**29, 2**29 - 1], (2**29, 2**29 - 1)),
        ([2**30 - 1, 1], (2**30 - 1, 1)),  # exact up to 2**30 together
        ([2**30, 1], (2**30 - 1, 1)),  # and from there rounded
        ([2**30, 2**30 - 1], (2**29, 2**29)),
        ([1, 1e-30], (2**30, 1)),  # but never to nothing
        ([1e300, 1e-300, 1e300], (2**29, 1, 2**29)),
    ],
)
def test_proportions_are_the_smallest_whole_numbers(
    said: Sequence[float], whole: tuple[int, ...]
) -> None:
    assert Proportions.of(said).weights == whole


@settings(max_examples=50, deadline=None)
@given(said=st.lists(st.floats(0, exclude_min=True, allow_infinity=False), min_size=1, max_size=6))
def test_any_weights_are_exact_or_rounded_to_one_part(said: list[float]) -> None:
    share = Proportions.of(said)
    exact = [Fraction(str(weight)) for weight in said]
    parts = [weight / sum(exact) for weight in exact]
    if [Fraction(whole, share.total) for whole in share.weights] != parts:
        for whole, part in zip(share.weights, parts, strict=True):
            assert whole >= 1
            assert abs(whole - part * 2**30) <= 1


@settings(max_examples=25, deadline=None)
@given(said=st.lists(weights, min_size=1, max_size=6))
def test_small_weights_are_exact(said: list[float]) -> None:
    share = Proportions.of(said)
    exact = [Fraction(str(weight)) for weight in said]
    assert [Fraction(whole, share.total) for whole in share.weights] == [
        weight / sum(exact) for weight in exact
    ]
    assert np.gcd.reduce(share.weights) == 1


@pytest.mark.parametrize(
    "said",
    [
        [],
        [0],
        [1, 0.0],
        [1, -1],
        [-0.5],
        [float("nan"), 1],
        [1, float("inf")],
        [1, -float("inf")],
        "x",
        "",
        ["x", 1],
        [1, ""],
        [True],
        [1, False],
        [np.True_],
        [None],
        [1j],
        [[1]],
        [1, (1, 2)],
        np.array([]),
        np.array([1.0, 0.0]),
        np.array([1.0, np.nan]),
        np.array([True]),
        np.array(["x"]),
        np.ones((2, 2)),
    ],
)
def test_weights_that_are_no_proportions_are_refused(said: Any) -> None:
    with pytest.raises(UsageError, match="each must be a number above 0"):
        Proportions.of(said)


@pytest.mark.parametrize("whole", [(), (0,), (1, 0), (3, -1), (2**31, 1), (2**30, 2**30, 1)])
def test_whole_numbers_out_of_their_range_are_refused(whole: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"each above 0, together at most 2\*\*31"):
        Proportions(whole)


def test_weights_may_be_2_to_the_31st_together() -> None:
    share = Proportions((2**30, 2**30))
    places = array([0, 1, 2**62, 2**62 + 1])
    sources, counts = share.pick(places)
    assert sources.tolist() == [1, 0, 1, 0]
    assert counts.tolist() == [0, 0, 2**61, 2**61]


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(source_plans(), min_size=6, max_size=6),
    said=st.lists(weights, min_size=1, max_size=6),
    grain=st.integers(1, 20),
)
def test_an_epoch_ends_where_its_rule_says(
    sources: list[SourcePlan], said: list[float], grain: int
) -> None:
    plan = MixturePlan(tuple(sources[: len(said)]), Proportions.of(said), "longest")
    exact = [Fraction(str(weight)) for weight in said]
    sizes = [int(source.counts.sum()) for source in plan.sources]
    assert [len(source) for source in plan.sources] == sizes

    def asked(samples: int) -> list[Fraction]:
        return [samples * weight / sum(exact) for weight in exact]

    def whole(samples: int) -> list[bool]:
        return [each >= size for each, size in zip(asked(samples), sizes, strict=True)]

    longest = plan.samples(grain)
    assert longest % grain == 0
    assert all(whole(longest)), "a source is not given whole"
    assert not all(whole(longest - grain)), "it could have ended before"
    plan = replace(plan, stop="first")
    if any(each > size for each, size in zip(asked(grain), sizes, strict=True)):
        with pytest.raises(UsageError, match=f"'first'.*before one grain of {grain};"):
            plan.samples(grain)
        return
    first = plan.samples(grain)
    assert first % grain == 0
    assert first >= grain
    assert all(each <= size for each, size in zip(asked(first), sizes, strict=True)), "begun anew"
    more = zip(asked(first + grain), sizes, strict=True)
    assert any(each > size for each, size in more), "it could have gone on"


@settings(max_examples=25, deadline=None)
@given(source=source_plans(), stop=st.integers(0, 1000), grain=st.integers(1, 100))
def test_an_epoch_of_a_number_is_at_most_that_many(
    source: SourcePlan, stop: int, grain: int
) -> None:
    plan = MixturePlan((source,), Proportions((1,)), stop)
    if stop < grain:
        with pytest.raises(UsageError, match=f"stop={stop} .* {stop} samples"):
            plan.samples(grain)
    else:
        samples = plan.samples(grain)
        assert samples % grain == 0
        assert samples <= stop < samples + grain
        rule = OrderRule(0, True, 3, grain, 1)
        assert len(plan.order(rule, epoch=2)) == samples


@pytest.mark.parametrize(("stop", "samples"), [("first", 2 * 10**18), ("longest", 6 * 10**18)])
def test_epochs_of_any_length_are_exact(stop: Any, samples: int) -> None:
    sources = tuple(SourcePlan(array([3 * 10**18 // part]), False, None) for part in (1, 3))
    assert MixturePlan(sources, Proportions((1, 1)), stop).samples(1) == samples


def settled(*sources: SourcePlan, **asked: Any) -> OrderRule:
    plan = MixturePlan(sources, Proportions((1,) * len(sources)), "longest")
    world: dict[str, Any] = {"world_size": 1, "batch_size": 32, "seed": 0, "shuffle": True}
    return plan.settle(**{**world, **asked})


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(
        st.builds(
            SourcePlan,
            st.lists(st.integers(1, 9000), min_size=1, max_size=12).map(array),
            st.sampled_from([True, True, True, True, "full", False]),
            st.one_of(st.none(), st.integers(1, 3000)),
        ),
        min_size=1,
        max_size=4,
    ),
    world_size=st.integers(1, 8),
)
def test_every_lane_of_every_windowed_source_has_a_whole_window(
    sources: list[SourcePlan], world_size: int
) -> None:
    count = settled(*sources, world_size=world_size).lanes
    cut = [source for source in sources if is_cut(source)]
    assert [source.is_windowed for source in sources] == [is_cut(source) for source in sources]
    if not cut or any(source.shuffle is False for source in sources):
        assert count == 1
        return

    def leaves_windows(lane_count: int) -> bool:
        sizes = [(int(each.counts.sum()), own_window(each)) for each in cut]
        return all(size // lane_count >= window for size, window in sizes)

    assert leaves_windows(count)
    usual = [ranks * world_size for ranks in (24, 12, 8, 6, 4, 3, 2, 1)]
    assert count == max(filter(leaves_windows, usual), default=1), "there could be more"


@pytest.mark.parametrize(
    ("sources", "count"),
    [
        ([([50] * 24, True, 50)], 24),
        ([([50] * 24, True, 50), ([99], True, 50), ([7], "full", None)], 24),  # small: not asked
        ([([50] * 24, True, 50), ([50] * 8, True, 50)], 8),
        ([([50] * 24, True, 50), ([1], False, None)], 1),  # in pack order
        ([([100], True, 50), ([5000], "full", None)], 1),  # none is windowed
        ([([101], True, 50)], 2),
        ([([50000], False, None)], 1),
        ([([3000] * 48, True, None)], 12),  # windows of 12,000
        ([([1], True, 10**9), ([10**6], True, 10)], 24),
    ],
)
def test_the_source_with_the_fewest_windows_decides_the_lanes(
    sources: list[tuple[list[int], Any, int | None]], count: int
) -> None:
    plans = [SourcePlan(array(counts), shuffle, window) for counts, shuffle, window in sources]
    assert settled(*plans).lanes == count
    assert settled(*reversed(plans)).lanes == count


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_what_is_given_is_kept_and_the_rest_is_usual(shuffle: Any) -> None:
    sources = SourcePlan(array([50] * 24), True, 50), SourcePlan(array([9]), shuffle, None)
    asked = {"lanes": 7, "grain": 11, "window": 13, "seed": 17, "shuffle": shuffle}
    for world_size, batch_size in ((1, 32), (5, 1)):
        world = {"world_size": world_size, "batch_size": batch_size}
        assert settled(*sources, **world, **asked) == OrderRule(17, shuffle, 7, 11, 13)
        rule = settled(*sources, **world, shuffle=shuffle)
        assert (rule.grain, rule.window, rule.shuffle) == (batch_size, 1209, shuffle)
    for name in ("lanes", "grain", "window"):
        with pytest.raises(UsageError, match=f"{name} is 0"):  # not taken for left out
            settled(*sources, **{name: 0})


@settings(max_examples=25, deadline=None)
@given(setting=mixtures(), batch_size=st.integers(1, 20))
def test_pack_order_is_kept_where_lanes_are_left_out(setting: Setting, batch_size: int) -> None:
    first = replace(setting.plan.sources[0], shuffle=False)
    plan = replace(
        setting.plan, sources=(first, *setting.plan.sources[1:]), stop=max(300, batch_size)
    )
    rule = plan.settle(world_size=3, batch_size=batch_size, seed=1, shuffle=True)
    given = sequence(setting._replace(plan=plan, rule=rule), epochs=2)
    for number, source in enumerate(plan.sources):
        if source.shuffle is False:
            counts = source.counts.tolist()
            samples = [each.sample for each in given if each.source == number]
            packed = cycle(laid_out(counts, range(len(counts))))
            assert samples == list(islice(packed, len(samples)))


# The same numbers on every machine.

# name -> ([([(samples, that many shards), ...], shuffle, window), ...], weights, stop, rule, epoch)
Runs = list[tuple[int, int]]
Stored = tuple[list[tuple[Runs, Any, int | None]], list[float], Any, OrderRule, int]
SETTINGS: dict[str, Stored] = {
    # Small sources that begin anew again and again, every shuffle, and one that is cut into lanes.
    "small": (
        [
            ([(3, 2), (0, 3), (1, 4)], True, None),
            ([(20, 3)], False, None),
            ([(31, 2), (0, 1)], "full", None),
            ([(40, 5), (0, 2), (7, 30)], True, 25),
        ],
        [0.15, 0.2, 0.15, 0.5],
        "longest",
        OrderRule(seed=2**63 - 1, shuffle=True, lanes=6, grain=5, window=1),
        2,
    ),
    "billions": (
        [
            ([(10_000, 100_000)], True, None),
            ([(2300, 557)], True, 9200),
            ([(250, 4)], True, None),
        ],
        [0.7, 0.299, 1e-11],
        10**9,
        OrderRule(seed=7, shuffle=True, lanes=24 * 8, grain=4, window=40_000),
        11,
    ),
}


def document(name: str) -> dict[str, Any]:
    """The setting, and the order that it has now."""
    sources, said, stop, rule, epoch = SETTINGS[name]
    plans = []
    for runs, shuffle, window in sources:
        samples, repeats = np.array(runs).T
        plans.append(SourcePlan(np.repeat(samples, repeats), shuffle, window))
    order = MixturePlan(tuple(plans), Proportions.of(said), stop).order(rule, epoch)
    places = order.places(np.arange(1000))
    return {
        "samples_and_shards": [[list(each) for each in runs] for runs, _, _ in sources],
        "shuffles_and_windows": [[shuffle, window] for _, shuffle, window in sources],
        "weights": said,
        "stop": stop,
        "rule": dataclasses.asdict(rule),
        "epoch": epoch,
        "samples": len(order),
        **{part: getattr(places, part).tolist() for part in ("sources", "shards", "rows")},
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_is_the_one_that_was_stored(name: str) -> None:
    assert document(name) == json.loads((FOLDER / f"{name}.json").read_text())


def test_every_stored_order_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SETTINGS)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in SETTINGS:
        (FOLDER / f"{each}.json").write_text(json.dumps(document(each)) + "\n")
