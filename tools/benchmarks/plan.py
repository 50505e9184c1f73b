"""The plan of an epoch for 1,024 ranks x 8 workers, beside MosaicML streaming's.

Every figure comes from a process of its own, so that its peak memory is its own; what the imports
took is not counted. The planners take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamshard.plan.budget import Budget, plan_batches
from streamshard.plan.order import Order, OrderRule
from streamshard.shard.columns import Strings
from streamshard.shard.manifest import Manifest, Part, ShardTable

NODES, RANKS_PER_NODE, WORKERS, BATCH_SIZE, PER_SHARD = 128, 8, 8, 256, 10_000
BOTH, OURS = (10**6, 10**7, 10**8), 10**10  # samples; the peer's memory is that of the epoch
PLANNERS = Path(__file__).parent / "planners"
PEERS = Path(os.environ.get("STREAMSHARD_PEERS", Path(__file__).parents[2] / ".peers"))
Figures = dict[str, float]


def answer_of(*command: object) -> Figures:
    """What a planner's process says."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def streamshard(samples: int, *options: object) -> Figures:
    numbers = samples, NODES * RANKS_PER_NODE, WORKERS, BATCH_SIZE, PER_SHARD
    return answer_of(sys.executable, PLANNERS / "of_streamshard.py", *numbers, *options)


def mosaicml(python: Path, samples: int) -> Figures:
    numbers = samples, NODES, RANKS_PER_NODE, WORKERS, BATCH_SIZE, PER_SHARD
    return answer_of(python, "-E", PLANNERS / "of_mosaicml.py", *numbers)


def medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def make_manifest(folder: Path, shards: int) -> None:
    """The sidecars of a dataset of so many shards, without the shards."""
    names = Strings.of([f"shard-{number:06d}.tar" for number in range(shards)])
    hashes = np.random.default_rng(0).integers(0, 256, (2, shards, 32), np.uint8)
    table = ShardTable(
        {
            "name.data": names.data,
            "name.ends": names.ends,
            "samples": np.full(shards, PER_SHARD),
            "nbytes": np.full(shards, 10**9),
            "sha256": hashes[0],
            "index_sha256": hashes[1],
        }
    )
    for name, data in Manifest({"jpg": Part("jpg", "image")}, table).to_files().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def measure(folder: Path, workers: int, rounds: int) -> Figures:
    del workers  # of the loaders in other benchmarks; here there are always eight
    make_manifest(folder, OURS // PER_SHARD)
    python = PEERS / "mosaicml" / "bin" / "python"
    runs = {f"streamshard {samples:,}": (lambda n=samples: streamshard(n)) for samples in BOTH}
    if python.exists():
        runs |= {f"MosaicML {n:,}": (lambda n=n: mosaicml(python, n)) for n in BOTH}
    else:
        print("MosaicML's planner is not there to compare with: `tools/peers mosaicml` installs it")
    fresh, resumed, opening, walk = "fresh", "resumed at 90 %", "with the manifest", "whole epoch"
    runs |= {
        fresh: lambda: streamshard(OURS),
        resumed: lambda: streamshard(OURS, "--percent", 90),
        opening: lambda: streamshard(OURS, "--manifest", folder),
        walk: lambda: streamshard(OURS, "--walk"),
    }
    answers: dict[str, list[Figures]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            answers[name].append(run())
    took = {name: medians(each) for name, each in answers.items()}
    figures = beside(took)
    figures |= alone(took[fresh], took[resumed], took[opening], took[walk])
    return figures | budgets()


def beside(took: dict[str, Figures]) -> Figures:
    """Print and return what both planners need for the sizes that both can do."""
    figures: Figures = {}
    world = f"{NODES * RANKS_PER_NODE:,} ranks x {WORKERS} workers, batches of {BATCH_SIZE}"
    print(f"{world}: to the first batch, medians; in brackets, times what streamshard takes")
    for samples in BOTH:
        ours, theirs = took[f"streamshard {samples:,}"], took.get(f"MosaicML {samples:,}")
        contestants = {"streamshard": (ours["seconds"], ours["MB"])}
        if theirs:
            contestants |= {
                "MosaicML's two functions": (theirs["seconds"], theirs["MB"]),
                "MosaicML's whole plan": (theirs["whole seconds"], theirs["whole MB"]),
            }
        print(f"\n{samples:,} samples")
        for who, (seconds, size) in contestants.items():
            ratios = seconds / ours["seconds"], size / ours["MB"]
            line = (
                f"{who:26} {seconds:9.4f} s ({ratios[0]:7,.0f}) {size:9.1f} MB ({ratios[1]:7,.0f})"
            )
            print(line)
            values = {"s": seconds, "MB": size, "times s": ratios[0], "times MB": ratios[1]}
            figures |= {f"{samples:,}: {who}: {name}": value for name, value in values.items()}
    return figures


def alone(fresh: Figures, resumed: Figures, opening: Figures, walk: Figures) -> Figures:
    """Print and return what 10 billion samples in a million shards take."""
    figures = {
        "seconds to the first batch": fresh["seconds"],
        "peak MB": fresh["MB"],
        "seconds to the first batch at 90 % of the epoch": resumed["seconds"],
        "the same, as a ratio to a fresh start": resumed["seconds"] / fresh["seconds"],
        "seconds to the first batch, the manifest opened first": opening["seconds"],
        "  of these to open the manifest": opening["open_seconds"],
        "  peak MB": opening["MB"],
        "  of these mapped from the shard table, shared by a host": opening["mapped_MB"],
        "batches in the epoch of a rank": walk["steps"],
        "microseconds for each": walk["us"],
        "MB by which memory grew from the first to the last": walk["grown_MB"],
        "MB above that at the peak in between": walk["peak_MB"],
    }
    print(f"\nstreamshard, {OURS:,} samples in {OURS // PER_SHARD:,} shards")
    for name, value in figures.items():
        print(f"{name:56} {value:12,.3f}")
    return figures


def budgets() -> Figures:
    """Print and return what an epoch of a million molecules takes, and how full its batches are."""
    rng = np.random.default_rng(0)
    nodes = rng.integers(16, 31, 1_000_000).astype(np.int32)
    edges = (2 * (nodes + rng.integers(-1, 4, len(nodes)))).astype(np.int32)
    counts = np.full(50, len(nodes) // 50)
    order = Order(counts, OrderRule(0, True, 24, 1, 80_000), epoch=0)
    figures: Figures = {}
    for limit in (100, 500, 3000):
        begin = time.process_time()
        batches = plan_batches(order, counts, nodes, edges, Budget(limit, 2 * limit))
        figures[f"seconds for 10^6 graphs, {limit} nodes a batch"] = time.process_time() - begin
        figures[f"fill with {limit} nodes a batch"] = batches.fill
    least = {
        limit: min(
            plan_batches(
                Order(np.full(10, 2000), OrderRule(0, True, lanes, 1, 1024), epoch=0),
                np.full(10, 2000), nodes[:20_000], edges[:20_000], Budget(limit, 2 * limit + 100),
            ).fill
            for lanes in (1, 2, 8, 24, 96)
        )
        for limit in (60, 100, 500, 3000)
    }  # fmt: skip
    figures |= {
        f"least fill over 1 to 96 lanes, 20,000 graphs, {limit} nodes a batch": fill
        for limit, fill in least.items()
    }
    print("\nwithin a budget")
    for name, value in figures.items():
        print(f"{name:64} {value:8.3f}")
    return figures
