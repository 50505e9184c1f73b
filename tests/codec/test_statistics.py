"""What is drawn for a random crop: as the paper says, and as torchvision's own class draws it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamshard.codec.crop import RandomResizedCrop

Boxes = NDArray[np.float64]  # (n, 4): top, left, height, width
Draw = Callable[[RandomResizedCrop, tuple[int, int], int], Boxes]

CROPS = {
    "usual": RandomResizedCrop(224),
    "small": RandomResizedCrop(96, scale=(0.02, 0.3), ratio=(0.2, 1.5)),
    "rarely fits": RandomResizedCrop(96, scale=(0.6, 1.0), ratio=(0.9, 1.1)),
}
FULLS = [(375, 500), (500, 375), (60, 640), (31, 29)]
COUNT = 3000


def ours(crop: RandomResizedCrop, full: tuple[int, int], count: int) -> Boxes:
    """Each with a generator of its own, as in a stream."""
    generator = torch.Generator()
    return np.array(
        [crop.framing(full, generator.manual_seed(seed * 7919)).box for seed in range(count)]
    )


def by_the_paper(crop: RandomResizedCrop, full: tuple[int, int], count: int) -> Boxes:
    """Written from the docstring's words, for all boxes at once, with numpy's numbers."""
    rng, (high, wide) = np.random.default_rng(1), full
    least, most = crop.ratio
    # where nothing fits: as wide or as high as the image, as far from square as is allowed
    narrow, broad = min(wide, round(high * most)), min(high, round(wide / least))
    height, width = (high, narrow) if wide / high > most else (broad, wide)
    boxes = np.tile([(high - height) // 2, (wide - width) // 2, height, width], (count, 1))
    open_ones = np.full(count, True)
    for _ in range(10):
        area = rng.uniform(*crop.scale, count) * high * wide
        ratio = np.exp(rng.uniform(math.log(least), math.log(most), count))
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = open_ones & (w <= wide) & (h <= high) & (w > 0) & (h > 0)
        top = rng.integers(0, np.maximum(high - h, 0).astype(int) + 1)
        left = rng.integers(0, np.maximum(wide - w, 0).astype(int) + 1)
        boxes[fits] = np.stack([top, left, h, w], axis=1)[fits]
        open_ones &= ~fits
    return boxes.astype(np.float64)


def by_torchvision(crop: RandomResizedCrop, full: tuple[int, int], count: int) -> Boxes:
    from torchvision.transforms import RandomResizedCrop as Real

    torch.manual_seed(3)
    image = torch.empty(3, *full)
    drawn = [Real.get_params(image, [*crop.scale], [*crop.ratio]) for _ in range(count)]
    return np.array(drawn, np.float64)


def measures(boxes: Boxes, full: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    top, left, height, width = boxes.T
    return {
        "area": height * width,
        "ratio": width / height,
        "top": top,
        "left": left,
        "place between the margins": top / np.maximum(full[0] - height, 1),
        "area by place": height * width * (left + 1),
    }


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kolmogorov and Smirnov's, between two samples."""
    values = np.concatenate([one, other])
    shares = [
        np.searchsorted(np.sort(some), values, side="right") / len(some) for some in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def agree(draw: Draw, name: str, full: tuple[int, int], count: int) -> None:
    """No measure of our boxes is further from the other's than one in 10,000 would be by chance."""
    crop = CROPS[name]
    own, other = (measures(some(crop, full, count), full) for some in (ours, draw))
    bound = math.sqrt(-math.log(0.5e-4) / count)
    for measure in own:
        assert distance(own[measure], other[measure]) < bound, measure


@pytest.mark.parametrize("full", FULLS, ids=str)
@pytest.mark.parametrize("name", CROPS)
def test_boxes_are_those_of_the_paper(name: str, full: tuple[int, int]) -> None:
    agree(by_the_paper, name, full, COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("full", FULLS, ids=str)
@pytest.mark.parametrize("name", CROPS)
def test_boxes_are_those_of_torchvision(name: str, full: tuple[int, int], torchvision: Any) -> None:
    agree(by_torchvision, name, full, 5 * COUNT)
