from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import UsageError
from streamshard.plan.order import Order, OrderRule
from streamshard.plan.share import Share, Tail, World
from tests.oracle import Batch, check_tail, deal, laid_out, lanes
from tests.plan.draw import array, samples_of, shards_as_laid_out, tails

TAILS: tuple[Tail, ...] = get_args(Tail)
VALID: dict[str, Any] = {"total": 10, "start": 0, "world": World(), "batch_size": 2, "tail": "drop"}


@st.composite
def passes(draw: st.DrawFn) -> dict[str, Any]:
    total = draw(st.one_of(st.integers(0, 5000), st.integers(0, 60)))
    return {
        "total": total,
        "cursor": draw(st.one_of(st.just(0), st.just(total), st.integers(0, total))),
        "world_size": draw(st.integers(1, 16)),
        "batch_size": draw(st.one_of(st.integers(1, 32), st.integers(1, 600))),
        "tail": draw(tails),
    }


def dealt(
    total: int, *, cursor: int, world_size: int, batch_size: int, tail: Tail, workers: int = 1
) -> list[list[Batch]]:
    """What the shares of all ranks give, asked for worker after worker."""
    shares = [
        Share(total, cursor, World(rank, world_size), batch_size, tail)
        for rank in range(world_size)
    ]
    count = shares[0].steps
    assert all(share.steps == count for share in shares), "ranks take unequal steps"
    steps: dict[int, list[Batch]] = {}
    for worker in range(workers):
        for number in range(worker, count, workers):
            taken = [share.step(number) for share in shares]
            steps[number] = [
                [(position, at < real) for at, position in enumerate(positions.tolist())]
                for positions, real in taken
            ]
    return [steps[number] for number in sorted(steps)]


def divides_without_loss(case: dict[str, Any], workers: int) -> None:
    steps = dealt(**case, workers=workers)
    check_tail(steps, **case)
    assert steps == deal(**case)


@settings(max_examples=1000, deadline=None)
@given(case=passes(), workers=st.integers(1, 8))
def test_nothing_is_delivered_twice_or_lost(case: dict[str, Any], workers: int) -> None:
    divides_without_loss(case, workers)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(case=passes(), workers=st.integers(1, 8))
def test_nothing_is_delivered_twice_or_lost_ever(case: dict[str, Any], workers: int) -> None:
    divides_without_loss(case, workers)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_nothing_is_delivered_twice_or_lost_at_the_edges(
    tail: Tail, world_size: int, batch_size: int
) -> None:
    # All sizes around 0, one batch, one global batch and two, from every cursor.
    for total in range(2 * world_size * batch_size + 2):
        for cursor in range(total + 1):
            case = {"cursor": cursor, "world_size": world_size, "batch_size": batch_size}
            divides_without_loss({"total": total, **case, "tail": tail}, workers=3)


@pytest.mark.parametrize(
    ("tail", "last"),
    [
        ("drop", [[(5, True), (6, True)], [(7, True), (8, True)], [(9, True), (10, True)]]),
        ("pad", [[(11, True), (12, True)], [(0, False), (1, False)], [(2, False), (3, False)]]),
        ("exact", [[(11, True)], [(12, True)], []]),
    ],
)
def test_the_last_step_is_as_in_the_book(tail: Tail, last: list[Batch]) -> None:
    # 13 samples, 5 of them received before; the rest is one global batch of 6 and two samples.
    steps = dealt(13, cursor=5, world_size=3, batch_size=2, tail=tail)
    assert steps[-1] == last


def test_padding_goes_round_a_dataset_smaller_than_a_global_batch() -> None:
    steps = dealt(2, cursor=0, world_size=2, batch_size=3, tail="pad")
    assert steps == [
        [[(0, True), (1, True), (0, False)], [(1, False), (0, False), (1, False)]],
    ]


