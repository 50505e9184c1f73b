"""The five modes: what colours become, and that labels stay what they are."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from streamshard.codec.base import Form
from streamshard.codec.crop import CenterCrop, Decode, RandomResizedCrop, Resize
from streamshard.codec.image import ImageCodec
from streamshard.errors import UsageError
from tests.codec.pictures import difference, encoded, picture, samples

SAMPLES = samples()
RNG = np.random.default_rng(0)
LABELS = np.kron(RNG.integers(0, 23, (12, 16), dtype=np.uint8), np.ones((5, 7), np.uint8))
DECODERS: list[Any] = [
    partial(Decode),
    partial(Resize, (20, 30)),
    partial(CenterCrop, 24),
    partial(CenterCrop, 24, 30),
    partial(RandomResizedCrop, 24, flip=0.5),
]
NAMES = ["whole", "resized", "center", "resized center", "random"]


def masks() -> dict[str, bytes]:
    """The same labels, as people store them."""
    palette = Image.fromarray(LABELS)
    palette.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return {
        "gray": encoded(LABELS, "PNG"),
        "palette": encoded(palette, "PNG"),
        "palette, one transparent": encoded(palette, "PNG", transparency=0),
        "palette, all with alpha": encoded(palette, "PNG", transparency=bytes(range(23))),
        "16 bits": encoded(Image.fromarray(LABELS.astype(np.uint16)), "PNG"),
        "gif": encoded(palette, "GIF"),
        "bmp": encoded(palette, "BMP"),
        "tif": encoded(LABELS, "TIFF", compression="tiff_lzw"),
        "tif, 16 bits": encoded(Image.fromarray(LABELS.astype(np.uint16)), "TIFF"),
        "tif, 32 bits": encoded(Image.fromarray(LABELS.astype(np.int32)), "TIFF"),
    }


MASKS = masks()


class TestColours:
    @pytest.mark.parametrize("name", SAMPLES)
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
    def test_every_format_and_mode_is_what_pillow_converts_it_to(
        self, name: str, mode: Any
    ) -> None:
        found = Decode(mode=mode)(SAMPLES[name])
        image = Image.open(io.BytesIO(SAMPLES[name]))
        if mode != "RGBA":
            image.info.pop("transparency", None)
        expected = np.asarray(image.convert(mode)).reshape(48, 64, -1)
        assert (found.dtype, found.shape) == (torch.uint8, (expected.shape[2], 48, 64))
        # a JPEG's Y is that of its encoder, not of the RGB that it decodes to
        bound = (2.5 if mode == "L" else 1.5) if name.startswith("jpg") else 0
        assert difference(found.permute(1, 2, 0), expected) <= bound

    def test_alpha_is_dropped_and_what_it_hides_appears(self) -> None:
        pixels = np.dstack([picture(6, 7), np.zeros((6, 7), np.uint8)])
        data = encoded(Image.fromarray(pixels), "PNG")
        np.testing.assert_array_equal(Decode()(data).permute(1, 2, 0), pixels[..., :3])
        np.testing.assert_array_equal(Decode(mode="RGBA")(data).permute(1, 2, 0), pixels)

    def test_a_palette_with_alpha_is_read_without_a_warning(self) -> None:
        expected: list[Any] = [("RGB", 3), ("L", 1), ("RGBA", 4)]
        for mode, channels in expected:
            found = Decode(mode=mode)(MASKS["palette, all with alpha"])
            assert found.shape == (channels, *LABELS.shape)
        assert np.array_equal(found[3], LABELS), "the alpha of label n is n"

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
    def test_sixteen_bits_become_the_upper_eight(self, mode: Any) -> None:
        deep = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
        for format in ("PNG", "TIFF"):
            found = Decode(mode=mode)(encoded(Image.fromarray(deep), format))
            assert difference(found[0], deep >> 8) <= 1

    def test_cmyk_and_ycck_are_those_of_adobe(self) -> None:
        """Inverted, as Adobe stores them; YCCK is the same file with another word for it."""
        cmyk = Image.fromarray(picture(48, 64)).convert("CMYK")
        data = encoded(cmyk, "JPEG", quality=95, subsampling=0)
        ycck = bytearray(data)
        ycck[data.index(b"Adobe") + 11] = 2
        for some in (data, bytes(ycck)):
            expected = Image.open(io.BytesIO(some))
            assert expected.mode == "CMYK"
            modes: list[Any] = ["RGB", "L"]
            for mode in modes:
                found = Decode(mode=mode)(some).permute(1, 2, 0)
                pixels = np.asarray(expected.convert("RGB").convert(mode)).reshape(found.shape)
                assert difference(found, pixels) <= 1.5
        assert difference(Decode()(data).permute(1, 2, 0), np.asarray(cmyk.convert("RGB"))) < 4

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_an_animation_the_first_frame_is_taken(self, format: str) -> None:
        frames = [Image.fromarray(picture(20, 30)), Image.new("RGB", (30, 20), "red")]
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
        assert difference(Decode()(data).permute(1, 2, 0), frames[0]) < 20

    def test_a_progressive_jpeg_is_the_same_picture(self) -> None:
        plain, progressive = (
            encoded(picture(48, 64), "JPEG", progressive=progressive) for progressive in (0, 1)
        )
        for decode in (Decode(), Resize(12), CenterCrop(10, resize=20)):
            assert torch.equal(decode(plain), decode(progressive))

    def test_an_arithmetic_coded_jpeg_is_read(self) -> None:
        """Made by `jpegtran -arithmetic` from the other; Pillow does not read it."""
        data = base64.b64decode(ARITHMETIC)
        plain = encoded(picture(16, 24), "JPEG", quality=60, subsampling=0)
        assert difference(Decode()(data), Decode()(plain)) <= 1
        assert ImageCodec("jpg").pack(data).facts == {"height": 16, "width": 24}


class TestLabels:
    """Numbers that no conversion and no resizing changes."""

    @pytest.mark.parametrize("name", MASKS)
    @pytest.mark.parametrize("mode", ["labels", "labels32"])
    def test_they_are_the_files_own(self, name: str, mode: Any) -> None:
        found = Decode(mode=mode)(MASKS[name])
        assert found.dtype == (torch.uint8 if mode == "labels" else torch.int32)
        np.testing.assert_array_equal(found, LABELS)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_are_not_spread_over_eight(self, bits: int) -> None:
        labels = (LABELS % 2**bits).astype(np.uint8)
        palette = Image.fromarray(labels)
        palette.putpalette(bytes(range(3 * 2**bits)))
        files = [encoded(palette, "PNG", bits=bits)]
        spread = labels * (255 // (2**bits - 1))
        if bits == 1:
            files.append(encoded(Image.fromarray(spread).convert("1"), "PNG"))
        else:
            files.append(gray_png(labels, bits))
        for data in files:
            np.testing.assert_array_equal(Decode(mode="labels")(data), labels)
        np.testing.assert_array_equal(Decode(mode="L")(files[1])[0], spread)

    @pytest.mark.parametrize("make", DECODERS, ids=NAMES)
    @pytest.mark.parametrize("mode", ["labels", "labels32"])
    def test_no_decoder_makes_a_label_that_is_not_there(self, make: Any, mode: Any) -> None:
        decode = make(mode=mode)
        for seed in range(5):
            found = decode(MASKS["palette"], torch.Generator().manual_seed(seed))
            assert set(found.unique().tolist()) <= set(np.unique(LABELS).tolist())
            assert found.dim() == 2

    def test_a_label_is_that_of_the_pixel_in_which_the_new_centre_lies(self) -> None:
        image = Image.fromarray(LABELS)
        for size in ((20, 30), (60, 112), (64, 128), (8, 256)):
            found = Resize(size, mode="labels")(MASKS["gray"])
            expected = image.resize(size[::-1], Image.Resampling.NEAREST)
            np.testing.assert_array_equal(found, np.asarray(expected))

    @pytest.mark.parametrize("make", DECODERS, ids=NAMES)
    def test_a_mask_lies_on_its_picture(self, make: Any) -> None:
        """The picture is the mask in large steps of gray, so that edges can be compared."""
        labels = np.kron(RNG.integers(0, 2, (4, 6), dtype=np.uint8), np.ones((20, 20), np.uint8))
        image, mask = (encoded(some, "PNG") for some in (labels * 255, labels))
        for seed in range(10):
            gray, found = (
                make(mode=mode)(data, torch.Generator().manual_seed(seed))
                for mode, data in (("L", image), ("labels", mask))
            )
            certain = (gray[0] < 80) | (gray[0] > 175)
            assert certain.float().mean() > 0.6
            # an edge in between pixels is rounded to either side
            wrong = ((gray[0] > 127) != (found == 1)) & certain
            assert wrong.float().mean() < 0.01

    def test_what_holds_no_labels_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pack them as png"):
            Decode(mode="labels")(SAMPLES["jpg"])
        with pytest.raises(ValueError, match="RGBA; labels are palette indices or one gray"):
            Decode(mode="labels")(SAMPLES["png alpha"])
        for format in ("PNG", "TIFF"):
            deep = encoded(Image.fromarray(LABELS.astype(np.uint16) * 300), format)
            with pytest.raises(ValueError, match="a label is 6600, above 255; mode='labels32'"):
                Decode(mode="labels")(deep)
            np.testing.assert_array_equal(Decode(mode="labels32")(deep), LABELS.astype(int) * 300)


class TestForm:
    @pytest.mark.parametrize(
        ("mode", "shape"),
        [("RGB", (3, 8, 9)), ("L", (1, 8, 9)), ("RGBA", (4, 8, 9)), ("labels", (8, 9))],
    )
    def test_it_is_what_comes_out(self, mode: Any, shape: tuple[int, ...]) -> None:
        data = encoded(LABELS, "PNG")
        for decode in (RandomResizedCrop, CenterCrop, Resize):
            crop: Any = decode((8, 9), mode=mode)
            found = crop(data, torch.Generator().manual_seed(0))
            assert crop.form == Form(found.dtype, tuple(found.shape)) == Form(torch.uint8, shape)

    def test_a_whole_image_has_one_where_the_dataset_has_one_size(self) -> None:
        assert Decode().form({"size": [8, 9]}) == Form(torch.uint8, (3, 8, 9))
        assert Decode(mode="labels32").form({"size": [8, 9]}) == Form(torch.int32, (8, 9))
        assert Decode().form({"size": None}) is None
        assert Decode().form({}) is None

    @pytest.mark.parametrize("make", DECODERS, ids=NAMES)
    def test_another_mode_is_refused_with_those_that_there_are(self, make: Any) -> None:
        with pytest.raises(UsageError, match="mode is 'rgb'; it must be one of RGB, L, RGBA"):
            make(mode="rgb")


def gray_png(labels: Any, bits: int) -> bytes:
    """A PNG of few bits a pixel, which Pillow does not write."""
    height, width = labels.shape
    per = 8 // bits
    rows = labels.reshape(height, width // per, per)
    packed = sum(rows[..., i].astype(int) << bits * (per - 1 - i) for i in range(per))
    raw = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        checked = kind + body
        out += struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))
    return out


ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywt"
    "QFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT0//yQARCAAQABgDAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AGjg"
    "ObU6wutRlDpUa0+tWvsh9rnFcRAcB85dn82Timx5t/X6XpC5BHPhw0LvY0TBBFeXTRGjzUD/2Q=="
)
