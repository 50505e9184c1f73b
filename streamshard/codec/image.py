"""Images: JPEG, PNG, WebP and what else Pillow reads, to uint8 RGB and back.

The format is told by the bytes, never by the suffix. JPEG goes through simplejpeg (libjpeg-turbo),
which can decode at 1/8 to 8/8 of the size for a part of the time; the rest through Pillow.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from streamshard.codec.base import Facts, Form, Schema, merge_equal
from streamshard.codec.text import BytesCodec

Pixels = NDArray[np.uint8]  # (height, width, 3)

MAX_PIXELS = 89_478_485  # as Pillow warns from; a file that decodes to more is taken for a bomb
_JPEG = b"\xff\xd8\xff"
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels, from the header alone.

    Raises:
        ValueError: Not an image, or more than `MAX_PIXELS`.
    """
    if data[:3] == _JPEG:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: a header without colour space
            raise ValueError(f"not a whole JPEG ({error})") from None
    else:
        with _pillow(data) as image:
            width, height = image.size
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels; at most {MAX_PIXELS} are decoded")
    return height, width


def decode_pixels(data: bytes, min_height: int = 0, min_width: int = 0) -> Pixels:
    """Decode to RGB.

    Args:
        data: The file.
        min_height: Where both are given, a JPEG is decoded at the smallest scale at which it still
            has this height and width; other formats at full size.
        min_width: See `min_height`.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: Not a whole image, or one of more than `MAX_PIXELS`.
    """
    image_size(data)
    if data[:3] == _JPEG:
        # What libjpeg-turbo refuses (CMYK, stray bytes) Pillow may still read; it refuses a cut
        # file, which libjpeg-turbo would fill up with grey.
        with contextlib.suppress(ValueError):
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=min_height, min_width=min_width
            )
            return pixels
    with _pillow(data) as image:
        try:
            return np.array(_eight_bits(image).convert("RGB"))
        except Exception as error:  # Pillow's decoders raise what they like
            raise ValueError(f"not a whole {image.format} ({error})") from None


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


def _pillow(data: bytes) -> Image.Image:
    """Open an image without decoding it."""
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:  # UnidentifiedImageError, struct.error, a bomb warning, …
        text = str(error).partition(" <_io")[0]
        raise ValueError(f"not an image ({text or type(error).__name__})") from None


def check_whole(data: bytes) -> None:
    """Refuse a file that was cut short, without the price of decoding it.

    JPEG, PNG and WebP say where they end; a file that lacks that mark, and any other format, is
    decoded to find out.

    Raises:
        ValueError: Not a whole image.
    """
    if data[:3] == _JPEG:
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        whole = _png_is_whole(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        whole = len(data) >= int.from_bytes(data[4:8], "little") + 8
    else:
        whole = False
    if not whole:
        decode_pixels(data)


def _png_is_whole(data: bytes) -> bool:
    """Walk a PNG's chunks, checking each one's crc, up to IEND."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if zlib.crc32(body) != int.from_bytes(data[at + 8 + length : at + 12 + length], "big"):
            return False
        if body[:4] == b"IEND":
            return True
        at += 12 + length
    return False


def encode_pixels(pixels: Pixels, format: str, quality: int) -> bytes:
    """Encode RGB pixels.

    Args:
        pixels: (height, width, 3) uint8.
        format: jpg, png or webp.
        quality: Of jpg and webp, 1 to 100.

    Raises:
        ValueError: Another format.
    """
    if format not in _FORMATS:
        raise ValueError(f"{format} is read, not written; --format jpg (or png, webp, npy) is")
    if format in ("jpg", "jpeg"):
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, _FORMATS[format], quality=quality)
    return file.getvalue()


class ImageCodec(BytesCodec):
    """An image file, a (3, height, width) uint8 RGB tensor."""

    name = "image"

    def __init__(self, format: str) -> None:
        self._format = format

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`: takes uint8 (3, H, W) tensors, (H, W, 3) arrays, and PIL images."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, torch.Tensor):
            if value.dim() != 3:
                raise ValueError(
                    f"{value.dtype} of shape {[*value.shape]} is not a uint8 RGB image"
                )
            value = value.detach().cpu().permute(1, 2, 0).numpy()
        elif isinstance(value, Image.Image):
            value = value.convert("RGB")
        pixels = np.asarray(value)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"{pixels.dtype} of shape {pixels.shape} is not a uint8 RGB image")
        return encode_pixels(pixels, self._format, quality=90)

    def inspect(self, data: bytes) -> tuple[Facts, Schema]:
        """See `BytesCodec`: height and width are facts."""
        height, width = image_size(data)
        check_whole(data)
        return {"height": height, "width": width}, {"size": [height, width]}

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`."""
        return merge_equal(one, other)

    def decode(self, data: bytes) -> torch.Tensor:
        """See `Codec`."""
        return torch.from_numpy(decode_pixels(data)).permute(2, 0, 1).contiguous()

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: stacked where all images have one size."""
        size = schema.get("size")
        return Form(torch.uint8, (3, *size)) if size else None
