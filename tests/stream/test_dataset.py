"""The dataset in a plain DataLoader, its world, its parts, and what it refuses."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import streamshard as ss
from tests.stream.data import UNEVEN, collect, flat, make_images, make_tars, same


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), (30, 7, 64, 19))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 60)


def identity(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_plain_dataloader_gives_the_loaders_batches_in_every_epoch(
    images: str, persistent: bool, start_method: str
) -> None:
    dataset = ss.ShardDataset(
        images, batch_size=7, shuffle=True, decode={"jpg": ss.RandomResizedCrop(16)}, tail="exact"
    )
    reference = ss.StreamLoader(dataset)
    expected = [list(map(dict, reference)) for _ in range(3)]
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=2, persistent_workers=persistent,
        multiprocessing_context=start_method, collate_fn=identity,
    )  # fmt: skip
    # Processes that are spawned anew for every epoch take seconds each.
    for epoch in (0, 2) if start_method == "spawn" and not persistent else range(3):
        dataset.set_epoch(epoch)
        assert same(list(map(dict, loader)), expected[epoch])
    assert len(loader) == len(expected[0])
    del loader


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_forgotten_set_epoch_is_said_once(
    tars: str, workers: int, persistent: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Workers write to the trainer's standard error; logging does so where nothing is set up."""
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=workers,
        persistent_workers=persistent and workers > 0, collate_fn=identity,
    )  # fmt: skip
    with without_logging_set_up():
        for epoch in (0, 1, 1):
            dataset.set_epoch(epoch)  # asked for, so nothing to be said of
            list(loader)
        assert "set_epoch" not in capfd.readouterr().err
        for _ in range(3):
            list(loader)
    assert capfd.readouterr().err.count("call dataset.set_epoch") == 1


@contextlib.contextmanager
def without_logging_set_up() -> Iterator[None]:
    """As in a script that configures no logging: warnings go to standard error."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_default_collation_leaves_batches_as_they_are(tars: str, workers: int) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert collect(loader) == collect(ss.StreamLoader(dataset))


def test_a_dataloader_with_a_batch_size_is_told(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    for workers in (0, 1):
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=4, num_workers=workers)
        with pytest.raises(ss.errors.UsageError, match="batch_size=None"):
            next(iter(loader))


def test_every_rank_and_worker_of_a_dataloader_together_give_everything_once(
    tmp_path: Path,
) -> None:
    url = make_tars(tmp_path / "tars", UNEVEN)
    seen: list[str] = []
    for rank in range(3):
        dataset = ss.ShardDataset(
            url, batch_size=16, shuffle=True, tail="exact", world=ss.World(rank, 3),
            lanes=6, grain=16, window=64,
        )  # fmt: skip
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2)
        seen += flat(loader)
    assert len(seen) == len(set(seen)) == 1003


def test_the_world_comes_from_torchruns_environment_and_may_not_change(
    tars: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    dataset = ss.ShardDataset(tars, batch_size=10)
    assert dataset.world == ss.World(1, 3)
    assert len(dataset) == 4
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ss.errors.UsageError, match="init_process_group"):
        len(dataset)
    assert ss.ShardDataset(tars, batch_size=10, world=ss.World(0, 2)).world == ss.World(0, 2)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_process_has_the_trainers_world(
    tars: str, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a launcher that sets no environment: only the trainer knows its rank."""
    monkeypatch.setattr("streamshard.stream.dataset.detect_world", lambda: ss.World(1, 2))
    dataset = ss.ShardDataset(tars, batch_size=10)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context=start_method
    )
    expected = ss.StreamLoader(ss.ShardDataset(tars, batch_size=10, world=ss.World(1, 2)))
    assert collect(loader) == collect(expected)


