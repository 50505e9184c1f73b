"""Benchmarks: this project and its peers on the same data, in turns, in one run.

python tools/benchmarks.py images    JPEGs of this script's making: decode, crop to 224, batch
python tools/benchmarks.py graphs    random molecules of about 23 nodes, batches of 128
python tools/benchmarks.py plan      10 billion samples in a million shards
python tools/benchmarks.py details   what DESIGN.md's decisions weigh against each other

Machines are noisy, so absolute figures mean little: quote the ratios of one run.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import streamshard as ss

Run = Callable[[], int]  # one epoch; the number of samples
CROP = 224


def identity(batch):
    return batch


def in_turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Samples per second of every contestant in every round, after one round of warming up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            samples = run()
            if number:
                rates[name].append(samples / (time.perf_counter() - begin))
    return rates


def epoch(loader: Iterable, count: Callable[[object], int]) -> int:
    return sum(count(batch) for batch in loader)


# ---- images


def make_jpegs(folder: Path, count: int) -> None:
    """Smooth pictures with texture, 500 x 375 at quality 95: about 110 KB, as ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        picture = picture + rng.normal(0, 9, picture.shape)
        path = folder / f"{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=88)


def pillow_crop(sample) -> tuple[torch.Tensor, int]:
    """What torchvision's RandomResizedCrop does, with Pillow doing the work."""
    image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
    width, height = image.size
    area = width * height * np.random.uniform(0.08, 1.0)
    ratio = np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(width, max(1, round((area * ratio) ** 0.5)))
    h = min(height, max(1, round((area / ratio) ** 0.5)))
    left, top = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
    box = (left, top, left + w, top + h)
    resized = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1), int(sample["cls"])


def images(folder: Path, workers: int) -> dict[str, Run]:
    import webdataset as wds

    make_jpegs(folder / "jpegs", 1000)
    ss.pack_images(folder / "jpegs", folder / "packed", shard_size="16MB")
    tars = sorted(map(str, (folder / "packed").glob("*.tar")))
    torch.set_num_threads(1)
    decode = {"jpg": ss.RandomResizedCrop(CROP)}
    options = {"batch_size": 64, "shuffle": True, "parts": ("jpg", "cls"), "tail": "exact"}

    def of_streamshard(**more) -> Run:
        dataset = ss.ShardDataset(folder / "packed", **options, **more)
        loader = ss.StreamLoader(dataset, num_workers=workers)
        return lambda: epoch(loader, lambda batch: len(batch[1]))

    def of_webdataset(raw: bool) -> Run:
        data = wds.WebDataset(tars, shardshuffle=16, nodesplitter=wds.split_by_node).shuffle(1000)
        if raw:
            data = data.map(lambda sample: (sample["jpg"], int(sample["cls"])))
            data = data.batched(64, partial=True, collation_fn=list)
        else:
            collate = torch.utils.data.default_collate
            data = data.map(pillow_crop).batched(64, partial=True, collation_fn=collate)
        loader = wds.WebLoader(
            data, batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4
        )
        return lambda: epoch(loader, lambda batch: len(batch) if raw else len(batch[1]))

    return {
        "streamshard": of_streamshard(decode=decode),
        "webdataset": of_webdataset(raw=False),
        "streamshard, bytes only": of_streamshard(decode={"jpg": bytes}),
        "webdataset, bytes only": of_webdataset(raw=True),
    }


# ---- graphs


def make_molecules(count: int) -> list:
    """Random graphs with the sizes and fields of ZINC's molecules in PyG."""
    from torch_geometric.data import Data

    rng = torch.Generator().manual_seed(0)
    sizes = torch.randint(16, 31, (count,), generator=rng).tolist()
    return [
        Data(
            x=torch.randint(0, 9, (nodes, 9), generator=rng).float(),
            edge_index=torch.randint(0, nodes, (2, 2 * nodes + 4), generator=rng),
            edge_attr=torch.randint(0, 4, (2 * nodes + 4, 3), generator=rng),
            y=torch.tensor([float(nodes)]),
        )
        for nodes in sizes
    ]


def graphs(folder: Path, workers: int) -> dict[str, Run]:
    from torch_geometric.loader import DataLoader

    molecules = make_molecules(20_000)
    ss.pack_graphs(molecules, folder / "packed", shard_size="16MB")
    torch.set_num_threads(1)
    dataset = ss.ShardDataset(
        folder / "packed", batch_size=128, shuffle=True, parts="graph", tail="exact"
    )

    def of_streamshard(count: int) -> Run:
        loader = ss.StreamLoader(dataset, num_workers=count)
        return lambda: epoch(loader, lambda batch: batch.num_graphs)

    def of_pyg(count: int) -> Run:
        common = {"persistent_workers": True, "prefetch_factor": 4} if count else {}
        loader = DataLoader(molecules, batch_size=128, shuffle=True, num_workers=count, **common)
        return lambda: epoch(loader, lambda batch: batch.num_graphs)

    return {
        f"streamshard, {workers} workers": of_streamshard(workers),
        f"PyG in memory, {workers} workers": of_pyg(workers),
        "streamshard, no workers": of_streamshard(0),
        "PyG in memory, no workers": of_pyg(0),
    }


