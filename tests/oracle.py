"""What the plan must do, said a second time in slow plain Python.

Everything is dealt out literally: samples are lists, lanes and windows are slices, turns are taken
from queues. Nothing here is imported from the package, so that an error in its arithmetic cannot
hide in a copy of the same arithmetic.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple, TypeVar

Sample = tuple[int, int]  # shard, row
Window = frozenset[Sample]
Batch = list[tuple[int, bool]]  # (position, is it real?) of each sample
Thing = TypeVar("Thing")


class Place(NamedTuple):
    """Where the sample of one position comes from."""

    lane: int
    window: Window


def laid_out(counts: Sequence[int], shards: Sequence[int]) -> list[Sample]:
    """All samples of an epoch, its shards end to end in the order given."""
    return [(shard, row) for shard in shards for row in range(counts[shard])]


def lanes(samples: Sequence[Thing], count: int) -> list[list[Thing]]:
    """The samples cut into lanes; lane i begins at floor(i * N / L)."""
    begins = [math.floor(Fraction(lane * len(samples), count)) for lane in range(count)]
    ends = [*begins[1:], len(samples)]
    return [list(samples[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def windows(lane: Sequence[Thing], window: int) -> list[list[Thing]]:
    """A lane cut into max(1, round(n / window)) equal windows; a half is rounded up."""
    count = max(1, math.floor(Fraction(len(lane), window) + Fraction(1, 2)))
    return lanes(lane, count)


def take_turns(queues: Sequence[Sequence[Thing]], grain: int) -> list[Thing]:
    """What comes of the lanes' giving `grain` each in turn, then what each has left over."""
    waiting = [deque(queue) for queue in queues]
    given = []
    while all(len(queue) >= grain for queue in waiting):
        for queue in waiting:
            given += [queue.popleft() for _ in range(grain)]
    for queue in waiting:
        given += queue
    return given


def places(samples: Sequence[Sample], *, lane_count: int, grain: int, window: int) -> list[Place]:
    """For each position, the lane that gives its sample and the window that it is drawn from."""
    queues = []
    for number, lane in enumerate(lanes(samples, lane_count)):
        cut = windows(lane, window)
        queues.append([Place(number, frozenset(part)) for part in cut for _ in part])
    return take_turns(queues, grain)


def deal(
    total: int, *, cursor: int, world_size: int, batch_size: int, tail: str
) -> list[list[Batch]]:
    """What each rank is given in each step: a list over steps of lists over ranks of batches."""
    waiting = deque((position, True) for position in range(cursor, total))
    steps = []
    while len(waiting) >= world_size * batch_size:
        sizes = [batch_size] * world_size
        steps.append([[waiting.popleft() for _ in range(size)] for size in sizes])
    if not waiting or tail == "drop":
        return steps
    sizes = [batch_size] * world_size
    if tail == "pad":
        again = 0
        while len(waiting) < world_size * batch_size:
            waiting.append((again, False))
            again = again + 1 if again + 1 < total else 0
    else:
        # One seat after another, rank by rank; then each rank takes its neighbours in the sequence.
        sizes = [0] * world_size
        for seat in range(len(waiting)):
            sizes[seat % world_size] += 1
    steps.append([[waiting.popleft() for _ in range(size)] for size in sizes])
    return steps


def check_tail(
    steps: Sequence[Sequence[Batch]],
    total: int,
    *,
    cursor: int,
    world_size: int,
    batch_size: int,
    tail: str,
) -> None:
    """The promises about what was delivered from the cursor on, whoever dealt it.

    Raises:
        AssertionError: A sample is missing, comes twice, or is not flagged as the tail says.
    """
    flat = [sample for step in steps for batch in step for sample in batch]
    real = [position for position, is_real in flat if is_real]
    again = [position for position, is_real in flat if not is_real]
    remaining = total - cursor
    assert all(len(step) == world_size for step in steps), "a rank was left out of a step"
    assert real == list(range(cursor, cursor + len(real))), "a sample is twice, or out of turn"
    assert all(len(batch) == batch_size for step in steps[:-1] for batch in step), "a short batch"
    if tail == "drop":
        assert not again, "drop repeats nothing"
        assert remaining - len(real) == remaining % (world_size * batch_size), "dropped too many"
        assert all(len(batch) == batch_size for step in steps for batch in step), "a short batch"
        return
    assert len(real) == remaining, "a sample is missing"
    last = [len(batch) for batch in steps[-1]] if steps else []
    if tail == "exact":
        assert not again, "exact repeats nothing"
        assert max(last, default=0) - min(last, default=0) <= 1, "the last step is uneven"
        assert not steps or any(last), "a step without a sample"
    else:
        assert all(size == batch_size for size in last), "a short batch"
        assert flat == [(position, True) for position in real] + [
            (position, False) for position in again
        ], "a repeat stands before a real sample"
        assert again == [number % total for number in range(len(again))], "repeats of the wrong"
        assert len(again) < world_size * batch_size, "a step of nothing but repeats"


class Graph(NamedTuple):
    """One sample of a sequence, as far as a budget is concerned."""

    position: int
    nodes: int
    edges: int