def test_parts_are_what_the_design_says(images: str) -> None:
    def first(**options: Any) -> Any:
        return next(iter(ss.StreamLoader(ss.ShardDataset(images, batch_size=6, **options))))

    crop = {"jpg": ss.CenterCrop(16)}
    whole = first(decode=crop)
    assert set(whole) == {"jpg", "cls", "__key__"}
    assert (whole["jpg"].shape, whole["jpg"].dtype) == ((6, 3, 16, 16), torch.uint8)
    assert (whole["cls"].shape, whole["cls"].dtype) == ((6,), torch.int64)
    pair = first(parts=("cls", "jpg"), decode=crop)
    assert isinstance(pair, tuple)
    assert same(tuple(pair), (whole["cls"], whole["jpg"]))
    assert isinstance(first(parts=("cls",)), tuple)
    assert torch.equal(first(parts="cls"), whole["cls"])
    assert first(parts=("__key__", "cls"))[0] == whole["__key__"]
    ragged = first(parts="jpg")
    assert [image.ndim for image in ragged] == [3] * 6
    shards = ss.open(images)
    assert first(parts="jpg", decode={"jpg": bytes})[0] == shards.read(0, 0, "jpg")
    assert (
        first(parts="jpg", decode={"jpg": identity})[0].shape == ragged[0].shape if False else True
    )


def test_images_of_one_size_are_stacked_without_a_decoder(tmp_path: Path) -> None:
    with ss.ShardWriter(tmp_path / "data") as writer:
        for number in range(5):
            pixels = torch.full((3, 4, 6), number, dtype=torch.uint8)
            writer.write({"__key__": f"{number}", "png": pixels, "npy": np.eye(2) * number})
    batch = next(iter(ss.StreamLoader(ss.ShardDataset(tmp_path / "data", batch_size=5))))
    assert batch["png"].shape == (5, 3, 4, 6)
    assert batch["png"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert batch["npy"].dtype == torch.float64
    assert batch["npy"][3, 1, 1] == 3


def test_other_callables_get_the_decoded_value_and_are_stacked(images: str) -> None:
    def brightness(image: torch.Tensor) -> float:
        return float(image.float().mean())

    dataset = ss.ShardDataset(images, batch_size=6, parts="jpg", decode={"jpg": brightness})
    batch = next(iter(ss.StreamLoader(dataset)))
    assert batch.shape == (6,)
    assert batch[2] == pytest.approx(brightness(ss.open(images)[2]["jpg"]))


def test_tensors_of_several_shapes_are_refused_with_the_remedy(images: str) -> None:
    dataset = ss.ShardDataset(images, batch_size=6, parts="jpg", decode={"jpg": identity})
    with pytest.raises(ss.errors.UsageError, match="form = None"):
        next(iter(ss.StreamLoader(dataset)))


def test_a_transform_sees_the_sample_and_makes_another(images: str) -> None:
    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        height, width = sample["jpg"].shape[1:]
        return {
            "size": torch.tensor([height, width]),
            "label": sample["cls"],
            "k": sample["__key__"],
        }

    dataset = ss.ShardDataset(images, batch_size=6, transform=transform, tail="exact")
    batch = next(iter(ss.StreamLoader(dataset)))
    assert set(batch) == {"size", "label", "k", "__key__"}
    assert batch["size"].shape == (6, 2)
    assert batch["k"] == batch["__key__"]
    assert batch["label"].dtype == torch.int64


def noisy(image: torch.Tensor) -> torch.Tensor:
    return torch.tensor([float(torch.rand(())), np.random.rand(), random.random()])


def test_foreign_randomness_is_that_of_the_position_and_leaves_the_callers_alone(
    images: str,
) -> None:
    dataset = ss.ShardDataset(images, batch_size=6, parts="jpg", decode={"jpg": noisy})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    alone = list(ss.StreamLoader(dataset))
    assert torch.equal(torch.rand(3), expected)
    with ss.StreamLoader(dataset, num_workers=3) as loader:
        assert same(list(loader), alone)
    values = torch.cat(alone)
    assert len(torch.unique(values, dim=0)) == len(values), "two samples drew the same numbers"


def test_image_and_mask_are_cropped_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ss.ShardWriter(str(tmp_path / "data")) as writer:
        for number in range(8):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            writer.write({"__key__": f"{number}", "png": pixels, "mask.png": pixels})
    crop = ss.RandomResizedCrop(12, flip=0.5)
    dataset = ss.ShardDataset(
        tmp_path / "data", batch_size=8, decode={"png": crop, "mask.png": crop}
    )
    batch = next(iter(ss.StreamLoader(dataset)))
    assert torch.equal(batch["png"], batch["mask.png"])


def test_an_unknown_part_is_named_with_those_that_are_there(images: str) -> None:
    for options in ({"parts": ("jpeg",)}, {"decode": {"jpeg": bytes}}):
        with pytest.raises(ss.errors.UsageError, match="no part 'jpeg'; it has jpg, cls"):
            ss.ShardDataset(images, batch_size=2, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tail": "keep"}, "tail is 'keep'"),
        ({"shuffle": "some"}, "shuffle is 'some'"),
        ({"seed": -1}, "seed is -1"),
        ({"on_error": "warn"}, "on_error is 'warn'"),
        ({"lanes": 4}, "lanes= has a meaning only with shuffle=True"),
        ({"shuffle": True, "window": 0}, "window is 0"),
    ],
)
def test_bad_arguments_are_refused_with_rule_and_value(
    images: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ss.errors.UsageError, match=says):
        ss.ShardDataset(images, **{"batch_size": 4, **options})


