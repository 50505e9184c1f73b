"""Small datasets with shards of given sizes, and what is in them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import streamshard as ss

UNEVEN = (3, 401, 60, 1, 200, 238, 100)  # 1,003 samples in 7 shards


def key(shard: int, row: int) -> str:
    return f"s{shard}/{row:04d}"


def keys_of(counts: Sequence[int]) -> list[str]:
    """All keys in pack order."""
    return [key(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def make_tars(folder: Path, counts: Sequence[int]) -> str:
    """Foreign tars of these sizes with a text and a class part, indexed."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"shard-{shard:06d}.tar", "w") as tar:
            for row in range(count):
                for suffix, data in (("txt", key(shard, row)), ("cls", str(row % 10))):
                    info = tarfile.TarInfo(f"{key(shard, row)}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data.encode()))
    ss.index_tars(folder)
    return str(folder)


def make_images(folder: Path, count: int, *, classes: int = 4, seed: int = 0) -> str:
    """Packed random JPEGs of several sizes."""
    rng = np.random.default_rng(seed)
    source = folder / "source"
    for number in range(count):
        path = source / f"class{number % classes}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2).tolist()
        # smooth, so that JPEG keeps it nearly as it is
        coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    ss.pack_images(source, folder / "packed", shard_size="40KB")
    return str(folder / "packed")


def checksums(batch: Any) -> list[int]:
    """One for each sample, of its pixels or of all fields of its graph."""
    if "jpg" in batch:
        return [zlib.crc32(image.numpy().tobytes()) for image in batch["jpg"]]
    sums = []
    for graph in batch["graph"].to_data_list():
        fields = graph.to_dict()
        tensors = [fields[name] for name in sorted(fields) if torch.is_tensor(fields[name])]
        sums.append(zlib.crc32(b"".join(tensor.numpy().tobytes() for tensor in tensors)))
    return sums


def collect(batches: object) -> list[list[str]]:
    """The keys of each batch."""
    return [list(batch["__key__"]) for batch in batches]  # type: ignore[attr-defined]


def flat(batches: object) -> list[str]:
    """The keys of all batches."""
    return [key for keys in collect(batches) for key in keys]


def same(one: object, other: object) -> bool:
    """Whether two batches are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        assert isinstance(other, dict)
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
