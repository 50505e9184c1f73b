"""Photographs, cropped: against decoding all of them with Pillow, and resizing with Pillow."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from streamshard.codec.crop import CenterCrop, RandomResizedCrop, Resize
from streamshard.codec.framing import region
from streamshard.codec.picture import opened
from tests.codec.pictures import Pixels, by_pillow, encoded


@cache
def photographs() -> tuple[bytes, ...]:
    """Four JPEGs and a PNG of scikit-learn's temple and flower, 427 x 640."""
    temple, flower = (np.asarray(image) for image in load_sample_images().images)
    jpegs = [
        encoded(image, "JPEG", quality=quality, subsampling=subsampling)
        for image in (temple, flower)
        for quality, subsampling in ((75, 2), (92, 0))
    ]
    return (*jpegs, encoded(flower, "PNG", compress_level=1))


def resized(pixels: Pixels, size: tuple[int, int], box: Any = None) -> Any:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box), np.int32)


def check(differences: list[Any], mean: float, of_999: float) -> None:
    """Over all pictures: the mean, and what 999 of 1,000 values stay within."""
    levels = np.abs(np.concatenate([one.ravel() for one in differences]))
    assert levels.mean() <= mean
    assert np.quantile(levels, 0.999) <= of_999


@pytest.mark.parametrize("size", [32, 48, 96, 112])
def test_a_random_crop_of_a_jpeg_decoded_small_is_nearly_that_of_the_whole(size: int) -> None:
    crop = RandomResizedCrop(size, scale=(0.2, 1.0))
    differences = []
    for seed in range(32):
        data = photographs()[seed % 4]
        picture, whole = opened(data), by_pillow(data)
        box, _, _, _ = crop.framing(picture.size, torch.Generator().manual_seed(seed))
        scale = picture.scale(max(size / box.height, size / box.width))
        assert scale < 1 or min(box.height, box.width) < 2 * size
        part = region(box, scale, picture.decode("RGB", scale).shape[:2])
        edges = (box.top, box.left, box.top + box.height, box.left + box.width)
        assert all(abs(a - b * scale) <= 0.5 for a, b in zip(part, edges, strict=True))
        moved = [end / scale for end in (part.left, part.top, part.right, part.bottom)]
        box_moved = (*moved[:2], min(moved[2], whole.shape[1]), min(moved[3], whole.shape[0]))
        found = crop(data, torch.Generator().manual_seed(seed)).permute(1, 2, 0).numpy()
        differences.append(found - resized(whole, (size, size), box_moved))
    check(differences, 1.5, 25)


@pytest.mark.parametrize("number", range(5))
def test_a_random_crop_decoded_whole_is_exactly_that(number: int) -> None:
    data, crop = photographs()[number], RandomResizedCrop((224, 190), flip=0.5)
    whole = by_pillow(data)
    for seed in range(6):
        found = crop(data, torch.Generator().manual_seed(seed)).permute(1, 2, 0).numpy()
        framing = crop.framing(whole.shape[:2], torch.Generator().manual_seed(seed))
        top, left, height, width = (int(side) for side in framing.box)
        expected = resized(whole[top : top + height, left : left + width], (224, 190))
        expected = expected[:, ::-1] if framing.flip else expected
        assert np.abs(found - expected).max() <= 2  # two decoders, and two ways of rounding


@pytest.mark.parametrize(
    ("size", "resize", "mean", "of_999"),
    [
        (224, 256, 1, 6),
        (224, 401, 1, 6),
        ((90, 300), 300, 1, 6),
        (112, 128, 1.5, 25),
        (48, 54, 1.5, 25),
    ],
)
def test_a_center_crop_is_resize_then_crop(
    size: Any, resize: int, mean: float, of_999: float
) -> None:
    """As torchvision has them, in Pillow's hands."""
    height, width = (size, size) if isinstance(size, int) else size
    differences: list[Any] = []
    for data in photographs():
        for turned in (False, True):
            image = Image.open(io.BytesIO(data))
            whole = np.asarray(image)
            if turned:
                if image.format != "PNG":
                    continue
                whole = np.ascontiguousarray(whole.swapaxes(0, 1))
                data = encoded(whole, "PNG", compress_level=1)
            h, w = whole.shape[:2]
            long = int(resize * max(h, w) / min(h, w))
            full = resized(whole, (resize, long) if h < w else (long, resize))
            top, left = (round((full.shape[i] - (height, width)[i]) / 2) for i in (0, 1))
            expected = full[top : top + height, left : left + width]
            found = CenterCrop(size, resize=resize)(data).permute(1, 2, 0).numpy()
            differences.append(found - expected)
    check(differences, mean, of_999)


@pytest.mark.parametrize("size", [400, (300, 100), 112, 40])
def test_resize_is_that_of_the_whole(size: Any) -> None:
    differences = []
    for data in photographs():
        found = Resize(size)(data).permute(1, 2, 0).numpy()
        differences.append(found - resized(by_pillow(data), found.shape[:2]))
    check(differences[4:], 0.1, 1)
    check(differences, 1.5, 25)


def test_a_panorama_is_not_resized_whole() -> None:
    """Its shorter side at 256, it would have 1.3 million columns."""
    data = encoded(np.random.default_rng(0).integers(0, 255, (2, 10_000, 3), np.uint8), "PNG")
    assert CenterCrop(224, resize=256)(data).shape == (3, 224, 224)
