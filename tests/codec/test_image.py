from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamshard.codec import picture as codec_picture
from streamshard.codec import pixels as codec_pixels
from streamshard.codec.base import Form
from streamshard.codec.crop import CenterCrop, RandomResizedCrop, Resize
from streamshard.codec.header import Headers
from streamshard.codec.image import ImageCodec
from streamshard.codec.picture import opened
from streamshard.codec.registry import IMAGE_SUFFIXES, codec_of
from tests.codec.pictures import by_pillow, difference, encoded, picture, samples

SAMPLES = samples()


def image_size(data: bytes) -> tuple[int, int]:
    return opened(data).size


def decode_pixels(data: bytes, least: float = 1.0) -> Any:
    file = opened(data)
    return file.decode("RGB", file.scale(least))


CODEC = ImageCodec("png")


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG whose header claims this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SAMPLES["png"][:12] + body + struct.pack(">I", zlib.crc32(body)) + SAMPLES["png"][33:]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims this size."""
    data = SAMPLES["jpg"]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


class TestDecode:
    """Every file becomes a uint8 RGB tensor, whatever its format and colour mode."""

    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_format_and_mode_decodes_as_pillow_has_it(self, name: str) -> None:
        tensor = CODEC.decode(SAMPLES[name])
        assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, 48, 64))
        assert tensor.is_contiguous()
        # libjpeg-turbo has its own rounding, and a formula of its own for CMYK
        bound = 1.5 if name.startswith("jpg") else 0
        assert difference(tensor.permute(1, 2, 0), by_pillow(SAMPLES[name])) <= bound

    @pytest.mark.parametrize("size", [(1, 1), (1, 16), (16, 1), (3, 500), (500, 3), (17, 33)])
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_every_size_decodes(self, size: tuple[int, int], format: str) -> None:
        data = encoded(picture(*size), format, lossless=True, subsampling=0)
        assert image_size(data) == size
        assert CODEC.decode(data).shape == (3, *size)
        assert difference(decode_pixels(data), by_pillow(data)) <= 1

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_become_the_upper_eight(self, format: str) -> None:
        deep = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
        tensor = CODEC.decode(encoded(Image.fromarray(deep), format))
        assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, 8, 64))
        for channel in tensor:
            assert difference(channel, deep >> 8) <= 1

    def test_the_bytes_tell_the_format_and_the_suffix_does_not(self) -> None:
        for suffix in IMAGE_SUFFIXES:
            for name in ("jpg", "png", "webp"):
                expected = CODEC.decode(SAMPLES[name])
                assert torch.equal(codec_of(suffix).decode(SAMPLES[name]), expected)

    def test_a_jpeg_with_stray_bytes_is_read_as_pillow_reads_it(self) -> None:
        data = SAMPLES["jpg"]
        stray = data[:-2] + bytes(4) + data[-2:]
        assert difference(decode_pixels(stray), by_pillow(stray)) <= 1
        assert difference(decode_pixels(data + b"more"), decode_pixels(data)) == 0

    def test_a_jpeg_is_decoded_at_the_smallest_quick_scale_that_will_do(self) -> None:
        data = encoded(picture(399, 801), "JPEG", quality=95)
        for least, scale in [(0.01, 1 / 8), (1 / 8, 1 / 8), (0.13, 1 / 4), (0.3, 1 / 2), (0.51, 1)]:
            small = decode_pixels(data, least)
            assert opened(data).scale(least) == scale
            assert small.shape == (math.ceil(399 * scale), math.ceil(801 * scale), 3)
            whole = 8 * (399 // 8), 8 * (801 // 8)
            reduced = Image.fromarray(by_pillow(data)[: whole[0], : whole[1]]).reduce(
                round(1 / scale)
            )
            rows, columns = (int(side * scale) for side in whole)
            assert difference(small[:rows, :columns], np.asarray(reduced)) < 3

    @pytest.mark.parametrize("size", [(1, 7), (3, 3), (2, 9), (8, 1), (15, 15), (16, 2)])
    def test_scales_of_tiny_jpegs_are_those_they_say(self, size: tuple[int, int]) -> None:
        data = encoded(picture(*size), "JPEG")
        for least in (0.1, 0.2, 0.4, 0.6, 1):
            scale = opened(data).scale(least)
            assert scale >= least
            assert decode_pixels(data, least).shape == (
                *(math.ceil(side * scale) for side in size),
                3,
            )


class TestDamaged:
    """A file that is not whole gives its picture or a ValueError, never another picture."""

    @pytest.mark.parametrize("name", SAMPLES)
    def test_a_cut_file_is_refused_by_decode_and_by_pack(self, name: str) -> None:
        data = SAMPLES[name]
        whole = CODEC.decode(data)
        for cut in {*range(0, 700, 3), *range(0, len(data), 41), len(data) - 1, len(data) - 30}:
            part = data[: min(cut, len(data) - 1)]
            for read in (CODEC.decode, self.pack_and_decode):
                try:
                    found = read(part)
                except ValueError:
                    continue
                assert cut > 0.9 * len(data), f"{cut} bytes of {len(data)} were enough"
                assert torch.equal(found, whole), f"cut at {cut}"

    @staticmethod
    def pack_and_decode(data: bytes) -> torch.Tensor:
        packed = CODEC.pack(data)
        try:
            return CODEC.decode(packed.data)
        except ValueError as error:
            raise AssertionError(f"packed, but {error}") from None

    def test_a_cut_jpeg_with_a_whole_thumbnail_is_refused(self) -> None:
        data, thumbnail = SAMPLES["jpg"], encoded(picture(8, 8), "JPEG")
        segment = b"\xff\xe4" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
        with_thumbnail = data[:2] + segment + data[2:]
        assert CODEC.pack(with_thumbnail).facts == {"height": 48, "width": 64}
        for cut in range(len(segment) + 2, len(with_thumbnail), 7):
            with pytest.raises(ValueError):  # noqa: PT011 - cut here or there, in many words
                CODEC.pack(with_thumbnail[:cut])

    def test_a_png_with_a_flipped_bit_is_refused_by_pack(self) -> None:
        data = SAMPLES["png"]
        for at in range(0, len(data) - 12, 97):
            changed = bytearray(data)
            changed[at] ^= 16
            with pytest.raises(ValueError):  # noqa: PT011
                CODEC.pack(bytes(changed))

    @pytest.mark.parametrize(
        "data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"hello"]
    )
    def test_what_is_no_image_is_refused(self, data: bytes) -> None:
        for read in (CODEC.decode, CODEC.pack, image_size, decode_pixels):
            with pytest.raises(ValueError, match="not "):
                read(data)

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(sorted(SAMPLES)), st.data())
    def test_changed_bytes_give_a_picture_or_a_value_error(
        self, name: str, draw: st.DataObject
    ) -> None:
        data = bytearray(SAMPLES[name])
        for _ in range(draw.draw(st.integers(1, 4))):
            data[draw.draw(st.integers(0, min(len(data) - 1, 400)))] = draw.draw(
                st.integers(0, 255)
            )
        for read in (CODEC.decode, lambda data: CODEC.decode(CODEC.pack(data).data)):
            try:
                tensor = read(bytes(data))
            except ValueError:
                continue
            assert tensor.dtype == torch.uint8
            assert tensor.shape[0] == 3


class TestBombs:
    """Too many pixels are refused from the header, before any is decoded."""

    def test_a_size_below_the_cap_is_read_without_a_warning(self) -> None:
        assert image_size(png_of_size(10_000, 8_900)) == (8_900, 10_000)
        assert image_size(jpeg_of_size(10_000, 8_900)) == (8_900, 10_000)

    @pytest.mark.parametrize("size", [(20_000, 7_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
    def test_a_png_that_claims_too_much_is_refused(self, size: tuple[int, int]) -> None:
        for read in (image_size, decode_pixels, CODEC.decode, CODEC.pack, CenterCrop(8)):
            with pytest.raises(ValueError, match="pixels"):
                read(png_of_size(*size))

    @pytest.mark.parametrize("size", [(20_000, 7_000), (65_500, 65_500)])
    def test_a_jpeg_that_claims_too_much_is_refused(self, size: tuple[int, int]) -> None:
        data = jpeg_of_size(*size)
        for read in (image_size, decode_pixels, CODEC.decode, CODEC.pack, CenterCrop(8)):
            with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels; at most 89478485"):
                read(data)

    @pytest.mark.parametrize("name", SAMPLES)
    def test_the_cap_holds_for_every_format(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, generator = SAMPLES[name], torch.Generator()
        monkeypatch.setattr(codec_pixels, "MAX_PIXELS", 48 * 64)
        assert CODEC.decode(data).shape == (3, 48, 64)
        monkeypatch.setattr(codec_pixels, "MAX_PIXELS", 48 * 64 - 1)
        monkeypatch.setattr(codec_picture, "_HEADERS", Headers())  # the other one was let through
        for read in (CODEC.decode, CODEC.pack, CenterCrop(8), Resize(8)):
            with pytest.raises(ValueError, match="an image of 64x48 pixels; at most 3071"):
                read(data)
        with pytest.raises(ValueError, match="64x48"):
            RandomResizedCrop(8)(data, generator)


class TestPack:
    """Bytes stay as they are; pixels are encoded; facts and schema tell the size."""

    @pytest.mark.parametrize("name", SAMPLES)
    def test_bytes_are_kept_and_their_size_told(self, name: str) -> None:
        packed = CODEC.pack(SAMPLES[name])
        assert packed.data == SAMPLES[name]
        assert packed.facts == {"height": 48, "width": 64}
        assert packed.schema == {"size": [48, 64]}

    @pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "jpeg"])
    def test_tensors_arrays_and_pil_images_are_encoded(self, suffix: str) -> None:
        pixels = picture(31, 45)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        codec = codec_of(suffix)
        for value in (pixels, tensor, tensor.contiguous(), Image.fromarray(pixels)):
            packed = codec.pack(value)
            assert packed.facts == {"height": 31, "width": 45}
            found = codec.decode(packed.data).permute(1, 2, 0)
            assert difference(found, pixels) <= (0 if suffix == "png" else 8)
        assert Image.open(io.BytesIO(packed.data)).format == {
            "png": "PNG",
            "webp": "WEBP",
        }.get(suffix, "JPEG")

    @pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
    def test_every_image_suffix_takes_pixels_or_says_that_it_does_not(self, suffix: str) -> None:
        pixels = picture(8, 9)
        try:
            packed = codec_of(suffix).pack(pixels)
        except ValueError:
            return
        assert difference(codec_of(suffix).decode(packed.data).permute(1, 2, 0), pixels) <= 8

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(np.zeros((4, 5), np.uint8), id="gray array"),
            pytest.param(np.zeros((4, 5, 4), np.uint8), id="RGBA array"),
            pytest.param(np.zeros((4, 5, 3), np.float32), id="float array"),
            pytest.param(torch.zeros(4, 5, dtype=torch.uint8), id="gray tensor"),
            pytest.param(torch.zeros(1, 4, 5, dtype=torch.uint8), id="one channel"),
            pytest.param(torch.zeros(4, 5, 3, dtype=torch.uint8), id="HWC tensor"),
            pytest.param(torch.zeros(3, 4, 5), id="float tensor"),
            pytest.param(torch.zeros(3, 4, 5, requires_grad=True), id="gradient"),
            pytest.param("picture.png", id="path"),
            pytest.param(3, id="number"),
        ],
    )
    def test_what_is_no_rgb_picture_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="is not a uint8 RGB image"):
            codec_of("jpg").pack(value)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_labels_are_packed_as_png_and_come_back_as_they_were(self, dtype: Any) -> None:
        labels = np.arange(20, dtype=dtype).reshape(4, 5) * (3 if dtype == np.uint8 else 3000)
        for value in (labels, torch.from_numpy(labels), Image.fromarray(labels)):
            packed = CODEC.pack(value)
            assert packed.schema == {"size": [4, 5]}
            found = opened(packed.data).decode("labels32")
            np.testing.assert_array_equal(found, labels)

    def test_a_palette_is_kept(self) -> None:
        indices = Image.fromarray(picture(8, 9)).quantize(7)
        data = CODEC.pack(indices).data
        np.testing.assert_array_equal(opened(data).decode("labels"), np.asarray(indices))
        np.testing.assert_array_equal(decode_pixels(data), np.asarray(indices.convert("RGB")))

    def test_a_pil_image_with_an_orientation_is_packed_upright(self) -> None:
        turned = Image.open(io.BytesIO(encoded(picture(8, 9), "JPEG", exif=b"")))
        turned.getexif()[0x0112] = 6
        assert CODEC.pack(turned).facts == {"height": 9, "width": 8}

    def test_pictures_of_one_size_are_stacked_and_others_are_not(self) -> None:
        schemas = [CODEC.pack(encoded(picture(*size), "PNG")).schema for size in [(8, 9), (8, 10)]]
        same = CODEC.merge(schemas[0], schemas[0])
        assert CODEC.form(same) == Form(torch.uint8, (3, 8, 9))
        mixed = CODEC.merge(*schemas)
        assert CODEC.form(mixed) is None
        assert CODEC.form(CODEC.merge(mixed, schemas[0])) is None
