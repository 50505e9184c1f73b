"""Several datasets in fixed proportions: a position of the mixture -> a sample of a source.

A mixture is one endless sequence; its epochs cut it into runs of equal length, so every source goes
on from epoch to epoch and begins an epoch of its own when all its samples were given. The sequence
is dealt like a dataset's: `grain` samples of lane 0, `grain` of lane 1, and so on in turns. Lane l
follows the pattern of the proportions from place l * grain on, so that a turn of the lanes is one
run of the pattern, and so is everything that a lane gives.

A source has an endless sequence of its own. From one that is cut into as many lanes, the c-th
sample that lane l takes is number c * lanes + l, so each lane takes its own; from one that is not,
samples are numbered as they come in the mixture.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.order import (
    Ints,
    Order,
    OrderRule,
    Places,
    Shuffle,
    usual_lanes,
    usual_window,
)
from streamshard.plan.permute import key_of
from streamshard.plan.proportions import Proportions

Stop = Literal["first", "longest"] | int

_SOURCES = 5  # what a key is for; see plan/order.py
_KEPT_ORDERS = 8  # epochs of one source that are laid out at a time


@dataclass(frozen=True)
class SourcePlan:
    """One source of a mixture, as the plan sees it.

    Attributes:
        counts: (shards,) int64, samples of each shard.
        shuffle: Its own: False, True or "full".
        window: Samples that are permuted among each other; None for the usual.
    """

    counts: Ints
    shuffle: Shuffle
    window: int | None

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def _usual_window(self) -> int:
        return usual_window(self.counts) if self.window is None else self.window

    @property
    def is_windowed(self) -> bool:
        """Whether it is cut into lanes; a small dataset is permuted all together."""
        return self.shuffle is True and len(self) > 2 * self._usual_window

    def rule(self, seed: int, lanes: int) -> OrderRule:
        """What its orders are made by in a mixture of so many lanes."""
        if self.is_windowed:
            return OrderRule(seed, True, lanes, 1, self._usual_window)
        window = self.window if self.window is not None and self.shuffle is True else len(self)
        return OrderRule(seed, self.shuffle, 1, 1, window)


@dataclass(frozen=True)
class MixturePlan:
    """Sources, their proportions, and where an epoch ends.

    Attributes:
        sources: The sources.
        proportions: How often each comes.
        stop: "first": an epoch ends when the first source would begin anew; "longest": when every
            source was given whole; or a number of samples. Always at a whole grain.
    """

    sources: tuple[SourcePlan, ...]
    proportions: Proportions
    stop: Stop
    keeps_rule = True  # the sources' epochs do not end with the mixture's

    def order(self, rule: OrderRule, epoch: int) -> MixedOrder:
        """The order of an epoch."""
        return MixedOrder(self, rule, epoch)

    def settle(
        self,
        *,
        world_size: int,
        batch_size: int,
        seed: int,
        shuffle: Shuffle,
        lanes: int | None = None,
        grain: int | None = None,
        window: int | None = None,
    ) -> OrderRule:
        """The rule with what was left out derived from the sources and the world.

        As of a dataset (`OrderRule.settle`), with as many lanes as leave every source that is cut
        into lanes a whole window in each, and one where a source is in pack order. `window` is the
        sources' own; here it tells only what was given.
        """
        windowed = [source for source in self.sources if source.is_windowed]
        if lanes is None:
            lanes = 1
            if windowed and all(source.shuffle is not False for source in self.sources):
                lanes = min(
                    usual_lanes(len(source), source.rule(0, 1).window, world_size)
                    for source in windowed
                )
        total = sum(map(len, self.sources))
        return OrderRule(
            seed,
            shuffle,
            lanes,
            batch_size if grain is None else grain,
            total if window is None else window,
        )

    def samples(self, grain: int) -> int:
        """Samples of an epoch.

        Raises:
            UsageError: It would end before its first whole grain.
        """
        weights, total = self.proportions.weights, self.proportions.total
        pairs = list(zip(map(len, self.sources), weights, strict=True))
        if self.stop == "longest":
            samples = max(-(-count * total // weight) for count, weight in pairs)
            return -(-samples // grain) * grain
        if self.stop == "first":
            samples = min(count * total // weight for count, weight in pairs)
        else:
            samples = self.stop
        if samples < grain:
            raise UsageError(
                f"stop={self.stop!r} ends the mixture's epoch after {samples} samples, before one "
                f'grain of {grain}; use "longest", a larger number, or a smaller batch_size'
            )
        return samples // grain * grain


class MixedOrder:
    """The order of one epoch of a mixture."""

    def __init__(self, plan: MixturePlan, rule: OrderRule, epoch: int) -> None:
        """Lay out one epoch.

        Args:
            plan: Of the mixture.
            rule: How orders are made: the mixture's seed, lanes and grain.
            epoch: 0, 1, ...
        """
        self._plan, self._rule = plan, rule
        self._total = plan.samples(rule.grain)
        self._begin = epoch * self._total  # in the endless sequence
        self._rules = [
            source.rule(int(key_of(_SOURCES, rule.seed, number)[0] >> np.uint64(1)), rule.lanes)
            for number, source in enumerate(plan.sources)
        ]
        self._orders: list[OrderedDict[int, Order]] = [OrderedDict() for _ in plan.sources]

    def __len__(self) -> int:
        return self._total

    def numbers(self, positions: Ints) -> tuple[Ints, Ints]:
        """Source of each position, and the sample's number in that source's endless sequence.

        Args:
            positions: (n,) int64, 0 <= position < len(self).
        """
        lanes, grain = self._rule.lanes, self._rule.grain
        grains, within = np.divmod(self._begin + positions, grain)
        turns, lane = np.divmod(grains, lanes)
        begin = lane * grain
        places = begin + turns * grain + within
        sources, counts = self._plan.proportions.pick(places, begin)
        numbers = counts * lanes + lane
        for source, plan in enumerate(self._plan.sources):
            if not plan.is_windowed and lanes > 1:
                here = np.flatnonzero(sources == source)
                numbers[here] = self._as_they_come(source, turns[here], places[here])
        return sources, numbers

    def _as_they_come(self, source: int, turns: Ints, places: Ints) -> Ints:
        """How often a source comes in the mixture before some places of the pattern.

        Args:
            source: By number.
            turns: (n,) int64, turns of the lanes before each.
            places: (n,) int64, in the pattern, in that turn.
        """
        before, grain = self._plan.proportions.before, self._rule.grain
        lanes = np.arange(self._rule.lanes, dtype=np.int64) * grain
        begun, whichever = np.unique(turns, return_inverse=True)
        # What all lanes gave in the turns before: lane l had the places from l * grain on.
        at_first = int(before(source, lanes).sum())
        given = np.array(
            [int(before(source, lanes + turn * grain).sum()) - at_first for turn in begun], np.int64
        )
        return given[whichever] + before(source, places) - before(source, turns * grain)

    def places(self, positions: Ints) -> Places:
        """Source, shard and row of each position; a row counts from its shard's first sample.

        Args:
            positions: (n,) int64, 0 <= position < len(self).
        """
        sources, numbers = self.numbers(positions)
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            epochs, own = np.divmod(numbers[here], len(self._plan.sources[source]))
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                shards[here[now]], rows[here[now]] = self._order(source, epoch).rows(own[now])
        return Places(sources, shards, rows)

    def _order(self, source: int, epoch: int) -> Order:
        orders = self._orders[source]
        if epoch not in orders:
            orders[epoch] = Order(self._plan.sources[source].counts, self._rules[source], epoch)
            if len(orders) > _KEPT_ORDERS:
                orders.popitem(last=False)
        return orders[epoch]
