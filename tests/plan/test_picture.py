from __future__ import annotations

from typing import Any, cast
from unittest.mock import patch

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamshard.plan import picture as picture_module
from streamshard.plan.deal import Deal
from streamshard.plan.order import Order, OrderRule
from streamshard.plan.picture import NOBODY, SEVERAL, picture
from streamshard.plan.share import Share, Tail, World
from tests.plan.draw import any_rules, array, samples_of, shard_counts, tails


def read_in_each_batch(order: Order, deal: Deal) -> dict[tuple[int, int, int], int]:
    """The worker that reads a shard in a step of a rank, by (shard, step, rank)."""
    samples, found = samples_of(order), {}
    for rank in range(deal.world_size):
        share = Share(deal.total, 0, World(rank, deal.world_size), deal.batch_size, deal.tail)
        for step in range(share.steps):
            for position in share.step(step).positions.tolist():
                worker = rank * deal.workers + step % deal.workers
                found[samples[position][0], step, rank] = worker
    return found


@settings(max_examples=100, deadline=None)
@given(
    counts=shard_counts.filter(lambda counts: sum(counts) > 0),
    rule=any_rules,
    size=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12)),
    tail=tails,
)
def test_every_batch_of_a_small_epoch_is_drawn(
    counts: list[int], rule: OrderRule, size: tuple[int, int, int], tail: str
) -> None:
    deal, order = Deal(sum(counts), *size, cast("Tail", tail)), Order(array(counts), rule, 0)
    # Of `pad`'s repeats one round is drawn; a global batch larger than the epoch may have several.
    assume(deal.steps and deal.dealt <= 2 * deal.total)
    drawn = picture(order, deal, rule.grain)
    found = {
        (int(drawn.shards[row]), *divmod(column, deal.world_size)): int(drawn.readers[row, column])
        for row, column in np.argwhere(drawn.readers != NOBODY).tolist()
    }
    assert found == read_in_each_batch(order, deal)
    assert drawn.is_batches
    assert drawn.looked_at is None
    laid_out = [shard for shard in order.shards.tolist() if counts[shard]]
    assert drawn.shards.tolist() == laid_out


def drawn_of(shards: int, samples: int, *size: int, **rule: Any) -> picture_module.Picture:
    counts = array([samples] * shards)
    deal = Deal(shards * samples, size[0], size[1], size[2], "drop")
    settled = OrderRule.settle(
        counts, world_size=size[0], batch_size=size[2], **{"seed": 0, "shuffle": True, **rule}
    )
    return picture(Order(counts, settled, 0), deal, settled.grain)


def test_a_large_epoch_fits_a_screen() -> None:
    for size in ((2, 2, 32), (512, 4, 16)):
        drawn = drawn_of(30_000, 500, *size)
        rows, columns = drawn.readers.shape
        assert 50 < rows == len(drawn.shards) <= 600
        assert 300 <= columns <= 1500
        assert not drawn.is_batches
        assert drawn.by_rank == (size[0] * size[1] > 20)


def test_of_many_lanes_the_first_are_drawn_each_by_its_owner() -> None:
    drawn = drawn_of(30_000, 500, 512, 4, 16)
    assert drawn.lanes > 16 == len(drawn.lane_rows) - 1
    edges = drawn.lane_rows.tolist()
    for lane in range(16):
        inside = drawn.readers[int(np.ceil(edges[lane])) : int(edges[lane + 1])]
        present, cells = np.unique(inside[inside >= 0], return_counts=True)
        assert present[cells.argmax()] == lane
        assert cells.max() > 0.97 * cells.sum()


def test_where_several_read_in_one_cell_the_picture_says_so() -> None:
    with patch.object(picture_module, "_COLUMNS", 10), patch.object(picture_module, "_FEWEST", 5):
        drawn = drawn_of(20, 500, 2, 2, 8, shuffle=False)
    assert set(np.unique(drawn.readers)) == {NOBODY, SEVERAL}
    assert ((drawn.readers == SEVERAL).sum(axis=1) == 1).all()  # pack order: a diagonal
