"""What a JPEG says of itself in its header, as far as it decides who can decode it.

Markers and their segments: ITU-T T.81, annex B. Orientation: tag 0x0112 of the Exif standard (CIPA
DC-008), in a TIFF directory. Adobe's colour transform: its Technical Note 5116.
"""

from __future__ import annotations

from collections.abc import Iterator

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _EXIF, _ADOBE = 0xDA, 0xE1, 0xEE
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
    if data[:2] != _START:
        return False
    has_frame = False
    for marker, segment, end in _segments(data):
        if marker == _SCAN:
            return has_frame and data.rfind(_END, end) >= 0
        if marker in _HUFFMAN_FRAMES:
            has_frame = True
            if not _is_usual(segment):
                return False
        elif marker in _OTHER_FRAMES or not _is_harmless(marker, segment):
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
    samplings = frame[7::3][: frame[5]]
    if frame[5] == 1:
        return True
    return frame[5] == 3 and samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"


def _is_harmless(marker: int, segment: bytes) -> bool:
    """Whether a segment asks neither for another orientation nor for another colour space."""
    if marker == _EXIF and segment[:6] == b"Exif\0\0":
        return orientation(segment[6:]) == 1
    if marker == _ADOBE and segment[:5] == b"Adobe":
        return segment[11:12] == b"\x01"  # YCbCr
    return True


def orientation(tiff: bytes) -> int:
    """The orientation that an Exif segment asks for, 1 to 8; 1 where it asks for none."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        at = directory + 2 + 12 * entry
        if number(at, 2) == 0x0112:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
        if at > len(tiff):
            break
    return 1
