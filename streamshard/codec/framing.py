"""A part of a picture, resized: decoded at no larger a scale than that takes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.pixels import CHANNELS, Mode, Picture, Pixels, Rectangle

_WITH_UINT8 = {"cpu"}  # devices for which torch has an antialiased kernel for uint8
# What `torch.nn.functional.interpolate` calls, which has no `out`.
_resize_into = torch.ops.aten._upsample_bilinear2d_aa.out


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


class _Window(NamedTuple):
    """One axis of what is resized: source pixels [first, last), result pixels from `lead` on."""

    first: int
    last: int
    lead: int
    factor: float


class _View(NamedTuple):
    """What a result is made of.

    Attributes:
        part: The pixels that are read, of a picture at the scale that it is decoded at.
        windows: Rows and columns where the filter sees around the box; else the part is resized.
    """

    part: Rectangle
    windows: tuple[_Window, _Window] | None


def whole(picture: Picture, mode: Mode) -> torch.Tensor:
    """A picture at full size, as `framed` gives a part of it.

    Raises:
        ValueError: See `Picture`.
    """
    pixels = picture.decode(mode)
    result = _as_batch(pixels)[0] if mode in CHANNELS else torch.from_numpy(pixels)
    return result if pixels.flags.writeable else result.clone()


def framed(
    picture: Picture, framing: Framing, mode: Mode, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode what is needed of a picture, and resize a box of it.

    Args:
        picture: The file.
        framing: What is kept.
        mode: What it becomes.
        out: Where the result may be written, of its shape and dtype.

    Returns:
        See `form_of`: uint8 (channels, *framing.size), or labels (*framing.size). Either `out`, or
        a view: the colours of a pixel lie together, as image files have them.

    Raises:
        ValueError: See `Picture`.
    """
    box, size = framing.box, framing.size
    if mode not in CHANNELS:
        result = torch.from_numpy(_nearest(picture.decode(mode), box, size))
        return result.flip(-1) if framing.flip else result
    scale = picture.scale(max(size[0] / box.height, size[1] / box.width))
    view = _view(framing, scale, picture.size)
    pixels = picture.decode(mode, scale, view.part)
    image = _as_batch(pixels)
    if out is not None and _can_write(out, image, framing):
        _resize_into(image, framing.size, False, None, None, out=out[None])
        return out
    result = _resized(image, framing, view)
    if pixels.flags.writeable:
        return result
    is_view = result.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    return result.clone() if is_view else result


def cut_out(image: torch.Tensor, framing: Framing) -> torch.Tensor:
    """A box of colours that are decoded at full size, resized.

    Args:
        image: (1, channels, height, width) uint8, on any device.
        framing: What is kept.

    Returns:
        (channels, *framing.size) of whole numbers: uint8, or float32 where it was resized on a
        device without a kernel for uint8.
    """
    view = _view(framing, 1.0, (image.shape[2], image.shape[3]))
    top, left, bottom, right = view.part
    return _resized(image[:, :, top:bottom, left:right], framing, view)


def _view(framing: Framing, scale: float, full: tuple[int, int]) -> _View:
    """What is needed of a picture of this height and width, decoded at a scale."""
    box, size = framing.box, framing.size
    height, width = math.ceil(full[0] * scale), math.ceil(full[1] * scale)
    if not framing.sees_around:
        return _View(region(box, scale, (height, width)), None)
    down = _window(box.top * scale, box.height * scale, size[0], height)
    across = _window(box.left * scale, box.width * scale, size[1], width)
    return _View(Rectangle(down.first, across.first, down.last, across.last), (down, across))


def region(box: Box, scale: float, full: tuple[int, int]) -> Rectangle:
    """A box in a picture that was decoded at a part of its size; it holds a pixel or more.

    Edges move by at most half a decoded pixel.

    Args:
        box: A part of the picture at full size.
        scale: Of the decoded picture.
        full: Its height and width.
    """
    height, width = full
    top = min(round(box.top * scale), height - 1)
    left = min(round(box.left * scale), width - 1)
    bottom = min(round((box.top + box.height) * scale), height)
    right = min(round((box.left + box.width) * scale), width)
    return Rectangle(top, left, max(bottom, top + 1), max(right, left + 1))


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
    return torch.from_numpy(array.reshape(1, *array.shape).transpose(0, 3, 1, 2))


class _Unmarked:
    """An array of a mapped file, without the mark that it may not be written.

    torch has no such mark, and warns; nothing here writes, and what leaves this file is a copy.
    """

    def __init__(self, array: Pixels) -> None:
        self._array = array  # keeps the file mapped
        described = array.__array_interface__
        self.__array_interface__ = {**described, "data": (described["data"][0], False)}


def _can_write(out: torch.Tensor, image: torch.Tensor, framing: Framing) -> bool:
    """Whether the image resized is the result, and both have the colours of a pixel together.

    torch's kernel takes no others: pixels of an array may have their channels first.
    """
    is_result = not framing.sees_around and not framing.flip and image.shape[2:] != framing.size
    return is_result and image.stride(1) == out.stride(0) == 1


def _interpolated(image: torch.Tensor, **how: Any) -> torch.Tensor:
    if image.device.type in _WITH_UINT8:
        return torch.nn.functional.interpolate(image, mode="bilinear", antialias=True, **how)
    # What is averaged stays within 0 and 255.
    image = image.float()
    return torch.nn.functional.interpolate(image, mode="bilinear", antialias=True, **how).round_()


def _resized(image: torch.Tensor, framing: Framing, view: _View) -> torch.Tensor:
    """The part of a view, (1, channels, height, width), as it is wanted."""
    height, width = framing.size
    if view.windows is not None:
        down, across = view.windows
        if (down.factor, across.factor) != (1.0, 1.0):
            image = _interpolated(image, scale_factor=(down.factor, across.factor))
        image = image[:, :, down.lead : down.lead + height, across.lead : across.lead + width]
    elif image.shape[2:] != framing.size:
        image = _interpolated(image, size=framing.size)
    return image[0].flip(-1) if framing.flip else image[0]


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
