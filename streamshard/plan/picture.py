"""Which worker reads which shard when, as a grid of cells: integers for somebody else to colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamshard.plan.deal import Deal
from streamshard.plan.intervals import chunks, distinct, spread_out
from streamshard.plan.order import Ints, Order
from streamshard.plan.survey import WALKED

NOBODY, SEVERAL = -1, -2
_ROWS, _COLUMNS = 600, 1500  # cells, about as many as can be told apart on a screen
_TOLD_APART = 20  # colours
_FEWEST = 300  # columns
_MANY_LANES, _SHOWN_LANES = 32, 16  # of many lanes with many shards, the first ones are shown


@dataclass(frozen=True)
class Picture:
    """An epoch: time from left to right, shards from top to bottom as the epoch lays them out.

    Attributes:
        readers: (rows, columns) int64, who reads of that shard in that time: a worker, as `Deal`
            numbers them, or a rank; NOBODY, or SEVERAL.
        by_rank: Whether readers are ranks, where there are more workers than colours.
        shards: (rows,) int64, the shard of each row.
        lane_rows: (lanes shown + 1,) float64, the row in which each lane begins, and the end; a
            fraction where it begins inside a shard.
        lanes: Of the order.
        turns_end: Steps until the lanes have no whole grain each, and what they have left follows.
        is_batches: Whether each column is one batch, the ranks of a step side by side.
        looked_at: Samples of each shard that were looked at, at most; None: all.
    """

    readers: Ints
    by_rank: bool
    shards: Ints
    lane_rows: NDArray[np.float64]
    lanes: int
    turns_end: float
    is_batches: bool
    looked_at: int | None


def picture(order: Order, deal: Deal, grain: int) -> Picture:
    """Draw an epoch into at most 600 x 1500 cells.

    More than 600 shards are shown at equal distances, and where there are more than 32 lanes too,
    only those of the first 16. Of shards with more than 2**19 samples together, samples at equal
    distances are looked at.

    Args:
        order: Of the epoch.
        deal: Among whom it is divided.
        grain: Of the order's rule.
    """
    slots, shown = _slots(order)
    counts = order.starts[slots + 1] - order.starts[slots]
    taken = counts
    if counts.sum() > WALKED:
        taken = np.minimum(counts, max(WALKED // len(slots), 1))
    rows, row = spread_out(np.zeros_like(taken), taken)
    row = row * counts[rows] // taken[rows]
    by_rank = deal.all_workers > _TOLD_APART
    readers = deal.world_size if by_rank else deal.all_workers
    columns = _columns(order, deal, None if taken is counts else int(taken.max()))
    keys = []
    for chunk in chunks(len(rows)):
        positions = order.positions(order.shards[slots[rows[chunk]]], row[chunk])
        places = np.concatenate([positions, positions + deal.total])  # `pad`'s repeats follow
        received = places < deal.dealt
        places, its_row = places[received], np.tile(rows[chunk], 2)[received]
        worker = deal.workers_of(places)
        cell = its_row * columns + _column(deal, columns, places, worker // deal.workers)
        keys.append(distinct([cell * readers + (worker // deal.workers if by_rank else worker)]))
    begins = [*order.starts[slots], order.starts[slots[-1] + 1]]
    lanes = len(order.edges) - 1
    return Picture(
        _cells(distinct(keys), readers, (len(slots), columns)),
        by_rank,
        order.shards[slots],
        np.interp(order.edges[: shown + 1], begins, np.arange(len(slots) + 1)),
        lanes,
        lanes * order.turns * grain / deal.global_batch,
        columns == deal.steps * deal.world_size,
        None if taken is counts else int(taken.max()),
    )


def _columns(order: Order, deal: Deal, looked_at: int | None) -> int:
    """One for each batch where there is room."""
    batches = deal.steps * deal.world_size
    if batches <= _COLUMNS:
        return batches
    # Wide enough for a whole turn, in which every lane comes once; and for several of the samples
    # that are looked at, as gaps in a shard that is read all the time would mislead.
    turns = order.turns if order.turns >= _FEWEST else _COLUMNS
    dense = _COLUMNS if looked_at is None else max(looked_at // 4, _FEWEST)
    return min(turns, dense, _COLUMNS)


def _column(deal: Deal, columns: int, places: Ints, rank: Ints) -> Ints:
    if columns == deal.steps * deal.world_size:
        return places // deal.global_batch * deal.world_size + rank
    return places * columns // (deal.steps * deal.global_batch)


def _slots(order: Order) -> tuple[Ints, int]:
    """The shards that are shown, as they are laid out, and how many lanes' they are."""
    filled, lanes = np.flatnonzero(np.diff(order.starts)), len(order.edges) - 1
    if len(filled) > _ROWS and lanes > _MANY_LANES:
        lanes = _SHOWN_LANES
        filled = filled[order.starts[filled] < order.edges[lanes]]
    some = np.linspace(0, len(filled) - 1, min(len(filled), _ROWS)).astype(np.int64)
    return filled[some], lanes


def _cells(keys: Ints, readers: int, shape: tuple[int, int]) -> Ints:
    """The reader of each cell from keys cell * readers + reader, each once and ascending."""
    cell, reader = np.divmod(keys, readers)
    grid = np.full(shape[0] * shape[1], NOBODY, np.int64)
    grid[cell] = reader
    grid[cell[1:][np.diff(cell) == 0]] = SEVERAL
    return grid.reshape(shape)
