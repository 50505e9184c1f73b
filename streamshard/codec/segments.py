"""The segments of a JPEG's header, in order (ITU-T T.81, B.1.1)."""

from __future__ import annotations

from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN, APP1, ADOBE, RESTART_INTERVAL = 0xDA, 0xE1, 0xEE, 0xDD
SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # baseline and extended, coded by Huffman
PROGRESSIVE_FRAME = 0xC2
# Lossless, hierarchical, or by arithmetic coding.
OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment


class Segment(NamedTuple):
    """Where one lies: its contents are `data[begin:end]`."""

    marker: int
    begin: int
    end: int


def segments_of(data: bytes) -> list[Segment]:
    """All up to the first scan's header, that included; or up to bytes that are no segment."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker == 0:  # none
            break
        else:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            found.append(Segment(marker, at + 4, end))
            if marker == SCAN:
                break
            at = end
    return found
