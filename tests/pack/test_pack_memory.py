"""What a pack holds in memory does not grow with what is packed."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import streamshard as ss
from tests.cli.command import environment
from tests.pack.sources import image_bytes, ring, write_tar

Pack = Callable[..., Any]
LIMIT = 500  # MB, with two workers

# What a process of its own packs: its arguments are the function, source, destination and options.
SCRIPT = """
import ast, sys
import streamshard as ss
getattr(ss, sys.argv[1])(sys.argv[2], sys.argv[3], workers=2, **ast.literal_eval(sys.argv[4]))
"""


def copies(folder: Path, data: bytes, count: int) -> Path:
    """Many names of one file."""
    folder.mkdir()
    (folder / "000000.jpg").write_bytes(data)
    for number in range(1, count):
        os.link(folder / "000000.jpg", folder / f"{number:06d}.jpg")
    return folder


def images_of(root: Path, data: bytes, count: int) -> tuple[str, Path, dict[str, Any]]:
    return "pack_images", copies(root / "photos", data, count), {}


def table_of(root: Path, data: bytes, count: int) -> tuple[str, Path, dict[str, Any]]:
    copies(root / "photos", data, count)
    rows = "".join(f"photos/{number:06d}.jpg,{number % 7}\n" for number in range(count))
    (root / "table.csv").write_text("path,label\n" + rows)
    return "pack_table", root / "table.csv", {"image": "path", "label": "label"}


def tars_of(root: Path, data: bytes, count: int) -> tuple[str, Path, dict[str, Any]]:
    for begin in range(0, count, 20):
        members = ((f"{begin + number:06d}.jpg", data) for number in range(20))
        write_tar(root / "tars" / f"{begin:06d}.tar", members)
    return "pack_tars", root / "tars", {}


def graphs_of(root: Path, data: bytes, count: int) -> tuple[str, Path, dict[str, Any]]:
    (root / "graphs").mkdir()
    for begin in range(0, count, 100):
        rings = [ring(16 + number % 15, y=torch.tensor([number])) for number in range(100)]
        torch.save(rings, root / "graphs" / f"{begin:06d}.pt")
    return "pack_graphs", root / "graphs", {}


def lines_of(root: Path, data: bytes, count: int) -> tuple[str, Path, dict[str, Any]]:
    line = '{{"x": [[{0}.5], [1]], "edge_index": [[0], [1]], "y": [{0}]}}\n'
    (root / "a.jsonl").write_text("".join(map(line.format, range(count))))
    return "pack_graphs", root / "a.jsonl", {}


SOURCES = [images_of, table_of, tars_of, lines_of, pytest.param(graphs_of, marks=pytest.mark.slow)]


@pytest.mark.parametrize("source", SOURCES)
def test_for_each_sample_a_pack_keeps_few_bytes(tmp_path: Path, source: Pack) -> None:
    peaks, counts = [], (200, 1_000)
    # The first one is not looked at: it fills caches.
    for number, count in enumerate((100, *counts)):
        root = tmp_path / str(number)
        root.mkdir()
        name, place, options = source(root, image_bytes("JPEG", size=(70, 70)), count)
        tracemalloc.start()
        getattr(ss, name)(place, root / "own", shard_size=400_000, workers=0, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / (counts[1] - counts[0]) < 600, peaks


def family(pid: int) -> Iterator[int]:
    """A process and all that it began."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def megabytes_of(pid: int) -> float:
    """The memory of a process and all that it began: of files, such as libraries, what one has."""
    own, files = 0, [0]
    for process in family(pid):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            sizes = {line.split(":")[0]: int(line.split()[-2]) for line in rollup.splitlines()[1:]}
            own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
            files.append(sizes["Rss"] - sizes["Anonymous"])
    return (own + max(files)) * 1024 / 1e6


def peak_of(name: str, place: Path, folder: Path, options: dict[str, Any]) -> float:
    """The most memory of a pack with two workers, in MB."""
    command = [sys.executable, "-c", SCRIPT, name, str(place), str(folder), repr(options)]
    peak = 0.0
    with subprocess.Popen(command, env=environment()) as process:
        while process.poll() is None:
            peak = max(peak, megabytes_of(process.pid))
            time.sleep(0.03)
    assert process.returncode == 0
    return peak


def large_image() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((4000, 3000)).save(file, "JPEG", quality=85)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "count", "options"),
    [
        (images_of, 100, {"resize": 256}),
        (images_of, 20, {"format": "npy"}),
        (table_of, 100, {"resize": 256}),
        (tars_of, 100, {"resize": 256}),
        (graphs_of, 6_000, {}),
        (lines_of, 6_000, {}),
    ],
)
def test_a_pack_with_two_workers_stays_below_its_limit(
    tmp_path: Path, source: Pack, count: int, options: dict[str, Any]
) -> None:
    peaks = []
    for times in (1, 4):
        root = tmp_path / str(times)
        root.mkdir()
        name, place, more = source(root, large_image(), times * count)
        peaks.append(peak_of(name, place, root / "own", {**options, **more}))
    print(f"{source.__name__} {options}: {peaks[0]:.0f} MB, of 4 times as many {peaks[1]:.0f} MB")
    assert max(peaks) < LIMIT
    assert peaks[1] - peaks[0] < 30
