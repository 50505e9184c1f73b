"""An image file that Pillow reads."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamshard.codec import orientation
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

PNG = b"\x89PNG\r\n\x1a\n"


class ByPillow(Picture):
    """What Pillow reads."""

    def __init__(self, data: bytes) -> None:
        try:
            self._image: Image.Image = Image.open(io.BytesIO(data))
        except Exception as error:  # UnidentifiedImageError, struct.error, a bomb warning, …
            text = str(error).partition(" <_io")[0]
            raise ValueError(f"not an image ({text or type(error).__name__})") from None
        check_count(*self._image.size[::-1])
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

    def decode(
        self, mode: Mode = "RGB", scale: float = 1.0, part: Rectangle | None = None
    ) -> Pixels:
        """See `Picture`; at another scale than 1, pixels are means of the file's."""
        self._load()
        if mode not in CHANNELS:
            return part_of(self._labels(mode), part)
        image = _eight_bits(self._image)
        if mode != "RGBA" and "transparency" in image.info:  # Pillow would warn that it gets lost
            image = image.copy()
            del image.info["transparency"]
        image = image.convert(mode)
        if scale < 1:
            image = image.reduce(round(1 / scale))
        pixels = np.array(part_of(np.asarray(image), part))
        return pixels[..., None] if mode == "L" else pixels

    def _labels(self, mode: Mode) -> NDArray[Any]:
        """The numbers of the file's one channel.

        Raises:
            ValueError: It has several, or numbers that the mode has no room for.
        """
        if self._image.mode not in ("1", "L", "P") and not self._image.mode.startswith("I"):
            raise ValueError(
                f"its pixels are {self._image.mode}; labels are palette indices or one gray channel"
            )
        return as_labels(np.asarray(self._image), mode) // self._spread


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
