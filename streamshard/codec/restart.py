"""Parts of a JPEG that was written with restart intervals, cut out as they are coded.

What is coded between two restart markers depends on nothing before it (ITU-T T.81, B.1.1.5 and
F.1.1.5.1). So the intervals that a rectangle lies in, behind a header that tells their height and
width and with their markers numbered anew, are a JPEG whose pixels are those of the whole one. What
lies outside is not decoded. Intervals are found by their markers; nothing else has to be kept of
them, so this works for any such file, whoever wrote it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.codec.pixels import Rectangle
from streamshard.codec.segments import END, RESTART_INTERVAL, SCAN, SEQUENTIAL_FRAMES, Segment

_MARKERS = bytes(range(0xD0, 0xD8))  # RST0 to RST7, in turns
_BLOCK = 8  # pixels of a block's side
_ACROSS = 8  # intervals to a row, at least, where a width allows for it
# Pixels that must be left out for it to pay: to cut takes as long as to decode so many.
_LEAST_LEFT_OUT = 10_000


class Grid(NamedTuple):
    """How restart intervals lie in a picture: one after another in rows of equal ones.

    Attributes:
        size: Height and width of the picture in pixels.
        step: Of an interval; those at the right and bottom edge may hold less of the picture.
        shape: Rows of intervals, and intervals in each.
        frame: Where the header tells the picture's height and width, in bytes.
        scan: Where the header ends.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    shape: tuple[int, int]
    frame: int
    scan: int


class Cut(NamedTuple):
    """A JPEG of a part of a picture, and where that lies."""

    data: bytearray
    place: Rectangle


def interval_for(width: int) -> int:
    """After how many 4:2:0 blocks, of 16 pixels, a picture's encoder should set a restart marker.

    The most that divide its rows into eight or more equal parts. Each marker takes some four bytes.

    >>> interval_for(341), interval_for(1024), interval_for(100)
    (2, 8, 1)
    """
    across = -(-width // (2 * _BLOCK))
    parts = (number for number in range(across, 0, -1) if across % number == 0)
    return next((number for number in parts if across // number >= _ACROSS), 1)


def grid_of(data: bytes, segments: Sequence[Segment]) -> Grid | None:
    """How intervals lie in a JPEG; None where there are none, or a part can't be cut out of them.

    They must make up rows, and there must be one scan, of all components and all coefficients.

    Args:
        data: The file.
        segments: Of its header.
    """
    found = {segment.marker: segment for segment in segments}
    frame = next((found[marker] for marker in SEQUENTIAL_FRAMES if marker in found), None)
    interval, scan = found.get(RESTART_INTERVAL), found.get(SCAN)
    if not frame or not interval or not scan:
        return None
    height, width, components = struct.unpack_from(">HHB", data, frame.begin + 1)
    if data[scan.begin] != components:
        return None
    step = _step(
        width,
        data[frame.begin + 7 : frame.end : 3],
        data[interval.begin] << 8 | data[interval.begin + 1],
    )
    if step is None:
        return None
    shape = -(-height // step[0]), -(-width // step[1])
    return Grid((height, width), step, shape, frame.begin + 1, scan.end)


def _step(width: int, samplings: bytes, interval: int) -> tuple[int, int] | None:
    """Height and width in pixels of an interval; None where intervals make up no rows.

    Args:
        width: Of the picture.
        samplings: A byte for each component, as a frame has them.
        interval: In units of what is coded together.
    """
    # Of one component that is a block (A.2.2), else as many of luma as there are for one of chroma
    # (A.2.3).
    down = across = _BLOCK
    if len(samplings) > 1:
        down *= max(each & 15 for each in samplings)
        across *= max(each >> 4 for each in samplings)
    in_row = -(-width // across)
    if interval and in_row % interval == 0:
        return down, across * interval
    if interval and interval % in_row == 0:
        return down * (interval // in_row), across * in_row
    return None


def cut(data: bytes, grid: Grid, part: Rectangle) -> Cut | None:
    """The intervals that a rectangle lies in; None where that is nearly all, or markers are amiss.

    Args:
        data: The file.
        grid: How its intervals lie.
        part: What is wanted, in pixels.
    """
    (height, width), (down, across) = grid.size, grid.step
    first, last = part.top // down, -(-part.bottom // down)
    left, right = part.left // across, -(-part.right // across)
    place = Rectangle(
        first * down, left * across, min(last * down, height), min(right * across, width)
    )
    kept = place.bottom - place.top, place.right - place.left
    if height * width - kept[0] * kept[1] < _LEAST_LEFT_OUT:
        return None
    bounds = _bounds(data, grid)
    if bounds is None:
        return None
    in_row = grid.shape[1]
    begins = bounds[first * in_row + left : last * in_row : in_row].tolist()
    ends = bounds[first * in_row + right : last * in_row + 1 : in_row].tolist()
    head = bytearray(data[: grid.scan])
    struct.pack_into(">HH", head, grid.frame, *kept)
    out = bytearray().join([head, *(data[a:b] for a, b in zip(begins, ends, strict=True))])
    lengths = (bounds[1:] - bounds[:-1]).reshape(grid.shape)[first:last, left:right]
    lasts = lengths.cumsum()
    lasts += grid.scan - 1
    np.frombuffer(out, np.uint8)[lasts] = np.frombuffer(_numbers(len(lasts)), np.uint8)
    out[-2:] = END
    return Cut(out, place)


def _numbers(count: int) -> bytes:
    """The second byte of so many restart markers."""
    return (_MARKERS * (count // len(_MARKERS) + 1))[:count]


def _bounds(data: bytes, grid: Grid) -> NDArray[np.int64] | None:
    """Where each interval begins, and where the last one ends; a marker belongs to what it ends.

    None where there are not the markers that there should be.
    """
    end = data.rfind(END, grid.scan) + len(END)
    if end < grid.scan:
        return None
    coded = np.frombuffer(data, np.uint8, end - grid.scan, grid.scan)
    prefixes = (coded == END[0]).nonzero()[0]
    seconds = coded.take(prefixes + 1)
    are_markers = seconds != 0  # a zero follows where that value is part of what is coded (B.1.1.5)
    rows, columns = grid.shape
    if seconds[are_markers].tobytes() != _numbers(rows * columns - 1) + END[1:]:
        return None
    bounds = np.empty(rows * columns + 1, np.int64)
    bounds[0] = grid.scan
    np.add(prefixes[are_markers], grid.scan + 2, out=bounds[1:])
    return bounds
