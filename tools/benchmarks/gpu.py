"""The way to a GPU: the copy, how long a small ResNet waits for images, where they are decoded."""

import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from pictures import make_jpegs
from torch import nn
from turns import Run, epoch, in_turns

import streamshard as ss

CROP = 224
SHAPE = (256, 3, CROP, CROP)  # of the batches that are only copied, 38.5 MB
COPIES, BATCH, WARM = 50, 64, 5
CPU_DECODE, GPU_DECODE = "decoded by all cores", "decoded by the GPU"


class Unwritten:
    """In place of a dataset: workers hand over blocks as they are; all that is left is the way."""

    def __init__(self) -> None:
        from streamshard.stream.block import plain_memory
        from streamshard.stream.builder import BlockBuilder

        self.course, self.steps = self, sys.maxsize
        builder = BlockBuilder()
        builder.tensor("images", np.zeros(SHAPE, np.uint8))
        self.layout = builder.finish(plain_memory, "images").layout

    def next_epoch(self, *_):
        return None

    def share(self, *_):
        return self

    def make(self, cursor, world, numbers, allocate, *_):
        from streamshard.stream.block import Block

        for _ in numbers:
            yield Block(allocate(self.layout.nbytes), self.layout)


def pinned_copies(device: torch.device) -> Callable[[], None]:
    """What CUDA alone does: the same bytes from locked pages, one copy after another."""
    memory = torch.empty(SHAPE, dtype=torch.uint8).pin_memory()
    side = torch.cuda.Stream(device)

    def run() -> None:
        with torch.cuda.stream(side):
            for _ in range(COPIES):
                memory.to(device, non_blocking=True)

    return run


def loader_copies(device: torch.device, workers: int) -> tuple[Callable[[], None], Callable]:
    """What a StreamLoader does with a block; and what ends it."""
    from streamshard.stream.device import LENT, to_device
    from streamshard.stream.on_device import Arrival
    from streamshard.stream.workers import WorkerPool

    pool = WorkerPool(
        Unwritten(), ss.World(), workers=workers, threads=0, slots=4 + LENT, reuse=True,
        restarts=0, start_method=None, device=device,
    )  # fmt: skip
    pool.start(None)
    blocks = ((pool.receive(step), None) for step in itertools.count())
    batches = to_device(blocks, device, pool.give_back, Arrival({}, None, device))

    def run() -> None:
        for _ in itertools.islice(batches, COPIES):
            pass

    def end() -> None:
        batches.close()
        pool.close()

    return run, end


def transport(device: torch.device, workers: int, rounds: int) -> dict[str, float]:
    run, end = loader_copies(device, workers)
    runs = {"StreamLoader": run, "pinned copy": pinned_copies(device)}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, copy in runs.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            copy()
            torch.cuda.synchronize()
            if number:
                seconds = time.perf_counter() - begin
                rates[name].append(COPIES * np.prod(SHAPE) / seconds / 1e9)
    end()
    medians = {name: statistics.median(each) for name, each in rates.items()}
    figures = {f"GB/s to the GPU, {name}": value for name, value in medians.items()}
    figures["StreamLoader / pinned copy"] = medians["StreamLoader"] / medians["pinned copy"]
    return figures


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.short = nn.Conv2d(inner, outer, 1, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.way(x) + self.short(x))


def small_resnet() -> nn.Module:
    """torchvision's ResNet-18 where it is installed, else one of half as many layers."""
    if importlib.util.find_spec("torchvision"):
        from torchvision.models import resnet18

        return resnet18(num_classes=10)
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Residual(64, 128), Residual(128, 256), Residual(256, 512),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def idle_share(batches: Iterable, device: torch.device) -> float:
    """The part of an epoch in which the GPU has no step to do, by events in its own stream."""
    model = small_resnet().to(device, torch.bfloat16, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = []
    for images, labels in batches:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()  # behind the copy, which this stream waits for
        loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end.record()
        steps.append((begin, end))
    torch.cuda.synchronize()
    steps = steps[WARM:]
    busy = sum(begin.elapsed_time(end) for begin, end in steps)
    return 1 - busy / steps[0][0].elapsed_time(steps[-1][1])


def loaders(url: Path, device: torch.device, workers: int) -> dict[str, ss.StreamLoader]:
    crop = ss.RandomResizedCrop(CROP)
    ways = {CPU_DECODE: (crop, os.cpu_count() or 1)}
    if importlib.util.find_spec("torchvision"):
        ways[GPU_DECODE] = ss.GpuDecode(crop), workers
    normalize = ss.Normalize.imagenet(dtype=torch.bfloat16)
    return {
        name: ss.StreamLoader(
            ss.ShardDataset(
                url, batch_size=BATCH, shuffle=True, parts=("jpg", "cls"), decode={"jpg": decode}
            ),
            num_workers=number, device=device, on_device={"jpg": normalize},
        )
        for name, (decode, number) in ways.items()
    }  # fmt: skip


def on_device_already(device: torch.device, steps: int) -> Iterable:
    """Batches that nobody has to wait for: what is idle then is the loop's own."""
    images = torch.randn(BATCH, 3, CROP, CROP, device=device, dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, device=device, dtype=torch.int64)
    return ((images, labels) for _ in range(steps))


def nvjpeg_alone(folder: Path, device: torch.device) -> float:
    """Images/s of nvJPEG by itself, in batches, without crop or loader."""
    from streamshard.stream.gpu_decode import nvjpeg

    paths = sorted(folder.rglob("*.jpg"))[:256]
    files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        nvjpeg(files, device)  # returns when it is done
        seconds.append(time.perf_counter() - begin)
    return len(files) / statistics.median(seconds[1:])


def through(loader: ss.StreamLoader) -> Run:
    def run() -> int:
        samples = epoch(loader, lambda batch: len(batch[1]))
        torch.cuda.synchronize()
        return samples

    return run


def measure(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    if not torch.cuda.is_available():
        print("tools/bench gpu: torch finds no CUDA device here, so nothing was measured")
        raise SystemExit(2)
    device = torch.device("cuda", torch.cuda.current_device())
    print(torch.cuda.get_device_name(device))
    figures = transport(device, workers, rounds)
    make_jpegs(folder / "jpegs", 2000)
    ss.pack_images(folder / "jpegs", folder / "packed", shard_size="16MB")
    there = loaders(folder / "packed", device, workers)
    rates = in_turns({name: through(loader) for name, loader in there.items()}, rounds)
    figures |= {f"images/s, {name}": statistics.median(each) for name, each in rates.items()}
    if GPU_DECODE in there:
        figures["images/s, nvJPEG alone"] = nvjpeg_alone(folder / "jpegs", device)
        figures[f"{GPU_DECODE} / {CPU_DECODE}"] = (
            figures[f"images/s, {GPU_DECODE}"] / figures[f"images/s, {CPU_DECODE}"]
        )
    steps = len(there[CPU_DECODE])
    idle = {name: [idle_share(loader, device) for _ in range(rounds)]
            for name, loader in there.items()}  # fmt: skip
    idle["on the GPU already"] = [
        idle_share(on_device_already(device, steps), device) for _ in range(rounds)
    ]
    figures |= {f"GPU idle, images {name}": statistics.median(each) for name, each in idle.items()}
    for loader in there.values():
        loader.close()
    for name, value in figures.items():
        print(f"{name:48} {value:12,.3f}")
    return figures
