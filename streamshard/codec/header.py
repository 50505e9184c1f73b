"""What the header of a JPEG tells of it, read once for all files that have the same."""

from __future__ import annotations

from typing import NamedTuple

import simplejpeg

from streamshard.codec import orientation
from streamshard.codec.pixels import check_count
from streamshard.codec.restart import Grid, grid_of
from streamshard.codec.segments import SCAN, segments_of

_MOST, _LONGEST = 256, 4096  # headers that are kept, and bytes of one
_LENGTHS = 4  # that are tried


class Header(NamedTuple):
    """Up to the first scan, that scan's own header included.

    Attributes:
        size: Height and width in pixels, as they are stored.
        colorspace: As simplejpeg names it.
        orientation: See `orientation`.
        grid: How restart intervals lie, where parts can be cut out.
    """

    size: tuple[int, int]
    colorspace: str
    orientation: int
    grid: Grid | None


class Headers:
    """Headers that were read lately: files of one encoder, quality and size have the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, Header] = {}
        self._lengths: tuple[int, ...] = ()  # of the last ones; the next one mostly has one of them

    def of(self, data: bytes) -> Header | None:
        """That of a file; None where libjpeg-turbo can't read it though it is whole.

        Raises:
            ValueError: It is not whole, or tells of too many pixels.
        """
        for length in self._lengths:
            # What begins with a whole header has that header.
            header = self._known.get(data[:length])
            if header is not None:
                return header
        return self._read(data)

    def _read(self, data: bytes) -> Header | None:
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: a header without colour space
            if "subsampling" in str(error):  # one that it has no name for, as of CMYK
                return None
            raise ValueError(f"not a whole JPEG ({error})") from None
        check_count(height, width)
        segments = segments_of(data)
        header = Header(
            (height, width),
            colorspace,
            orientation.of_jpeg(data, segments),
            grid_of(data, segments),
        )
        if segments and segments[-1].marker == SCAN and segments[-1].end <= _LONGEST:
            self._keep(data[: segments[-1].end], header)
        return header

    def _keep(self, data: bytes, header: Header) -> None:
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[data] = header
        if len(data) not in self._lengths:
            self._lengths = (len(data), *self._lengths[: _LENGTHS - 1])
