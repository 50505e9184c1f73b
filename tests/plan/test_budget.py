"""Batches within a budget: what they hold, how full they are, how they are dealt."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import CursorError, UsageError
from streamshard.plan.budget import Batches, BatchShare, Budget, plan_batches
from streamshard.plan.cursor import Cursor
from streamshard.plan.cut import Limits, cut
from streamshard.plan.order import Ints, Order, OrderRule, Shuffle
from streamshard.plan.share import Tail, World
from tests.oracle import Graph, budget_batches
from tests.plan.draw import array, tails


@st.composite
def epochs_of_graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Shards, sizes, an order and a budget; few and small, so that every corner is common."""
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    least, most = sorted(draw(st.tuples(st.integers(0, 12), st.integers(1, 40))))
    total = sum(counts)
    sizes = st.lists(st.integers(least, most), min_size=total, max_size=total)
    limit = st.one_of(st.none(), st.integers(1, 30), st.integers(1, 600))
    max_nodes, max_edges = draw(st.tuples(limit, limit).filter(any))
    return {
        "counts": array(counts),
        "nodes": array(draw(sizes)),
        "edges": array(draw(sizes)),
        "rule": OrderRule(
            seed=draw(st.integers(0, 99)), shuffle=True, lanes=draw(st.integers(1, 12)), grain=1,
            window=draw(st.integers(1, 50)),
        ),
        "budget": Budget(max_nodes, max_edges, "alone"),
        "epoch": draw(st.integers(0, 3)),
    }  # fmt: skip


def planned(case: dict[str, Any]) -> Batches:
    order = Order(case["counts"], case["rule"], case["epoch"])
    return plan_batches(order, case["counts"], case["nodes"], case["edges"], case["budget"])


def graphs_of(case: dict[str, Any]) -> list[Graph]:
    """The graphs of an epoch by position."""
    counts = case["counts"].tolist()
    order = Order(case["counts"], case["rule"], case["epoch"])
    shards, rows = order.rows(np.arange(len(order)))
    places = [sum(counts[:shard]) + row for shard, row in zip(shards, rows, strict=True)]
    return [Graph(p, int(case["nodes"][at]), int(case["edges"][at])) for p, at in enumerate(places)]


def positions_of(batches: Batches) -> list[list[int]]:
    return [batches[number].tolist() for number in range(len(batches))]


def cuts_as_said(case: dict[str, Any]) -> None:
    graphs, budget = graphs_of(case), case["budget"]
    batches = positions_of(planned(case))
    assert batches == budget_batches(
        graphs, lane_count=case["rule"].lanes, max_nodes=budget.max_nodes,
        max_edges=budget.max_edges,
    )  # fmt: skip
    assert sorted(position for batch in batches for position in batch) == [*range(len(graphs))]
    for batch in batches:
        nodes = sum(graphs[position].nodes for position in batch)
        edges = sum(graphs[position].edges for position in batch)
        fits = nodes <= (budget.max_nodes or nodes) and edges <= (budget.max_edges or edges)
        assert fits or len(batch) == 1


@settings(max_examples=120, deadline=None)
@given(case=epochs_of_graphs())
def test_every_graph_is_once_in_a_batch_within_the_limits(case: dict[str, Any]) -> None:
    cuts_as_said(case)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(case=epochs_of_graphs())
def test_every_graph_is_once_in_a_batch_within_the_limits_ever(case: dict[str, Any]) -> None:
    cuts_as_said(case)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=120),
    limits=st.tuples(st.integers(12, 60), st.integers(30, 100)),
)
def test_no_batch_is_begun_while_its_first_graph_has_a_better_place(
    sizes: list[tuple[int, int]], limits: tuple[int, int]
) -> None:
    """Greed, seen from the batches alone."""
    pairs = np.array(sizes, np.int64).reshape(-1, 2)
    least = pairs.min(0, initial=99)
    found = cut(pairs[:, 0], pairs[:, 1], Limits(*limits))
    batches = np.split(found.places, np.cumsum(found.sizes)[:-1]) if sizes else []
    for number, batch in enumerate(batches):
        begin = batch[0]
        for before in batches[:number]:
            if before[-1] > begin:  # so it was open then
                had = [*before[before < begin], begin]
                assert (limits - pairs[had].sum(0) < least).any()


def molecules(count: int) -> tuple[Ints, Ints]:
    """16 to 30 nodes, and edges as bonds have them, both ways."""
    numbers = np.arange(count, dtype=np.int64)
    nodes = 16 + numbers * numbers * 7919 % 104729 % 15
    return nodes, 2 * (nodes - 1 + numbers * 31 % 17 % 4)


