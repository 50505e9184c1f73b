"""Image files to samples, their bytes as they are or encoded anew."""

from __future__ import annotations

import functools
import posixpath
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from streamshard.codec.by_pillow import PNG
from streamshard.codec.crop import resized_to, shorter_side
from streamshard.codec.framing import framed, whole
from streamshard.codec.image import encode_pixels
from streamshard.codec.picture import JPEG, opened
from streamshard.codec.registry import IMAGE_SUFFIXES
from streamshard.errors import PackError, SampleError, StoreError, UsageError
from streamshard.pack.encode import KEY, escape_key
from streamshard.pack.files import Stamp, read_unchanged
from streamshard.pack.sources import Sample
from streamshard.store.base import HAS_SCHEME, Store, redact
from streamshard.store.filesystem import open_store

Keys = Literal["path", "number"]
ImageFormat = Literal["jpg", "png", "webp", "npy"]

_BEGINNINGS = {
    JPEG: "jpg",
    PNG: "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "pgm",
    b"P6": "ppm",
}


@dataclass(frozen=True)
class Reencode:
    """What becomes of the bytes of an image.

    Attributes:
        format: What to encode to; None keeps the format.
        resize: Pixels of the shorter side, or None.
        max_side: The most pixels of the longer side, or None; smaller images stay as they are.
        quality: Of jpg and webp, 1 to 100.
    """

    format: ImageFormat | None = None
    resize: int | None = None
    max_side: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.format not in (None, "jpg", "png", "webp", "npy"):
            raise UsageError(f"format is {self.format!r}; it must be jpg, png, webp or npy")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality is {self.quality}; it must be 1 to 100")
        for name, side in (("resize", self.resize), ("max_side", self.max_side)):
            if side is not None and side < 1:
                raise UsageError(f"{name} is {side}; it must be at least 1 pixel")
        if self.resize is not None and self.max_side is not None:
            raise UsageError("resize sets the shorter side, max_side the longer one; choose one")

    @property
    def transforms(self) -> bool:
        """Whether images are decoded at all."""
        return any(value is not None for value in (self.format, self.resize, self.max_side))

    def __call__(self, data: bytes, part: str) -> dict[str, Any]:
        """The one part that an image's bytes become.

        Raises:
            ValueError: Not a whole image, where it is decoded.
        """
        if not self.transforms:
            return {part: data}
        picture = opened(data)
        size = self._size(picture.size)
        if self.format is None and size is None:
            return {part: data}
        if size is None:
            image = whole(picture, "RGB")
        else:
            image = framed(picture, resized_to(picture.size, size), "RGB")
        format = self.format or part
        if format == "npy":
            return {format: image.permute(1, 2, 0).contiguous().numpy()}
        return {format: encode_pixels(image.permute(1, 2, 0).numpy(), format, self.quality)}

    def _size(self, full: tuple[int, int]) -> tuple[int, int] | None:
        """The height and width asked for; None for the image's own."""
        if self.resize:
            return shorter_side(full, self.resize)
        if self.max_side is None or max(full) <= self.max_side:
            return None
        scale = self.max_side / max(full)
        return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))


class ImageInput(NamedTuple):
    """One image file and what its place tells."""

    key: str
    path: str
    part: str
    label: int | None
    stamp: Stamp | None = None  # of a local file, when it was listed


@dataclass(frozen=True)
class ImageLoader:
    """Reads one image file, and encodes it anew where that is asked for."""

    reencode: Reencode

    def __call__(self, image: ImageInput) -> Sample:
        """The sample of one file.

        Raises:
            SampleError: The file is gone, unreadable or changed since it was listed, or not a whole
                image where it is decoded; where its bytes are kept, the codec checks them.
        """
        try:
            data = _read(image.path, image.stamp)
            sample: Sample = {KEY: image.key, **self.reencode(data, image.part)}
        except OSError as error:
            raise SampleError(f"{image.path}: {error.strerror}") from None
        except StoreError as error:  # which names the place
            raise SampleError(str(error)) from None
        except ValueError as error:
            raise SampleError(f"{redact(image.path)}: {error}") from None
        if image.label is not None:
            sample["cls"] = image.label
        return sample


def _read(path: str, stamp: Stamp | None) -> bytes:
    if not HAS_SCHEME.match(path):
        return read_unchanged(path, stamp)
    folder, _, name = path.rpartition("/")
    return bytes(_store(folder).map(name))


@functools.lru_cache(maxsize=16)
def _store(folder: str) -> Store:
    return open_store(folder)


def _parted(path: str) -> tuple[str, str]:
    """A path without its suffix, and the suffix without its dot, by the rule of `pathlib`.

    >>> _parted("a.b/c.d.JPG"), _parted("a.b/.jpg"), _parted("a.")
    (('a.b/c.d', 'JPG'), ('a.b/.jpg', ''), ('a.', ''))
    """
    name = path.rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    if not stem or not suffix:
        return path, ""
    return path[: -len(suffix) - 1], suffix


def part_of_image(path: str) -> str:
    """The part that an image file becomes by its suffix; the three spellings of jpg are one."""
    suffix = _parted(path)[1].lower()
    return "jpg" if suffix == "jpeg" else suffix


def part_of_bytes(data: bytes) -> str | None:
    """The part that an image's bytes become, by how they begin; None where that is no image.

    >>> part_of_bytes(b"RIFF....WEBPVP8 "), part_of_bytes(b"text")
    ('webp', None)
    """
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else None
    return next((part for begins, part in _BEGINNINGS.items() if data.startswith(begins)), None)


def is_image(path: str) -> bool:
    """Whether the suffix is that of an image."""
    return part_of_image(path) in IMAGE_SUFFIXES


def key_of_path(path: str) -> str:
    """The key of an image at a relative path: without suffix, what is no plain name as %XX."""
    return escape_key(_parted(path)[0])


def key_in_table(path: str) -> str:
    """The key of a path as a table has it, without what leads to the root or stays where it is."""
    place = redact(path).partition("://")[2] if HAS_SCHEME.match(path) else path
    return key_of_path(posixpath.normpath(place).lstrip("/"))


def check_formats(where: str, first: dict[str, str], reencode: Reencode) -> None:
    """Refuse several formats where none is asked for.

    Args:
        where: The images come from.
        first: An image of each part.
        reencode: What becomes of them.

    Raises:
        PackError: See above.
    """
    if len(first) > 1 and reencode.format is None:
        both = [first[part] for part in sorted(first)[:2]]
        raise PackError(
            f"{where}: several formats ({both[0]}, {both[1]}); --format jpg (or png, webp, npy) "
            "makes them one"
        )


def check_keys(keys: str) -> None:
    """Refuse what keys can't be made of.

    Raises:
        UsageError: See above.
    """
    if keys not in ("path", "number"):
        raise UsageError(f'keys is {keys!r}; it must be "path" or "number"')
