"""A stream whose batches are cut by nodes and edges: its plan, epoch by epoch, and its course."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.budget import Batches, BatchShare, Budget, plan_batches
from streamshard.plan.cursor import Cursor
from streamshard.plan.order import DatasetPlan, Order, OrderRule
from streamshard.plan.share import Share, World
from streamshard.shard.sizes import GRAPH, Sizes
from streamshard.stream.board import Board
from streamshard.stream.course import Course
from streamshard.stream.source import Source
from streamshard.stream.turn import Turn

_KEPT = 2  # epochs whose batches a process keeps: the current one and the next


class BudgetPlan:
    """The order of one dataset, and its batches within a budget.

    An epoch's batches are planned by the first process of a rank that needs them; the others of
    this trainer, where they share memory with it, take them from there.

    Attributes:
        budget: What a batch may hold.
    """

    keeps_rule = False  # as of any dataset

    def __init__(self, source: Source, budget: Budget) -> None:
        """Read the sizes.

        Args:
            source: The dataset, or the view of it.
            budget: What a batch may hold.

        Raises:
            UsageError: It has no graphs, or one is larger than the budget.
            DamagedError: The sidecars don't fit together.
        """
        if GRAPH not in source.shards.manifest.parts:
            raise UsageError(
                f"{source.where} has no part {GRAPH!r}, so there are no nodes and edges to limit; "
                "use batch_size="
            )
        self.budget = budget
        self._source, self._dataset = source, DatasetPlan(source.view.counts)
        self._sizes: Sizes | None = None
        self._kept: OrderedDict[tuple[OrderRule, int], Batches] = OrderedDict()
        self._board = Board.new(len(source.view))
        self._turn = Turn()  # the loop and a thread ahead of it may ask at one time
        if budget.oversize == "error":
            self._refuse_oversize()

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the sizes anew; pickled, they and the batches would be copies.
        return {**self.__dict__, "_sizes": None, "_kept": OrderedDict()}

    def settle(self, **asked: Any) -> OrderRule:
        """See `Plan`: with a grain of one sample, since a lane gives whole batches.

        Raises:
            UsageError: A grain was asked for.
        """
        if asked["grain"] is not None:
            raise UsageError("grain= has no meaning with budget=: a lane gives a batch at a time")
        return self._dataset.settle(**asked)

    def samples(self, grain: int) -> int:
        """See `Plan`."""
        return self._dataset.samples(grain)

    def order(self, rule: OrderRule, epoch: int) -> Order:
        """See `Plan`."""
        return self._dataset.order(rule, epoch)

    def batches(self, rule: OrderRule, epoch: int) -> Batches:
        """The batches of an epoch, planned when they are first asked for."""
        key = rule, epoch
        with self._turn:
            if key not in self._kept:
                name, plan = repr(key), partial(self._plan, rule, epoch)
                self._kept[key] = self._board.find(epoch, name, plan)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _plan(self, rule: OrderRule, epoch: int) -> Batches:
        sizes, counts = self._read_sizes(), self._dataset.counts
        return plan_batches(self.order(rule, epoch), counts, *sizes, self.budget)

    def _read_sizes(self) -> Sizes:
        """Nodes and edges of the chosen samples, in pack order."""
        if self._sizes is None:
            self._sizes = _sizes_of(self._source)
        return self._sizes

    def _refuse_oversize(self) -> None:
        sizes, source = self._read_sizes(), self._source
        found = self.budget.exceeded(*sizes)
        if not len(found):
            return
        first, ends = int(found[0]), np.cumsum(source.view.counts)
        shard = np.searchsorted(ends, [first], side="right")
        row = source.view.locate(source.shards, shard, first - (ends - source.view.counts)[shard])
        key = source.shards.index(int(shard[0])).keys[int(row[0])]
        raise UsageError(
            f"{source.where}: {len(found)} of {len(source.view)} graphs are larger than "
            f"{_said(self.budget)}; the first is {key}, with {sizes.nodes[first]} nodes and "
            f"{sizes.edges[first]} edges: raise the budget, or give each a batch of its own with "
            'oversize="alone"; of that dataset select(where=…) can leave them out'
        )


def _sizes_of(source: Source) -> Sizes:
    """Nodes and edges of the samples of a source, in pack order."""
    shards, view = source.shards, source.view
    sizes = shards.sizes()
    if not view.filters:
        return sizes
    samples = shards.manifest.table.samples
    # Of a shard that is taken whole, or not at all, no index is read.
    chosen = [
        begin + (view.rows(shards, shard) if 0 < count < whole else np.arange(count))
        for shard, (begin, count, whole) in enumerate(
            zip(np.cumsum(samples) - samples, view.counts, samples, strict=True)
        )
    ]
    rows = np.concatenate(chosen)
    return Sizes(sizes.nodes[rows], sizes.edges[rows])


def _said(budget: Budget) -> str:
    limits = {"nodes": budget.max_nodes, "edges": budget.max_edges}
    return " or ".join(f"{value} {name}" for name, value in limits.items() if value is not None)


@dataclass(frozen=True)
class BudgetCourse(Course):
    """A course whose steps are batches within a budget, one a rank."""

    plan: BudgetPlan

    def __post_init__(self) -> None:
        self.first_cursor(World(), 0)  # checks what the rule is made of
        Share(0, 0, World(), 1, self.tail)  # and the tail; the batches are planned when needed

    @property
    def budget(self) -> Budget:
        """See `Course`."""
        return self.plan.budget

    def batches(self, cursor: Cursor) -> Batches:
        """All batches of a cursor's epoch."""
        return self.plan.batches(cursor.rule, cursor.epoch)

    def share(self, cursor: Cursor, world: World, *, may_be_empty: bool = False) -> BatchShare:
        """See `Course`."""
        batches = self.batches(cursor)
        share = BatchShare.of(batches, cursor.position, world, self.tail)
        if cursor.position == 0 and share.steps == 0 and not may_be_empty:
            raise UsageError(
                f"{self.where} makes {len(batches)} batches of at most {_said(self.budget)} in "
                f'epoch {cursor.epoch}, fewer than {world.size} ranks, so tail="drop" drops all '
                'of them; use "pad", "exact", or a smaller budget'
            )
        return share
