"""Epoch after epoch: no process grows, in private memory, open files, threads or mapped blocks."""

from __future__ import annotations

import gc
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch_geometric.data import Data

import streamshard as ss
from tests.stream.test_workers import pids

MB = 1 << 20
LIMIT = 0.1  # MB of private memory an epoch


@dataclass(frozen=True)
class Size:
    """What a process has at a moment.

    Attributes:
        private: Bytes of memory that only it has, blocks left out.
        counts: Open files, threads, and blocks that are mapped.
    """

    private: int
    counts: tuple[int, int, int]


def size_of(pid: int) -> Size:
    """What a process has now."""
    home, private, blocks, counted = Path(f"/proc/{pid}"), 0, 0, set[str]()
    for line in (home / "smaps").read_text().splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):  # the first line of a mapping
            counted = {"Private_Dirty:", "Private_Clean:"}
            if "/memfd:streamshard" in value:
                blocks, counted = blocks + 1, set()
            elif ".so" in value or "/bin/" in value:
                # Its clean pages are private as soon as no other process has the library.
                counted = {"Private_Dirty:"}
        elif name in counted:
            private += int(value.split()[0]) * 1024
    return Size(private, (len(os.listdir(home / "fd")), len(os.listdir(home / "task")), blocks))


def processor_ticks(pid: int) -> int:
    """Hundredths of a second that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def settle(workers: Sequence[int]) -> None:
    """Wait until workers have made all that they may make ahead, and sleep."""
    end, quiet = time.monotonic() + 30, 0
    while quiet < 3:
        assert time.monotonic() < end, "workers that never rest"
        before = [processor_ticks(pid) for pid in workers]
        time.sleep(0.01)
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] for pid in workers]
        rests = before == [processor_ticks(pid) for pid in workers] and set(states) <= {"S"}
        quiet = quiet + 1 if rests else 0


def after_each_epoch(loader: ss.StreamLoader, warm_up: int, epochs: int) -> dict[str, list[Size]]:
    """What every process has after each epoch, but for those in which allocators warm up."""
    sizes: dict[str, list[Size]] = {}
    gc.freeze()  # or each collection looks at all that the tests before have imported
    for _ in range(warm_up + epochs):
        for _ in loader:
            pass
        workers = pids(loader) if loader._pool else []
        settle(workers)
        gc.collect()
        for name, pid in [("trainer", os.getpid()), *((f"worker {pid}", pid) for pid in workers)]:
            sizes.setdefault(name, []).append(size_of(pid))
    gc.unfreeze()
    return {name: taken[warm_up:] for name, taken in sizes.items()}


def check_flat(sizes: dict[str, list[Size]], epochs: int) -> None:
    for name, taken in sizes.items():
        assert len(taken) == epochs, f"{name} was not there all the time"
        assert {each.counts for each in taken} == {taken[0].counts}, name
        megabytes = [each.private / MB for each in taken]
        slope = np.polyfit(range(epochs), megabytes, 1)[0]
        assert slope < LIMIT, f"{name} grows by {slope:.3f} MB an epoch: {megabytes}"


def pack(folder: Path, images: int, side: int, graphs: int) -> Path:
    """Noisy images, whose JPEGs differ in size, and graphs."""
    rng = np.random.default_rng(0)
    with ss.ShardWriter(folder / "images", shard_size=images * side * side // 10) as writer:
        for number in range(images):
            height, width = rng.integers(side // 2, side, 2).tolist()
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=80)
            writer.write({"__key__": f"{number:05d}", "jpg": file.getvalue(), "cls": number})
    many = [
        Data(x=torch.randn(n, 9), edge_index=torch.randint(0, n, (2, 2 * n)), y=torch.randn(1))
        for n in rng.integers(10, 40, graphs).tolist()
    ]
    ss.pack_graphs(many, folder / "graphs", shard_size=graphs * 300)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("few"), images=48, side=60, graphs=200)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("many"), images=200, side=250, graphs=1000)


def loader_of(folder: Path, what: str, workers: int) -> ss.StreamLoader:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": True, "tail": "exact"}
    if what == "graphs":
        dataset = ss.ShardDataset(folder / "graphs", parts="graph", **options)
    else:
        decode = bytes if what == "bytes" else ss.RandomResizedCrop(48)
        dataset = ss.ShardDataset(
            folder / "images", parts=("jpg", "cls", "__key__"), decode={"jpg": decode}, **options
        )
    return ss.StreamLoader(dataset, num_workers=workers, reuse="lent" in what)


@pytest.mark.parametrize("what", ["images", "images, lent"])
def test_no_process_grows(few: Path, what: str) -> None:
    with loader_of(few, what, workers=2) as loader:
        check_flat(after_each_epoch(loader, warm_up=3, epochs=5), epochs=5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["images", "images, lent", "bytes", "graphs"])
def test_no_process_grows_over_fifty_epochs(many: Path, what: str, workers: int) -> None:
    with loader_of(many, what, workers) as loader:
        check_flat(after_each_epoch(loader, warm_up=10, epochs=50), epochs=50)
