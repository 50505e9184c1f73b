"""Images: JPEG, PNG, WebP and what else Pillow reads, to uint8 RGB and back."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from zlib_ng.zlib_ng import crc32

from streamshard.codec.base import Facts, Form, Schema, merge_equal
from streamshard.codec.by_pillow import PNG
from streamshard.codec.framing import whole
from streamshard.codec.picture import JPEG, opened
from streamshard.codec.pixels import form_of
from streamshard.codec.restart import interval_for
from streamshard.codec.text import BytesCodec

_JPEG_SIDE = 65_500  # pixels, at most, in libjpeg
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def check_whole(data: bytes) -> None:
    """Refuse a file that was cut short, without the price of decoding it.

    JPEG, PNG and WebP say where they end; a file that lacks that mark, and any other format, is
    decoded to find out.

    Raises:
        ValueError: Not a whole image.
    """
    if data[:3] == JPEG:
        whole = _jpeg_is_whole(data)
    elif data[:8] == PNG:
        whole = _png_is_whole(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        whole = len(data) >= int.from_bytes(data[4:8], "little") + 8
    else:
        whole = False
    if not whole:
        opened(data).decode()


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the last end mark comes behind a start of a scan, and no start behind it.

    Each is looked for from the end of the file where it mostly is.
    """
    end = data.rfind(b"\xff\xd9")
    return 0 < data.find(b"\xff\xda") < end and data.find(b"\xff\xda", end) < 0


def _png_is_whole(data: bytes) -> bool:
    """Walk a PNG's chunks, checking each one's crc, up to IEND."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if crc32(body) != int.from_bytes(data[at + 8 + length : at + 12 + length], "big"):
            return False
        if body[:4] == b"IEND":
            return True
        at += 12 + length
    return False


def encode_pixels(pixels: NDArray[np.uint8], format: str, quality: int) -> bytes:
    """Encode RGB pixels.

    Args:
        pixels: (height, width, 3) uint8.
        format: jpg, png or webp.
        quality: Of jpg and webp, 1 to 100.

    Raises:
        ValueError: Another format, or too large for it.
    """
    if format not in _FORMATS:
        raise ValueError(f"{format} is read, not written; --format jpg (or png, webp, npy) is")
    options: dict[str, Any] = {"quality": quality}
    if format in ("jpg", "jpeg"):
        height, width, _ = pixels.shape
        if max(height, width) > _JPEG_SIDE:
            raise ValueError(f"an image of {width}x{height} pixels; a JPEG has {_JPEG_SIDE} a side")
        # Crops decode no more than their part then (see `restart`).
        options |= {
            "subsampling": "4:2:0",
            "restart_marker_blocks": interval_for(width),
        }
    return _saved(Image.fromarray(pixels), _FORMATS[format], **options)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class ImageCodec(BytesCodec):
    """An image file, a (3, height, width) uint8 RGB tensor, upright (see `ss.Decode`)."""

    name = "image"

    def __init__(self, format: str) -> None:
        self._format = format

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`: takes uint8 (3, H, W) tensors, (H, W, 3) arrays, and PIL images.

        As png also labels: uint8 or uint16 (H, W) tensors and arrays, and PIL images of one channel
        or with a palette, as they are.
        """
        if isinstance(value, bytes):
            return value
        if isinstance(value, Image.Image):
            value = ImageOps.exif_transpose(value)
            if self._format == "png" and value.mode in ("1", "L", "P", "I;16"):
                return _saved(value, "PNG")
            value = value.convert("RGB")
        elif isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.permute(1, 2, 0) if value.dim() == 3 else value).numpy()
        pixels = np.asarray(value)
        if self._format == "png" and pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16):
            return _saved(Image.fromarray(pixels), "PNG")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"{pixels.dtype} of shape {pixels.shape} is not a uint8 RGB image")
        return encode_pixels(pixels, self._format, quality=90)

    def inspect(self, data: bytes) -> tuple[Facts, Schema]:
        """See `BytesCodec`: height and width, upright, are facts."""
        height, width = opened(data).size
        check_whole(data)
        return {"height": height, "width": width}, {"size": [height, width]}

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`."""
        return merge_equal(one, other)

    def decode(self, data: bytes) -> torch.Tensor:
        """See `Codec`."""
        return whole(opened(data), "RGB").contiguous()

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: stacked where all images have one size."""
        size = schema.get("size")
        return form_of("RGB", tuple(size)) if size else None
