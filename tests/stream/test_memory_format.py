"""`memory_format=` says how a batch of images lies in memory, and nothing else of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import streamshard as ss
from streamshard.errors import UsageError
from tests.stream.data import make_images

DECODERS: dict[str, Any] = {
    "random": (ss.RandomResizedCrop, {"size": (20, 24), "flip": 0.5}),
    "center": (ss.CenterCrop, {"size": 16, "resize": 20}),
    "resize": (ss.Resize, {"size": (18, 12)}),
    "RGBA": (ss.RandomResizedCrop, {"size": 16, "mode": "RGBA"}),
    "gray": (ss.RandomResizedCrop, {"size": 16, "mode": "L"}),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("photos") / "own", 40)


def dataset(photos: str, decoder: Any, **options: Any) -> ss.ShardDataset:
    return ss.ShardDataset(
        photos, batch_size=8, shuffle=True, parts=("jpg", "cls"), decode={"jpg": decoder}, **options
    )


def pair(photos: str, kind: str, **options: Any) -> tuple[ss.ShardDataset, ss.ShardDataset]:
    """The same samples, as they lie by default and with channels last."""
    decoder, settings = DECODERS[kind]
    last = decoder(**settings, memory_format=torch.channels_last)
    return dataset(photos, decoder(**settings), **options), dataset(photos, last, **options)


def assert_alike(one: torch.Tensor, last: torch.Tensor) -> None:
    assert one.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert one.shape[1] == 1 or not last.is_contiguous()
    assert torch.equal(one, last)


@pytest.mark.parametrize("kind", DECODERS)
def test_batches_differ_in_how_they_lie_only(photos: str, kind: str) -> None:
    ones, lasts = pair(photos, kind)
    for (one, _), (last, _) in zip(ones, lasts, strict=True):
        assert_alike(one, last)


def test_it_goes_with_a_batch_wherever_that_goes(photos: str) -> None:
    ones, lasts = pair(photos, "random")
    expected = [images for images, _ in ones]
    loaders: list[Any] = [
        ss.StreamLoader(lasts, num_workers=1),
        ss.StreamLoader(lasts, num_workers=1, reuse=True),
        ss.StreamLoader(lasts, threads=2),
        DataLoader(lasts, batch_size=None, num_workers=1, collate_fn=lambda batch: batch),
    ]
    for loader in loaders:
        for one, batch in zip(expected, loader, strict=True):
            for kept in (batch, batch.clone(), batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
                assert_alike(one, kept[0])
        if isinstance(loader, ss.StreamLoader):
            loader.close()


def test_a_batch_without_samples_has_the_same_shape(photos: str) -> None:
    _, lasts = pair(photos, "random", tail="exact", world=ss.World(1, 2))
    assert [images.shape for images, _ in lasts[:1]] == [(0, 3, 20, 24)]


def test_a_mixture_stacks_what_lies_one_way_and_the_other(photos: str) -> None:
    ones, lasts = pair(photos, "random")
    mixed = ss.ShardDataset(ss.Mixture({"one": ones, "last": lasts}), batch_size=10, parts=("jpg",))
    for (images,) in mixed:
        assert images.is_contiguous()
        assert images.shape == (10, 3, 20, 24)


@pytest.mark.parametrize("decoder", [ss.Decode, ss.RandomResizedCrop, ss.CenterCrop, ss.Resize])
def test_another_format_is_refused(decoder: Any) -> None:
    size = {} if decoder is ss.Decode else {"size": 8}
    with pytest.raises(
        UsageError, match=r"memory_format is torch\.channels_last_3d; torch\.contig"
    ):
        decoder(**size, memory_format=torch.channels_last_3d)


def test_whole_images_of_one_size_lie_so_too(tmp_path: Path) -> None:
    pixels = torch.randint(0, 255, (6, 9, 3), dtype=torch.uint8)
    with ss.ShardWriter(tmp_path / "own") as writer:
        for number in range(4):
            writer.write({"__key__": f"{number}", "npy": (pixels + number).numpy()})
    decode = {"npy": ss.Decode(memory_format=torch.channels_last)}
    for batch in ss.ShardDataset(tmp_path / "own", batch_size=2, parts="npy", decode=decode):
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch[1], batch[0] + 1)
