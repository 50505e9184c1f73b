"""Small pictures for the tests, and what Pillow reads from them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (height, width, 3)


def picture(height: int, width: int) -> Pixels:
    """Slopes, waves and a little noise: like a photograph to a codec, and like no mirror image."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 100 * np.sin(x / 17 + y / 23)
    slopes = [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), waves]
    noise = np.random.default_rng(height * 10_000 + width).normal(0, 4, (height, width, 3))
    return np.clip(np.stack(slopes, axis=-1) + noise, 0, 255).astype(np.uint8)


def encoded(image: Pixels | Image.Image, format: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def by_pillow(data: bytes) -> Pixels:
    """(H, W, 3) uint8, decoded by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, in levels of 255."""
    return float(np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32)).mean())


def samples() -> dict[str, bytes]:
    """One 48 x 64 file of every format and colour mode, by name."""
    rgb = Image.fromarray(picture(48, 64))
    palette = rgb.quantize(64)
    return {
        "jpg": encoded(rgb, "JPEG", quality=90),
        "jpg progressive": encoded(rgb, "JPEG", progressive=True),
        "jpg 4:4:4": encoded(rgb, "JPEG", subsampling=0),
        "jpg gray": encoded(rgb.convert("L"), "JPEG"),
        "jpg CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "png": encoded(rgb, "PNG"),
        "png gray": encoded(rgb.convert("L"), "PNG"),
        "png gray alpha": encoded(rgb.convert("LA"), "PNG"),
        "png alpha": encoded(rgb.convert("RGBA"), "PNG"),
        "png palette": encoded(palette, "PNG"),
        "png palette alpha": encoded(palette, "PNG", transparency=0),
        "png 1 bit": encoded(rgb.convert("1"), "PNG"),
        "webp": encoded(rgb, "WEBP"),
        "webp lossless": encoded(rgb, "WEBP", lossless=True),
        "webp alpha": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "gif": encoded(palette, "GIF"),
        "bmp": encoded(rgb, "BMP"),
        "tif": encoded(rgb, "TIFF"),
        "tif lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "ppm": encoded(rgb, "PPM"),
        "pgm": encoded(rgb.convert("L"), "PPM"),
    }
