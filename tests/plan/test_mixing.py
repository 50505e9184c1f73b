"""Measures of an order: a perfect shuffle scores what it should, pack order scores worst."""

from __future__ import annotations

import itertools
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.plan import mixing as mixing_module
from streamshard.plan.deal import Deal
from streamshard.plan.mixing import Measure, Mixing, mixing, perfect_shards
from streamshard.plan.order import Order, OrderRule
from tests.oracle import deal as deal_out
from tests.plan.draw import array, samples_of

NAMES = ("distance", "neighbour_distance", "neighbours_in_step", "batch_shards", "step_shards")


def measured(counts: list[int], deal: Deal, **rule: Any) -> dict[str, Measure]:
    settled = OrderRule.settle(
        array(counts),
        world_size=deal.world_size,
        batch_size=deal.batch_size,
        **{"seed": 0, "shuffle": True, **rule},
    )
    return found(mixing(Order(array(counts), settled, 0), deal, array(counts)))


def found(all_measures: Mixing) -> dict[str, Measure]:
    return {name: measure for name, measure in vars(all_measures).items() if measure is not None}


def by_hand(order: Order, deal: Deal) -> dict[str, float]:
    """All measures in plain Python, from every sample's position."""
    samples = samples_of(order)
    position = {sample: at for at, sample in enumerate(samples)}
    positions = [position[sample] for sample in sorted(samples)]
    total = len(samples)
    size = {"world_size": deal.world_size, "batch_size": deal.batch_size, "tail": deal.tail}
    steps = deal_out(total, cursor=0, **size)  # type: ignore[arg-type]
    step_of = {
        at: step
        for step, taken in enumerate(steps)
        for batch in taken
        for at, is_real in batch
        if is_real
    }
    pairs = list(itertools.pairwise(positions))
    together = [a in step_of and step_of[a] == step_of.get(b) for a, b in pairs]
    full = total // deal.global_batch
    shards = [[[samples[at][0] for at, _ in batch] for batch in step] for step in steps]
    measures = {
        "distance": sum(abs(at - place) for place, at in enumerate(positions)) / total**2,
        "neighbour_distance": sum(abs(a - b) for a, b in pairs) / len(pairs) / total,
        "neighbours_in_step": sum(together) / len(pairs),
    }
    if full:
        batches = [len(set(batch)) for step in shards[:full] for batch in step]
        in_steps = [len(set().union(*step)) for step in shards[:full]]
        measures["batch_shards"] = sum(batches) / len(batches)
        measures["step_shards"] = sum(in_steps) / len(in_steps)
    return measures


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(lambda c: sum(c) > 1),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    tail=st.sampled_from(["drop", "pad", "exact"]),
    shuffle=st.sampled_from([False, True, "full"]),
)
def test_small_orders_are_measured_exactly(
    counts: list[int], size: tuple[int, int], tail: Any, shuffle: Any
) -> None:
    deal = Deal(sum(counts), size[0], 1, size[1], tail)
    rule = OrderRule.settle(
        array(counts), world_size=size[0], batch_size=size[1], seed=0, shuffle=shuffle
    )
    order = Order(array(counts), rule, 0)
    measures = found(mixing(order, deal, array(counts)))
    expected = by_hand(order, deal)
    assert {name: measures[name].here for name in expected} == pytest.approx(expected)
    assert all(measure.is_exact for measure in measures.values())


def average(trials: int, counts: list[int], deal: Deal) -> dict[str, float]:
    """Over orders that Python's own generator shuffles perfectly."""
    sums = dict.fromkeys(NAMES, 0.0)
    total = sum(counts)
    samples = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    for trial in range(trials):
        shuffled = np.random.default_rng(trial).permutation(total)

        class Shuffled(Order):
            def rows(self, positions: Any) -> Any:
                shards, rows = np.array(samples).T
                return shards[shuffled[positions]], rows[shuffled[positions]]  # noqa: B023

            def positions(self, shards: Any, rows: Any) -> Any:
                starts = np.cumsum([0, *counts])[:-1]
                return np.argsort(shuffled)[starts[shards] + rows]  # noqa: B023

        order = Shuffled(array(counts), OrderRule(0, False, 1, 1, 1), 0)
        for name, measure in found(mixing(order, deal, array(counts))).items():
            sums[name] += measure.here / trials
    return sums


