"""What a JPEG says of itself in its header, as far as it decides who can decode it.

Markers and their segments: ITU-T T.81, annex B. Adobe's colour transform: its Technical Note 5116.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamshard.codec import orientation

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _ADOBE = 0xDA, 0xEE
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
# Columns and rows of luma for one of chroma: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1, 4:1:0
_SAMPLINGS = (0x11, 0x21, 0x22, 0x12, 0x41, 0x42)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether nvJPEG decodes a file, and to the same picture as the CPU does.

    Huffman-coded, baseline or progressive, 8 bits, grey or YCbCr in a usual subsampling
    (https://docs.nvidia.com/cuda/nvjpeg), whole by its markers, and not to be turned around: nvJPEG
    looks at no Exif data.
    """
    if data[:2] != _START or orientation.of_jpeg(data) != orientation.UPRIGHT:
        return False
    has_frame = False
    for marker, segment, end in _segments(data):
        if marker == _SCAN:
            return has_frame and data.rfind(_END, end) >= 0
        if marker in _HUFFMAN_FRAMES:
            has_frame = True
            if not _is_usual(segment):
                return False
        elif marker in _OTHER_FRAMES or (marker == _ADOBE and not _is_ycbcr(segment)):
            return False
    return False


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, contents and end of each segment, up to the first scan or what is none."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            yield marker, data[at + 4 : end], end
            if marker == _SCAN:
                return
            at = end


def _is_usual(frame: bytes) -> bool:
    """Whether a frame has 8 bits, and one component or three in a usual subsampling."""
    if len(frame) < 6 or frame[0] != 8:
        return False
    samplings = frame[7::3]  # a byte for each component: columns, rows
    if len(samplings) != frame[5]:
        return False
    if len(samplings) == 3:
        return samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"
    return len(samplings) == 1


def _is_ycbcr(segment: bytes) -> bool:
    """Whether Adobe's segment, if it is one, asks for no other colour space."""
    return segment[:5] != b"Adobe" or segment[11:12] == b"\x01"
