"""How a dataset will be read: a plan surveyed from the manifest and a few indexes, without data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamshard.errors import UsageError
from streamshard.plan.deal import Deal
from streamshard.plan.load import Load, rank_load, worker_load
from streamshard.plan.mixing import Measure, Mixing, mixing
from streamshard.plan.order import Order, OrderRule, Shuffle
from streamshard.plan.picture import Picture, picture
from streamshard.plan.share import Tail
from streamshard.plan.survey import reads
from streamshard.stream.likeness import Likeness, likeness
from streamshard.stream.reader import Shards

__all__ = [
    "Likeness",
    "Load",
    "Measure",
    "Mixing",
    "Picture",
    "Plan",
    "Survey",
    "picture_of",
    "survey",
]


@dataclass(frozen=True)
class Plan:
    """One epoch of a dataset for a world, before anything is read.

    Attributes:
        shards: The dataset.
        rule: What its orders are made by.
        order: Of the epoch.
        deal: Among whom it is divided.
        epoch: 0, 1, ….
        workers: Of each rank, as given: 0 is the loader's own process.
    """

    shards: Shards
    rule: OrderRule
    order: Order
    deal: Deal
    epoch: int
    workers: int

    @classmethod
    def of(
        cls,
        shards: Shards,
        *,
        world_size: int,
        workers: int,
        batch_size: int,
        shuffle: Shuffle = True,
        seed: int = 0,
        epoch: int = 0,
        tail: Tail = "drop",
        lanes: int | None = None,
        grain: int | None = None,
        window: int | None = None,
    ) -> Plan:
        """The plan that a `ShardDataset` of the same arguments follows.

        Args:
            shards: The dataset.
            world_size: Ranks.
            workers: Of each rank; 0 is the loader's own process.
            batch_size: Samples per rank and step.
            shuffle: False, True or "full".
            seed: Of the order.
            epoch: Which epoch.
            tail: What becomes of an incomplete last global batch.
            lanes: As `ShardDataset` has it; likewise `grain` and `window`.
            grain: Samples that a lane gives at a time.
            window: Samples that are shuffled among each other.

        Raises:
            UsageError: An argument breaks its rule, or `drop` leaves nothing.
        """
        if workers < 0:
            raise UsageError(f"workers is {workers}; it must be at least 0")
        counts = shards.manifest.table.samples
        deal = Deal(int(counts.sum()), world_size, max(workers, 1), batch_size, tail)
        if not deal.steps:
            raise UsageError(
                f"{shards.where} has {deal.total} samples, fewer than one global batch of "
                f'{world_size} x {batch_size}, so tail="drop" drops all of them; use "pad", '
                '"exact", or a smaller batch size'
                if deal.total
                else f"{shards.where} has no samples; there is nothing to plan"
            )
        rule = OrderRule.settle(
            counts,
            world_size=world_size,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lanes=lanes,
            grain=grain,
            window=window,
        )
        return cls(shards, rule, Order(counts, rule, epoch), deal, epoch, workers)

    def in_flight(self, prefetch: int) -> int:
        """Samples that all workers of all ranks may have ready, or in the making, at once.

        Args:
            prefetch: Batches that each worker may have ready, as `StreamLoader` has it; without
                workers a batch is made when it is asked for.
        """
        batches = self.workers * prefetch if self.workers else 1
        return self.deal.global_batch * batches


@dataclass(frozen=True)
class Survey:
    """What a plan comes to.

    Attributes:
        steps: Of the epoch, the same on every rank.
        dropped: Samples that nobody receives.
        padded: Repeats that fill the last global batch.
        shards: Shards that have a sample.
        shards_seen: Of how many of these the readers were found; what follows is exact where it is
            all of them, else an estimate.
        workers: What the workers of all ranks read.
        ranks: What ranks read.
        mixing: How well the order mixes.
        classes: How well it mixes classes, where there are any.
    """

    steps: int
    dropped: int
    padded: int
    shards: int
    shards_seen: int
    workers: Load
    ranks: Load
    mixing: Mixing
    classes: Likeness | None


def survey(plan: Plan) -> Survey:
    """Survey a plan; about a second for any size, and no tar is opened.

    Raises:
        DamagedError: An index is not the one that the manifest was written with.
        StoreError: An index can't be read.
    """
    deal, table = plan.deal, plan.shards.manifest.table
    counts, nbytes = np.asarray(table.samples), np.asarray(table.nbytes)
    found = reads(plan.order, plan.rule, deal, counts)
    return Survey(
        steps=deal.steps,
        dropped=deal.dropped,
        padded=deal.padded,
        shards=found.of,
        shards_seen=len(found.looked_at),
        workers=worker_load(found, nbytes, deal.all_workers),
        ranks=rank_load(found, nbytes, deal.all_workers, deal.workers),
        mixing=mixing(plan.order, deal, counts),
        classes=likeness(plan.shards, plan.order, deal),
    )


def picture_of(plan: Plan) -> Picture:
    """Which worker reads which shard when, as a grid of cells."""
    return picture(plan.order, plan.deal, plan.rule.grain)