FEW_AND_MANY = [
    Budget(max_nodes=80), Budget(max_nodes=100), Budget(max_nodes=128, max_edges=280),
    Budget(max_edges=256), Budget(max_nodes=500), Budget(1000, 2200), Budget(3000, 6000),
]  # fmt: skip


def fills_its_batches(lanes: int) -> None:
    nodes, edges = molecules(20_000)
    counts = array([2_000] * 10)
    for budget in FEW_AND_MANY:
        order = Order(counts, OrderRule(3, True, lanes, 1, 2_500), 1)
        batches = plan_batches(order, counts, nodes, edges, budget)
        assert batches.fill >= 0.95, (lanes, budget, batches.fill)


@pytest.mark.parametrize("lanes", [1, 2, 5, 12, 24, 48, 96])
def test_batches_of_molecules_are_full_whatever_the_number_of_lanes(lanes: int) -> None:
    fills_its_batches(lanes)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", range(1, 97))
def test_batches_of_molecules_are_full_whatever_the_number_of_lanes_ever(lanes: int) -> None:
    fills_its_batches(lanes)


@pytest.mark.parametrize("shuffle", [False, "full"])
def test_batches_of_molecules_are_full_without_windows(shuffle: Shuffle) -> None:
    nodes, edges = molecules(20_000)
    counts = array([2_000] * 10)
    for budget in FEW_AND_MANY:
        order = Order(counts, OrderRule(3, shuffle, 1, 1, 20_000), 1)
        assert plan_batches(order, counts, nodes, edges, budget).fill >= 0.95


def test_the_fill_is_the_mean_of_the_fuller_limit() -> None:
    counts, nodes, edges = array([3]), array([6, 8, 30]), array([9, 2, 4])
    rule = OrderRule(0, False, 1, 1, 3)
    order = Order(counts, rule, 0)
    batches = plan_batches(order, counts, nodes, edges, Budget(10, 10, "alone"))
    assert positions_of(batches) == [[0], [1], [2]]
    assert batches.fill == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_the_batches_are_the_ones_that_were_stored() -> None:
    """A checkpoint means something only as long as these do not change."""
    nodes, edges = molecules(30_000)
    counts = array([1_000, 0, 17_000, 3, 11_997])
    digests = []
    for lanes, budget in (
        (1, Budget(100)),
        (24, Budget(1000, 2100)),
        (7, Budget(None, 77, "alone")),
    ):
        order = Order(counts, OrderRule(11, True, lanes, 1, 3000), 5)
        batches = plan_batches(order, counts, nodes, edges, budget)
        digest = hashlib.sha256(np.ascontiguousarray(batches.members, "<i8"))
        digest.update(np.ascontiguousarray(batches.ends, "<i8"))
        digests.append(digest.hexdigest()[:16])
    assert digests == ["e3e44fd6743221c0", "b08a3c8877e44fb1", "a51b9bd1ae1cca41"]


def test_a_million_graphs_are_planned_at_once() -> None:
    nodes, edges = molecules(10**6)
    counts = array([20_000] * 50)
    order = Order(counts, OrderRule(0, True, 24, 1, 41_000), 0)
    begin = time.process_time()
    batches = plan_batches(order, counts, nodes, edges, Budget(max_nodes=3000))
    # Several times what is measured, so that a busy machine does not fail.
    assert time.process_time() - begin < 2.0
    assert len(batches.members) == 10**6
    assert batches.members.dtype == np.int32


def test_no_graphs_make_no_batches() -> None:
    counts = array([0, 0])
    nothing = array([])
    order = Order(counts, OrderRule(0, True, 3, 1, 5), 0)
    batches = plan_batches(order, counts, nothing, nothing, Budget(5))
    assert len(batches) == 0
    assert batches.fill == 0


def dealt(
    batches: Batches, start: int, world_size: int, tail: Tail
) -> list[list[tuple[list[int], bool]]]:
    """What each rank is given in each step: positions, and whether they are real."""
    shares = [BatchShare.of(batches, start, World(r, world_size), tail) for r in range(world_size)]
    assert len({share.steps for share in shares}) == 1
    steps = [[share.step(number) for share in shares] for number in range(shares[0].steps)]
    for step in steps:
        assert all(real in (0, len(positions)) for positions, real in step)
        assert all(positions.dtype == np.int64 for positions, _ in step)
    return [[(p.tolist(), real == len(p)) for p, real in step] for step in steps]


