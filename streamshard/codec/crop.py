"""Image decoders that crop and resize: bytes and a generator in, a uint8 tensor out.

Each decodes a JPEG at the smallest scale that still covers its target, then crops and resizes with
antialiasing (`torch.nn.functional.interpolate` on uint8), so that a large photograph never exists
at full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from streamshard.codec.base import Form
from streamshard.codec.image import decode_pixels, image_size
from streamshard.errors import UsageError

Size = int | tuple[int, int]


class Box(NamedTuple):
    """A rectangle of an image at full size, in pixels; fractions are allowed."""

    top: float
    left: float
    height: float
    width: float


class Framing(NamedTuple):
    """What a crop keeps of one image, decided from its size before anything is decoded.

    Attributes:
        box: What is kept.
        size: Height and width of the result.
        flip: Whether the result is mirrored left to right.
    """

    box: Box
    size: tuple[int, int]
    flip: bool = False


def cut(data: bytes, full: tuple[int, int], box: Box, size: tuple[int, int]) -> torch.Tensor:
    """Decode what is needed of an image and resize a box of it.

    Args:
        data: The file.
        full: Its height and width.
        box: What to keep.
        size: Height and width of the result.

    Returns:
        (3, *size) uint8.
    """
    # The whole image, were it scaled so that the box has the target's size.
    least = [math.ceil(full[i] * size[i] / max(box[2 + i], 1e-6)) for i in (0, 1)]
    pixels = decode_pixels(data, min(least[0], full[0]), min(least[1], full[1]))
    rows, columns = region(box, full, pixels.shape[:2])
    # (H, W, 3) seen as (1, 3, H, W) in channels_last, for which torch has a fast uint8 kernel
    image = torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1)[None]
    if image.shape[2:] != size:
        image = torch.nn.functional.interpolate(
            image, size, mode="bilinear", align_corners=False, antialias=True
        )
    return image[0]


def region(box: Box, full: tuple[int, int], shape: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of a box in an image that was decoded at another size.

    Args:
        box: A part of the image at full size.
        full: Height and width at full size.
        shape: Height and width as decoded.
    """
    ends = []
    for axis in (0, 1):
        scale = shape[axis] / full[axis]
        first = min(round(box[axis] * scale), shape[axis] - 1)
        last = min(round((box[axis] + box[2 + axis]) * scale), shape[axis])
        ends.append(slice(first, max(last, first + 1)))
    return ends[0], ends[1]


def _pair(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise UsageError(
            f"an image size of {size}; it must be at least 1 pixel, one whole number or two"
        )
    return pair[0], pair[1]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random rectangle of the image, resized to one size.

    Area and aspect ratio are drawn as in Szegedy et al., "Going Deeper with Convolutions" (CVPR
    2015), and as torchvision draws them: the area uniformly between `scale` of the image's, the
    ratio log-uniformly, ten tries, then the largest centered rectangle within the ratios.

    Attributes:
        size: Height and width in pixels, or one number for both.
        scale: Least and largest area, as a part of the image's.
        ratio: Least and largest width / height.
        flip: Probability of a horizontal flip.

    The result is a (3, height, width) uint8 tensor. The randomness is that of the generator given,
    which streamshard seeds from (seed, epoch, position).
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        _pair(self.size)
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < least <= most:
                raise UsageError(f"{name} is {(least, most)}; 0 < least <= largest is wanted")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"flip is {self.flip}; a probability from 0 to 1 is wanted")

    @property
    def form(self) -> Form:
        """What every result looks like."""
        return Form(torch.uint8, (3, *_pair(self.size)))

    def __call__(self, data: bytes, generator: torch.Generator) -> torch.Tensor:
        """Decode one image."""
        full = image_size(data)
        box, size, flip = self.framing(full, generator)
        image = cut(data, full, box, size)
        return image.flip(2) if flip else image

    def framing(self, full: tuple[int, int], generator: torch.Generator) -> Framing:
        """What is kept of an image of this height and width."""
        # Always the same number of draws, so that the flip does not depend on the tries.
        draws = torch.rand(41, generator=generator, dtype=torch.float64).tolist()
        return Framing(self._box(full, draws), _pair(self.size), draws[40] < self.flip)

    def _box(self, full: tuple[int, int], draws: list[float]) -> Box:
        height, width = full
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for a, b, c, d in zip(*[iter(draws[:40])] * 4, strict=True):
            area = height * width * (self.scale[0] + a * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + b * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(c * (height - h + 1)), int(d * (width - w + 1)), h, w)
        bounded = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * bounded)), min(height, round(width / bounded))
        return Box((height - h) // 2, (width - w) // 2, h, w)


@dataclass(frozen=True)
class CenterCrop:
    """The middle of the image, for evaluation.

    Attributes:
        size: Height and width in pixels, or one number for both.
        resize: Length in pixels that the image's shorter side is scaled to before the crop (256
            with a crop of 224 is common). None crops the image as it is, and enlarges it only where
            it is smaller than the crop.

    The result is a (3, height, width) uint8 tensor.
    """

    size: Size
    resize: int | None = None

    def __post_init__(self) -> None:
        _pair(self.size)
        if self.resize is not None:
            _pair(self.resize)

    @property
    def form(self) -> Form:
        """What every result looks like."""
        return Form(torch.uint8, (3, *_pair(self.size)))

    def __call__(self, data: bytes, generator: torch.Generator | None = None) -> torch.Tensor:
        """Decode one image."""
        full = image_size(data)
        box, size, _ = self.framing(full)
        return cut(data, full, box, size)

    def framing(self, full: tuple[int, int], generator: torch.Generator | None = None) -> Framing:
        """What is kept of an image of this height and width."""
        size = _pair(self.size)
        scale = self.resize / min(full) if self.resize else 1.0
        scale = max(scale, size[0] / full[0], size[1] / full[1])
        height, width = size[0] / scale, size[1] / scale
        return Framing(Box((full[0] - height) / 2, (full[1] - width) / 2, height, width), size)


@dataclass(frozen=True)
class Resize:
    """The whole image at another size.

    Attributes:
        size: Height and width for exactly that size, whatever the aspect ratio; one number for the
            shorter side, the other in proportion. Images of one number have sizes of their own, so
            a batch is a list of them.

    The result is a (3, height, width) uint8 tensor.
    """

    size: Size

    def __post_init__(self) -> None:
        _pair(self.size)

    @property
    def form(self) -> Form | None:
        """What every result looks like; None where the sizes differ."""
        return None if isinstance(self.size, int) else Form(torch.uint8, (3, *_pair(self.size)))

    def __call__(self, data: bytes, generator: torch.Generator | None = None) -> torch.Tensor:
        """Decode one image."""
        full = image_size(data)
        box, size, _ = self.framing(full)
        return cut(data, full, box, size)

    def framing(self, full: tuple[int, int], generator: torch.Generator | None = None) -> Framing:
        """What is kept of an image of this height and width: all of it."""
        size = shorter_side(full, self.size) if isinstance(self.size, int) else _pair(self.size)
        return Framing(Box(0, 0, *full), size)


def shorter_side(full: tuple[int, int], length: int) -> tuple[int, int]:
    """Height and width once the shorter side is `length`.

    >>> shorter_side((375, 500), 256)
    (256, 341)
    """
    scale = length / min(full)
    return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