@settings(deadline=None)
@given(case=passes())
def test_positions_are_int64(case: dict[str, Any]) -> None:
    total, cursor = case["total"], case["cursor"]
    share = Share(total, cursor, World(0, case["world_size"]), case["batch_size"], case["tail"])
    for number in range(min(share.steps, 3)):
        assert share.step(share.steps - 1 - number).positions.dtype == np.int64


@settings(deadline=None)
@given(
    total=st.integers(0, 500),
    data=st.data(),
    tail=tails,
    shapes=st.permutations([(1, 12), (12, 1), (2, 6), (6, 2), (3, 4), (4, 3)]),
)
def test_global_batches_depend_only_on_their_size(
    total: int, data: st.DataObject, tail: Tail, shapes: list[tuple[int, int]]
) -> None:
    cursor = data.draw(st.integers(0, total))
    global_batches = [
        [
            [sample for batch in step for sample in batch]
            for step in dealt(
                total, cursor=cursor, world_size=world_size, batch_size=batch_size, tail=tail
            )
        ]
        for world_size, batch_size in shapes[:2]
    ]
    assert global_batches[0] == global_batches[1]


@settings(deadline=None)
@given(case=passes(), data=st.data())
def test_after_some_steps_the_cursor_counts_what_was_received(
    case: dict[str, Any], data: st.DataObject
) -> None:
    total, cursor, size = case["total"], case["cursor"], case["world_size"]
    steps = dealt(**case)
    taken = data.draw(st.integers(0, len(steps)))
    share = Share(total, cursor, World(size - 1, size), case["batch_size"], case["tail"])
    if taken == len(steps):
        assert share.after(taken) is None
    else:
        received = sum(len(batch) for step in steps[:taken] for batch in step)
        assert share.after(taken) == cursor + received
        assert dealt(**{**case, "cursor": share.after(taken)}) == steps[taken:]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    world_size=st.integers(1, 4),
    workers=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    multiple=st.integers(1, 3),
    turns=st.integers(1, 4),
    more=st.integers(0, 20),
)
def test_a_lane_belongs_to_one_worker_of_one_rank(
    seed: int,
    world_size: int,
    workers: int,
    batch_size: int,
    multiple: int,
    turns: int,
    more: int,
) -> None:
    lane_count = multiple * world_size * workers
    in_turns = turns * lane_count * batch_size
    # Fewer than a grain for each lane is left over when the turns end.
    counts = [in_turns, 0, min(more, lane_count * batch_size - 1)]
    rule = OrderRule(seed, shuffle=True, lanes=lane_count, grain=batch_size, window=7)
    samples = samples_of(Order(array(counts), rule, epoch=0))
    laid = laid_out(counts, shards_as_laid_out(counts, rule, 0))
    lane_of = {
        sample: number for number, lane in enumerate(lanes(laid, lane_count)) for sample in lane
    }
    owners: dict[int, set[tuple[int, int]]] = {lane: set() for lane in range(lane_count)}
    for rank in range(world_size):
        share = Share(sum(counts), 0, World(rank, world_size), batch_size, "exact")
        for number in range(in_turns // share.global_batch):
            for position in share.step(number).positions.tolist():
                owners[lane_of[samples[position]]].add((rank, number % workers))
    assert all(len(each) == 1 for each in owners.values())


@pytest.mark.parametrize(("rank", "size"), [(-1, 1), (1, 1), (4, 4), (5, 4), (0, 0), (0, -2)])
def test_a_rank_outside_its_world_is_refused(rank: int, size: int) -> None:
    with pytest.raises(UsageError, match=f"rank {rank} of a world of {size}"):
        World(rank, size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("tail", "keep"),
        ("tail", None),
        ("start", -1),
        ("start", 11),
    ],
)
def test_a_share_out_of_its_range_is_refused(name: str, value: object) -> None:
    says = "position" if name == "start" else name
    with pytest.raises(UsageError, match=rf"{says}.* {value!r}"):
        Share(**{**VALID, name: value})
