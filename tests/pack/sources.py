"""Real inputs for packing, and the shards as four programs read them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch_geometric.data import Data
from webdataset.tariterators import group_by_keys, tar_file_expander

import streamshard as ss

Parts = dict[str, bytes]
Samples = list[tuple[str, Parts]]  # key and the bytes of each part by suffix, in order


def image_bytes(format: str = "PNG", size: tuple[int, int] = (9, 7), seed: int = 0) -> bytes:
    """An image file of noise; size is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format)
    return file.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files by their path below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def class_folders(
    root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), each: int = 5
) -> Path:
    """PNG files, `each` in every class folder, no two alike."""
    return write_files(
        root,
        {
            f"{name}/{number}.png": image_bytes(seed=100 * label + number)
            for label, name in enumerate(classes)
            for number in range(each)
        },
    )


def ring(nodes: int, **fields: Any) -> Data:
    """A directed ring, with a feature that tells its nodes apart."""
    at = torch.arange(nodes)
    noise = torch.rand(nodes, 3, generator=torch.Generator().manual_seed(nodes))
    return Data(x=at[:, None] + noise, edge_index=torch.stack([at, at.roll(-1)]), **fields)


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar by Python's own writer, of other people's making."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tars_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def read_by_streamshard(url: str, index: str | None = None) -> Samples:
    """Keys and raw bytes through the index."""
    shards = ss.open(url, index=index)
    samples: Samples = []
    for number in range(len(shards)):
        shard, row = shards.locate(number)
        found = {
            part.suffix: shards.read(shard, row, name)
            for name, part in shards.manifest.parts.items()
        }
        parts = {suffix: data for suffix, data in found.items() if data is not None}
        samples.append((shards.index(shard).keys[row], parts))
    return samples


def read_by_webdataset(folder: Path) -> Samples:
    """What webdataset makes of the tars; `WebDataset` itself leaves its files open."""
    samples: Samples = []
    for path in tars_of(folder):
        with path.open("rb") as file:
            files = tar_file_expander(iter([{"url": str(path), "stream": file}]))
            for sample in group_by_keys(files):
                key, _ = sample.pop("__key__"), sample.pop("__url__")
                samples.append((key, sample))
    return samples


def read_by_tarfile(folder: Path) -> Samples:
    """What Python's tarfile finds, member after member."""
    members: list[tuple[str, bytes]] = []
    for path in tars_of(folder):
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                members.append((member.name, file.read()))
    return _grouped(members)


def read_by_gnu_tar(folder: Path, scratch: Path) -> Samples:
    """What GNU tar lists and unpacks."""
    members: list[tuple[str, bytes]] = []
    for path in tars_of(folder):
        out = scratch / path.stem
        out.mkdir(parents=True)
        listed = _gnu_tar("--list", "--quoting-style=literal", "--file", str(path))
        _gnu_tar("--extract", "--file", str(path), "--directory", str(out))
        names = listed.splitlines()
        assert set(names) == set(files_of(out))
        members += [(name, (out / name).read_bytes()) for name in names]
    return _grouped(members)


def _gnu_tar(*arguments: str) -> str:
    done = subprocess.run(["tar", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout


def _grouped(members: Iterable[tuple[str, bytes]]) -> Samples:
    """Members to samples; the keys that we write have no dot."""
    samples: Samples = []
    for name, data in members:
        key, _, suffix = name.partition(".")
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        assert suffix not in samples[-1][1]
        samples[-1][1][suffix] = data
    return samples