class Filling:
    """A batch that is being filled; a limit that there is not is infinite."""

    def __init__(self, most: tuple[float, float]) -> None:
        self.most, self.graphs = most, list[Graph]()

    def free(self, *more: Graph) -> tuple[float, float]:
        """Nodes and edges that are free, once some more graphs are in it."""
        graphs = [*self.graphs, *more]
        nodes, edges = sum(g.nodes for g in graphs), sum(g.edges for g in graphs)
        return self.most[0] - nodes, self.most[1] - edges

    def has_room(self, room: tuple[float, float], *more: Graph) -> bool:
        """Whether so many nodes and edges are free then."""
        return all(free >= wanted for free, wanted in zip(self.free(*more), room, strict=True))

    def is_filled(self, part: int, *more: Graph) -> bool:
        """Whether 1/part of a limit or less is free then."""
        pairs = zip(self.free(*more), self.most, strict=True)
        return any(free * part <= most for free, most in pairs if most < math.inf)


class Cutting:
    """A sequence that is being cut into batches, one graph after another."""

    def __init__(self, graphs: Sequence[Graph], most: tuple[float, float]) -> None:
        self.most, self.waiting = most, deque(graphs)
        normal = [graph for graph in graphs if self.fits_alone(graph)]
        nodes, edges = [g.nodes for g in normal], [g.edges for g in normal]
        self.least = (min(nodes, default=0), min(edges, default=0))
        count = max(len(normal), 1)
        self.room = (sum(nodes) * 3 // count, sum(edges) * 3 // count)
        self.begun: list[Filling] = []
        self.are_open: list[Filling] = []
        while self.waiting:
            self.place(self.waiting.popleft())

    def fits_alone(self, graph: Graph) -> bool:
        return Filling(self.most).has_room((0, 0), graph)

    def begin(self, graph: Graph) -> Filling:
        self.begun.append(Filling(self.most))
        self.begun[-1].graphs.append(graph)
        return self.begun[-1]

    def place(self, graph: Graph) -> None:
        """A graph into the open batch that it fills, or that it leaves useful, or a new one."""
        if not self.fits_alone(graph):
            self.begin(graph)
            return
        fitting = [batch for batch in self.are_open if batch.has_room((0, 0), graph)]
        filled = [batch for batch in fitting if batch.is_filled(128, graph)]
        useful = [batch for batch in fitting if batch.has_room(self.least, graph)]
        choices = filled or useful or (fitting if len(self.are_open) == 8 else [])
        if choices:
            batch = choices[0]
            batch.graphs.append(graph)
        else:
            self.are_open = [*self.are_open[-7:], self.begin(graph)]
            batch = self.are_open[-1]
            self.run(batch)
        if not batch.has_room(self.least):
            self.are_open.remove(batch)

    def run(self, batch: Filling) -> None:
        """The next graphs as they come, while room is left; those above the limits aside."""
        aside = []
        while self.waiting:
            graph = self.waiting[0]
            if not self.fits_alone(graph):
                aside.append(self.waiting.popleft())
            elif batch.has_room(self.room, graph):
                batch.graphs.append(self.waiting.popleft())
            else:
                break
        self.waiting.extendleft(reversed(aside))


def cut_greedily(
    graphs: Sequence[Graph], max_nodes: int | None, max_edges: int | None, *, to_the_end: bool
) -> tuple[list[list[Graph]], list[Graph]]:
    """The batches of a sequence in the order in which they were begun, and what is left over.

    A graph above the limits is a batch of its own. To the end: nothing is left over.
    """
    cutting = Cutting(graphs, (max_nodes or math.inf, max_edges or math.inf))
    left = [b for b in cutting.are_open if not to_the_end and not b.is_filled(20)]
    place = {graph.position: number for number, graph in enumerate(graphs)}
    whole = [batch.graphs for batch in cutting.begun if batch not in left]
    whole.sort(key=lambda batch: place[batch[0].position])
    rest = [graph for batch in left for graph in batch.graphs]
    return whole, sorted(rest, key=lambda graph: place[graph.position])


def budget_batches(
    graphs: Sequence[Graph], *, lane_count: int, max_nodes: int | None, max_edges: int | None
) -> list[list[int]]:
    """The batches of an epoch, each as positions, from its graphs by position (a grain of one)."""
    queues = [
        [(number, place) for place in range(len(lane))]
        for number, lane in enumerate(lanes(graphs, lane_count))
    ]
    sequences: list[list[Graph]] = [[] for _ in queues]
    for graph, (number, _) in zip(graphs, take_turns(queues, 1), strict=True):
        sequences[number].append(graph)
    cuts = [cut_greedily(each, max_nodes, max_edges, to_the_end=False) for each in sequences]
    turns = zip_longest(*(whole for whole, _ in cuts))
    batches = [batch for turn in turns for batch in turn if batch]
    pool = [graph for _, left in cuts for graph in left]
    batches += cut_greedily(pool, max_nodes, max_edges, to_the_end=True)[0]
    return [[graph.position for graph in batch] for batch in batches]
