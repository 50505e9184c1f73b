"""What each reader has to read: pairs of reader and shard, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamshard.plan.intervals import distinct
from streamshard.plan.order import Ints
from streamshard.plan.survey import Reads

_FEW = 16  # readers of which each is told


@dataclass(frozen=True)
class Spread:
    """A figure over all readers.

    Attributes:
        least: None where it is estimated; so are `most` and their readers.
        mean: Over all readers, those that read nothing among them.
        most: The largest.
    """

    least: int | None
    mean: float
    most: int | None


@dataclass(frozen=True)
class Load:
    """What readers (all workers, or all ranks) read of the shards.

    Attributes:
        readers: How many there are.
        shards: Shards of which a reader reads at least one sample.
        bytes: The sizes of their tars, whole.
        each: Shards and bytes of every reader, where there are at most 16 and nothing is estimated.
        fetches: Shards of all readers together: a shard counts once for each that reads of it.
        shared: Shards that more than one reader reads.
    """

    readers: int
    shards: Spread
    bytes: Spread
    each: tuple[tuple[int, int], ...] | None
    fetches: int
    shared: int


def worker_load(reads: Reads, nbytes: Ints, workers: int) -> Load:
    """What workers read.

    Args:
        reads: Who reads which shard.
        nbytes: (shards,) int64, the size of each shard's tar.
        workers: Of all ranks.
    """
    return _load(reads, nbytes, workers)


def rank_load(reads: Reads, nbytes: Ints, workers: int, workers_per_rank: int) -> Load:
    """What ranks read, all workers of a rank taken together; see `worker_load`."""
    pairs = reads.workers // workers_per_rank * len(nbytes) + reads.shards
    ranks, shards = np.divmod(distinct([pairs]), max(len(nbytes), 1))
    together = reads._replace(workers=ranks, shards=shards)
    return _load(together, nbytes, workers // workers_per_rank)


def _load(reads: Reads, nbytes: Ints, readers: int) -> Load:
    shared = int((np.bincount(reads.shards) > 1).sum())
    if len(reads.looked_at) < reads.of:
        return _estimate(reads, nbytes, readers, shared)
    shards = np.bincount(reads.workers, minlength=readers)
    # The sums of bincount are floats; those of the sorted pairs' running total stay integers.
    order = np.argsort(reads.workers, kind="stable")
    totals = np.concatenate([[0], np.cumsum(nbytes[reads.shards[order]])])
    ends = np.cumsum(shards)
    sizes = totals[ends] - totals[ends - shards]
    each = tuple(zip(shards.tolist(), sizes.tolist(), strict=True)) if readers <= _FEW else None
    return Load(readers, _spread(shards), _spread(sizes), each, int(shards.sum()), shared)


def _spread(figures: Ints) -> Spread:
    return Spread(int(figures.min()), float(figures.mean()), int(figures.max()))


def _estimate(reads: Reads, nbytes: Ints, readers: int, shared: int) -> Load:
    """From some shards: fetches in proportion to their number, bytes to their bytes."""
    scale = reads.of / len(reads.looked_at)
    fetches = len(reads.shards) * scale
    looked_at = max(int(nbytes[reads.looked_at].sum()), 1)
    read = int(nbytes[reads.shards].sum()) * int(nbytes.sum()) / looked_at
    return Load(
        readers,
        Spread(None, fetches / readers, None),
        Spread(None, read / readers, None),
        None,
        round(fetches),
        round(shared * scale),
    )
