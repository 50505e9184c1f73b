"""A chain of resumes over changing topologies equals the uninterrupted run."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.plan.cursor import Cursor
from streamshard.plan.order import Order, OrderRule
from streamshard.plan.share import Share, Tail, World
from tests.oracle import Sample
from tests.plan.draw import any_rules, array, epochs, samples_of, shard_counts, tails


class Link(NamedTuple):
    """One run of a chain: its topology, its tail, and when it stops."""

    world_size: int
    batch_size: int
    tail: Tail
    stop: float  # as a fraction of the steps that remain


links = st.builds(
    Link,
    world_size=st.integers(1, 16),
    batch_size=st.one_of(st.integers(1, 8), st.integers(1, 100)),
    tail=tails,
    stop=st.floats(0, 1),
)
chains = st.lists(links, min_size=1, max_size=4)  # at most three resumes


class Run(NamedTuple):
    """What one run delivered, and the state that it left; None at the epoch's end."""

    real: list[Sample]
    repeats: list[Sample]
    state: str | None


def run(counts: list[int], state: str, link: Link, *, to_the_end: bool) -> Run:
    """Resume from a state as JSON, take some steps, and save the state again."""
    cursor = Cursor.from_dict(json.loads(state))
    order = Order(array(counts), cursor.rule, cursor.epoch)
    shares = [
        Share(len(order), cursor.position, World(rank, link.world_size), link.batch_size, link.tail)
        for rank in range(link.world_size)
    ]
    steps = shares[0].steps if to_the_end else int(link.stop * shares[0].steps)
    taken = [share.step(number) for number in range(steps) for share in shares]
    real = [position for step in taken for position in step.positions[: step.real]]
    repeats = [position for step in taken for position in step.positions[step.real :]]
    after = {share.after(steps) for share in shares}
    assert len(after) == 1, "ranks disagree about the cursor"
    position = after.pop()
    saved = None
    if position is not None:
        there = Cursor(cursor.epoch, position, cursor.rule, cursor.fingerprint)
        saved = json.dumps(there.to_dict())
    return Run(at(order, real), at(order, repeats), saved)


def at(order: Order, positions: list[int]) -> list[Sample]:
    shards, rows = order.rows(np.array(positions, np.int64))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


def resumes_equal_one_run(
    counts: list[int], rule: OrderRule, epoch: int, chain: list[Link]
) -> None:
    uninterrupted = samples_of(Order(array(counts), rule, epoch))
    state: str | None = json.dumps(Cursor(epoch, 0, rule, "f00d").to_dict())
    delivered: list[Sample] = []
    for number, link in enumerate(chain):
        assert state is not None
        before = len(delivered)
        real, repeats, state = run(counts, state, link, to_the_end=link is chain[-1])
        delivered += real
        if state is None:
            break
        assert not repeats, "a run that did not end its epoch repeated something"
        assert number < len(chain) - 1
    assert delivered == uninterrupted[: len(delivered)]
    # What is lost or repeated is the last run's alone, by its own tail.
    global_batch = link.world_size * link.batch_size
    lost = len(uninterrupted) - len(delivered)
    assert lost == ((len(uninterrupted) - before) % global_batch if link.tail == "drop" else 0)
    fill = -(len(uninterrupted) - before) % global_batch if link.tail == "pad" else 0
    assert repeats == (uninterrupted * fill)[:fill]


@settings(max_examples=300, deadline=None)
@given(counts=shard_counts, rule=any_rules, epoch=epochs, chain=chains)
def test_a_chain_of_resumes_equals_one_run(
    counts: list[int], rule: OrderRule, epoch: int, chain: list[Link]
) -> None:
    resumes_equal_one_run(counts, rule, epoch, chain)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(counts=shard_counts, rule=any_rules, epoch=epochs, chain=chains)
def test_a_chain_of_resumes_equals_one_run_ever(
    counts: list[int], rule: OrderRule, epoch: int, chain: list[Link]
) -> None:
    resumes_equal_one_run(counts, rule, epoch, chain)


@pytest.mark.parametrize("tail", ["drop", "pad", "exact"])
def test_a_stop_after_every_step_loses_nothing(tail: Tail) -> None:
    counts, rule = [30, 0, 41, 19], OrderRule(seed=1, shuffle=True, lanes=4, grain=3, window=10)
    steps = 90 // 6
    for taken in range(steps):
        first = Link(2, 3, tail, stop=(taken + 0.5) / steps)
        for world_size, batch_size in [(2, 3), (1, 6), (3, 2), (1, 1), (4, 5), (16, 9)]:
            second = Link(world_size, batch_size, tail, stop=1.0)
            resumes_equal_one_run(counts, rule, 0, [first, second])
