"""An image file, opened: its size upright, and its pixels in the mode asked for.

The format is told by the bytes, never by the suffix. JPEG goes through simplejpeg (libjpeg-turbo),
which can decode at a part of the size for a part of the time; what that refuses, and the rest,
through Pillow. Orientation is applied (see `orientation`), of an animation the first frame is
taken, colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from streamshard.codec import orientation
from streamshard.codec.array import MAGIC, as_picture, view_of
from streamshard.codec.base import Form
from streamshard.errors import UsageError

Mode = Literal["RGB", "L", "RGBA", "labels", "labels32"]
Pixels = NDArray[Any]  # (height, width, channels), or of labels (height, width)

MAX_PIXELS = 89_478_485  # as Pillow warns from; a file that decodes to more is taken for a bomb
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4}  # the modes whose values are colours, not labels
_COLORSPACES = {"RGB": "RGB", "L": "GRAY", "RGBA": "RGBA"}


class Decoded(NamedTuple):
    """Pixels, upright.

    Attributes:
        pixels: (height, width, channels) uint8; labels (height, width) uint8 or int32. In C order.
        scale: Their size as a part of the file's; height and width are rounded up.
    """

    pixels: Pixels
    scale: float


class Picture(Protocol):
    """An image file whose header was read.

    Attributes:
        size: Height and width in pixels, upright.
    """

    size: tuple[int, int]

    def decode(self, mode: Mode = "RGB", least: float = 1.0) -> Decoded:
        """The pixels.

        Args:
            mode: What they are to be; see `form_of`.
            least: The smallest scale that will do; only a JPEG has any but 1.

        Raises:
            ValueError: The file is not whole, or has no such pixels.
        """


def opened(data: bytes | memoryview) -> Picture:
    """Read an image file's header; a `.npy` file is one whose pixels are there already.

    Raises:
        ValueError: Not an image, or more than `MAX_PIXELS`.
    """
    if data[:6] == MAGIC:
        return _Array(view_of(data))
    data = bytes(data)  # the same object where it is bytes
    return _Jpeg(data) if data[:3] == JPEG else _ByPillow(data)


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


class _Jpeg:
    """A JPEG by libjpeg-turbo, or by Pillow where that refuses it."""

    def __init__(self, data: bytes) -> None:
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: a header without colour space
            raise ValueError(f"not a whole JPEG ({error})") from None
        _check_count(height, width)
        self._data, self._stored, self._colorspace = data, (height, width), colorspace
        self._orientation = orientation.of_jpeg(data)
        self.size = (width, height) if self._orientation >= 5 else (height, width)

    def decode(self, mode: Mode = "RGB", least: float = 1.0) -> Decoded:
        """See `Picture`."""
        if mode not in CHANNELS:
            raise ValueError("JPEG changes values, so it holds no labels; pack them as png")
        # Of CMYK it would take one ink for gray.
        if mode == "L" and self._colorspace in ("CMYK", "YCCK"):
            return _ByPillow(self._data).decode(mode)
        # At 3, 5, 6 and 7 eighths libjpeg-turbo has no vector code: 3/8 takes as long as 4/8, and
        # the others longer than the whole.
        eighths, height, width = 8, 0, 0
        if least <= 0.5 and max(self._stored) >= 8:
            eighths = 4 if least > 0.25 else 2 if least > 0.125 else 1
            # simplejpeg takes the smallest scale at which it has this height and width
            height, width = (-(-side * eighths // 8) for side in self._stored)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, _COLORSPACES[mode], min_height=height, min_width=width
            )
        except ValueError:
            # What libjpeg-turbo refuses (stray bytes) Pillow may still read; it refuses a cut file,
            # which libjpeg-turbo would fill up with grey.
            return _ByPillow(self._data).decode(mode)
        if self._orientation != orientation.UPRIGHT:
            pixels = np.ascontiguousarray(orientation.turned(pixels, self._orientation))
        return Decoded(pixels, eighths / 8)


class _Array:
    """Pixels as they lie in a `.npy` file: (height, width), or with channels, last or first."""

    def __init__(self, array: NDArray[Any]) -> None:
        found = as_picture(array.shape)
        if found is None or array.dtype.kind not in "biu":
            raise ValueError(f"an array of {array.dtype} {[*array.shape]} is no picture")
        height, width, comes_first = found
        _check_count(height, width)
        self.size = height, width
        self._array = array.transpose(1, 2, 0) if comes_first else array.reshape(height, width, -1)

    def decode(self, mode: Mode = "RGB", least: float = 1.0) -> Decoded:
        """See `Picture`; a view where the mode is the file's own."""
        del least
        array = self._array
        channels = array.shape[2]
        if mode not in CHANNELS:
            if channels != 1:
                raise ValueError(f"labels have one channel; this array has {channels}")
            return Decoded(_labels(array[..., 0], mode), 1.0)
        if array.dtype != np.uint8:
            raise ValueError(f"its pixels are {array.dtype}; uint8 is wanted")
        if channels != CHANNELS[mode]:
            image = Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))
            array = np.asarray(image.convert(mode)).reshape(*self.size, CHANNELS[mode])
        return Decoded(array, 1.0)


