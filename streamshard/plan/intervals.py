"""Which worker reads which shard, where every lane belongs to one worker.

A lane is an interval of the shards laid end to end, so the shards that it covers are known from
edges alone. What the lanes have left over at the end, less than a grain each, goes to whoever's
turn it is; only there samples are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamshard.plan.deal import Deal
from streamshard.plan.order import Ints, Order, OrderRule

_CHUNK = 2**16  # resolved at once, so that the numbers stay in the processor's cache
_FIRST_LOOK = 8  # samples of a run; four times as many in each look after it


def lanes_have_owners(order: Order, rule: OrderRule, deal: Deal) -> bool:
    """Whether each lane is given to one worker only, as long as lanes take turns."""
    is_dealt_by_lane = rule.grain == deal.batch_size and rule.lanes % deal.all_workers == 0
    return rule.shuffle is True and is_dealt_by_lane and order.turns > 0


def read_by_lanes(order: Order, rule: OrderRule, deal: Deal, counts: Ints) -> Ints:
    """Worker and shard of everything that is dealt, as sorted keys worker * shards + shard.

    Args:
        order: Of the epoch.
        rule: What it was made by; its lanes have owners.
        deal: Among whom it is divided.
        counts: (shards,) int64, samples of each shard.
    """
    owners = deal.workers_of(np.arange(rule.lanes) * rule.grain)
    lanes, slots = _given_in_turns(order, rule)
    keys = [owners[lanes] * len(counts) + order.shards[slots]]
    if order.turns * rule.grain * rule.lanes < deal.dealt:
        workers, slots = _left_over(order, rule, deal)
        keys.append(workers * len(counts) + order.shards[slots])
    return distinct(keys)


def spread_out(first: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Intervals to what they hold.

    Args:
        first: (n,) where each interval begins.
        lengths: (n,) how much it holds.

    Returns:
        Two (sum(lengths),) arrays: the interval, and the number in it.

    >>> [each.tolist() for each in spread_out(np.array([5, 9]), np.array([2, 1]))]
    [[0, 0, 1], [5, 6, 9]]
    """
    which = np.repeat(np.arange(len(first)), lengths)
    begins = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) + (first - begins)[which]


def distinct(keys: Sequence[Ints]) -> Ints:
    """All keys, ascending, each once; np.unique hashes, which takes ten times as long."""
    every = np.sort(np.concatenate([np.zeros(0, np.int64), *keys]))
    once: Ints = every[np.diff(every, prepend=-1) != 0]
    return once


def chunks(end: int) -> list[slice]:
    """0 to `end` in pieces that are quick to resolve."""
    return [slice(begin, min(begin + _CHUNK, end)) for begin in range(0, end, _CHUNK)]


def _given_in_turns(order: Order, rule: OrderRule) -> tuple[Ints, Ints]:
    """Lane and slot of what lanes give while they take turns; a slot is a shard as laid out."""
    every = np.arange(rule.lanes)
    given = order.turns * rule.grain
    _, begin, length = order.window_of(every, np.full(rule.lanes, given - 1))
    # Windows before `split` are given whole; of the one that begins there, `left` samples are not.
    start = order.edges[:-1]
    split, end, left = start + begin, start + begin + length, begin + length - given
    lane, slot = _covered(order, start, end)
    low = np.maximum(order.starts[slot], split[lane])
    high = np.minimum(order.starts[slot + 1], end[lane])
    in_whole_window = np.maximum(order.starts[slot], start[lane]) < split[lane]
    reads = in_whole_window | (high - low > left[lane])
    # So few samples in that window that all of them may be left over: look at each.
    few = np.flatnonzero(~reads)
    which, laid = spread_out(low[few], (high - low)[few])
    for chunk in chunks(len(which)):
        _, before = order.given_by(laid[chunk])
        reads[few[which[chunk][before < given]]] = True
    return lane[reads], slot[reads]


def _covered(order: Order, begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Each interval of the shards laid end to end, and each slot that it has a sample of."""
    first, last = _slots_of(order, begin), _slots_of(order, end - 1)
    which, slot = spread_out(first, last - first + 1)
    filled = order.starts[slot + 1] > order.starts[slot]
    return which[filled], slot[filled]


def _slots_of(order: Order, laid: Ints) -> Ints:
    slots: Ints = np.searchsorted(order.starts, laid, side="right") - 1
    return slots


def _left_over(order: Order, rule: OrderRule, deal: Deal) -> tuple[Ints, Ints]:
    """Worker and slot of what is dealt after the turns, `pad`'s repeats among them."""
    begin = rule.lanes * order.turns * rule.grain
    # Between two cuts lies a run: neighbours in one lane, for one worker.
    repeats = np.arange(deal.total, deal.dealt, rule.grain)
    cuts = [deal.batches_from(begin), begin + order.leftovers[:-1], repeats]
    cut = distinct(cuts)
    cut = cut[cut < deal.dealt]
    lengths = np.diff(cut, append=deal.dealt)
    run, slot = _slots_of_runs(order, *order.lane_and_place(cut % deal.total), lengths)
    return deal.workers_of(cut)[run], slot


def _slots_of_runs(order: Order, lane: Ints, place: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Run and slot of the samples that lanes give from a place on, each pair once.

    A few samples of a run mostly show all the slots of its windows; it is looked into further only
    until they have.
    """
    _, begin, _ = order.window_of(lane, place)
    _, last, length = order.window_of(lane, place + lengths - 1)
    start = order.edges[lane]
    covered, _ = _covered(order, start + begin, start + last + length)
    possible = np.bincount(covered, minlength=len(lane))
    slots = len(order.shards)
    keys = np.zeros(0, np.int64)
    todo, seen, look = np.arange(len(lane)), 0, _FIRST_LOOK
    while len(todo):
        which, places = spread_out(place[todo] + seen, np.minimum(lengths[todo] - seen, look))
        run, found = todo[which], np.empty_like(places)
        for chunk in chunks(len(run)):
            found[chunk] = _slots_of(order, order.laid(lane[run[chunk]], places[chunk]))
        keys = distinct([keys, run * slots + found])
        shown = np.bincount(keys // slots, minlength=len(lane))
        seen, look = seen + look, 4 * look
        todo = todo[(shown[todo] < possible[todo]) & (lengths[todo] > seen)]
    run, slot = np.divmod(keys, slots)
    return run, slot
