"""Which worker reads which shard: one epoch of a plan surveyed before anything is read.

Three ways give the same answer, each where it is quick:

- A small epoch is walked, position by position.
- Where every lane belongs to one worker, intervals tell: a lane and the shards that it covers.
- Else some shards are drawn, and the workers of their samples looked up: an estimate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamshard.plan.deal import Deal
from streamshard.plan.intervals import (
    chunks,
    distinct,
    lanes_have_owners,
    read_by_lanes,
    spread_out,
)
from streamshard.plan.order import Ints, Order, OrderRule
from streamshard.plan.permute import key_of, permute

WALKED = 2**19  # samples that are looked at one by one: some tenths of a second
_MAX_LANES, _MAX_LEFT = 2**17, 2**23  # lanes, and samples left over by them: still a second or so
_MAX_DRAWN = 4096  # shards
_DRAW = 5  # begins the keys of draws; the order's own begin with 1 to 4


class Reads(NamedTuple):
    """Who reads which shard, each pair once.

    Attributes:
        workers: (pairs,) int64, as `Deal` numbers them.
        shards: (pairs,) int64.
        looked_at: (shards looked at,) int64: those whose pairs these are.
        of: Shards that have a sample; all of them were looked at where nothing is estimated.
    """

    workers: Ints
    shards: Ints
    looked_at: Ints
    of: int


def reads(order: Order, rule: OrderRule, deal: Deal, counts: Ints) -> Reads:
    """Which worker reads which shard in an epoch.

    Of a drawn shard with more than `WALKED` samples as many are looked up, at equal distances.

    Args:
        order: Of the epoch.
        rule: What it was made by.
        deal: Among whom it is divided.
        counts: (shards,) int64, samples of each shard.
    """
    filled = np.flatnonzero(counts)
    looked_at = filled
    if max(deal.dealt, deal.total) <= WALKED:
        keys = _walked(order, deal, len(counts))
    elif lanes_have_owners(order, rule, deal) and _is_quick(rule, deal):
        keys = read_by_lanes(order, rule, deal, counts)
    else:
        looked_at = drawn_shards(counts, WALKED)
        keys = _of_shards(order, deal, counts, looked_at)
    return Reads(*np.divmod(keys, max(len(counts), 1)), looked_at, len(filled))


def _is_quick(rule: OrderRule, deal: Deal) -> bool:
    left_over = rule.lanes * (rule.grain + 1) + deal.global_batch
    return rule.lanes <= _MAX_LANES and left_over <= _MAX_LEFT


def drawn(count: int, of: int, what: int) -> Ints:
    """Some numbers below `of`, as if at random, the same ones every time.

    Args:
        count: How many; all of them, ascending, where there are no more.
        of: Below what.
        what: A number for what they are drawn for.

    Returns:
        (min(count, of),) int64, no two the same.

    >>> len(set(drawn(5, 1000, 0).tolist())), drawn(5, 3, 0).tolist()
    (5, [0, 1, 2])
    """
    if count >= of:
        return np.arange(of, dtype=np.int64)
    return permute(np.arange(count), np.array([of], np.int64), key_of(_DRAW, what))


def drawn_shards(counts: Ints, samples: int) -> Ints:
    """Some of the shards that have a sample, at least one, with about so many samples in all."""
    filled = np.flatnonzero(counts)
    shards = filled[drawn(_MAX_DRAWN, len(filled), 0)]
    fitting = int(np.searchsorted(np.cumsum(counts[shards]), samples, side="right"))
    return shards[: max(fitting, 1)]


def _walked(order: Order, deal: Deal, shards: int) -> Ints:
    """Worker and shard of everything that is dealt, as sorted keys worker * shards + shard."""
    keys = []
    for chunk in chunks(deal.dealt):
        places = np.arange(chunk.start, chunk.stop, dtype=np.int64)
        shard, _ = order.rows(places % deal.total)
        keys.append(distinct([deal.workers_of(places) * shards + shard]))
    return distinct(keys)


def _of_shards(order: Order, deal: Deal, counts: Ints, shards: Ints) -> Ints:
    """The same keys for some of the shards."""
    rounds = drawn(WALKED, -(-deal.dealt // deal.total), 1)  # `pad` may go over the epoch again
    taken = counts[shards]
    if taken.sum() * len(rounds) > WALKED:
        taken = np.minimum(taken, max(WALKED // (len(shards) * len(rounds)), 1))
    which, row = spread_out(np.zeros_like(taken), taken)
    row = row * counts[shards[which]] // taken[which]
    keys = []
    for chunk in chunks(len(row)):
        shard = shards[which[chunk]]
        places = order.positions(shard, row[chunk]) + rounds[:, None] * deal.total
        received = places < deal.dealt
        workers = deal.workers_of(places[received])
        shard = np.broadcast_to(shard, received.shape)[received]
        keys.append(distinct([workers * len(counts) + shard]))
    return distinct(keys)