class _ByPillow:
    """What Pillow reads."""

    def __init__(self, data: bytes) -> None:
        try:
            self._image: Image.Image = Image.open(io.BytesIO(data))
        except Exception as error:  # UnidentifiedImageError, struct.error, a bomb warning, …
            text = str(error).partition(" <_io")[0]
            raise ValueError(f"not an image ({text or type(error).__name__})") from None
        _check_count(*self._image.size[::-1])
        # A PNG keeps its gray in 1, 2, 4, 8 or 16 bits; Pillow spreads two and four over 0 to 255.
        gray_bits = data[24] if data[:8] == PNG and data[25] == 0 else 8
        self._spread = {2: 85, 4: 17}.get(gray_bits, 1)
        self._format = self._image.format
        if self._may_be_turned(data):
            self._load()
            from PIL import ImageOps  # which few images need

            with contextlib.suppress(Exception):  # a damaged tag says nothing
                self._image = ImageOps.exif_transpose(self._image)
        width, height = self._image.size
        self.size = height, width

    def _may_be_turned(self, data: bytes) -> bool:
        """Whether the pixels must be had to know; of TIFF Pillow turns them by itself."""
        if data[:8] == PNG:
            return orientation.may_be_in_png(data)
        try:
            return bool(self._image.getexif().get(0x0112, 1) != orientation.UPRIGHT)
        except Exception:  # a damaged tag says nothing
            return False

    def _load(self) -> None:
        try:
            self._image.load()
        except Exception as error:  # Pillow's decoders raise what they like
            raise ValueError(f"not a whole {self._format} ({error})") from None

    def decode(self, mode: Mode = "RGB", least: float = 1.0) -> Decoded:
        """See `Picture`."""
        del least
        self._load()
        if mode not in CHANNELS:
            return Decoded(self._labels(mode), 1.0)
        image = _eight_bits(self._image)
        if mode != "RGBA" and "transparency" in image.info:  # Pillow would warn that it gets lost
            image = image.copy()
            del image.info["transparency"]
        pixels = np.array(image.convert(mode))
        return Decoded(pixels[..., None] if mode == "L" else pixels, 1.0)

    def _labels(self, mode: Mode) -> NDArray[Any]:
        """The numbers of the file's one channel.

        Raises:
            ValueError: It has several, or numbers that the mode has no room for.
        """
        if self._image.mode not in ("1", "L", "P") and not self._image.mode.startswith("I"):
            raise ValueError(
                f"its pixels are {self._image.mode}; labels are palette indices or one gray channel"
            )
        return _labels(np.asarray(self._image), mode) // self._spread


def _labels(values: NDArray[Any], mode: Mode) -> NDArray[Any]:
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


def _check_count(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels; at most {MAX_PIXELS} are decoded")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper eight of sixteen bits; Pillow's own conversion clips them at 255 instead.

    Raises:
        ValueError: The pixels are floating-point numbers, whose range nobody tells.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; store it as npy")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(
        (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    )
