"""What a mixture must do, said a second time in slow plain Python.

The pattern of the proportions is walked place by place, and the lanes give `grain` samples each in
turn. A source that is cut into lanes deals its samples to them like cards, one each in turn; from
any other they all draw from one deck as their turn comes. Nothing here is imported from the
package, so that an error in its arithmetic cannot hide in a copy of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import count, islice, tee
from math import floor
from typing import NamedTuple

from tests.oracle import Sample

Weights = Sequence[Fraction | int]


class Dealt(NamedTuple):
    """What one position of a mixture holds."""

    source: int
    number: int  # in the source's endless sequence
    sample: Sample


class Drawn(NamedTuple):
    """A card: a sample, and its number in its source's endless sequence."""

    number: int
    sample: Sample


def by_weight(weights: Weights) -> list[tuple[int, Fraction]]:
    """The sources, greatest weight first, each with its share of what those before it leave."""
    left = Fraction(sum(weights))
    ranked = []
    for source in sorted(range(len(weights)), key=lambda each: -Fraction(weights[each])):
        ranked.append((source, weights[source] / left))
        left -= weights[source]
    return ranked


def pattern(weights: Weights) -> Iterator[int]:
    """The source of each place. A place is offered to one source after another until one takes it.

    Of the first n places that a source is offered it takes floor(n * share).
    """
    ranked = by_weight(weights)
    offered: Counter[int] = Counter()
    taken: Counter[int] = Counter()
    while True:
        for source, share in ranked:
            offered[source] += 1
            if taken[source] < floor(offered[source] * share):
                taken[source] += 1
                yield source
                break


def endless(epoch_of: Callable[[int], Sequence[Sample]]) -> Iterator[Drawn]:
    """The epochs of a source, one after another."""
    numbers = count()
    for epoch in count():
        for sample in epoch_of(epoch):
            yield Drawn(next(numbers), sample)


def mixture(
    weights: Weights,
    epochs: Sequence[Callable[[int], Sequence[Sample]]],
    *,
    cut: Sequence[bool],
    lanes: int,
    grain: int,
) -> Iterator[Dealt]:
    """The endless sequence of a mixture.

    Args:
        weights: Of each source.
        epochs: For each source, a function that gives the samples of its epoch 0, 1, ... in order.
        cut: For each source, whether it is cut into lanes.
        lanes: How many take turns.
        grain: Samples that a lane gives in its turn.
    """
    copies = enumerate(tee(pattern(weights), lanes))
    walks = [islice(walk, lane * grain, None) for lane, walk in copies]
    decks = [endless(epoch_of) for epoch_of in epochs]
    hands = [[deque[Drawn]() for _ in range(lanes)] for _ in epochs]
    while True:
        for lane, walk in enumerate(walks):
            for source in islice(walk, grain):
                if not cut[source]:
                    yield Dealt(source, *next(decks[source]))
                    continue
                while not hands[source][lane]:
                    for hand in hands[source]:
                        hand.append(next(decks[source]))
                yield Dealt(source, *hands[source][lane].popleft())


def counts_before(weights: Weights, place: int) -> list[int]:
    """How often each source came before a place of the pattern that is too far to walk to."""
    before = [0] * len(weights)
    left = place
    for source, share in by_weight(weights):
        before[source] = floor(left * share)
        left -= before[source]
    return before


def far(
    weights: Weights, position: int, *, cut: Sequence[bool], lanes: int, grain: int
) -> tuple[int, int]:
    """Source and number of a position that is too far to deal to, in integers of any size."""
    turn, rest = divmod(position, lanes * grain)
    lane, within = divmod(rest, grain)
    first, place = lane * grain, (lane + turn) * grain + within
    begun, now, then = (counts_before(weights, each) for each in (first, place, place + 1))
    source = next(each for each in range(len(weights)) if then[each] > now[each])
    if cut[source]:
        return source, (now[source] - begun[source]) * lanes + lane
    come = [(each + turn + (each < lane)) * grain for each in range(lanes)]
    come[lane] = place
    number = 0  # what all lanes took, each from its first place to where it has come
    for each in range(lanes):
        was = counts_before(weights, each * grain)[source]
        number += counts_before(weights, come[each])[source] - was
    return source, number
