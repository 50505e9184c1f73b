"""An image file, opened: its size upright, and its pixels in the mode asked for.

The format is told by the bytes, never by the suffix. JPEG goes through simplejpeg (libjpeg-turbo),
which can decode at a part of the size for a part of the time; what that refuses, and the rest,
through Pillow. Orientation is applied (see `orientation`), of an animation the first frame is
taken, colour profiles are not applied.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from streamshard.codec import orientation
from streamshard.codec.array import MAGIC, as_picture, view_of
from streamshard.codec.by_pillow import ByPillow
from streamshard.codec.header import Header, Headers
from streamshard.codec.pixels import (
    CHANNELS,
    Mode,
    Picture,
    Pixels,
    Rectangle,
    as_labels,
    check_count,
    part_of,
)
from streamshard.codec.restart import cut

JPEG = b"\xff\xd8\xff"
_COLORSPACES = {"RGB": "RGB", "L": "GRAY", "RGBA": "RGBA"}
_TELLS_SCALES = 8  # pixels of a side from which on simplejpeg is told a scale by what becomes of it
_HEADERS = Headers()
# Decoded pixels: of less than five no colours are smoothed, and of few no scales told apart.
_NARROW = 8
_REACH = 2  # pixels to each side that colours which are stored with half the pixels depend on


def opened(data: bytes | memoryview) -> Picture:
    """Read an image file's header; a `.npy` file is one whose pixels are there already.

    Raises:
        ValueError: Not an image, or more than `MAX_PIXELS`.
    """
    if data[:6] == MAGIC:
        return _Array(view_of(data))
    data = bytes(data)  # the same object where it is bytes
    header = _HEADERS.of(data) if data[:3] == JPEG else None
    return ByPillow(data) if header is None else _Jpeg(data, header)


class _Jpeg(Picture):
    """A JPEG by libjpeg-turbo, or by Pillow where that refuses it."""

    def __init__(self, data: bytes, header: Header) -> None:
        self._data, self._header = data, header
        height, width = header.size
        self.size = (width, height) if header.orientation >= 5 else (height, width)

    def scale(self, least: float) -> float:
        """See `Picture`."""
        # At 3, 5, 6 and 7 eighths libjpeg-turbo has no vector code: 3/8 takes as long as 4/8, and
        # the others longer than the whole.
        if least > 0.5 or max(self.size) < _TELLS_SCALES:
            return 1.0
        return 0.5 if least > 0.25 else 0.25 if least > 0.125 else 0.125

    def decode(
        self, mode: Mode = "RGB", scale: float = 1.0, part: Rectangle | None = None
    ) -> Pixels:
        """See `Picture`."""
        if mode not in CHANNELS:
            raise ValueError("JPEG changes values, so it holds no labels; pack them as png")
        # Of CMYK it would take one ink for gray.
        if mode == "L" and self._header.colorspace in ("CMYK", "YCCK"):
            return ByPillow(self._data).decode(mode, scale, part)
        pixels = self._cut(mode, scale, part) if part else None
        if pixels is not None:
            return pixels
        try:
            pixels = _decoded(self._data, self._header.size, mode, scale)
        except ValueError:
            # What libjpeg-turbo refuses (stray bytes) Pillow may still read; it refuses a cut file,
            # which libjpeg-turbo would fill up with grey.
            return ByPillow(self._data).decode(mode, scale, part)
        if self._header.orientation == orientation.UPRIGHT:
            return part_of(pixels, part)
        turned = orientation.turned(pixels, self._header.orientation)
        return np.ascontiguousarray(part_of(turned, part))

    def _cut(self, mode: Mode, scale: float, part: Rectangle) -> Pixels | None:
        """The part without what lies around it; None where the whole is to be decoded."""
        grid = self._header.grid
        if grid is None or self._header.orientation != orientation.UPRIGHT:
            return None
        each = round(1 / scale)  # stored pixels to a side of a decoded one
        top, left = (max(0, begin - _REACH) * each for begin in part[:2])
        bottom, right = (
            min((end + _REACH) * each, side) for end, side in zip(part[2:], self.size, strict=True)
        )
        found = cut(self._data, grid, Rectangle(top, left, bottom, right))
        if found is None:
            return None
        place = found.place
        size = place.bottom - place.top, place.right - place.left
        if size[1] <= _NARROW * each:
            return None
        try:
            pixels = _decoded(found.data, size, mode, scale)
        except ValueError:
            return None  # what is wrong with it, the whole file tells
        up, back = place.top // each, place.left // each
        return part_of(
            pixels, Rectangle(part.top - up, part.left - back, part.bottom - up, part.right - back)
        )


def _decoded(data: bytes | bytearray, size: tuple[int, int], mode: Mode, scale: float) -> Pixels:
    """A JPEG of this height and width, at a scale.

    Raises:
        ValueError: libjpeg-turbo can't, or would have to guess.
    """
    # simplejpeg takes the smallest scale at which it has this height and width
    height, width = (math.ceil(side * scale) if scale < 1 else 0 for side in size)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, _COLORSPACES[mode], min_height=height, min_width=width
    )
    return pixels


class _Array(Picture):
    """Pixels as they lie in a `.npy` file: (height, width), or with channels, last or first."""

    def __init__(self, array: NDArray[Any]) -> None:
        found = as_picture(array.shape)
        if found is None or array.dtype.kind not in "biu":
            raise ValueError(f"an array of {array.dtype} {[*array.shape]} is no picture")
        height, width, comes_first = found
        check_count(height, width)
        self.size = height, width
        if array.ndim == 2:
            array = array[..., None]
        self._array = array.transpose(1, 2, 0) if comes_first else array

    def decode(
        self, mode: Mode = "RGB", scale: float = 1.0, part: Rectangle | None = None
    ) -> Pixels:
        """See `Picture`; a view where the mode is the file's own."""
        del scale
        array = part_of(self._array, part)
        channels = array.shape[2]
        if mode not in CHANNELS:
            if channels != 1:
                raise ValueError(f"labels have one channel; this array has {channels}")
            return as_labels(array[..., 0], mode)
        if array.dtype != np.uint8:
            raise ValueError(f"its pixels are {array.dtype}; uint8 is wanted")
        if channels != CHANNELS[mode]:
            image = Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))
            array = np.asarray(image.convert(mode)).reshape(*array.shape[:2], CHANNELS[mode])
        return array
