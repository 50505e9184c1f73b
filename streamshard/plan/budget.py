"""Batches limited by nodes and edges: the budget, and the batches of an epoch.

Each lane is cut into batches (see cut.py); what the lanes have open at their ends is pooled, lane
after lane, and cut the same way. The first batches of all lanes come first, then the second ones,
and so on, then those of the pool. The number of batches is a matter of all sizes, so an epoch's
batches are found all at once: this is the one plan that is as large as the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import UsageError
from streamshard.plan.cut import Limits, cut
from streamshard.plan.order import Ints, Order
from streamshard.plan.share import Share, Step, Tail, World

AnyInts = NDArray[np.int32] | NDArray[np.int64]

_UNLIMITED = 2**62  # with room for sums in 64 bits
_AT_ONCE = 2**16  # positions resolved at a time, so that what numpy needs in between stays small


@dataclass(frozen=True)
class Budget:
    """What a batch of graphs may hold: `ShardDataset(url, budget=ss.Budget(max_nodes=…))`.

    Attributes:
        max_nodes: Nodes of all graphs of a batch together, or None for any number.
        max_edges: Edges, likewise; directed ones, as `edge_index` has them.
        oversize: What becomes of a graph that is larger by itself: "error", before anything is
            read, or "alone" for a batch of its own.

    Raises:
        UsageError: There is no limit, or one is not above 0.
    """

    max_nodes: int | None = None
    max_edges: int | None = None
    oversize: Literal["error", "alone"] = "error"

    def __post_init__(self) -> None:
        if self.max_nodes is None and self.max_edges is None:
            raise UsageError("a budget has max_nodes=, max_edges= or both")
        for name in ("max_nodes", "max_edges"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value < _UNLIMITED):
                raise UsageError(f"{name} is {value!r}; it must be a number from 1 up")
        if self.oversize not in ("error", "alone"):
            raise UsageError(f'oversize is {self.oversize!r}; it must be "error" or "alone"')

    @property
    def limits(self) -> Limits:
        """Both limits as numbers."""
        return Limits(self.max_nodes or _UNLIMITED, self.max_edges or _UNLIMITED)

    def exceeded(self, nodes: AnyInts, edges: AnyInts) -> Ints:
        """The numbers of the graphs that are larger than the budget by themselves."""
        limits = self.limits
        return np.flatnonzero((nodes > limits.nodes) | (edges > limits.edges))


def position_dtype(samples: int) -> np.dtype[np.signedinteger[Any]]:
    """The smallest of int32 and int64 that holds the positions of an epoch."""
    return np.dtype(np.int32 if samples <= 2**31 else np.int64)


@dataclass(frozen=True)
class Batches:
    """The batches of one epoch, in the order in which they are dealt to the ranks.

    Attributes:
        members: (samples,) int32 or int64, positions in the epoch's order, batch after batch.
        ends: (batches,) int64, where each batch ends in `members`.
        fill: The mean over the batches of max(nodes / max_nodes, edges / max_edges), at most 1
            each; 0 where there is no batch.
    """

    members: AnyInts
    ends: Ints
    fill: float

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Ints:
        """The positions of one batch, (samples,) int64."""
        begin = self.ends[number - 1] if number else 0
        return self.members[begin : self.ends[number]].astype(np.int64)


@dataclass(frozen=True)
class BatchShare:
    """One rank's part of a pass over an epoch's batches; `Share`, with batches for samples.

    Attributes:
        batches: Of the epoch.
        dealt: How they are dealt, one a rank and step.
    """

    batches: Batches
    dealt: Share

    @classmethod
    def of(cls, batches: Batches, start: int, world: World, tail: Tail) -> BatchShare:
        """The rest of an epoch from batch `start` on.

        Step t of rank r is batch start + t*W + r. Of a last step with fewer batches than ranks,
        "drop" leaves the batches out, "pad" repeats batches from the first on, and "exact" gives
        the ranks behind none.
        """
        return cls(batches, Share(len(batches), start, world, 1, tail))

    @property
    def steps(self) -> int:
        """Steps of this pass, the same on every rank."""
        return self.dealt.steps

    def step(self, number: int) -> Step:
        """The positions of step `number`, 0 <= number < steps."""
        numbers, real = self.dealt.step(number)
        if len(numbers) == 0:
            return Step(numbers, 0)
        positions = self.batches[int(numbers[0])]
        return Step(positions, len(positions) if real else 0)

    def after(self, steps: int) -> int | None:
        """The batch after so many steps of this pass; None where no step is left."""
        return self.dealt.after(steps)


def plan_batches(
    order: Order, counts: Ints, nodes: AnyInts, edges: AnyInts, budget: Budget
) -> Batches:
    """Cut an epoch into batches.

    Args:
        order: Of the epoch.
        counts: (shards,) int64, samples of each shard.
        nodes: (samples,) of each graph, in pack order.
        edges: (samples,) likewise.
        budget: What a batch may hold.
    """
    sizes = _Sizes(np.cumsum(counts) - counts, nodes, edges)
    runs, left = [], []
    for lane in range(order.lanes):
        run, rest = _split(sizes.of(order, order.lane(lane)), budget.limits, is_last=False)
        runs.append(run)
        left.append(rest)
    pool = _Graphs(*map(np.concatenate, zip(*left, strict=True)))
    last, _ = _split(pool, budget.limits, is_last=True)
    lane_turns = [np.arange(len(run.samples)) for run in runs]
    turns = np.concatenate([*lane_turns, np.full(len(last.samples), len(order))])
    # By turn, in each by lane; the pool's after all turns. The sort keeps the order of equals.
    run = _Run(*map(np.concatenate, zip(*runs, last, strict=True)))
    return _numbered(run, np.argsort(turns, kind="stable"), budget.limits)


class _Graphs(NamedTuple):
    """Some graphs of an epoch: position, nodes and edges of each, (samples,) int64."""

    positions: Ints
    nodes: Ints
    edges: Ints


class _Run(NamedTuple):
    """Some batches.

    Attributes:
        members: (samples,) int64, positions, batch after batch.
        samples: (batches,) int64, of each batch.
        nodes: (batches,) int64, likewise.
        edges: (batches,) int64, likewise.
    """

    members: Ints
    samples: Ints
    nodes: Ints
    edges: Ints


class _Sizes(NamedTuple):
    """The sizes of all graphs in pack order, (samples,), and where each shard begins, (shards,)."""

    starts: Ints
    nodes: AnyInts
    edges: AnyInts

    def of(self, order: Order, positions: Ints) -> _Graphs:
        """The graphs at some positions of an order."""
        nodes, edges = np.empty_like(positions), np.empty_like(positions)
        for begin in range(0, len(positions), _AT_ONCE):
            now = slice(begin, begin + _AT_ONCE)
            shards, rows = order.rows(positions[now])
            places = self.starts[shards] + rows
            nodes[now], edges[now] = self.nodes[places], self.edges[places]
        return _Graphs(positions, nodes, edges)


def _split(graphs: _Graphs, limits: Limits, *, is_last: bool) -> tuple[_Run, _Graphs]:
    """The batches of a sequence of graphs, and those graphs that are left over, in their order.

    Args:
        graphs: The sequence.
        limits: What a batch may hold.
        is_last: Whether nothing is to be left over.
    """
    found = cut(graphs.nodes, graphs.edges, limits)
    is_open = found.is_open & (not is_last)
    is_left = np.repeat(is_open, found.sizes)
    kept, left = found.places[~is_left], np.sort(found.places[is_left])
    samples = found.sizes[~is_open]
    begins = np.cumsum(samples) - samples
    nodes, edges = (
        np.add.reduceat(sizes[kept], begins) if len(kept) else kept for sizes in graphs[1:]
    )
    rest = _Graphs(*(column[left] for column in graphs))
    return _Run(graphs.positions[kept], samples, nodes, edges), rest


def _numbered(run: _Run, numbers: Ints, limits: Limits) -> Batches:
    """These batches, in another order."""
    samples = run.samples[numbers]
    ends = np.cumsum(samples)
    begins = np.cumsum(run.samples) - run.samples
    # Where each batch lay, less where it is to lie, for each of its samples.
    shifts = np.repeat(begins[numbers] - (ends - samples), samples)
    members = run.members[np.arange(len(run.members)) + shifts]
    fills = np.maximum(run.nodes / limits.nodes, run.edges / limits.edges)
    fill = float(np.minimum(fills, 1).mean()) if len(fills) else 0.0
    return Batches(members.astype(position_dtype(len(members))), ends, fill)
