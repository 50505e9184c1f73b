"""What has pixels, what they are decoded to (colours or labels), and how many there may be."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.base import Form
from streamshard.errors import UsageError

Mode = Literal["RGB", "L", "RGBA", "labels", "labels32"]
Pixels = NDArray[Any]  # (height, width, channels), or of labels (height, width)

MAX_PIXELS = 89_478_485  # as Pillow warns from; a file that decodes to more is taken for a bomb
CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4}  # the modes whose values are colours, not labels


class Rectangle(NamedTuple):
    """Rows and columns of pixels, the last ones not included."""

    top: int
    left: int
    bottom: int
    right: int


def part_of(pixels: Pixels, part: Rectangle | None) -> Pixels:
    """A view of some of the pixels, or all of them."""
    return pixels if part is None else pixels[part.top : part.bottom, part.left : part.right]


class Picture(Protocol):
    """An image file whose header was read.

    Attributes:
        size: Height and width in pixels, upright.
    """

    size: tuple[int, int]

    def scale(self, least: float) -> float:
        """The smallest scale, 1 at most, at which it can be decoded that is `least` or more."""
        del least
        return 1.0  # of all but JPEG

    def decode(
        self, mode: Mode = "RGB", scale: float = 1.0, part: Rectangle | None = None
    ) -> Pixels:
        """The pixels, upright.

        Args:
            mode: What they are to be; see `form_of`.
            scale: 1, or what `scale` gave. Height and width are rounded up.
            part: Of the picture at that scale; None for all of it.

        Returns:
            (height, width, channels) uint8; labels (height, width) uint8 or int32. Of an array that
            is not to be written a view that is not either.

        Raises:
            ValueError: The file is not whole, or has no such pixels.
        """


def form_of(
    mode: Mode,
    size: tuple[int, int],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Form:
    """What an image of this height and width becomes: (channels, *size), labels (*size)."""
    if mode in CHANNELS:
        is_last = memory_format == torch.channels_last
        return Form(torch.uint8, (CHANNELS[mode], *size), channels_last=is_last)
    return Form(torch.int32 if mode == "labels32" else torch.uint8, size)


def check_kind(mode: str, memory_format: torch.memory_format) -> None:
    """Refuse a mode or a memory format that there is not.

    Raises:
        UsageError: See above.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode is {mode!r}; it must be one of {', '.join(get_args(Mode))}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise UsageError(
            f"memory_format is {memory_format}; torch.contiguous_format or torch.channels_last "
            "is wanted"
        )


def check_count(height: int, width: int) -> None:
    """Refuse a bomb.

    Raises:
        ValueError: See `MAX_PIXELS`.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels; at most {MAX_PIXELS} are decoded")


def as_labels(values: NDArray[Any], mode: Mode) -> NDArray[Any]:
    """Labels in the dtype of their mode.

    Raises:
        ValueError: The mode has no room for one.
    """
    dtype = np.int32 if mode == "labels32" else np.uint8
    if values.dtype.itemsize >= np.dtype(dtype).itemsize and values.dtype != dtype and values.size:
        least, most, limit = int(values.min()), int(values.max()), np.iinfo(dtype)
        if not limit.min <= least <= most <= limit.max:
            odd = most if most > limit.max else least
            raise ValueError(
                f"a label is {odd}, "
                + (
                    "above 255; mode='labels32' has room"
                    if dtype is np.uint8 and odd > 0
                    else "which no label can be"
                )
            )
    return values.astype(dtype)
