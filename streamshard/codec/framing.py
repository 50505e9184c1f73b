"""A part of a picture, resized: decoded at no larger a scale than that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.picture import CHANNELS, Mode, Picture, Pixels

_WITH_UINT8 = {"cpu"}  # devices for which torch has an antialiased kernel for uint8


class Box(NamedTuple):
    """A rectangle of a picture at full size, in pixels; fractions are allowed."""

    top: float
    left: float
    height: float
    width: float


class Framing(NamedTuple):
    """What is kept of one picture, decided from its size before anything is decoded.

    Attributes:
        box: What is kept.
        size: Height and width of the result.
        flip: Whether the result is mirrored left to right.
        sees_around: Whether the filter sees what lies around the box, as where the whole picture is
            resized first and cropped then. Otherwise the box is cut out first, on whole pixels.
    """

    box: Box
    size: tuple[int, int]
    flip: bool = False
    sees_around: bool = False


def whole(picture: Picture, mode: Mode) -> torch.Tensor:
    """A picture at full size, as `framed` gives a part of it.

    Raises:
        ValueError: See `Picture`.
    """
    pixels = picture.decode(mode).pixels
    result = _as_batch(pixels)[0] if mode in CHANNELS else torch.from_numpy(pixels)
    return result if pixels.flags.writeable else result.clone()


def framed(picture: Picture, framing: Framing, mode: Mode) -> torch.Tensor:
    """Decode what is needed of a picture, and resize a box of it.

    Args:
        picture: The file.
        framing: What is kept.
        mode: What it becomes.

    Returns:
        See `form_of`: uint8 (channels, *framing.size), or labels (*framing.size). A view: the
        colours of a pixel lie together, as image files have them.

    Raises:
        ValueError: See `Picture`.
    """
    box, size = framing.box, framing.size
    least = max(size[0] / box.height, size[1] / box.width)
    pixels, scale = picture.decode(mode, least)
    if mode in CHANNELS:
        if not framing.sees_around:  # cut out by numpy, in a fifth of the time that torch takes
            pixels = pixels[region(box, scale, pixels.shape)]
        image = _as_batch(pixels)
        result = _resized(image, framing, scale)
        if pixels.flags.writeable:
            return result
        is_view = result.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
        return result.clone() if is_view else result
    result = torch.from_numpy(_nearest(pixels, box, size))
    return result.flip(-1) if framing.flip else result


def cut_out(image: torch.Tensor, framing: Framing, scale: float = 1.0) -> torch.Tensor:
    """A box of colours that are decoded, resized.

    Args:
        image: (1, channels, height, width) uint8, on any device.
        framing: What is kept.
        scale: Of the decoded picture.

    Returns:
        (channels, *framing.size) of whole numbers: uint8, or float32 where it was resized on a
        device without a kernel for uint8.
    """
    if not framing.sees_around:
        rows, columns = region(framing.box, scale, image.shape[2:])
        image = image[:, :, rows, columns]
    return _resized(image, framing, scale)


def region(box: Box, scale: float, shape: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of a box in a picture that was decoded at a part of its size.

    Edges move by at most half a decoded pixel.

    Args:
        box: A part of the picture at full size.
        scale: Of the decoded picture.
        shape: Its height and width.
    """
    height, width, *_ = shape
    top = min(round(box.top * scale), height - 1)
    left = min(round(box.left * scale), width - 1)
    bottom = min(round((box.top + box.height) * scale), height)
    right = min(round((box.left + box.width) * scale), width)
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _nearest(pixels: Pixels, box: Box, size: tuple[int, int]) -> Pixels:
    """The pixels in which the centres of the result's pixels lie."""
    places: list[NDArray[np.int64]] = []
    for axis in (0, 1):
        step = box[2 + axis] / size[axis]
        centers = box[axis] + (np.arange(size[axis]) + 0.5) * step
        places.append(centers.astype(np.int64).clip(0, pixels.shape[axis] - 1))
    result: Pixels = pixels[places[0][:, None], places[1]]
    return result


