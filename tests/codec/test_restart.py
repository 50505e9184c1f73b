"""Parts of JPEGs with restart intervals: the pixels of the whole, and less work."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from streamshard.codec import picture as codec_picture
from streamshard.codec import restart
from streamshard.codec.crop import CenterCrop, RandomResizedCrop, Resize
from streamshard.codec.header import Headers
from streamshard.codec.image import encode_pixels
from streamshard.codec.picture import opened
from streamshard.codec.pixels import Mode, Rectangle, part_of
from streamshard.codec.restart import cut, grid_of, interval_for
from streamshard.codec.segments import segments_of
from tests.codec.pictures import by_pillow, difference, encoded, picture

SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:1:1"]
SIZES, SEEDS = st.integers(1, 130), st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[restart.Cut]:
    """What is cut out, of small pictures too."""
    found: list[restart.Cut] = []

    def noted(*args: object) -> restart.Cut | None:
        one = cut(*args)  # type: ignore[arg-type]
        found.extend([one] if one else [])
        return one

    monkeypatch.setattr(restart, "_LEAST_LEFT_OUT", 1)
    monkeypatch.setattr(codec_picture, "cut", noted)
    return found


def jpeg(rng: np.random.Generator) -> bytes:
    """With restart intervals of any length, of rows or not."""
    height, width = (int(side) for side in rng.integers(1, 130, 2))
    pixels = Image.fromarray(picture(height, width)).convert(rng.choice(["RGB", "L", "CMYK"]))
    unit = rng.choice(["restart_marker_blocks", "restart_marker_rows"])
    return encoded(
        pixels, "JPEG", quality=int(rng.integers(20, 101)), subsampling=rng.choice(SAMPLINGS),
        progressive=rng.random() < 0.1, **{unit: int(rng.integers(1, 12))},
    )  # fmt: skip


def wanted(rng: np.random.Generator, data: bytes) -> tuple[Mode, float, Rectangle]:
    """A mode, a scale and a part of the picture at that scale.

    Raises:
        ValueError: The file is damaged.
    """
    file = opened(data)
    scale = file.scale(rng.choice([1, 0.5, 0.25, 0.125]))
    (top, bottom), (left, right) = (
        sorted(rng.choice(-(-side * round(8 * scale) // 8) + 1, 2, replace=False).tolist())
        for side in file.size
    )
    return rng.choice(["RGB", "L", "RGBA"]), scale, Rectangle(top, left, bottom, right)


def damaged(rng: np.random.Generator, whole: bytes) -> bytes:
    """With other bytes or a marker in some places, or without some."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at, how = int(rng.integers(3, len(data))), rng.integers(5)
        if how < 2:
            data[at] = rng.integers(256)
        elif how == 2:
            data[at : at + 2] = bytes([0xFF, rng.integers(0xD0, 0xDA)])
        else:
            del data[at : at + int(rng.integers(1, 40))]
    return bytes(data)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SEEDS)
def test_a_part_has_the_pixels_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = jpeg(rng)
    mode, scale, part = wanted(rng, data)
    whole = opened(data).decode(mode, scale)
    np.testing.assert_array_equal(opened(data).decode(mode, scale, part), part_of(whole, part))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("scale", [1, 0.5, 0.25, 0.125])
