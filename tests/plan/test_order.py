from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.plan.order import Order, OrderRule, sample_seeds
from tests.oracle import Place, Sample, laid_out, places
from tests.plan.draw import (
    any_rules,
    array,
    epochs,
    samples_of,
    shard_counts,
    shards_as_laid_out,
    windowed_rules,
)

RULE = OrderRule(seed=3, shuffle=True, lanes=6, grain=4, window=50)
COUNTS = [40, 0, 90, 7, 120, 43]  # 300 samples


def expected_places(counts: list[int], rule: OrderRule, epoch: int) -> list[Place]:
    samples = laid_out(counts, shards_as_laid_out(counts, rule, epoch))
    return places(samples, lane_count=rule.lanes, grain=rule.grain, window=rule.window)


@settings(max_examples=400, deadline=None)
@given(counts=shard_counts, rule=any_rules, epoch=epochs)
def test_every_sample_is_at_exactly_one_position(
    counts: list[int], rule: OrderRule, epoch: int
) -> None:
    order = Order(array(counts), rule, epoch)
    assert len(order) == sum(counts)
    assert sorted(samples_of(order)) == laid_out(counts, range(len(counts)))


@pytest.mark.parametrize(
    ("counts", "lanes", "grain"),
    [
        ([5], 7, 1),  # fewer samples than lanes
        ([1, 1, 1], 50, 20),  # more lanes than shards, fewer samples than one turn
        ([99], 10, 10),  # one sample short of a whole turn
        ([100], 10, 10),
        ([101], 10, 10),
        ([0, 0, 4, 0, 0], 2, 1),  # empty shards at both ends
        ([0, 1, 0], 1, 1),
    ],
)
def test_every_sample_is_there_at_the_edges(counts: list[int], lanes: int, grain: int) -> None:
    for epoch in range(20):
        rule = OrderRule(seed=1, shuffle=True, lanes=lanes, grain=grain, window=3)
        delivered = samples_of(Order(array(counts), rule, epoch))
        assert sorted(delivered) == laid_out(counts, range(len(counts)))


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_an_epoch_of_nothing_has_no_positions(counts: list[int], shuffle: bool) -> None:
    order = Order(array(counts), replace(RULE, shuffle=shuffle), epoch=0)
    assert len(order) == 0
    assert samples_of(order) == []


@settings(max_examples=300, deadline=None)
@given(counts=shard_counts, rule=windowed_rules(), epoch=epochs)
def test_each_window_delivers_its_own_samples(
    counts: list[int], rule: OrderRule, epoch: int
) -> None:
    delivered: dict[frozenset[Sample], list[Sample]] = defaultdict(list)
    expected = expected_places(counts, rule, epoch)
    for place, sample in zip(expected, samples_of(Order(array(counts), rule, epoch)), strict=True):
        delivered[place.window].append(sample)
    for window, samples in delivered.items():
        assert sorted(samples) == sorted(window)


@settings(max_examples=200, deadline=None)
@given(counts=shard_counts, rule=windowed_rules(), epoch=epochs)
def test_lanes_differ_by_at_most_one_sample(counts: list[int], rule: OrderRule, epoch: int) -> None:
    # One sample a turn, and windows of one, so that a lane shows its samples as they are laid out.
    rule = replace(rule, grain=1, window=1)
    place_of = {
        sample: place
        for place, sample in enumerate(laid_out(counts, shards_as_laid_out(counts, rule, epoch)))
    }
    delivered = [place_of[sample] for sample in samples_of(Order(array(counts), rule, epoch))]
    turns = len(delivered) // rule.lanes
    given_in_turns, left_over = delivered[: turns * rule.lanes], delivered[turns * rule.lanes :]
    lanes = [given_in_turns[lane :: rule.lanes] for lane in range(rule.lanes)]
    for lane in lanes:
        assert lane == list(range(lane[0], lane[0] + turns)) if lane else turns == 0
    # Each lane has at most one more: its next, and no two lanes the same.
    nexts = [lane[-1] + 1 for lane in lanes if lane]
    assert len(set(left_over)) == len(left_over)
    assert turns == 0 or set(left_over) <= set(nexts)


