"""Pictures are seen upright: whatever reads a file agrees with Pillow's `exif_transpose`."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from streamshard.codec import orientation
from streamshard.codec.crop import CenterCrop, Decode, RandomResizedCrop, Resize
from streamshard.codec.image import ImageCodec
from streamshard.codec.picture import opened
from streamshard.codec.segments import segments_of
from streamshard.pack.image_loader import Reencode
from tests.codec.pictures import difference, encoded, picture

FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"]
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
CODEC = ImageCodec("png")


def tagged(format: str, value: object, pixels: Any = None, *, xmp: bytes = b"") -> bytes:
    """A file whose EXIF has this orientation, among other tags."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if value is not None:
        exif[0x0112] = value
    image = Image.fromarray(picture(30, 44) if pixels is None else pixels)
    options = {**LOSSLESS.get(format, {}), **({"xmp": xmp} if xmp else {})}
    return encoded(image, format, exif=exif, **options)


def upright(data: bytes) -> Any:
    """The oracle."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", range(1, 9))
class TestEveryWayUp:
    """All eight, in every format that tells them."""

    def test_size_and_pixels_are_those_of_exif_transpose(self, format: str, value: int) -> None:
        data = tagged(format, value)
        expected = upright(data)
        assert expected.shape == ((30, 44, 3) if value < 5 else (44, 30, 3))
        assert opened(data).size == expected.shape[:2]
        facts = CODEC.pack(data).facts
        assert (facts["height"], facts["width"]) == expected.shape[:2]
        for found in (CODEC.decode(data), Decode()(data)):
            assert difference(found.permute(1, 2, 0), expected) <= (format == "JPEG")
        assert Decode(mode="RGBA")(data).shape == (4, *expected.shape[:2])
        assert difference(Decode(mode="L")(data)[0], Image.fromarray(expected).convert("L")) <= 1

    def test_crops_are_those_of_the_upright_picture(self, format: str, value: int) -> None:
        data = tagged(format, value)
        plain = encoded(CODEC.decode(data).permute(1, 2, 0).numpy(), "PNG")  # the same pixels
        crops: list[Any] = [
            RandomResizedCrop((20, 12), scale=(0.1, 0.4), flip=0.5),
            CenterCrop((16, 10)),
            CenterCrop(16, resize=20),
            Resize(24),
            Resize((40, 20)),
        ]
        for crop in crops:
            if format == "JPEG" and crop == Resize(24):
                continue  # 24 of 30 pixels; fine, but no test of anything
            for seed in range(4):
                found, expected = (
                    crop(some, torch.Generator().manual_seed(seed)) for some in (data, plain)
                )
                assert torch.equal(found, expected)

    def test_a_jpeg_that_is_decoded_small_is_turned_too(self, format: str, value: int) -> None:
        pixels = picture(240, 360)
        data = tagged(format, value, pixels)
        plain = encoded(upright(data), "PNG", compress_level=1)
        for crop in (Resize(30), CenterCrop(28, resize=32), RandomResizedCrop(24)):
            found, expected = (
                crop(some, torch.Generator().manual_seed(1)) for some in (data, plain)
            )
            assert difference(found, expected) < 4

    def test_pack_bakes_it_in_where_pixels_are_encoded_anew(self, format: str, value: int) -> None:
        data = tagged(format, value)
        expected = upright(data)
        for reencode in (Reencode(format="png"), Reencode(format="npy")):
            (packed,) = reencode(data, "jpg").values()
            found = packed if reencode.format == "npy" else upright(packed)
            assert difference(found, expected) <= (format == "JPEG")
        for resized in (Reencode(format="png", resize=15), Reencode(format="png", max_side=22)):
            (packed,) = resized(data, "jpg").values()
            assert Image.open(io.BytesIO(packed)).getexif().get(0x0112) is None
            assert upright(packed).shape == ((15, 22, 3) if value < 5 else (22, 15, 3))
        (kept,) = Reencode(max_side=44)(data, "jpg").values()
        assert kept == data, "small enough as it is: the bytes stay, and their tag"


@pytest.mark.parametrize("value", [1, 2, 6])
def test_xmp_tells_it_where_the_tag_does_not(value: int) -> None:
    for format in ("JPEG", "WEBP"):
        for tag in (None, 8):
            data = tagged(format, tag, xmp=XMP % value)
            assert opened(data).size == upright(data).shape[:2]
            assert difference(CODEC.decode(data).permute(1, 2, 0), upright(data)) <= 1


def test_a_png_may_tell_it_after_its_pixels() -> None:
    data = tagged("PNG", 6)
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    assert at < data.index(b"IDAT")
    moved = data[:at] + data[end:-12] + data[at:end] + data[-12:]
    assert opened(moved).size == upright(moved).shape[:2] == (44, 30)
    np.testing.assert_array_equal(opened(moved).decode(), upright(moved))


def test_an_older_png_may_tell_it_in_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    block = exif.tobytes()
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    body = b"zTXtRaw profile type exif\0\0" + zlib.compress(text)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    plain = encoded(picture(30, 44), "PNG")
    data = plain[:33] + chunk + plain[33:]
    assert opened(data).size == upright(data).shape[:2] == (44, 30)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_value_that_means_nothing_turns_nothing(format: str, value: int) -> None:
    data = tagged(format, value)
    assert opened(data).size == (30, 44)
    assert difference(CODEC.decode(data).permute(1, 2, 0), picture(30, 44)) < 4


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_of_a_damaged_tag_pillow_reads_the_same_or_nothing_is_read(draw: st.DataObject) -> None:
    data = bytearray(tagged("JPEG", draw.draw(st.integers(1, 8)), picture(8, 8)))
    at = data.index(b"Exif")
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(at, at + 40))] = draw.draw(st.integers(0, 255))
    value = orientation.of_jpeg(bytes(data), segments_of(bytes(data)))
    try:
        with warnings.catch_warnings(action="ignore"):
            by_pillow = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:  # Pillow raises what it likes
        by_pillow = 1
    assert value == by_pillow or 1 in (value, by_pillow)


def test_jpegs_are_read_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tag, or its absence, costs next to nothing."""
    files = [tagged("JPEG", 6), encoded(picture(44, 30), "JPEG")]

    def refuse(*_: object) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(Image, "open", refuse)
    assert [opened(data).decode().shape for data in files] == [(44, 30, 3)] * 2


def test_a_png_without_a_tag_is_not_decoded_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, with_tag = encoded(picture(44, 30), "PNG"), tagged("PNG", 1)

    def refuse(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    assert opened(plain).size == (44, 30)
    with pytest.raises(ValueError, match="it was decoded"):
        opened(with_tag)