@pytest.mark.parametrize("tail", ["drop", "exact"])
def test_perfect_is_what_perfect_shuffles_give_on_average(tail: Any) -> None:
    counts = [1, 7, 20, 0, 3, 9, 33]
    deal = Deal(sum(counts), 2, 1, 6, tail)
    expected = {name: m.perfect for name, m in measured(counts, deal).items()}
    assert average(1000, counts, deal) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("counts", [[3000], [100] * 30, [5, 995, 1000, 500, 500]])
def test_a_full_shuffle_is_near_perfect_and_pack_order_is_worst(counts: list[int]) -> None:
    deal = Deal(sum(counts), 2, 1, 16, "drop")
    full, none = measured(counts, deal, shuffle="full"), measured(counts, deal, shuffle=False)
    for name in NAMES:
        tolerance = 0.3 if name == "neighbours_in_step" else 0.05
        assert full[name].here == pytest.approx(full[name].perfect, rel=tolerance), name
    assert none["distance"].here == 0
    assert none["neighbour_distance"].here == pytest.approx(1 / sum(counts))
    assert none["neighbours_in_step"].here > 0.9
    assert none["batch_shards"].here == pytest.approx(1, abs=0.25)


def test_windows_mix_less_than_a_full_shuffle_and_more_than_none() -> None:
    counts, deal = [500] * 60, Deal(30_000, 2, 1, 16, "drop")
    none, windowed, full = (measured(counts, deal, shuffle=how) for how in (False, True, "full"))
    for name in ("batch_shards", "step_shards"):
        assert none[name].here < windowed[name].here < full[name].here
    assert (
        none["neighbours_in_step"].here
        > windowed["neighbours_in_step"].here
        > full["neighbours_in_step"].here
    )


def test_a_large_order_is_estimated_from_a_part_of_it() -> None:
    counts, deal = [500] * 60, Deal(30_000, 2, 1, 16, "drop")
    exact = measured(counts, deal)
    with patch.object(mixing_module, "WALKED", 1000), patch.object(mixing_module, "_DRAWN", 8000):
        estimate = measured(counts, deal)
    for name in NAMES:
        assert not estimate[name].is_exact
        assert 0 < estimate[name].seen < estimate[name].of == exact[name].of
        assert estimate[name].perfect == exact[name].perfect
        assert estimate[name].here == pytest.approx(exact[name].here, rel=0.15)


def test_what_has_no_meaning_or_is_too_much_is_not_measured() -> None:
    assert found(mixing(*trivial(1))) == {}
    order, deal, counts = trivial(5_000_000, batch_size=2**21)
    assert set(found(mixing(order, deal, counts))) == {*NAMES[:3]}


def trivial(total: int, batch_size: int = 1) -> tuple[Order, Deal, Any]:
    order = Order(array([total]), OrderRule(0, False, 1, 1, 1), 0)
    return order, Deal(total, 1, 1, batch_size, "drop"), array([total])


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda c: sum(c) > 0),
    data=st.data(),
)
def test_perfect_shards_is_the_count_over_all_choices(
    counts: list[int], data: st.DataObject
) -> None:
    total = sum(counts)
    size = data.draw(st.integers(1, total))
    missed = [math.comb(total - count, size) / math.comb(total, size) for count in counts]
    assert perfect_shards(array(counts), size) == pytest.approx(len(counts) - sum(missed))


@pytest.mark.parametrize("size", [1, 256, 50_000, 2**20])
def test_perfect_shards_of_a_large_dataset_loses_no_digits(size: int) -> None:
    # A shard of one sample is read with a chance of size / N, which nothing else tells so exactly.
    assert perfect_shards(array([1] * 4_000_000), size) == pytest.approx(size, rel=1e-5)
    assert size - 1e-6 * size**2 <= perfect_shards(array([1000] * 10**6), size) < size + 1e-6
    assert perfect_shards(array([10**8]), size) == 1