@settings(deadline=None)
@given(counts=shard_counts, rule=windowed_rules(), epoch=epochs)
def test_unshuffled_is_pack_order(counts: list[int], rule: OrderRule, epoch: int) -> None:
    order = Order(array(counts), replace(rule, shuffle=False), epoch)
    assert samples_of(order) == laid_out(counts, range(len(counts)))


@settings(max_examples=300, deadline=None)
@given(counts=shard_counts, rule=any_rules, epoch=epochs, data=st.data())
def test_any_positions_can_be_asked_for_alone(
    counts: list[int], rule: OrderRule, epoch: int, data: st.DataObject
) -> None:
    order = Order(array(counts), rule, epoch)
    wanted = data.draw(st.lists(st.integers(0, max(len(order) - 1, 0)), max_size=len(order)))
    everything = samples_of(order)
    shards, rows = order.rows(array(wanted))
    alone = list(zip(shards.tolist(), rows.tolist(), strict=True))
    assert alone == [everything[position] for position in wanted]


@settings(max_examples=200, deadline=None)
@given(counts=shard_counts, rule=any_rules, epoch=epochs)
def test_a_sample_is_found_at_its_position(counts: list[int], rule: OrderRule, epoch: int) -> None:
    order = Order(array(counts), rule, epoch)
    everywhere = np.arange(len(order))
    assert order.positions(*order.rows(everywhere)).tolist() == everywhere.tolist()


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_an_epoch_differs_from_the_next(shuffle: bool) -> None:
    rule = replace(RULE, shuffle=shuffle)
    orders = [tuple(samples_of(Order(array(COUNTS), rule, epoch))) for epoch in range(100)]
    assert len(set(orders)) == 100


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_an_order_differs_from_that_of_another_seed(shuffle: bool) -> None:
    rules = [replace(RULE, shuffle=shuffle, seed=seed) for seed in range(100)]
    orders = [tuple(samples_of(Order(array(COUNTS), rule, epoch=0))) for rule in rules]
    assert len(set(orders)) == 100


def test_the_shards_are_laid_out_anew_in_every_epoch() -> None:
    laid = [tuple(shards_as_laid_out([1] * 30, RULE, epoch)) for epoch in range(100)]
    assert len(set(laid)) == 100


def test_windows_of_one_epoch_are_permuted_differently() -> None:
    # Four lanes of five windows of 50, one sample a turn, over one shard.
    rule = OrderRule(seed=0, shuffle=True, lanes=4, grain=1, window=50)
    rows = np.array([row for _, row in samples_of(Order(array([1000]), rule, epoch=0))])
    lanes = rows.reshape(5, 50, 4)  # window, place, lane
    permutations = {tuple(np.argsort(lanes[j, :, i]).tolist()) for i in range(4) for j in range(5)}
    assert len(permutations) == 20
    assert tuple(range(50)) not in permutations


def test_a_seed_of_augmentations_belongs_to_one_sample_of_one_epoch() -> None:
    seeds = [
        int(each)
        for seed in range(5)
        for epoch in range(5)
        for each in sample_seeds(seed, epoch, np.arange(200))
    ]
    assert len(set(seeds)) == 5 * 5 * 200


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=epochs,
    wanted=st.lists(st.integers(0, 2**40), max_size=20),
)
def test_a_seed_of_augmentations_depends_on_nothing_but_seed_epoch_and_position(
    seed: int, epoch: int, wanted: list[int]
) -> None:
    together = sample_seeds(seed, epoch, array(wanted))
    alone = [sample_seeds(seed, epoch, array([position]))[0] for position in wanted]
    assert together.dtype == np.uint64
    assert together.tolist() == alone
