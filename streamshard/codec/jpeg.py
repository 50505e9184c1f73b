"""What a JPEG says of itself in its header, as far as it decides who can decode it.

Adobe's colour transform: its Technical Note 5116.
"""

from __future__ import annotations

from streamshard.codec import orientation
from streamshard.codec.segments import (
    ADOBE,
    END,
    OTHER_FRAMES,
    PROGRESSIVE_FRAME,
    SCAN,
    SEQUENTIAL_FRAMES,
    START,
    segments_of,
)

# Columns and rows of luma for one of chroma: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1, 4:1:0
_SAMPLINGS = (0x11, 0x21, 0x22, 0x12, 0x41, 0x42)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether nvJPEG decodes a file, and to the same picture as the CPU does.

    Huffman-coded, baseline or progressive, 8 bits, grey or YCbCr in a usual subsampling
    (https://docs.nvidia.com/cuda/nvjpeg), whole by its markers, and not to be turned around: nvJPEG
    looks at no Exif data.
    """
    segments = segments_of(data)
    if data[:2] != START or orientation.of_jpeg(data, segments) != orientation.UPRIGHT:
        return False
    has_frame = False
    for marker, begin, end in segments:
        if marker == SCAN:
            return has_frame and data.rfind(END, end) >= 0
        if marker in SEQUENTIAL_FRAMES or marker == PROGRESSIVE_FRAME:
            has_frame = True
            if not _is_usual(data[begin:end]):
                return False
        elif marker in OTHER_FRAMES or (marker == ADOBE and not _is_ycbcr(data[begin:end])):
            return False
    return False


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
