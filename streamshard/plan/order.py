"""The order of an epoch: position -> (shard, row), for any position alone.

The epoch's shards are permuted, laid end to end and cut into lanes; each lane is cut into windows,
and each window is permuted; the lanes take turns, `grain` samples each. Nothing here is as large as
the epoch: the state is the shard counts and a few integers.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import UsageError
from streamshard.plan.permute import key_of, permute, unpermute

Ints = NDArray[np.int64]
Shuffle = bool | Literal["full"]

MIN_WINDOW = 1024
_MAX_WINDOWS = 2**31  # of a lane, so that products of two window numbers fit 64 bits
_LANES_PER_RANK = (24, 12, 8, 6, 4, 3, 2, 1)  # 24 divides by the usual numbers of workers
_SHARDS, _SAMPLES, _ALL, _AUGMENTATIONS = 1, 2, 3, 4  # what a key is for, so that none is shared


class Places(NamedTuple):
    """Where some samples lie.

    Attributes:
        sources: (n,) int64, which of the datasets; all zero where there is one.
        shards: (n,) int64, shards of it.
        rows: (n,) int64, rows of the shard, as the order counts them.
    """

    sources: Ints
    shards: Ints
    rows: Ints


def ends(sizes: Ints) -> Ints:
    """0 and the running sums: where each part of a concatenation begins and ends."""
    sums = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=sums[1:])
    return sums


def usual_window(counts: Ints) -> int:
    """Four mean shards, at least 1,024 samples."""
    return max(MIN_WINDOW, 4 * int(counts.sum()) // max(len(counts), 1))


def usual_lanes(total: int, window: int, world_size: int) -> int:
    """The most lanes that leave each a whole window; 1 where the usual numbers leave none."""
    fits = (n * world_size for n in _LANES_PER_RANK if total // (n * world_size) >= window)
    return next(fits, 1)


@dataclass(frozen=True)
class OrderRule:
    """What every epoch's order is made by.

    Attributes:
        seed: 0 <= seed < 2**63.
        shuffle: False for pack order, True for permuted windows, "full" for one permutation.
        lanes: How many equal parts the epoch's samples are cut into.
        grain: Samples that a lane gives before the next lane's turn.
        window: Samples that are permuted among each other, about.
    """

    seed: int
    shuffle: Shuffle
    lanes: int
    grain: int
    window: int

    def __post_init__(self) -> None:
        for name in ("seed", "lanes", "grain", "window"):  # numpy's integers are not JSON's
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.shuffle is not False and self.shuffle is not True and self.shuffle != "full":
            raise UsageError(f'shuffle is {self.shuffle!r}; it must be False, True or "full"')
        for name, least in (("seed", 0), ("lanes", 1), ("grain", 1), ("window", 1)):
            if not least <= getattr(self, name) < 2**63:
                value = getattr(self, name)
                raise UsageError(f"{name} is {value}; it must be at least {least} and below 2**63")

    @classmethod
    def settle(
        cls,
        counts: Ints,
        *,
        world_size: int,
        batch_size: int,
        seed: int,
        shuffle: Shuffle,
        lanes: int | None = None,
        grain: int | None = None,
        window: int | None = None,
    ) -> OrderRule:
        """The rule with what was left out derived from the dataset and the world.

        Args:
            counts: (shards,) samples of each shard.
            world_size: Ranks.
            batch_size: Samples per rank and step.
            seed: See the attributes; likewise `shuffle`.
            shuffle: False, True or "full".
            lanes: By default the largest of 24, 12, 8, 6, 4, 3, 2 and 1 times the world size that
                leaves every lane a whole window; 1 where none does.
            grain: By default the batch size.
            window: By default four mean shards, at least 1,024 samples.

        Raises:
            UsageError: A value is out of its range, or given where nothing is windowed.
        """
        total = int(counts.sum())
        if shuffle is not True:
            given = {"lanes": lanes, "grain": grain, "window": window}
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"{name}= has a meaning only with shuffle=True")
            return cls(seed, shuffle, 1, 1, max(total, 1))
        usual = usual_window(counts) if window is None else window
        # Two windows or fewer are one window: lanes of so few samples would mix next to nothing.
        is_small = lanes is None and total <= 2 * usual
        if window is None:
            window = max(total, 1) if is_small else usual
        if lanes is None:
            lanes = 1 if is_small else usual_lanes(total, window, world_size)
        return cls(seed, shuffle, lanes, grain if grain is not None else batch_size, window)


class Order:
    """The order of one epoch over the samples of a dataset.

    Attributes:
        shards: (shards,) in the order in which they are laid end to end.
        starts: (shards + 1,) where each of them begins there, and the end.
        edges: (lanes + 1,) where each lane begins there, and the end.
        turns: Whole turns in which every lane has a grain to give.
        leftovers: (lanes + 1,) where what a lane has left over begins among all leftovers.

    >>> rule = OrderRule(seed=0, shuffle=False, lanes=1, grain=1, window=1)
    >>> shards, rows = Order(np.array([2, 3]), rule, epoch=0).rows(np.arange(5))
    >>> list(zip(shards.tolist(), rows.tolist()))
    [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    """

    def __init__(self, counts: Ints, rule: OrderRule, epoch: int) -> None:
        """Lay out one epoch.

        Args:
            counts: (shards,) int64, samples of each shard.
            rule: How orders are made.
            epoch: 0, 1, ...; every epoch has an order of its own.
        """
        self._rule, self._epoch = rule, epoch
        self._total = int(counts.sum())
        places = np.arange(len(counts), dtype=np.int64)
        if rule.shuffle is True:
            size = np.array([len(counts)], np.int64)
            places = permute(places, size, key_of(_SHARDS, rule.seed, epoch))
        self.shards = places  # the shards of this epoch, in the order in which they are laid out
        self.starts = ends(counts[places])
        # Lane i is [edges[i], edges[i+1]) of the samples laid end to end.
        lanes = np.arange(rule.lanes + 1, dtype=np.int64)
        # Split in two so that the product stays inside 64 bits for any dataset.
        quotient, remainder = divmod(self._total, rule.lanes)
        self.edges = lanes * quotient + lanes * remainder // rule.lanes
        self.turns = quotient // rule.grain  # whole turns in which every lane has a grain to give
        if quotient // rule.window >= _MAX_WINDOWS:
            raise UsageError(
                f"window={rule.window} cuts lanes of {quotient} samples into more than "
                f"{_MAX_WINDOWS} windows; a larger window or more lanes are wanted"
            )
        # What the lanes have left over follows, lane after lane; where each one's begins there.
        self.leftovers = self.edges - lanes * self.turns * rule.grain

    def __len__(self) -> int:
        return self._total

    @property
    def lanes(self) -> int:
        """How many there are."""
        return self._rule.lanes

    def rows(self, positions: Ints) -> tuple[Ints, Ints]:
        """Shard and row of each position.

        Args:
            positions: (n,) int64, 0 <= position < len(self).

        Returns:
            Two (n,) int64 arrays: the shard's number, and the sample's row in it.
        """
        if len(positions) == 0:
            return positions, positions
        if self._rule.shuffle is True:
            places = self.laid(*self.lane_and_place(positions))
        elif self._rule.shuffle == "full":
            size = np.array([self._total], np.int64)
            places = permute(positions, size, key_of(_ALL, self._rule.seed, self._epoch))
        else:
            places = positions
        slots = np.searchsorted(self.starts, places, side="right") - 1
        return self.shards[slots], places - self.starts[slots]

    def places(self, positions: Ints) -> Places:
        """Shard and row of each position, of the one source that there is."""
        return Places(np.zeros_like(positions), *self.rows(positions))

    def positions(self, shards: Ints, rows: Ints) -> Ints:
        """The position of each sample: the inverse of `rows`.

        Args:
            shards: (n,) int64, the shard of each sample.
            rows: (n,) int64, its row there.
        """
        if len(shards) == 0:
            return shards
        places: Ints = self.starts[self._slots[shards]] + rows
        if self._rule.shuffle is False:
            return places
        if self._rule.shuffle == "full":
            size = np.array([self._total], np.int64)
            return unpermute(places, size, key_of(_ALL, self._rule.seed, self._epoch))
        lane, place = self.given_by(places)
        grain, lanes = self._rule.grain, self._rule.lanes
        turn, within = np.divmod(place, grain)
        late = lanes * self.turns * grain + self.leftovers[lane] + place - self.turns * grain
        positions: Ints = np.where(turn < self.turns, (turn * lanes + lane) * grain + within, late)
        return positions

    @functools.cached_property
    def _slots(self) -> Ints:
        """(shards,) where each shard is in the order in which they are laid out."""
        slots = np.empty_like(self.shards)
        slots[self.shards] = np.arange(len(slots))
        return slots

    def given_by(self, places: Ints) -> tuple[Ints, Ints]:
        """The lane that gives each place of the shards laid end to end, and how many before it."""
        lane = np.searchsorted(self.edges, places, side="right") - 1
        place = places - self.edges[lane]
        window, begin, length = self.window_of(lane, place)
        key = key_of(_SAMPLES, self._rule.seed, self._epoch, lane, window)
        return lane, begin + unpermute(place - begin, length, key)

    def lane(self, number: int) -> Ints:
        """The positions of one lane's samples, in the order in which it gives them.

        Args:
            number: 0 <= number < the rule's lanes.

        Returns:
            (samples of the lane,) int64, ascending.
        """
        place = np.arange(self.edges[number + 1] - self.edges[number], dtype=np.int64)
        grain, lanes, in_turns = self._rule.grain, self._rule.lanes, self.turns * self._rule.grain
        turn, within = np.divmod(place, grain)
        positions = (turn * lanes + number) * grain + within
        late = place[in_turns:]
        positions[in_turns:] = late + self.leftovers[number] + (lanes - 1) * in_turns
        return positions

    def lane_and_place(self, positions: Ints) -> tuple[Ints, Ints]:
        """The lane that gives each position, and how many samples the lane gave before it."""
        grain, lanes = self._rule.grain, self._rule.lanes
        in_turns = lanes * self.turns * grain
        turn, rest = np.divmod(positions, lanes * grain)
        lane, within = np.divmod(rest, grain)
        place = turn * grain + within
        late = positions >= in_turns
        if late.any():
            left = positions[late] - in_turns
            lane[late] = np.searchsorted(self.leftovers, left, side="right") - 1
            place[late] = self.turns * grain + left - self.leftovers[lane[late]]
        return lane, place

    def laid(self, lane: Ints, place: Ints) -> Ints:
        """The place in the shards laid end to end of what a lane gives, window by window."""
        window, begin, length = self.window_of(lane, place)
        key = key_of(_SAMPLES, self._rule.seed, self._epoch, lane, window)
        places: Ints = self.edges[lane] + begin + permute(place - begin, length, key)
        return places

    def window_of(self, lane: Ints, place: Ints) -> tuple[Ints, Ints, Ints]:
        """The number in its lane of the window of each place, where it begins, and its length."""
        size = self.edges[lane + 1] - self.edges[lane]
        # round(size / window), half up, but at least one window
        windows, rest = np.divmod(size, self._rule.window)
        windows = np.maximum(1, windows + (rest >= self._rule.window - rest))
        # Window j is [begins(j), begins(j + 1)). A guess by floating point is off by at most one,
        # and its correction is exact, where place * windows would not fit 64 bits.
        window = (place * (windows / size)).astype(np.int64)
        window -= _begins(window, size, windows) > place
        window += _begins(window + 1, size, windows) <= place
        begin = _begins(window, size, windows)
        return window, begin, _begins(window + 1, size, windows) - begin


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset, as the plan sees it.

    Attributes:
        counts: (shards,) int64, samples of each shard.
    """

    counts: Ints
    keeps_rule = False  # every epoch's lanes and grain fit the world that begins it

    def settle(self, **asked: Any) -> OrderRule:
        """See `OrderRule.settle`."""
        return OrderRule.settle(self.counts, **asked)

    def samples(self, grain: int) -> int:
        """Samples of an epoch, whatever the grain."""
        return int(self.counts.sum())

    def order(self, rule: OrderRule, epoch: int) -> Order:
        """The order of an epoch."""
        return Order(self.counts, rule, epoch)


def _begins(window: Ints, size: Ints, windows: Ints) -> Ints:
    """floor(window * size / windows), for up to 2**31 windows and any size."""
    quotient, rest = np.divmod(size, windows)
    begins: Ints = window * quotient + window * rest // windows
    return begins


def sample_seeds(seed: int, epoch: int, positions: Ints) -> NDArray[np.uint64]:
    """The seed of each sample's augmentations, (n,) uint64.

    A function of (seed, epoch, position), so that it survives resume, workers and threads.
    """
    return np.broadcast_to(key_of(_AUGMENTATIONS, seed, epoch, positions), positions.shape)
