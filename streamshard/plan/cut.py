"""Cuts a sequence of graphs into batches as full as two limits allow.

Samples are taken as they come, and a few batches are open at a time. A sample goes into

1. the oldest open batch that it fills: what it leaves free of a limit is `_SPARE` of it or less;
2. else the oldest in which it leaves room for the smallest sample of the sequence;
3. else, while fewer than `_OPEN` are open, a new one;
4. else the oldest that it fits; else a new one, and the oldest is closed.

So a batch waits a while for a sample that fills it, and a sample that would only spoil it begins a
batch. A batch that has no room for the smallest sample is closed. A new one takes samples as they
come until less than `_ROOM` mean samples are free, found by bisection of the running sums: what
there is to decide is then a few samples a batch. A sample above a limit is a batch of its own.

Integers only, so that the batches are the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from streamshard.plan.order import Ints, ends

_OPEN = 8  # batches; twice as many gain less than 0.01 of fill, half as many lose up to 0.03
_ROOM = 3  # mean samples
_SPARE = 128  # one part in so many
_FULL = 20  # at the sequence's end: full but for one part in so many of a limit


class Limits(NamedTuple):
    """What a batch may hold.

    Attributes:
        nodes: At most so many.
        edges: At most so many.
    """

    nodes: int
    edges: int


class Cut(NamedTuple):
    """A sequence, by batch; batches in the order of their first samples.

    Attributes:
        places: (samples,) int64, places in the sequence, batch after batch, ascending in each.
        sizes: (batches,) int64, samples of each.
        is_open: (batches,) bool, whether more was to come into it when the sequence ended, and it
            is not yet 19/20 full.
    """

    places: Ints
    sizes: Ints
    is_open: np.ndarray[tuple[int], np.dtype[np.bool_]]


def cut(nodes: Ints, edges: Ints, limits: Limits) -> Cut:
    """Cut a sequence into batches.

    Args:
        nodes: (samples,) int64, of each graph.
        edges: (samples,) int64, likewise.
        limits: What a batch may hold; a graph above them is a batch of its own.

    >>> sizes = np.array([3, 4, 5, 3, 2, 1])
    >>> found = cut(sizes, sizes, Limits(6, 6))
    >>> found.places.tolist(), found.sizes.tolist()
    ([0, 3, 1, 4, 2, 5], [2, 2, 2])
    """
    is_alone = (nodes > limits.nodes) | (edges > limits.edges)
    alone, rest = np.flatnonzero(is_alone), np.flatnonzero(~is_alone)
    owners, begins, unfinished = _fill(nodes[rest], edges[rest], limits)
    # Numbered by the place of the first sample, those of one sample among the others.
    firsts = np.concatenate([rest[begins], alone])
    numbers = np.empty(len(firsts), np.int64)
    numbers[np.argsort(firsts)] = np.arange(len(firsts))
    owner = np.empty(len(nodes), np.int64)
    owner[rest] = numbers[: len(begins)][owners]
    owner[alone] = numbers[len(begins) :]
    is_open = np.zeros(len(firsts), bool)
    is_open[numbers[unfinished]] = True
    places = np.argsort(owner, kind="stable")
    return Cut(places, np.bincount(owner, minlength=len(firsts)), is_open)


class _Open:
    """An open batch: its number, and what is free in it."""

    __slots__ = ("edges", "nodes", "number")

    def __init__(self, number: int, nodes: int, edges: int) -> None:
        self.number, self.nodes, self.edges = number, nodes, edges


def _fill(nodes: Ints, edges: Ints, limits: Limits) -> tuple[Ints, Ints, Ints]:
    """The batch of each sample, where each batch begins, and which were open at the end."""
    count = len(nodes)
    if count == 0:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    # Python reads a memory view faster than an array, and it is no copy.
    node_ends, edge_ends = memoryview(ends(nodes)), memoryview(ends(edges))
    owners = np.empty(count, np.int64)
    least = Limits(int(nodes.min()), int(edges.min()))
    run_nodes = limits.nodes - _ROOM * node_ends[count] // count
    run_edges = limits.edges - _ROOM * edge_ends[count] // count
    begins: list[int] = []
    batches: list[_Open] = []  # oldest first
    at = 0
    while at < count:
        end = at + 1
        first_nodes, first_edges = node_ends[at], edge_ends[at]
        batch = _choose(
            batches, node_ends[end] - first_nodes, edge_ends[end] - first_edges, limits, least
        )
        if batch is None:
            run = bisect_right(node_ends, first_nodes + run_nodes, end, count + 1)
            end = max(end, bisect_right(edge_ends, first_edges + run_edges, end, run) - 1)
            batch = _Open(len(begins), limits.nodes, limits.edges)
            begins.append(at)
            if len(batches) == _OPEN:
                del batches[0]
            batches.append(batch)
        batch.nodes -= node_ends[end] - first_nodes
        batch.edges -= edge_ends[end] - first_edges
        owners[at:end] = batch.number
        if batch.nodes < least.nodes or batch.edges < least.edges:
            batches.remove(batch)
        at = end
    unfinished = [
        batch.number
        for batch in batches
        if batch.nodes * _FULL > limits.nodes and batch.edges * _FULL > limits.edges
    ]
    return owners, np.array(begins, np.int64), np.array(unfinished, np.int64)


def _choose(
    batches: list[_Open], nodes: int, edges: int, limits: Limits, least: Limits
) -> _Open | None:
    """The open batch that a sample goes into; None where it begins a new one."""
    useful = fitting = None
    for batch in batches:
        free_nodes, free_edges = batch.nodes - nodes, batch.edges - edges
        if free_nodes < 0 or free_edges < 0:
            continue
        if free_nodes * _SPARE <= limits.nodes or free_edges * _SPARE <= limits.edges:
            return batch
        if useful is None and free_nodes >= least.nodes and free_edges >= least.edges:
            useful = batch
        fitting = fitting or batch
    return useful or (fitting if len(batches) == _OPEN else None)
