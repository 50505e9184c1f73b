"""What a JPEG's header says, and who may decode it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamshard.codec.jpeg import is_plain_jpeg
from tests.codec.pictures import encoded, picture, samples

PLAIN = {"jpg", "jpg progressive", "jpg 4:4:4", "jpg gray"}
SAMPLES = samples()
JPEG = SAMPLES["jpg"]


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment in front."""
    return b"\xff\xd8" + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + JPEG[2:]


def tiff(value: int, order: str = "<", *, tag: int = 0x0112) -> bytes:
    """A directory of two entries: a width, and an orientation."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 64, 0)
    entries += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    return head + struct.pack(order + "H", 2) + entries + b"\0" * 4


@pytest.mark.parametrize("name", SAMPLES)
def test_of_all_formats_and_modes_only_usual_jpegs_are_plain(name: str) -> None:
    assert is_plain_jpeg(SAMPLES[name]) == (name in PLAIN)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_usual_subsamplings_are_plain(subsampling: str) -> None:
    assert is_plain_jpeg(encoded(picture(16, 16), "JPEG", subsampling=subsampling))


def test_what_is_stored_as_rgb_is_not_plain() -> None:
    assert not is_plain_jpeg(encoded(picture(16, 16), "JPEG", keep_rgb=True))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(10))
def test_what_is_to_be_turned_is_not_plain(value: int, order: str) -> None:
    data = with_segment(0xE1, b"Exif\0\0" + tiff(value, order))
    assert is_plain_jpeg(data) == (value not in range(2, 9))


def test_the_orientation_is_the_one_that_pillow_writes_and_reads() -> None:
    image = Image.fromarray(picture(16, 24))
    for value in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = value
        assert is_plain_jpeg(encoded(image, "JPEG", exif=exif)) == (value == 1)


def test_other_segments_do_no_harm() -> None:
    assert is_plain_jpeg(with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"))
    assert is_plain_jpeg(with_segment(0xE1, b"Exif\0\0" + tiff(6, tag=0x0113)))
    assert is_plain_jpeg(with_segment(0xFE, b"a comment"))
    assert is_plain_jpeg(JPEG[:2] + b"\xff\xff" + JPEG[2:]), "fill bytes"


@pytest.mark.parametrize("marker", [0xC3, 0xC9, 0xCA])
def test_lossless_and_arithmetic_coding_are_not_plain(marker: int) -> None:
    at = JPEG.index(b"\xff\xc0")
    assert not is_plain_jpeg(JPEG[: at + 1] + bytes([marker]) + JPEG[at + 2 :])


def test_twelve_bits_are_not_plain() -> None:
    at = JPEG.index(b"\xff\xc0") + 4
    assert not is_plain_jpeg(JPEG[:at] + b"\x0c" + JPEG[at + 1 :])


def test_a_file_that_was_cut_anywhere_is_not_plain() -> None:
    assert not any(is_plain_jpeg(JPEG[:end]) for end in range(len(JPEG) - 1))
    assert is_plain_jpeg(JPEG + b"trailing bytes")


@given(st.binary(max_size=200), st.integers(2, 600), st.binary(max_size=20))
def test_no_bytes_are_too_strange(head: bytes, at: int, patch: bytes) -> None:
    is_plain_jpeg(head)
    is_plain_jpeg(JPEG[:at] + patch + JPEG[at + len(patch) :])
    is_plain_jpeg(with_segment(0xE1, b"Exif\0\0" + tiff(6)[:at] + patch))
