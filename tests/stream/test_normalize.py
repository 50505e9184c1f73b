"""Normalised pixels are those of the formula, in the dtype and the memory format asked for."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import UsageError

EVERY = torch.arange(256, dtype=torch.uint8)
HALF_UNIT = {torch.float32: 0.0, torch.float64: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
channel = st.tuples(st.floats(-1, 2), st.floats(0.01, 3))


def formula(values: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """In numbers exact to 53 bits."""
    return (values.double() / 255 - mean) / std


@settings(max_examples=60, deadline=None)
@given(st.lists(channel, min_size=1, max_size=4), st.sampled_from(list(HALF_UNIT)))
def test_every_value_is_the_formulas_within_the_bound_stated(
    channels: list[tuple[float, float]], dtype: torch.dtype
) -> None:
    mean, std = zip(*channels, strict=True)
    normalize = ss.Normalize(mean, std, dtype=dtype)
    images = EVERY.view(1, 1, 16, 16).repeat(1, len(channels), 1, 1)
    found = normalize(images)
    assert found.dtype == dtype
    for number, (m, s) in enumerate(channels):
        exact = formula(images[0, number], m, s)
        bound = (1 + abs(m)) / s * 2**-22 + exact.abs() * HALF_UNIT[dtype]
        assert ((found[0, number].double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (1, 3, 1, 1), (0, 3, 4, 4), (2, 3, 16, 1)])
@pytest.mark.parametrize("given_as", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("wanted", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_the_one_asked_for(shape: Any, given_as: Any, wanted: Any) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(memory_format=given_as)
    before = images.clone()
    found = ss.Normalize.imagenet(memory_format=wanted)(images)
    assert found.shape == shape
    assert found.is_contiguous(memory_format=wanted)
    if math.prod(shape) > 200:
        order = sorted(range(4), key=found.stride, reverse=True)
        assert order == ([0, 2, 3, 1] if wanted is torch.channels_last else [0, 1, 2, 3])
    assert torch.equal(images, before)
    other = ss.Normalize.imagenet(memory_format=torch.contiguous_format)(images.contiguous())
    assert torch.equal(found, other), "the numbers do not depend on it"


def test_images_of_several_sizes_are_a_list_of_their_own() -> None:
    normalize = ss.Normalize.imagenet(dtype=torch.float16)
    images = [torch.randint(0, 256, (3, n, 2 * n), dtype=torch.uint8) for n in (3, 5, 8)]
    found = normalize(images)
    assert [image.shape for image in found] == [image.shape for image in images]
    for image, one in zip(images, found, strict=True):
        assert torch.equal(one, normalize(image[None])[0])
    assert normalize([]) == []


def test_the_numbers_of_imagenet_are_those_of_pretrained_models() -> None:
    white = ss.Normalize.imagenet()(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    np.testing.assert_allclose(white[0, :, 0, 0], [2.2489083, 2.4285715, 2.64], rtol=1e-6)
    assert pickle.loads(pickle.dumps(ss.Normalize.imagenet())) == ss.Normalize.imagenet()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(2, 3, 4, 4), "torch.float32 of shape"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), r"shape \(2, 4, 4, 3\).* 3 channels"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"\(3, 4, 4\)"),
        ([torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], r"\(1, 3, 4, 4\)"),
        (["text"], "got str"),
        (None, "got NoneType"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_images_is_refused(images: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ss.Normalize.imagenet()(images)


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5,), "std": (0.5, 0.5)},
        {"mean": (), "std": ()},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": (0.5,), "std": (-1.0,)},
        {"mean": (math.nan,), "std": (1.0,)},
        {"mean": (0.5,), "std": (1.0,), "dtype": torch.uint8},
        {"mean": (0.5,), "std": (1.0,), "memory_format": torch.preserve_format},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        ss.Normalize(**options)
