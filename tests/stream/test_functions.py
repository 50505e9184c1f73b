"""Functions of the user's: what they are given, what becomes of what they return."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from streamshard.stream.called import takes_generator
from tests.stream.data import make_images, same


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 60)


def given(image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.rand(3, generator=generator)


def given_by_name(image: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    return given(image, generator)


def given_or_not(image: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    assert generator is not None
    return given(image, generator)


def scaled(by: float, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return by * given(image, generator)


class Noise:
    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return given(image, generator)

    def method(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return given(image, generator)


class Module(torch.nn.Module):
    def forward(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return given(image, generator)


GIVEN: dict[str, Callable[..., Any]] = {
    "function": given,
    "by name only": given_by_name,
    "with a default": given_or_not,
    "partial": partial(scaled, 1.0),
    "partial of a partial": partial(partial(scaled, by=1.0)),
    "object": Noise(),
    "method": Noise().method,
    "module": Module(),
    "lambda": lambda image, generator: given(image, generator),
}
NOT_GIVEN: dict[str, Callable[..., Any]] = {
    "no such parameter": lambda image: image,
    "any keywords": lambda image, **generator: image,
    "set already": partial(given, generator=None),
    "positional only": eval("lambda generator, /: generator"),
    "a class in C": dict,
    "a function in C": torch.relu,
    "a module without": torch.nn.Identity(),
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_has_a_parameter_generator_is_given_the_samples(images: str, name: str) -> None:
    assert takes_generator(GIVEN[name])
    batches, expected = (
        list(
            ss.StreamLoader(
                ss.ShardDataset(images, batch_size=20, parts="jpg", decode={"jpg": one})
            )
        )
        for one in (
            partial(GIVEN[name]) if "partial of" not in name else partial(scaled, 1.0),
            given,
        )
    )
    assert same(batches, expected)
    values = torch.cat(batches)
    assert len(torch.unique(values, dim=0)) == len(values) == 60


@pytest.mark.parametrize("name", NOT_GIVEN)
def test_others_are_not(name: str) -> None:
    assert not takes_generator(NOT_GIVEN[name])


def augmented(sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Draws from all that there is to draw from."""
    drawn: list[Any] = [torch.rand((), generator=generator), torch.rand(())]
    drawn += [np.random.rand(), random.random()]
    image = sample["jpg"].float() * (torch.rand((), generator=generator) + torch.rand(()))
    return {"jpg": image, "drawn": torch.tensor([float(one) for one in drawn])}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("at", [1, 4])
def test_a_resume_makes_the_same_augmentations_on_any_number_of_workers(
    images: str, workers: int, at: int
) -> None:
    def dataset(batch_size: int) -> ss.ShardDataset:
        return ss.ShardDataset(
            images, batch_size=batch_size, shuffle=True, tail="exact", lanes=1, grain=4,
            decode={"jpg": ss.RandomResizedCrop(8, flip=0.5)}, transform=augmented,
        )  # fmt: skip

    def columns(loader: ss.StreamLoader) -> list[torch.Tensor]:
        batches = [batch.clone() for batch in loader]
        return [torch.cat([batch[name] for batch in batches]) for name in ("jpg", "drawn")]

    whole = columns(ss.StreamLoader(dataset(6)))
    first = ss.StreamLoader(dataset(6))
    iterator = iter(first)
    for _ in range(at):
        next(iterator)
    state = first.state_dict()
    del iterator
    with ss.StreamLoader(dataset(5), num_workers=workers) as rest:
        rest.load_state_dict(state)
        for found, expected in zip(columns(rest), whole, strict=True):
            assert torch.equal(found, expected[6 * at :])
    drawn = whole[1]
    assert len(torch.unique(drawn)) == drawn.numel(), "no two of the generators gave one number"