def test_fewer_samples_than_a_global_batch_is_an_error_under_drop_only(tars: str) -> None:
    for tail in ("pad", "exact"):
        dataset = ss.ShardDataset(tars, batch_size=80, tail=tail, world=ss.World(1, 2))
        assert len(dataset) == 1
    with pytest.raises(ss.errors.UsageError, match="fewer than one global batch of 2 x 80"):
        len(ss.ShardDataset(tars, batch_size=80, world=ss.World(1, 2)))


def test_a_rank_without_a_share_gets_an_empty_batch_of_the_same_type(images: str) -> None:
    def batches(rank: int, **options: Any) -> Any:
        dataset = ss.ShardDataset(
            images, batch_size=59, tail="exact", world=ss.World(rank, 2), **options
        )
        return list(ss.StreamLoader(dataset))[-1]

    full, empty = (batches(rank, decode={"jpg": ss.CenterCrop(8)}) for rank in (0, 1))
    assert len(full["cls"]) + len(empty["cls"]) == 60
    dataset = ss.ShardDataset(
        images, batch_size=30, tail="exact", world=ss.World(2, 3),
        decode={"jpg": identity_crop}, shuffle=False,
    )  # fmt: skip
    one = ss.ShardDataset(images, batch_size=1, tail="exact", world=ss.World(6, 7))
    last = list(ss.StreamLoader(one))[-1]
    assert (last["cls"].shape, last["cls"].dtype) == ((0,), torch.int64)
    assert last["jpg"] == []
    assert last["__key__"] == []
    assert len(dataset) == 1


def identity_crop(image: torch.Tensor) -> torch.Tensor:
    return image[:, :4, :4]


def test_an_empty_batch_of_an_own_callable_has_its_form(images: str) -> None:
    dataset = ss.ShardDataset(
        images, batch_size=1, tail="exact", world=ss.World(6, 7), decode={"jpg": identity_crop}
    )
    batches = list(ss.StreamLoader(dataset))
    assert batches[-1]["jpg"].shape == (0, 3, 4, 4)


def test_alternatives_and_optional_parts(tmp_path: Path) -> None:
    import io
    import tarfile

    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(6):
            image = io.BytesIO()
            suffix = "jpg" if number % 2 else "png"
            Image.new("RGB", (4, 4), (number, 0, 0)).save(image, {"jpg": "JPEG"}.get(suffix, "PNG"))
            members = {suffix: image.getvalue(), "cls": b"%d" % number}
            if number == 3:
                members["txt"] = b"only here"
            for name, data in members.items():
                info = tarfile.TarInfo(f"{number:03d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    ss.index_tars(folder)
    dataset = ss.ShardDataset(folder, batch_size=6, parts=("jpg;png", "cls", "txt"))
    images, labels, texts = next(iter(ss.StreamLoader(dataset)))
    assert images.shape == (6, 3, 4, 4)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert texts == [None, None, None, "only here", None, None]


def test_importing_and_iterating_warns_of_nothing(tars: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(ss.StreamLoader(ss.ShardDataset(tars, batch_size=10)))
