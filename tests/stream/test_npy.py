"""Shards of pixels that are there already: the same crops, and few bytes touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from streamshard.errors import DamagedError
from tests.pack.sources import image_bytes, write_files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("npy")
    files = {f"{n % 2}/{n}.png": image_bytes(size=(40 + n, 30 + n), seed=n) for n in range(24)}
    write_files(place / "src", files)
    for format in ("png", "npy"):
        ss.pack_images(place / "src", place / format, format=format, shard_size="40KB", workers=0)
    return place


def batches(dataset: Path, part: str, decoder: Any, **options: Any) -> list[Any]:
    dataset_ = ss.ShardDataset(
        dataset,
        batch_size=7,
        shuffle="full",
        tail="exact",
        parts=(part, "__key__"),
        decode={part: decoder},
        **options,
    )
    with ss.StreamLoader(dataset_) as loader:
        return list(loader)


@pytest.mark.parametrize("verify", [True, False])
def test_crops_are_those_of_the_images_that_were_packed(place: Path, verify: bool) -> None:
    for decoder in (ss.RandomResizedCrop(16, flip=0.5), ss.Decode()):
        of_files = batches(place / "png", "png", decoder)
        of_arrays = batches(place / "npy", "npy", decoder, verify=verify)
        assert [keys for _, keys in of_arrays] == [keys for _, keys in of_files]
        for (array, _), (file, _) in zip(of_arrays, of_files, strict=True):
            assert all(map(torch.equal, array, file))


def test_a_damaged_array_is_named_and_the_others_are_read(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "npy", tmp_path / "bad")
    shards = ss.open(tmp_path / "bad")
    offset = int(shards.extent(0, "npy").offset[1])
    tar = tmp_path / "bad" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[offset + 2000] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedError, match="crc32 differs"):
        batches(tmp_path / "bad", "npy", ss.CenterCrop(8))
    dataset = ss.ShardDataset(
        tmp_path / "bad",
        batch_size=24,
        parts="npy",
        tail="exact",
        on_error="skip",
        decode={"npy": ss.CenterCrop(8)},
    )
    assert len(next(iter(ss.StreamLoader(dataset)))) == 23


def test_a_crop_touches_only_its_rows(tmp_path: Path) -> None:
    """By the kernel's count of the pages of the file that are in this process."""
    array = np.random.default_rng(0).integers(0, 256, (4000, 1000, 3), np.uint8)
    with ss.ShardWriter(tmp_path / "data") as writer:
        writer.write({"__key__": "0", "npy": array})
    shards = ss.open(tmp_path / "data", verify=False)
    data = shards.view(0, 0, "npy")
    assert data is not None
    before = mapped_kilobytes("shard-000000.tar")
    got = ss.CenterCrop(100)(data)
    grown = mapped_kilobytes("shard-000000.tar") - before
    assert torch.equal(got, torch.from_numpy(array[1950:2050, 450:550]).permute(2, 0, 1))
    # 300 of 12,000 kB; the kernel may map two huge pages for them.
    assert 0 < grown < 5000


def mapped_kilobytes(name: str) -> int:
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.endswith(name))
    return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])
