"""What DESIGN.md weighs: headers, the permutation, decoding, pixels, how batches travel."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from decoding import decoding
from transport import transport

import streamshard as ss
from streamshard.plan import permute
from streamshard.shard import tar

COUNT, NBYTES = 2000, 110_000


def timed(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def check(number: int, block: bytes) -> None:
    assert tar.check_header(block, f"{number:06d}.bin", NBYTES) is None


def headers(folder: Path, rounds: int) -> dict[str, float]:
    """Read and checked at once when a shard is opened, or checked with what is read anyway."""
    with ss.ShardWriter(str(folder / "data")) as writer:
        for number in range(COUNT):
            writer.write({"__key__": f"{number:06d}", "bin": b"x" * NBYTES})
    offsets = ss.open(str(folder / "data")).extent(0, "bin").offset.tolist()
    descriptor = os.open(folder / "data" / "shard-000000.tar", os.O_RDONLY)

    def read(offset: int) -> bytes:
        return os.pread(descriptor, tar.BLOCK, offset - tar.BLOCK)

    def at_once() -> None:
        for number, offset in enumerate(offsets):
            check(number, read(offset))

    blocks = [read(offset) for offset in offsets]

    def with_data() -> None:
        for number, block in enumerate(blocks):
            check(number, block)

    figures = {
        f"ms to check {COUNT:,} headers at once": timed(at_once, rounds) * 1e3,
        "us to check one with its data": timed(with_data, rounds) / COUNT * 1e6,
    }
    os.close(descriptor)
    return figures


def normalized(rounds: int) -> dict[str, float]:
    """64 images of 224 x 224 to float32, by `ss.Normalize` and as usually written."""
    images = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8)
    mean, std = (
        torch.tensor(numbers).view(3, 1, 1)
        for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    figures = {}
    for name, order in (("", torch.contiguous_format), (", channels_last", torch.channels_last)):
        ours = ss.Normalize.imagenet(memory_format=order)
        ways = {
            "Normalize": lambda ours=ours: ours(images),
            "as usually written": lambda order=order: (
                (images.float() / 255 - mean) / std
            ).contiguous(memory_format=order),
        }
        turns = {way: [] for way in ways}
        for _ in range(2 * rounds + 1):
            for way, run in ways.items():
                turns[way].append(timed(run, 1) * 1e3)
        medians = {way: statistics.median(each[1:]) for way, each in turns.items()}
        figures |= {f"ms for 64 images, {way}{name}": value for way, value in medians.items()}
        figures[f"as usually written / Normalize{name}"] = (
            medians["as usually written"] / medians["Normalize"]
        )
    return figures


def measure(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    del workers  # all of it in this process
    places, sizes = np.arange(4096), np.full(4096, 9000)
    keys = permute.key_of(places % 24)
    seconds = timed(lambda: permute.permute(places, sizes, keys), rounds)
    figures = headers(folder, rounds)
    figures["us to permute 128 of 4,096 places"] = seconds / 32 * 1e6
    figures |= decoding(rounds)
    figures |= normalized(rounds)
    figures |= transport()
    for name, value in figures.items():
        print(f"{name:56} {value:,.3f}")
    return figures