# ---- plan


def plan() -> dict[str, float]:
    """What one worker of 1,024 ranks x 8 needs before its first sample, and for one more."""
    from streamshard.plan.order import Order, OrderRule
    from streamshard.plan.share import Share, World

    counts = np.full(1_000_000, 10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    rule = OrderRule.settle(counts, world_size=1024, batch_size=256, seed=0, shuffle=True)
    order = Order(counts, rule, epoch=0)
    share = Share(len(order), 0, World(511, 1024), 256, "drop")
    order.rows(share.step(5).positions)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    positions = np.concatenate([share.step(5 + 8 * n).positions for n in range(16)])
    order.rows(positions)
    return {
        "samples": float(len(order)),
        "seconds to the first batch": first,
        "microseconds for each batch after": (time.perf_counter() - begin) / 16 * 1e6,
        "peak MB on top of the imports": (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        )
        / 1e3,
    }


def budgets() -> dict[str, float]:
    """An epoch of a million molecules within budgets, of few graphs a batch and of many."""
    from streamshard.plan.budget import Budget, plan_batches
    from streamshard.plan.order import Order, OrderRule

    rng = np.random.default_rng(0)
    nodes = rng.integers(16, 31, 1_000_000).astype(np.int32)
    edges = (2 * (nodes + rng.integers(-1, 4, len(nodes)))).astype(np.int32)
    counts = np.full(50, len(nodes) // 50)
    order = Order(counts, OrderRule(0, True, 24, 1, 80_000), epoch=0)
    figures = {}
    for limit in (100, 500, 3000):
        begin = time.perf_counter()
        batches = plan_batches(order, counts, nodes, edges, Budget(limit, 2 * limit))
        figures[f"seconds for 10^6 graphs, {limit} nodes"] = time.perf_counter() - begin
        figures[f"fill with {limit} nodes"] = batches.fill
    return figures


# ---- details


def details(folder: Path) -> dict[str, float]:
    """Headers checked at once or with their data, and the price of the permutation."""
    from streamshard.plan import permute
    from streamshard.shard import tar

    with ss.ShardWriter(str(folder / "data")) as writer:
        for number in range(2000):
            writer.write({"__key__": f"{number:06d}", "bin": b"x" * 110_000})
    shards = ss.open(str(folder / "data"))
    offsets = shards.extent(0, "bin").offset.tolist()
    descriptor = os.open(folder / "data" / "shard-000000.tar", os.O_RDONLY)

    def at_once() -> None:
        for number, offset in enumerate(offsets):
            block = os.pread(descriptor, tar.BLOCK, offset - tar.BLOCK)
            assert tar.check_header(block, f"{number:06d}.bin", 110_000) is None

    blocks = [os.pread(descriptor, tar.BLOCK, offset - tar.BLOCK) for offset in offsets]

    def with_data() -> None:
        for number, block in enumerate(blocks):
            assert tar.check_header(block, f"{number:06d}.bin", 110_000) is None

    def timed(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(7):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    places = np.arange(4096)
    sizes, keys = np.full(4096, 9000), permute.key_of(places % 24)
    figures = {
        "ms to check 2,000 headers at once": timed(at_once) * 1e3,
        "us to check one with its data": timed(with_data) / len(blocks) * 1e6,
        "us to permute 128 of 4,096 places": timed(lambda: permute.permute(places, sizes, keys))
        / 32
        * 1e6,
    }
    os.close(descriptor)
    return figures


def report(rates: dict[str, list[float]]) -> dict[str, float]:
    """Print medians, and each pair's ratio: contestants come in twos, ours first."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"{name:32} {median:12,.0f} samples/s  (of {len(rates[name])} epochs)")
    names, ratios = list(medians), {}
    for ours, theirs in zip(names[::2], names[1::2], strict=True):
        ratios[f"{ours} / {theirs}"] = medians[ours] / medians[theirs]
    for pair, ratio in ratios.items():
        print(f"{pair}: {ratio:.2f}")
    return {**medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["images", "graphs", "plan", "details"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streamshard-bench-"))
    try:
        if args.what in ("plan", "details"):
            figures = {**plan(), **budgets()} if args.what == "plan" else details(folder)
            for name, value in figures.items():
                print(f"{name:36} {value:,.3f}")
        else:
            contestants = {"images": images, "graphs": graphs}[args.what](folder, args.workers)
            figures = report(in_turns(contestants, args.rounds))
    finally:
        shutil.rmtree(folder)
    if args.json:
        names = ("torch", "numpy", "webdataset", "torch_geometric", "streamshard")
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": sys.version}
        versions = {name: version(name) for name in names}
        result = {"what": args.what, "figures": figures, "machine": machine, "versions": versions}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
