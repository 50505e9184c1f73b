from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import UsageError
from streamshard.plan.order import Order, OrderRule
from tests.oracle import laid_out
from tests.plan.draw import array, samples_of, shards_as_laid_out

VALID: dict[str, Any] = {"seed": 0, "shuffle": True, "lanes": 1, "grain": 1, "window": 1}


def settled(counts: list[int], **given: Any) -> OrderRule:
    world: dict[str, Any] = {"world_size": 1, "batch_size": 32, "seed": 0, "shuffle": True}
    return OrderRule.settle(array(counts), **{**world, **given})


@pytest.mark.parametrize("per_rank", [24, 12, 8, 6, 4, 3, 2, 1])
@pytest.mark.parametrize("world_size", [3, 8])
def test_lanes_are_the_largest_multiple_with_a_window_each(per_rank: int, world_size: int) -> None:
    lanes = per_rank * world_size
    assert settled([lanes * 50], world_size=world_size, window=50).lanes == lanes
    # One sample fewer, and a lane is short of its window.
    fewer = {24: 12, 12: 8, 8: 6, 6: 4, 4: 3, 3: 2, 2: 1}.get(per_rank)
    short = settled([lanes * 50 - 1], world_size=world_size, window=50).lanes
    assert short == (fewer * world_size if fewer else 1)


def test_there_are_never_more_than_24_lanes_a_rank() -> None:
    assert settled([1000] * 10_000, world_size=8).lanes == 24 * 8


@pytest.mark.parametrize("total", [0, 1, 50, 75, 99, 100])
def test_a_dataset_of_at_most_two_windows_is_one_lane(total: int) -> None:
    assert settled([total], window=50).lanes == 1


@pytest.mark.parametrize(
    "counts",
    [
        [500] * 2,  # less than a window
        [192] * 8,  # one and a half
        [193] * 8,
        [20] * 100,
        [256] * 8,  # two
    ],
)
def test_a_dataset_of_at_most_two_windows_is_one_window(counts: list[int]) -> None:
    rule = settled(counts)
    half = sum(counts) // 2
    for epoch in range(5):
        # Two windows would be a half each, and keep their samples.
        laid = laid_out(counts, shards_as_laid_out(counts, rule, epoch))
        delivered = samples_of(Order(array(counts), rule, epoch))
        assert set(delivered[:half]) != set(laid[:half])


def test_a_dataset_of_more_than_two_windows_has_lanes() -> None:
    assert settled([101], window=50).lanes == 2


@pytest.mark.parametrize(
    ("counts", "window"),
    [
        ([1000] * 10, 4000),
        ([1000, 0, 2000, 3000], 6000),  # empty shards count in the mean
        ([256] * 10, 1024),
        ([255] * 10, 1024),  # at least
        ([257] * 10, 1028),
        ([3], 1024),
        ([], 1024),
    ],
)
def test_a_window_is_four_mean_shards_and_at_least_1024(counts: list[int], window: int) -> None:
    # Lanes are given because a dataset of at most two windows is settled in a way of its own.
    assert settled(counts, lanes=5).window == window


def test_a_grain_is_a_batch() -> None:
    assert settled([5000], batch_size=77).grain == 77


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 10_000))
def test_what_is_given_is_kept_on_any_world(lanes: int, grain: int, window: int) -> None:
    given = {"lanes": lanes, "grain": grain, "window": window}
    rules = {
        settled([5000] * 9, world_size=world_size, batch_size=batch_size, **given)
        for world_size in (1, 2, 7)
        for batch_size in (1, 32)
    }
    assert rules == {OrderRule(0, True, lanes, grain, window)}


@pytest.mark.parametrize("shuffle", [False, "full"])
@pytest.mark.parametrize("name", ["lanes", "grain", "window"])
def test_windows_cannot_be_set_where_there_are_none(shuffle: bool, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        settled([5000], shuffle=shuffle, **{name: 4})


@pytest.mark.parametrize("shuffle", [False, "full"])
def test_unwindowed_orders_do_not_depend_on_the_world(shuffle: bool) -> None:
    rules = {
        settled([5000], shuffle=shuffle, world_size=world_size, batch_size=batch_size)
        for world_size in (1, 2, 7)
        for batch_size in (1, 32)
    }
    assert len(rules) == 1


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_an_empty_dataset_has_a_rule(shuffle: bool) -> None:
    assert len(Order(array([]), settled([], shuffle=shuffle), epoch=0)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("shuffle", "window"),
        ("shuffle", None),
        ("shuffle", 2),
        ("shuffle", 1),  # equal to True, but not True
        ("lanes", 0),
        ("lanes", -3),
        ("grain", 0),
        ("window", 0),
        ("window", -1),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"{name} is .*must be"):
        OrderRule(**{**VALID, name: value})


@pytest.mark.parametrize("name", ["lanes", "grain", "window"])
def test_zero_is_not_taken_for_left_out(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        settled([5000], **{name: 0})


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_every_seed_in_range_makes_an_order(seed: int) -> None:
    order = Order(array([100]), OrderRule(**{**VALID, "seed": seed, "window": 100}), epoch=0)
    assert sorted(order.rows(np.arange(100))[1].tolist()) == list(range(100))


def test_a_window_may_be_larger_than_any_dataset() -> None:
    rows = [
        Order(array([100]), OrderRule(**{**VALID, "window": window}), epoch=0).rows(np.arange(100))
        for window in (100, 10**12, 2**63 - 1)
    ]
    assert len({tuple(row.tolist()) for _, row in rows}) == 1
