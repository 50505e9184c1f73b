"""Settings at random, and what tests of the order ask of it again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from streamshard.plan.order import Ints, Order, OrderRule
from tests.oracle import Sample

epochs = st.integers(0, 5)
tails = st.sampled_from(["drop", "pad", "exact"])

# Few and small, so that fewer samples than lanes, empty shards and leftovers are common.
shard_counts = st.lists(st.integers(0, 40), min_size=1, max_size=25)


@st.composite
def windowed_rules(draw: st.DrawFn) -> OrderRule:
    return OrderRule(
        seed=draw(st.integers(0, 2**63 - 1)),
        shuffle=True,
        lanes=draw(st.integers(1, 50)),
        grain=draw(st.integers(1, 20)),
        window=draw(st.integers(1, 200)),
    )


@st.composite
def unwindowed_rules(draw: st.DrawFn) -> OrderRule:
    return OrderRule(
        seed=draw(st.integers(0, 2**63 - 1)),
        shuffle=draw(st.sampled_from([False, "full"])),
        lanes=1,
        grain=1,
        window=1,
    )


any_rules = st.one_of(windowed_rules(), unwindowed_rules())


def array(counts: Sequence[int]) -> Ints:
    return np.array(counts, np.int64)


def samples_of(order: Order) -> list[Sample]:
    """The whole epoch, as (shard, row) for each position."""
    shards, rows = order.rows(np.arange(len(order)))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


def shards_as_laid_out(counts: Sequence[int], rule: OrderRule, epoch: int) -> list[int]:
    """The epoch's shards in their permuted order, without the empty ones.

    They depend on seed and epoch alone, and with one lane and windows of one sample nothing else is
    permuted: the order shows them as they are laid out.
    """
    bare = replace(rule, lanes=1, grain=1, window=1)
    return list(dict.fromkeys(shard for shard, _ in samples_of(Order(array(counts), bare, epoch))))
