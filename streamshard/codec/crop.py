"""Image decoders: bytes and a generator in, a uint8 tensor out.

All take any file that `ss.pack_images` takes, and give it upright. Each decodes a JPEG at the
smallest scale, of an eighth, a quarter, a half and all, that still covers its target; then crops
and resizes with antialiasing (`torch.nn.functional.interpolate` on uint8), so that a large
photograph never exists at full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from streamshard.codec.array import as_picture
from streamshard.codec.base import Form
from streamshard.codec.framing import Box, Framing, framed, whole
from streamshard.codec.picture import opened
from streamshard.codec.pixels import Mode, check_kind, form_of
from streamshard.errors import UsageError

Size = int | tuple[int, int]
Bytes = bytes | memoryview


def _check_size(size: Size) -> None:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise UsageError(
            f"an image size of {size}; it must be at least 1 pixel, one whole number or two"
        )


def _pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Decode:
    """The whole image, as it is, in one of five modes.

    Attributes:
        mode: What an image becomes:

            "RGB": (3, height, width) uint8. Gray is repeated, a palette looked up, alpha dropped
            (what it hides appears), of 16 bits the upper eight are kept, CMYK and YCCK are
            converted as Adobe stores them, (1 - C)(1 - K) and so on: as Pillow's `convert("RGB")`.

            "L": (1, height, width) uint8. The luma of ITU-R BT.601, which is the Y of a JPEG.

            "RGBA": (4, height, width) uint8. Alpha is 255 where the file has none.

            "labels": (height, width) uint8. The numbers in the file, for masks: palette indices, or
            one gray channel, never converted, and never averaged when resized: the pixel is taken
            in which the centre of the new one lies. JPEG, colours and numbers above 255 are errors.

            "labels32": (height, width) int32, the same for numbers of up to 32 bits.
        memory_format: How a stacked batch of colours lies in memory, whose shape is the same:
            `torch.channels_last` has the channels of each pixel together, as decoders give them and
            as convolutions are fastest with on recent GPUs; `torch.contiguous_format`, channel by
            channel, takes a copy that costs some 50 µs for 224 x 224 pixels.

    In every mode the image is turned as its EXIF tag says, or its XMP where there is no tag (as
    Pillow's `ImageOps.exif_transpose`), in any format that has one; of an animation the first frame
    is taken; colour profiles are not applied. Progressive and arithmetic-coded JPEGs are read.

    Images of one size are stacked, others are a list.

    Raises:
        UsageError: There is no such mode or memory format.
    """

    mode: Mode = "RGB"
    memory_format: torch.memory_format = torch.contiguous_format
    takes_bytes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kind(self.mode, self.memory_format)

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """What every result looks like in a dataset with this schema; None where sizes differ."""
        # The size of an image file, or what follows from the shape of an array.
        size = schema.get("size") or as_picture(schema.get("shape") or ())
        return form_of(self.mode, (size[0], size[1]), self.memory_format) if size else None

    def __call__(self, data: Bytes, generator: torch.Generator | None = None) -> torch.Tensor:
        """Decode one image."""
        return whole(opened(data), self.mode)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random rectangle of the image, resized to one size.

    The "Inception" crop of Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), drawn as
    torchvision's `RandomResizedCrop` draws it. Of an image of H x W pixels, up to ten times: the
    area A = H·W·u, u uniform in `scale`; the ratio r = exp(v), v uniform between the logarithms of
    `ratio`; width round(√(A·r)) and height round(√(A/r)); if that fits, a place uniform among all
    whole ones. Then the largest centered rectangle within the ratios.

    Attributes:
        size: Height and width in pixels, or one number for both.
        scale: Least and largest area, as a part of the image's.
        ratio: Least and largest width / height.
        flip: Probability of a horizontal flip.
        mode: See `Decode`.
        memory_format: See `Decode`.

    The result is a (3, height, width) uint8 tensor, or what the mode says. The randomness is that
    of the generator given, which streamshard seeds from (seed, epoch, position), for each part
    anew: an image and its mask, of one size, get the same rectangle.

    Where the file is decoded at full size (any but a JPEG, and a JPEG whose rectangle is less than
    twice as high or wide as the target), pixels are those of decoding all of it, cutting the
    rectangle out and `interpolate(…, mode="bilinear", antialias=True)`. A JPEG that is decoded
    smaller has the rectangle's edges moved to whole decoded pixels, by half of one at most and so
    by at most half a pixel of the result. Against the rectangle so moved, photographs differ by 1.5
    levels of 255 in the mean, and 999 of 1,000 values by 25 or less.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    mode: Mode = "RGB"
    memory_format: torch.memory_format = torch.contiguous_format
    takes_bytes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        check_kind(self.mode, self.memory_format)
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < least <= most:
                raise UsageError(f"{name} is {(least, most)}; 0 < least <= largest is wanted")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"flip is {self.flip}; a probability from 0 to 1 is wanted")

    @property
    def form(self) -> Form:
        """What every result looks like."""
        return form_of(self.mode, _pair(self.size), self.memory_format)

    def __call__(
        self, data: Bytes, generator: torch.Generator, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Decode one image; `out`, of the result's form, is written and returned where it can."""
        picture = opened(data)
        return framed(picture, self.framing(picture.size, generator), self.mode, out)

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

    As torchvision's `Resize(resize)` and `CenterCrop(size)` one after the other: the shorter side
    becomes `resize`, the longer one ⌊resize · longer / shorter⌋, and the crop begins at
    round((side - size) / 2). Where torchvision would fill a smaller image up with black, it is
    enlarged until it covers the crop.

    Attributes:
        size: Height and width in pixels, or one number for both.
        resize: Length in pixels that the image's shorter side is scaled to before the crop (256
            with a crop of 224 is common). None crops the image as it is, and enlarges it only where
            it is smaller than the crop.
        mode: See `Decode`.
        memory_format: See `Decode`.

    The result is a (3, height, width) uint8 tensor, or what the mode says. Only the middle is
    resized, which shifts it by up to 1/32 of a decoded pixel: photographs differ from what
    torchvision makes of the whole by 1 level of 255 in the mean, and 999 of 1,000 values by 6 or
    less; where a JPEG is decoded smaller by 1.5 and 25.
    """

    size: Size
    resize: int | None = None
    mode: Mode = "RGB"
    memory_format: torch.memory_format = torch.contiguous_format
    takes_bytes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        check_kind(self.mode, self.memory_format)
        if self.resize is not None:
            _check_size(self.resize)

    @property
    def form(self) -> Form:
        """What every result looks like."""
        return form_of(self.mode, _pair(self.size), self.memory_format)

    def __call__(self, data: Bytes, generator: torch.Generator | None = None) -> torch.Tensor:
        """Decode one image."""
        picture = opened(data)
        return framed(picture, self.framing(picture.size), self.mode)

    def framing(self, full: tuple[int, int], generator: torch.Generator | None = None) -> Framing:
        """What is kept of an image of this height and width."""
        size = _pair(self.size)
        resized = shorter_side(full, self.resize) if self.resize else full
        cover = max(size[0] / resized[0], size[1] / resized[1])
        if cover > 1:
            height, width = (max(size[axis], round(resized[axis] * cover)) for axis in (0, 1))
            resized = height, width
        steps = full[0] / resized[0], full[1] / resized[1]
        top, left = (round((resized[axis] - size[axis]) / 2) * steps[axis] for axis in (0, 1))
        box = Box(top, left, size[0] * steps[0], size[1] * steps[1])
        return Framing(box, size, sees_around=True)


@dataclass(frozen=True)
class Resize:
    """The whole image at another size.

    Attributes:
        size: Height and width for exactly that size, whatever the aspect ratio; one number for the
            shorter side, the longer one ⌊size · longer / shorter⌋, as torchvision's `Resize` has
            it. Images of one number have sizes of their own, so a batch is a list of them.
        mode: See `Decode`.
        memory_format: See `Decode`.

    The result is a (3, height, width) uint8 tensor, or what the mode says: that of
    `interpolate(…, mode="bilinear", antialias=True)`, but for a JPEG that is decoded smaller, whose
    pixels differ as those of `RandomResizedCrop` do.
    """

    size: Size
    mode: Mode = "RGB"
    memory_format: torch.memory_format = torch.contiguous_format
    takes_bytes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        check_kind(self.mode, self.memory_format)

    @property
    def form(self) -> Form | None:
        """What every result looks like; None where the sizes differ."""
        if isinstance(self.size, int):
            return None
        return form_of(self.mode, _pair(self.size), self.memory_format)

    def __call__(self, data: Bytes, generator: torch.Generator | None = None) -> torch.Tensor:
        """Decode one image."""
        picture = opened(data)
        return framed(picture, self.framing(picture.size), self.mode)

    def framing(self, full: tuple[int, int], generator: torch.Generator | None = None) -> Framing:
        """What is kept of an image of this height and width: all of it."""
        size = shorter_side(full, self.size) if isinstance(self.size, int) else _pair(self.size)
        return resized_to(full, size)


def resized_to(full: tuple[int, int], size: tuple[int, int]) -> Framing:
    """All of an image of one height and width, to be resized to another."""
    return Framing(Box(0, 0, *full), size, sees_around=True)


def shorter_side(full: tuple[int, int], length: int) -> tuple[int, int]:
    """Height and width once the shorter side is `length`; the longer one is rounded down.

    >>> shorter_side((375, 500), 256), shorter_side((500, 333), 256)
    ((256, 341), (384, 256))
    """
    short = min(full)
    return length * full[0] // short, length * full[1] // short