def test_parts_are_cut_out_at_every_scale(
    cuts: list[restart.Cut], sampling: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(picture(510, 770), "JPEG", subsampling=sampling, restart_marker_blocks=1)
    whole = opened(data).decode("RGB", scale)
    decoded: list[int] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def noted(file: bytes, *args: object, **more: object) -> object:
        decoded.append(len(file))
        return decode_jpeg(file, *args, **more)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    rng = np.random.default_rng(0)
    for _ in range(40):
        top, left = (int(rng.integers(side - 12)) for side in whole.shape[:2])
        bottom, right = (
            int(rng.integers(begin + 12, min(side, begin + side // 2) + 1))
            for begin, side in zip((top, left), whole.shape[:2], strict=True)
        )
        part = Rectangle(top, left, bottom, right)
        found = opened(data).decode("RGB", scale, part)
        np.testing.assert_array_equal(found, part_of(whole, part))
    assert decoded == [len(one.data) for one in cuts]
    assert len(cuts) == 40
    assert max(decoded) < len(data)


def test_what_is_cut_out_is_a_jpeg_of_its_place_alone() -> None:
    pixels = picture(256, 341)
    data = encode_pixels(pixels, "jpg", 90)
    grid = grid_of(data, segments_of(data))
    assert grid is not None
    assert (grid.step, grid.shape) == ((16, 32), (16, 11))
    found = cut(data, grid, Rectangle(70, 40, 130, 200))
    assert found is not None
    assert found.place == (64, 32, 144, 224)
    assert by_pillow(bytes(found.data)).shape == (80, 192, 3)
    # The header is the same, and of the rest there is as much as there is of the picture.
    assert len(found.data) - grid.scan < 1.3 * (len(data) - grid.scan) * 80 * 192 / (256 * 341)


def test_crops_of_files_with_and_without_intervals_are_the_same(cuts: list[restart.Cut]) -> None:
    pixels = picture(256, 341)
    plain = encoded(pixels, "JPEG", quality=90)
    marked = encoded(pixels, "JPEG", quality=90, restart_marker_blocks=2)
    for crop in (
        RandomResizedCrop(224), RandomResizedCrop(64, flip=0.5), CenterCrop(224),
        CenterCrop(100, resize=120), CenterCrop((30, 200), resize=300), Resize(50),
    ):  # fmt: skip
        for seed in range(20):
            generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
            one, other = (
                crop(data, generator)
                for data, generator in zip((plain, marked), generators, strict=True)
            )
            assert torch.equal(one, other)
    assert len(cuts) > 60


def test_a_turned_file_gives_its_part_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(90, 120), "JPEG", restart_marker_blocks=1, exif=exif)
    assert opened(data).size == (120, 90)
    part = Rectangle(50, 20, 61, 33)
    found = opened(data).decode("RGB", 1.0, part)
    np.testing.assert_array_equal(found, part_of(opened(data).decode(), part))
    assert found.flags.c_contiguous


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_narrow_part_at_an_edge_has_the_pixels_of_the_whole(sampling: str) -> None:
    rng = np.random.default_rng(0)
    for width in (17, 18, 20, 33, 34, 36):
        pixels = rng.integers(0, 256, (300, width, 3), np.uint8)
        data = encoded(pixels, "JPEG", quality=100, subsampling=sampling, restart_marker_blocks=1)
        for scale in (1, 0.5, 0.25, 0.125):
            whole = opened(data).decode("RGB", scale)
            for left in range(whole.shape[1]):
                part = Rectangle(5, left, 9, left + 1)
                found = opened(data).decode("RGB", scale, part)
                np.testing.assert_array_equal(found, part_of(whole, part))


def test_an_image_that_no_jpeg_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="65501x1 pixels; a JPEG has 65500"):
        encode_pixels(np.zeros((1, 65_501, 3), np.uint8), "jpg", 90)


@pytest.mark.parametrize("behind", [b"bytes", b"\xff\xd9", encoded(picture(64, 64), "JPEG")])
def test_what_lies_behind_the_image_does_no_harm(behind: bytes) -> None:
    data = encoded(picture(90, 120), "JPEG", restart_marker_blocks=1)
    part = Rectangle(0, 0, 20, 30)
    for each in (part, Rectangle(60, 80, 90, 120)):
        found = opened(data + behind).decode("RGB", 1.0, each)
        np.testing.assert_array_equal(found, part_of(opened(data).decode(), each))


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SEEDS)
def test_of_a_damaged_file_a_part_is_that_of_the_whole_or_the_whole_is_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = damaged(rng, jpeg(rng))
    try:
        mode, scale, part = wanted(rng, data)
        whole = opened(data).decode(mode, scale)
    except ValueError:
        return
    found = opened(data).decode(mode, scale, part)
    try:
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # Pillow, which tolerates more, decoded the whole
        assert scale < 1 or difference(found, part_of(whole, part)) < 4
    else:
        np.testing.assert_array_equal(found, part_of(whole, part))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="no intervals"),
        pytest.param({"restart_marker_blocks": 5}, id="no rows"),
        pytest.param({"restart_marker_rows": 1, "progressive": True}, id="several scans"),
    ],
)
def test_what_has_no_rows_of_intervals_in_one_scan_has_no_grid(options: dict[str, int]) -> None:
    data = encoded(picture(128, 128), "JPEG", **options)
    assert grid_of(data, segments_of(data)) is None