def test_a_transform_draws_other_numbers_than_the_decoders_before_it(images: str) -> None:
    def transform(sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        both = torch.stack([given(sample["jpg"], generator), torch.rand(3)])
        return {"before": sample["jpg"], "after": both}

    for decode in (given, lambda image: torch.rand(3)):
        dataset = ss.ShardDataset(
            images, batch_size=60, decode={"jpg": decode}, transform=transform
        )
        (batch,) = ss.StreamLoader(dataset)
        drawn = torch.cat([batch["before"][:, None], batch["after"]], dim=1)  # (60, 3, 3)
        together = torch.corrcoef(drawn[:, :, 0].T)
        assert (together - torch.eye(3)).abs().max() < 0.5  # 0.13 is a standard deviation
        assert not (drawn[:, 0] == drawn[:, 1]).any()
        assert not (drawn[:, 0] == drawn[:, 2]).any()
        assert not (drawn[:, 1] == drawn[:, 2]).any()


def test_parts_of_a_sample_draw_alike(tmp_path: Path) -> None:
    with ss.ShardWriter(str(tmp_path / "data")) as writer:
        for number in range(8):
            pixels = np.full((9, 9, 3), number, np.uint8)
            writer.write({"__key__": f"{number}", "png": pixels, "mask.png": pixels})
    for function in (given, lambda image: torch.rand(3)):
        dataset = ss.ShardDataset(
            tmp_path / "data", batch_size=8, decode={"png": function, "mask.png": function}
        )
        (batch,) = ss.StreamLoader(dataset)
        assert torch.equal(batch["png"], batch["mask.png"])


def test_the_callers_generators_are_left_alone_by_a_transform(images: str) -> None:
    def numbers() -> list[float]:
        return [float(torch.rand(())), np.random.rand(), random.random()]

    drawn = []
    for iterate in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        if iterate:
            decode = {"jpg": ss.CenterCrop(8)}
            dataset = ss.ShardDataset(images, batch_size=10, decode=decode, transform=augmented)
            next(iter(ss.StreamLoader(dataset)))
        drawn.append(numbers())
    assert drawn[0] == drawn[1]


class Ragged:
    """Says that its values have no one form."""

    form = None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, ::2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_whose_form_is_none_makes_lists(images: str, workers: int) -> None:
    dataset = ss.ShardDataset(
        images, batch_size=30, parts=("jpg", "cls"), decode={"jpg": Ragged()}, tail="exact"
    )
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        found = [image.clone() for pixels, _ in loader for image in pixels]
    shards = ss.open(images)
    assert same(found, [shards[number]["jpg"][:, ::2] for number in range(60)])
    mixture = ss.Mixture({"one": dataset, "other": dataset[:30]})
    (pixels, _), *_ = ss.StreamLoader(ss.ShardDataset(mixture, batch_size=8, parts=("jpg", "cls")))
    assert isinstance(pixels, list)


def test_whole_images_are_a_list_or_stacked_as_the_dataset_is(images: str, tmp_path: Path) -> None:
    def first(url: str | Path, decoder: Any) -> Any:
        dataset = ss.ShardDataset(url, batch_size=6, parts="jpg", decode={"jpg": decoder})
        return next(iter(ss.StreamLoader(dataset)))

    ragged = first(images, ss.Decode())
    plain = next(iter(ss.StreamLoader(ss.ShardDataset(images, batch_size=6, parts="jpg"))))
    assert same(ragged, plain)
    assert [image.shape[0] for image in first(images, ss.Decode(mode="L"))] == [1] * 6
    with ss.ShardWriter(str(tmp_path / "one size")) as writer:
        for number in range(6):
            pixels = np.full((9, 12, 3), number, np.uint8)
            writer.write({"__key__": f"{number}", "jpg": pixels})
    assert first(tmp_path / "one size", ss.Decode()).shape == (6, 3, 9, 12)
    assert first(tmp_path / "one size", ss.Decode(mode="RGBA")).shape == (6, 4, 9, 12)


def test_masks_are_labels_on_their_images(tmp_path: Path) -> None:
    """What a segmentation trains on: a mask of labels beside its image, cropped alike."""
    rng = np.random.default_rng(0)
    with ss.ShardWriter(str(tmp_path / "data")) as writer:
        for number in range(8):
            labels = np.kron(rng.integers(0, 2, (5, 6), np.uint8), np.ones((11, 11), np.uint8))
            gray = np.repeat(labels[..., None] * 255, 3, axis=2)
            writer.write({"__key__": f"{number}", "png": gray, "mask.png": labels})
    crop = partial(ss.RandomResizedCrop, 24, scale=(0.3, 1.0), flip=0.5)
    dataset = ss.ShardDataset(
        tmp_path / "data", batch_size=8, parts=("png", "mask.png"),
        decode={"png": crop(), "mask.png": crop(mode="labels")},
    )  # fmt: skip
    ((pixels, masks),) = ss.StreamLoader(dataset)
    assert (masks.dtype, masks.shape) == (torch.uint8, (8, 24, 24))
    assert masks.unique().tolist() == [0, 1]
    certain = (pixels[:, 0] < 80) | (pixels[:, 0] > 175)
    agree = (pixels[:, 0] > 127) == (masks == 1)
    assert agree[certain].float().mean() > 0.99