def _as_batch(pixels: Pixels) -> torch.Tensor:
    """(H, W, C) seen as (1, C, H, W) in channels_last, for which torch has a fast uint8 kernel.

    The batch axis comes before the axes are turned: by its stride torch tells that it is
    channels_last, though there is one image, and gives it back so. That takes two thirds of the
    time, and to take the colours apart when the batch is written less than to do it there.
    """
    array = pixels if pixels.flags.writeable else np.asarray(_Unmarked(pixels))
    return torch.from_numpy(array)[None].permute(0, 3, 1, 2)


class _Unmarked:
    """An array of a mapped file, without the mark that it may not be written.

    torch has no such mark, and warns; nothing here writes, and what leaves this file is a copy.
    """

    def __init__(self, array: Pixels) -> None:
        self._array = array  # keeps the file mapped
        described = array.__array_interface__
        self.__array_interface__ = {**described, "data": (described["data"][0], False)}


def _interpolated(image: torch.Tensor, **how: Any) -> torch.Tensor:
    if image.device.type in _WITH_UINT8:
        return torch.nn.functional.interpolate(image, mode="bilinear", antialias=True, **how)
    # What is averaged stays within 0 and 255.
    image = image.float()
    return torch.nn.functional.interpolate(image, mode="bilinear", antialias=True, **how).round_()


def _resized(image: torch.Tensor, framing: Framing, scale: float) -> torch.Tensor:
    """The box as it is wanted: of what was cut out, or where the filter sees around it, of all."""
    if framing.sees_around:
        result = _resized_then_cropped(image, framing.box, scale, framing.size)
    elif image.shape[2:] == framing.size:
        result = image[0]
    else:
        result = _interpolated(image, size=framing.size)[0]
    return result.flip(-1) if framing.flip else result


def _resized_then_cropped(
    image: torch.Tensor, box: Box, scale: float, size: tuple[int, int]
) -> torch.Tensor:
    """As if the whole were resized, but only a little more than the box is."""
    top, left = (
        _window(box[axis] * scale, box[2 + axis] * scale, size[axis], image.shape[2 + axis])
        for axis in (0, 1)
    )
    image = image[:, :, top.first : top.last, left.first : left.last]
    if (top.factor, left.factor) != (1.0, 1.0):
        image = _interpolated(image, scale_factor=(top.factor, left.factor))
    return image[0, :, top.lead : top.lead + size[0], left.lead : left.lead + size[1]]


class _Window(NamedTuple):
    """One axis of what is resized: source pixels [first, last), result pixels from `lead` on."""

    first: int
    last: int
    lead: int
    factor: float


_OFF = 1 / 32  # of a source pixel, by which a result may be shifted


def _window(start: float, length: float, size: int, count: int) -> _Window:
    """Whole source pixels from which an axis is resized whose box begins and ends between them.

    torch resizes from the edge of a whole pixel only. So the result begins some of its own pixels
    earlier: as many as bring it to such an edge, nearly, and the filter what it sees outside.

    Args:
        start: Where the box begins, in source pixels.
        length: Of the box, in source pixels.
        size: Of the result.
        count: Source pixels that there are.
    """
    step = length / size  # source pixels for a result pixel
    if step == 1 and start == int(start):
        return _Window(int(start), int(start) + size, 0, 1.0)
    reach = max(step, 1.0)  # of the filter to each side, in source pixels
    before = math.floor(start / step + 1e-6)  # result pixels up to the picture's edge
    # From so many on the filter does not notice the new edge; at the picture's own it has to.
    leads = range(math.ceil(reach / step - 0.5), before + 1)[:size] or (before,)
    lead, off = before, math.inf
    for more in leads:
        begin = start - more * step
        if abs(begin - round(begin)) < off:
            lead, off = more, abs(begin - round(begin))
        if off < _OFF:
            break
    first = round(start - lead * step)
    last = min(count, math.ceil(first + (lead + size) * step + reach))
    # torch rounds the number of result pixels down
    return _Window(first, last, lead, max(1 / step, (lead + size) / (last - first)) * (1 + 1e-9))