def test_colours_in_scans_of_their_own_are_decoded_whole() -> None:
    planes = [
        encoded(picture(40, 48)[..., band], "JPEG", restart_marker_blocks=1) for band in range(3)
    ]
    data = colours_apart(planes)
    assert grid_of(data, segments_of(data)) is None
    whole = opened(data).decode()
    assert whole.shape == (40, 48, 3)
    for mode in ("RGB", "L"):
        found = opened(data).decode(mode, 1.0, Rectangle(0, 0, 9, 9))
        np.testing.assert_array_equal(found, opened(data).decode(mode)[:9, :9])


def colours_apart(planes: list[bytes]) -> bytes:
    """Three gray JPEGs with the same tables as the components of one."""
    *head, scan = segments_of(planes[0])
    data = b"\xff\xd8"
    for marker, begin, end in head:
        body = planes[0][begin:end]
        if marker == 0xC0:
            body = body[:5] + bytes([3, *(each for part in (1, 2, 3) for each in (part, 0x11, 0))])
        data += bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
    for number, plane in enumerate(planes):
        data += b"\xff\xda\x00\x08\x01" + bytes([number + 1, 0, 0, 63, 0]) + plane[scan.end : -2]
    return data + b"\xff\xd9"


@given(st.integers(1, 70_000))
def test_intervals_make_up_rows_of_eight_or_more(width: int) -> None:
    across, interval = -(-width // 16), interval_for(width)
    assert across % interval == 0
    assert across // interval >= 8 or interval == 1
    assert not any(across % more == 0 for more in range(interval + 1, across // 8 + 1))


def test_pixels_are_encoded_as_without_intervals() -> None:
    pixels = picture(200, 300)
    data = encode_pixels(pixels, "jpg", 90)
    np.testing.assert_array_equal(by_pillow(data), by_pillow(encoded(pixels, "JPEG", quality=90)))
    assert simplejpeg.decode_jpeg_header(data)[3] == "420"
    markers = data.count(b"\xff\xd0") * 8
    assert len(data) < len(encoded(pixels, "JPEG", quality=90)) + 5 * markers


@settings(max_examples=100)
@given(st.lists(st.tuples(SIZES, SIZES, st.integers(1, 100), st.booleans()), max_size=12))
def test_a_header_is_the_file_s_own_whatever_was_read_before(
    files: list[tuple[int, int, int, bool]],
) -> None:
    headers = Headers()
    for height, width, quality, has_comment in files * 2:
        image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        file = io.BytesIO()
        comment = {"comment": "x" * width} if has_comment else {}
        image.save(file, "JPEG", quality=quality, restart_marker_blocks=1, **comment)
        data = file.getvalue()
        found = headers.of(data)
        assert found is not None
        assert found == Headers().of(data)
        assert found.size == (height, width)


def test_headers_do_not_pile_up() -> None:
    headers = Headers()
    for width in range(1, 1000):
        headers.of(encoded(np.zeros((1, width, 3), np.uint8), "JPEG"))
    assert len(headers._known) <= 256
