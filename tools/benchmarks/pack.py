"""Packing: this project, and what others write or do with the same inputs, in turns.

All inputs are in the page cache, and everything is written to one file system. Ours ends with every
file synced to the disk, as it always does; theirs are measured as they are, which is what the
ratios are of, and once more with a sync of what they wrote. Before each turn the disk is idle.
"""

import io
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import webdataset as wds
from molecules import make_molecules, read_molecules
from pictures import jpegs_in, make_jpegs
from PIL import Image

import streamshard as ss

SHARD_SIZE = 256_000_000
SIDE, QUALITY = 256, 90
MOLECULES = 20_000
CHUNK = 32  # images that go to one of Pillow's processes together

Turn = Callable[[Path], object]  # what is done, into a folder that is new


def copy_jpegs(source: Path, folder: Path, count: int) -> None:
    """Files of their own, ten class folders; of fewer than `count` each several times."""
    files = jpegs_in(source)
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[number % len(files)], path)


def by_webdataset(images: Path, folder: Path) -> None:
    with wds.ShardWriter(
        f"{folder}/shard-%06d.tar", maxsize=SHARD_SIZE, maxcount=1 << 40, verbose=0
    ) as out:
        for path in jpegs_in(images):
            label = path.parent.name
            out.write({"__key__": f"{label}/{path.stem}", "jpg": path.read_bytes(), "cls": label})


def by_tar(images: Path, folder: Path) -> None:
    subprocess.run(["tar", "cf", folder / "images.tar", "-C", images, "."], check=True)


def by_pillow(images: Path, workers: int, folder: Path) -> None:
    """The work alone: what it makes is dropped where it was made."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        done = pool.imap_unordered(resized, jpegs_in(images), CHUNK)
        assert sum(done) > 0


def resized(path: Path) -> int:
    """Decoded at full size, resized with antialiasing, encoded; returns the bytes."""
    with Image.open(path) as image:
        scale = SIDE / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return len(file.getvalue())


def by_torch(molecules: Iterable[object], folder: Path) -> None:
    for number, graph in enumerate(molecules):
        torch.save(graph, folder / f"{number:06d}.pt")


def on_the_command_line(images: Path, workers: int, folder: Path) -> None:
    command = [sys.executable, "-m", "streamshard.cli.main", "pack", "images", images, folder]
    options = ["--resize", SIDE, "--quality", QUALITY, "--workers", workers]
    subprocess.run([*map(str, command), *map(str, options)], check=True, capture_output=True)


def synced(turn: Turn, folder: Path) -> None:
    """A turn whose files are on the disk when it ends, as ours are."""
    turn(folder)
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def seconds_of(turns: dict[str, Turn], folder: Path, rounds: int) -> dict[str, float]:
    """The median of each, after a round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            place = folder / "turn"
            place.mkdir()
            os.sync()
            begin = time.perf_counter()
            turn(place)
            if number:
                seconds[name].append(time.perf_counter() - begin)
            shutil.rmtree(place)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compared(
    count: int, ours: dict[str, Turn], theirs: dict[str, Turn], folder: Path, rounds: int
) -> dict[str, float]:
    """Rates of all, and our ratio to each of theirs; printed as it goes."""
    seconds = seconds_of({**ours, **theirs}, folder, rounds)
    figures = {f"{name}, samples/s": count / taken for name, taken in seconds.items()}
    for mine in ours:
        figures |= {f"{mine} / {name}": seconds[name] / seconds[mine] for name in theirs}
    for name, value in figures.items():
        print(f"{name:72} {value:10,.2f}", flush=True)
    return figures


def of_images(folder: Path, workers: int, rounds: int, jpegs: Path | None, count: int) -> dict:
    if jpegs is None:
        jpegs = folder / "made"
        make_jpegs(jpegs, min(count, 1000))
    images = folder / "images"
    copy_jpegs(jpegs, images, count)
    webdataset, tar = partial(by_webdataset, images), partial(by_tar, images)
    figures = compared(
        count,
        {"bytes kept": partial(ss.pack_images, images, shard_size=SHARD_SIZE)},
        {
            "webdataset's ShardWriter": webdataset,
            "webdataset's ShardWriter, synced": partial(synced, webdataset),
            "tar cf": tar,
            "tar cf, synced": partial(synced, tar),
        },
        folder,
        rounds,
    )
    resize = {"resize": SIDE, "quality": QUALITY, "workers": workers}
    figures |= compared(
        count,
        {
            "resized": partial(ss.pack_images, images, **resize),
            "resized, on the command line": partial(on_the_command_line, images, workers),
        },
        {"Pillow, the work alone": partial(by_pillow, images, workers)},
        folder,
        rounds,
    )
    size = sum(path.stat().st_size for path in jpegs_in(images)) / count
    return {"mean bytes of a JPEG": size, **figures}


def measure(
    folder: Path,
    workers: int,
    rounds: int,
    smiles: Path | None = None,
    jpegs: Path | None = None,
    count: int = 4000,
) -> dict[str, float]:
    torch.set_num_threads(1)
    figures = of_images(folder, workers, rounds, jpegs, count)
    molecules = read_molecules(smiles, MOLECULES) if smiles else make_molecules(MOLECULES)
    one_by_one = partial(by_torch, molecules)
    return figures | compared(
        MOLECULES,
        {"molecules": partial(ss.pack_graphs, molecules)},
        {
            "torch.save one by one": one_by_one,
            "torch.save one by one, synced": partial(synced, one_by_one),
        },
        folder,
        rounds,
    )
