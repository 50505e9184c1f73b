"""Which way up an image is meant to be seen, and turning its pixels so.

The eight ways are those of EXIF's tag 274 (CIPA DC-008-2019, 4.6.5.A): 1 is upright, 2 to 4 are
mirrored or upside down, 5 to 8 also have rows and columns exchanged. What a file says is read as
Pillow's `ImageOps.exif_transpose` reads it: the tag, or where there is none `tiff:Orientation` in
its XMP. What is damaged says nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from streamshard.codec.segments import APP1, Segment

UPRIGHT = 1
_TAG, _SHORT = 0x0112, 3
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Chunks of a PNG in which Pillow looks for it, by how they begin.
_IN_PNG = (b"eXIf", b"iTXtXML:com.adobe.xmp\0", b"tEXtRaw profile", b"zTXtRaw profile")


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of (height, width, …) pixels, turned upright.

    >>> import numpy as np
    >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def of_jpeg(data: bytes, segments: Sequence[Segment]) -> int:
    """The orientation of a JPEG with these segments: 1 to 8."""
    tag, xmp = None, None
    for marker, begin, end in segments:
        if marker == APP1:
            tag = _of_exif(data[begin:end]) if tag is None else tag
            xmp = _IN_XMP.search(data, begin, end) if data.startswith(_XMP, begin) else xmp
    if tag is None and xmp is not None:
        return int(xmp[1])
    return tag if tag is not None and 1 <= tag <= 8 else UPRIGHT


def _of_exif(body: bytes) -> int | None:
    """The tag's value in the first directory of an EXIF block; None where it is not there."""
    tiff = body.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or tiff is body:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for place in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if (tag, kind, count) == (_TAG, _SHORT, 1):
                return int(value)
    except struct.error:  # cut off
        pass
    return None


def may_be_in_png(data: bytes) -> bool:
    """Whether a PNG has a chunk that may tell an orientation; Pillow would decode it to look."""
    at = 8
    while at + 8 <= len(data):
        if data.startswith(_IN_PNG, at + 4):
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False
