"""How well an epoch's order mixes: measures, each beside what a perfect shuffle would give.

A perfect shuffle is one permutation of all samples, every one as likely as any other. Below, N is
the number of samples, i the place of a sample in pack order, p(i) its position in the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamshard.plan.deal import Deal
from streamshard.plan.intervals import chunks
from streamshard.plan.order import Ints, Order
from streamshard.plan.survey import WALKED, drawn

_DRAWN = 2**17  # samples that an estimate looks at
_MOST = 2**20  # samples of a batch that is still looked at
_FACTORS = 2**21  # of products
_PLACES, _BATCHES = 2, 3  # what is drawn


@dataclass(frozen=True)
class Measure:
    """One figure, and what it comes from.

    Attributes:
        here: Of this order.
        perfect: What a perfect shuffle gives on average.
        seen: How many were looked at.
        of: How many there are; `here` is exact where all were seen, else an estimate.
        what: Of what: "samples", "pairs", "batches", "steps".
    """

    here: float
    perfect: float
    seen: int
    of: int
    what: str

    @property
    def is_exact(self) -> bool:
        """Whether all were looked at."""
        return self.seen == self.of


@dataclass(frozen=True)
class Mixing:
    """All measures of an order that need no index; None where one has no meaning.

    Attributes:
        distance: Of a sample from its place in pack order: the mean of |p(i) - i| / N. 0 is pack
            order; perfect is (N² - 1) / (3 N²).
        neighbour_distance: Between neighbours in pack order: the mean of |p(i + 1) - p(i)| / N.
            Pack order gives 1 / N; perfect is (N + 1) / (3 N).
        neighbours_in_step: The share of neighbours in pack order that are received in the same
            step, by whatever rank. Perfect is the sum over all steps of g (g - 1) / (N (N - 1)),
            g the samples of the step.
        batch_shards: Shards of which a batch of one rank has a sample, the mean over batches.
            Perfect is the sum over all shards of 1 - C(N - n, b) / C(N, b), n the samples of the
            shard and b of the batch. Only full batches count, where there are any.
        step_shards: The same for the batches of all ranks in a step taken together.
    """

    distance: Measure | None
    neighbour_distance: Measure | None
    neighbours_in_step: Measure | None
    batch_shards: Measure | None
    step_shards: Measure | None


def mixing(order: Order, deal: Deal, counts: Ints) -> Mixing:
    """Measure an epoch's order: all of it where it is small, else drawn samples.

    Args:
        order: Of the epoch.
        deal: Among whom it is divided.
        counts: (shards,) int64, samples of each shard.
    """
    total = deal.total
    if total < 2:
        return Mixing(None, None, None, None, None)
    places = drawn(total if total <= WALKED else _DRAWN, total, _PLACES)
    here = _positions(order, counts, places)
    with_next = places < total - 1
    after = _positions(order, counts, places[with_next] + 1)
    before, pairs = here[with_next], int(with_next.sum())
    apart = float(abs(after - before).mean())
    in_step = (before // deal.global_batch == after // deal.global_batch) & (
        np.maximum(before, after) < deal.dealt
    )
    return Mixing(
        distance=Measure(
            float(abs(here - places).mean()) / total,
            (total**2 - 1) / (3 * total**2),
            *(len(places), total, "samples"),
        ),
        neighbour_distance=Measure(
            apart / total, (total + 1) / (3 * total), pairs, total - 1, "pairs"
        ),
        neighbours_in_step=Measure(
            float(in_step.mean()), _perfectly_in_step(deal), pairs, total - 1, "pairs"
        ),
        batch_shards=_shards_in(order, counts, *deal.batches, "batches"),
        step_shards=_shards_in(order, counts, *deal.full_steps, "steps"),
    )


def _positions(order: Order, counts: Ints, places: Ints) -> Ints:
    """The position of the sample at each place of pack order."""
    ends = np.cumsum(counts)
    starts = ends - counts
    positions = np.empty_like(places)
    for chunk in chunks(len(places)):
        shard = np.searchsorted(ends, places[chunk], side="right")
        positions[chunk] = order.positions(shard, places[chunk] - starts[shard])
    return positions


def _perfectly_in_step(deal: Deal) -> float:
    """The chance that two given samples are received in one step of a perfect shuffle."""
    steps, rest = divmod(deal.total - deal.dropped, deal.global_batch)
    pairs = steps * deal.global_batch * (deal.global_batch - 1) + rest * (rest - 1)
    return pairs / (deal.total * (deal.total - 1))


def _shards_in(order: Order, counts: Ints, groups: int, size: int, what: str) -> Measure | None:
    """Distinct shards in `size` positions that follow each other, of `groups` such groups."""
    if size > _MOST:
        return None
    looked = groups if groups * size <= WALKED else max(_DRAWN // size, 1)
    numbers = drawn(looked, groups, _BATCHES)
    found = 0
    at_once = max(2**16 // size, 1)
    for begin in range(0, len(numbers), at_once):
        first = numbers[begin : begin + at_once, None] * size
        shards, _ = order.rows((first + np.arange(size)).ravel())
        ordered = np.sort(shards.reshape(-1, size), axis=1)
        found += len(ordered) + int((np.diff(ordered, axis=1) != 0).sum())
    seen = len(numbers)
    return Measure(found / seen, perfect_shards(counts, size), seen, groups, what)


def perfect_shards(counts: Ints, size: int) -> float:
    """How many shards `size` samples come from on average when they are drawn at random.

    >>> round(perfect_shards(np.array([1, 1, 1, 1]), 3), 9), perfect_shards(np.array([7, 7]), 1)
    (3.0, 1.0)
    """
    total = int(counts.sum())
    each, shards = np.unique(counts, return_counts=True)  # many have the same count
    few = each <= total - size  # more than the rest of the samples can't all be missed
    # The chance to miss a shard is the product over the draws d of 1 - n / (N - d). Of very many
    # draws, which differ little from their neighbours, some stand for all.
    taken = min(size, max(_FACTORS // len(each), 64))
    draws = (np.arange(taken) + 0.5) * size / taken - 0.5
    factors = np.log1p(-each[few, None] / (total - draws))
    read = np.ones(len(each))
    read[few] = -np.expm1(factors.sum(1) * size / taken)
    return float(shards @ read)
