"""streamshard's plan for one worker: of_streamshard.py SAMPLES RANKS WORKERS BATCH SHARD [options]

What a worker does from nothing to the rows of its first batch, and of those that are resolved with
it. --percent says where in the epoch the pass begins, --walk goes on through all steps of the
rank, --manifest opens that dataset and takes the shards' counts from it.
"""

import argparse

import numpy as np
from meter import Meter, answer, resident

from streamshard.plan.order import Ints, Order, OrderRule
from streamshard.plan.share import Share, World
from streamshard.shard.manifest import read_manifest
from streamshard.store.local import LocalStore

LOOK_AHEAD = 4096  # positions, as in streamshard/stream/schedule.py


def rows(order: Order, share: Share, steps: range) -> None:
    order.rows(np.concatenate([share.step(number).positions for number in steps]))


def walk(order: Order, share: Share, at_once: int) -> None:
    """All steps of the rank, and what memory grew by meanwhile."""
    before, meter = resident(), Meter()
    for begin in range(0, share.steps, at_once):
        rows(order, share, range(begin, min(begin + at_once, share.steps)))
    seconds = meter.seconds() / share.steps
    answer(steps=share.steps, us=seconds * 1e6, grown_MB=resident() - before, peak_MB=meter.peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("samples", "ranks", "workers", "batch_size", "per_shard"):
        parser.add_argument(name, type=int)
    parser.add_argument("--percent", type=int, default=0)
    parser.add_argument("--manifest", metavar="FOLDER")
    parser.add_argument("--walk", action="store_true")
    args = parser.parse_args()

    meter, opened = Meter(), {}
    counts: Ints = np.empty(0, np.int64)
    if args.manifest:
        counts = read_manifest(LocalStore(args.manifest), args.manifest).table.samples
        opened = {"open_seconds": meter.seconds(), "mapped_MB": meter.peak()}
    else:
        counts = np.full(args.samples // args.per_shard, args.per_shard)
    rule = OrderRule.settle(
        counts, world_size=args.ranks, batch_size=args.batch_size, seed=0, shuffle=True
    )
    order = Order(counts, rule, epoch=0)
    world = World(args.ranks // 2, args.ranks)
    begin = len(order) * args.percent // 100
    share = Share(len(order), begin, world, args.batch_size, "drop")
    at_once = max(1, LOOK_AHEAD // args.batch_size)
    rows(order, share, range(0, share.steps, args.workers)[:at_once])
    if args.walk:
        walk(order, share, at_once)
    else:
        answer(seconds=meter.seconds(), MB=meter.peak(), **opened)


if __name__ == "__main__":
    main()