@settings(max_examples=100, deadline=None)
@given(case=epochs_of_graphs(), data=st.data(), world_size=st.integers(1, 6), tail=tails)
def test_batches_are_dealt_in_turns_and_tails_end_in_step(
    case: dict[str, Any], data: st.DataObject, world_size: int, tail: Tail
) -> None:
    batches = planned(case)
    start = data.draw(st.integers(0, len(batches)))
    expected = [(batch, True) for batch in positions_of(batches)[start:]]
    over = len(expected) % world_size
    if tail == "drop":
        expected = expected[: len(expected) - over]
    elif over and tail == "exact":
        expected += [([], True)] * (world_size - over)
    elif over:
        again = [(batch, False) for batch in positions_of(batches)] * world_size
        expected += again[: world_size - over]
    delivered = [batch for step in dealt(batches, start, world_size, tail) for batch in step]
    assert delivered == expected


chains = st.lists(st.tuples(st.integers(1, 6), tails, st.floats(0, 1)), min_size=1, max_size=4)


def resumes_equal_one_run(case: dict[str, Any], chain: list[tuple[int, Tail, float]]) -> None:
    batches = planned(case)
    everything, delivered = positions_of(batches), []
    cursor = Cursor(case["epoch"], 0, case["rule"], "f00d", case["budget"])
    for number, (world_size, tail, stop) in enumerate(chain):
        cursor = Cursor.from_dict(json.loads(json.dumps(cursor.to_dict())))
        share = BatchShare.of(batches, cursor.position, World(0, world_size), tail)
        steps = share.steps if number == len(chain) - 1 else int(stop * share.steps)
        taken = dealt(batches, cursor.position, world_size, tail)[:steps]
        delivered += [batch for step in taken for batch, real in step if real and batch]
        position = share.after(steps)
        if position is None:
            break
        cursor = Cursor(cursor.epoch, position, cursor.rule, "f00d", cursor.budget)
    assert delivered == [batch for batch in everything if batch][: len(delivered)]
    assert len(everything) - len(delivered) < (world_size if tail == "drop" else 1)


@settings(max_examples=100, deadline=None)
@given(case=epochs_of_graphs(), chain=chains)
def test_a_chain_of_resumes_equals_one_run(
    case: dict[str, Any], chain: list[tuple[int, Tail, float]]
) -> None:
    resumes_equal_one_run(case, chain)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(case=epochs_of_graphs(), chain=chains)
def test_a_chain_of_resumes_equals_one_run_ever(
    case: dict[str, Any], chain: list[tuple[int, Tail, float]]
) -> None:
    resumes_equal_one_run(case, chain)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "max_nodes=, max_edges= or both"),
        ({"max_nodes": 0}, "max_nodes is 0"),
        ({"max_edges": -1}, "max_edges is -1"),
        ({"max_nodes": 1.5}, "max_nodes is 1.5"),
        ({"max_nodes": True}, "max_nodes is True"),
        ({"max_nodes": 5, "oversize": "skip"}, "oversize is 'skip'"),
    ],
)
def test_a_budget_out_of_its_range_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Budget(**arguments)


RULE = OrderRule(seed=3, shuffle=True, lanes=6, grain=1, window=50)
STATE = Cursor(2, 96, RULE, "f00d", Budget(max_edges=70)).to_dict()


def test_a_state_has_its_budget() -> None:
    assert (STATE["max_nodes"], STATE["max_edges"], STATE["oversize"]) == (None, 70, "error")
    assert Cursor.from_dict(json.loads(json.dumps(STATE))).budget == Budget(max_edges=70)


@pytest.mark.parametrize("name", ["max_nodes", "max_edges", "oversize"])
def test_half_a_budget_in_a_state_is_refused(name: str) -> None:
    state = {key: value for key, value in STATE.items() if key != name}
    with pytest.raises(CursorError, match=name):
        Cursor.from_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_edges", 0), ("max_edges", None), ("max_nodes", "5"), ("oversize", "skip")],
)
def test_a_budget_of_the_wrong_kind_in_a_state_is_refused(name: str, value: object) -> None:
    with pytest.raises(CursorError, match=name):
        Cursor.from_dict({**STATE, name: value})


@pytest.mark.parametrize("other", [Budget(max_edges=71), Budget(5, 70), None])
def test_another_budget_is_refused_and_shows_both_sides(other: Budget | None) -> None:
    with pytest.raises(CursorError) as caught:
        Cursor.from_dict(STATE).check(budget=other)
    assert repr(Budget(max_edges=70)) in str(caught.value)
    assert repr(other) in str(caught.value)
